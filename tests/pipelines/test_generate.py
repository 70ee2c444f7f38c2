import hashlib
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

mlflow = pytest.importorskip("mlflow")
torch = pytest.importorskip("torch")
pytest.importorskip("av")
cv2 = pytest.importorskip("cv2")

from tiny_registry import database_at  # noqa: E402

from infra.checkpoints import save  # noqa: E402
from infra.storage import FolderStorage  # noqa: E402
from model.config import tiny, to_dict  # noqa: E402
from model.generator import Generator  # noqa: E402
from pipelines.api import Model  # noqa: E402
from pipelines.checkpoints import EMA  # noqa: E402
from pipelines.generate import generate  # noqa: E402
from pipelines.inspect_file import inspect_file  # noqa: E402
from pipelines.invert import invert  # noqa: E402
from pipelines.models import open_model  # noqa: E402
from pipelines.publish import Marking  # noqa: E402
from pipelines.register import register_generator  # noqa: E402
from pipelines.trajectories import trajectory  # noqa: E402
from stages.sources.portraits import GRACE_HOPPER, _path  # noqa: E402
from stages.video import probe  # noqa: E402


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(tiny().model).eval()


@pytest.fixture(scope="module")
def checkpoint(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    card = {"variant": to_dict(tiny())}
    save(FolderStorage(root), "train/checkpoints", 24, {EMA: generator.state_dict()}, card, keep=1)
    return root / "train" / "checkpoints" / "00000024"


@pytest.fixture(scope="module")
def tracking(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("mlflow")
    uri, before = f"sqlite:///{folder}/mlflow.db", mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(
        experiment_id=mlflow.create_experiment("t", artifact_location=str(folder / "artifacts"))
    )
    with mlflow.start_run() as run:
        pass
    register_generator(
        generator, name="faces", alias="candidate", run_id=run.info.run_id, checkpoint="c", tags={}
    )
    mlflow.set_tracking_uri(before)
    return uri


PLAIN = Marking(credentials=False)  # a signature is another each time


def digests(files: list[Path]) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def test_every_seed_is_one_video_with_the_same_bytes_each_time(tracking: str, tmp_path: Path) -> None:
    options = {"frames": 5, "tracking": tracking, "marking": PLAIN}
    files = generate("models:/faces@candidate", seeds=[0, 7], out=tmp_path / "a", **options)
    assert [path.name for path in files] == ["seed0000.mp4", "seed0007.mp4"]
    info = probe(files[0])
    assert (info.width, info.height, info.fps, info.frame_count) == (64, 64, 25.0, 5)
    alone = generate("models:/faces/1", seeds=[7], out=tmp_path / "b", **options)
    assert digests(alone) == digests(files[1:])
    assert digests(files)[0] != digests(files)[1]


def test_a_checkpoint_gives_the_pixels_of_its_registered_version(
    checkpoint: Path, tracking: str, tmp_path: Path
) -> None:
    options = {"seeds": [3], "frames": 3, "tracking": tracking, "marking": PLAIN}
    registered = generate("models:/faces@candidate", out=tmp_path / "r", **options)
    from_folder = generate(str(checkpoint), out=tmp_path / "c", **options)
    assert digests(registered) == digests(from_folder)


@pytest.mark.parametrize("name", ["generator.safetensors", "config.json", "MLmodel"])
def test_a_registered_version_whose_files_are_damaged_is_one_line(
    generator: Generator, mlflow_database: Path, tmp_path: Path, name: str
) -> None:
    tracking = database_at(tmp_path, mlflow_database)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tracking)
    where = mlflow.create_experiment("t", artifact_location=str(tmp_path / "artifacts"))
    with mlflow.start_run(experiment_id=where) as run:
        pass
    register_generator(generator, name="f", alias="a", run_id=run.info.run_id, checkpoint="c", tags={})
    mlflow.set_tracking_uri(before)
    (file,) = (tmp_path / "artifacts").rglob(name)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"model 'models:/f@a': cannot be loaded \(") as told:
        open_model("models:/f@a", tracking)
    assert "\n" not in str(told.value)


def test_what_is_generated_says_so_unless_told_not_to(checkpoint: Path, tmp_path: Path) -> None:
    options = {"seeds": [3], "frames": 2, "tracking": "unused"}
    (signed,) = generate(str(checkpoint), out=tmp_path / "a", **options)
    (folder,) = generate(str(checkpoint), out=tmp_path / "b", how="png", marking=PLAIN, **options)
    told, plain = inspect_file(signed)[0], inspect_file(folder / "0001.png")[0]
    assert (told["credentials"], plain["credentials"]) == ("valid", "none")
    assert told["synthetic"]
    assert plain["metadata"]["Comment"].endswith("seed 3")


def test_a_registered_version_is_the_model_of_its_checkpoint_for_latents_too(
    checkpoint: Path, tracking: str
) -> None:
    registered, own = Model.load("models:/faces/1", tracking), Model.load(str(checkpoint))
    assert registered.sha256 == own.sha256
    latent = own.sample(4, times=own.times(2))
    np.testing.assert_array_equal(registered.render(latent), own.render(latent))
    mine, its = (m.mesh(latent, frame=1, level=0.0, resolution=12) for m in (own, registered))
    np.testing.assert_array_equal(its.vertices, mine.vertices)


