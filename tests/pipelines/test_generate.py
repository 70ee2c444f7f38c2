import hashlib
from pathlib import Path

import numpy as np
import pytest

mlflow = pytest.importorskip("mlflow")
torch = pytest.importorskip("torch")
pytest.importorskip("av")

from infra.checkpoints import save  # noqa: E402
from infra.storage import FolderStorage  # noqa: E402
from model import camera  # noqa: E402
from model.config import tiny, to_dict  # noqa: E402
from model.generator import Generator  # noqa: E402
from pipelines.checkpoints import EMA  # noqa: E402
from pipelines.generate import frames_of, generate, swing  # noqa: E402
from pipelines.models import open_model  # noqa: E402
from pipelines.register import register_generator  # noqa: E402
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


def digests(files: list[Path]) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def test_every_seed_is_one_video_with_the_same_bytes_each_time(tracking: str, tmp_path: Path) -> None:
    options = {"frames": 5, "tracking": tracking}
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
    options = {"seeds": [3], "frames": 3, "tracking": tracking}
    registered = generate("models:/faces@candidate", out=tmp_path / "r", **options)
    from_folder = generate(str(checkpoint), out=tmp_path / "c", **options)
    assert digests(registered) == digests(from_folder)


def test_a_swinging_camera_changes_the_picture_but_not_the_first_frame(checkpoint: Path) -> None:
    opened = open_model(str(checkpoint), "unused")
    times = opened.clips.window_times(opened.generator.config, 8)
    still, swung = (list(frames_of(opened, 3, swing(camera, 8, yaw), times)) for yaw in (0.0, 30.0))
    np.testing.assert_array_equal(still[0], swung[0])
    assert np.abs(still[2].astype(int) - swung[2]).mean() > 5


def test_the_swing_starts_at_the_front_and_reaches_its_angle_on_both_sides() -> None:
    cameras = camera.Camera.decode(swing(camera, 8, 20.0))
    np.testing.assert_allclose(swing(camera, 8, 0.0)[0], camera.canonical_camera().encode(), atol=1e-6)
    yaw = np.rad2deg(np.arctan2(cameras.position[:, 0], cameras.position[:, 2]))
    np.testing.assert_allclose(yaw[[0, 2, 4, 6]], [0, 20, 0, -20], atol=1e-4)


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


@pytest.mark.parametrize(("option", "value"), [("yaw", "nan"), ("psi", "inf")])
def test_an_angle_or_truncation_that_is_no_number_is_refused(
    option: str, value: str, tracking: str, tmp_path: Path
) -> None:
    given = {"yaw_deg" if option == "yaw" else option: float(value)}
    with pytest.raises(ValueError, match=f"--{option} {value}: must be a finite number"):
        generate("models:/faces/1", seeds=[0], frames=2, out=tmp_path / "out", tracking=tracking, **given)
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