def test_a_turning_camera_changes_the_picture_but_not_the_first_frame(checkpoint: Path) -> None:
    opened = Model.load(str(checkpoint))
    still, swung = (
        next(opened.generate([3], times=opened.times(8), cameras=trajectory(path, 8))).pictures["image"]
        for path in ("still", "orbit")
    )
    np.testing.assert_array_equal(still[0], swung[0])
    assert np.abs(still[2].astype(int) - swung[2]).mean() > 5


def test_a_seed_has_the_same_pixels_in_every_batch(checkpoint: Path) -> None:
    opened = replace(Model.load(str(checkpoint)), clips_at_once=3)
    alone, last, among = (
        list(opened.generate(seeds, times=opened.times(2)))[place].pictures["image"]
        for seeds, place in (([5], 0), ([0, 1, 2, 3, 5], 4), ([1, 5, 2], 1))
    )
    np.testing.assert_array_equal(alone, last)
    np.testing.assert_array_equal(alone, among)


def test_views_grids_kinds_and_frames_are_files_of_their_size(checkpoint: Path, tmp_path: Path) -> None:
    options = {"frames": 2, "tracking": "unused", "kinds": "image,depth,normals"}
    files = generate(str(checkpoint), seeds=[0, 1, 2], out=tmp_path, grid=2, yaws=(-30, 30), **options)
    assert [path.name for path in files] == ["grid.mp4", "grid-depth.mp4", "grid-normals.mp4"]
    info = probe(files[0])
    assert (info.width, info.height, info.frame_count) == (2 * 2 * 64, 2 * 64, 2)
    folder = generate(str(checkpoint), seeds=[1], out=tmp_path, how="png", span=(0, 0), **options)[0]
    assert sorted(path.name for path in folder.iterdir()) == ["0000.png", "0001.png"]
    first, second = (cv2.imread(str(folder / f"000{i}.png")) for i in range(2))
    np.testing.assert_array_equal(first, second)  # both at time 0
    front = next(Model.load(str(checkpoint)).generate([1], times=np.zeros(2, np.float32)))
    np.testing.assert_array_equal(first[..., ::-1], front.pictures["image"][0])


def test_cameras_of_a_file_are_followed(checkpoint: Path, tmp_path: Path) -> None:
    cameras = trajectory("figure-eight", 6)
    np.save(tmp_path / "path.npy", cameras)
    options = {"seeds": [3], "frames": 6, "tracking": "unused", "marking": PLAIN}
    named, read = (
        generate(str(checkpoint), out=tmp_path / out, camera=camera, **options)
        for out, camera in (("a", "figure-eight"), ("b", str(tmp_path / "path.npy")))
    )
    assert digests(named) == digests(read)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("models:/nobody@candidate", "nothing is registered as 'nobody'"),
        ("models:/faces@champion", "no alias 'champion'; known aliases: candidate"),
        ("models:/faces/99", "no version 99; the latest is 1"),
        ("models:/faces", "models:/NAME@ALIAS"),
        ("no/such/folder", "no such folder"),
    ],
)
def test_a_model_that_is_not_there_is_named_in_one_line(
    model: str, message: str, tracking: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        generate(model, seeds=[0], frames=2, out=tmp_path / "out", tracking=tracking)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("yaw", "nan"), ("yaw", "1e+300"), ("psi", "inf"), ("psi", "1e+300")]
)
def test_an_angle_or_truncation_that_means_nothing_is_refused(
    option: str, value: str, tracking: str, tmp_path: Path
) -> None:
    given = {option: float(value)}
    with pytest.raises(ValueError, match=re.escape(f"--{option} {value}: give ")):
        generate("models:/faces/1", seeds=[0], frames=2, out=tmp_path / "out", tracking=tracking, **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": "image,heat"}, "--kinds image,heat: 'heat' is unknown"),
        ({"span": (0.5, 1.5)}, "--span 0.5:1.5: give two times from 0 to 1"),
        ({"camera": "spiral"}, "--camera spiral: no such file; give one, or still, orbit"),
        ({"grid": 2, "seeds": range(65)}, "--grid 2: 65 seeds; a grid has 64 at most"),
    ],
)
def test_a_wish_that_cannot_be_met_is_one_line(
    options: dict, message: str, checkpoint: Path, tmp_path: Path
) -> None:
    given = {"seeds": [0], "frames": 2, "tracking": "unused", **options}
    with pytest.raises(ValueError, match=message):
        generate(str(checkpoint), out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_database_that_does_not_exist_is_refused_and_not_created(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such database"):
        generate("models:/a@b", seeds=[0], frames=2, out=tmp_path, tracking=f"sqlite:///{tmp_path}/absent.db")
    assert not (tmp_path / "absent.db").exists()


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint"):
        generate(str(tmp_path), seeds=[0], frames=2, out=tmp_path / "out", tracking="unused")


def test_more_frames_than_the_window_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"frames 17.*1 to 16"):
        generate(str(checkpoint), seeds=[0], frames=17, out=tmp_path / "out", tracking="unused")


def test_an_output_that_is_a_file_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ValueError, match=r"--out .*out"):
        generate(str(checkpoint), seeds=[0], frames=2, out=tmp_path / "out", tracking="unused")


def test_a_network_of_ones_own_for_an_inversions_loss_is_looked_at(checkpoint: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "network.pt"
    pickled.write_bytes(pickle.dumps({"weights": 1}))
    with pytest.raises(ValueError, match=r"network\.pt"):
        invert(
            _path(GRACE_HOPPER), tmp_path / "me", model=str(checkpoint), tracking="unused", steps=1,
            perceptual=pickled,
        )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["network.pt"]
