import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
av = pytest.importorskip("av")

from click.testing import CliRunner  # noqa: E402
from small_model import small_model  # noqa: E402

from pipelines.api import Model  # noqa: E402
from pipelines.cli import main  # noqa: E402
from pipelines.latents import Latent  # noqa: E402
from pipelines.packed import pack  # noqa: E402
from pipelines.trajectories import trajectory  # noqa: E402
from stages.video import probe  # noqa: E402


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in a file, and two latents of it: `talk` of four frames, `face` of a picture."""
    from infra.checkpoints import save
    from infra.storage import FolderStorage
    from model.config import Variant, tiny, to_dict
    from pipelines.checkpoints import EMA

    folder = tmp_path_factory.mktemp("place")
    made = small_model()
    variant: Variant = replace(tiny(), model=made.config)
    state = made.opened.generator.state_dict()
    save(FolderStorage(folder), "checkpoints", 1, {EMA: state}, {"variant": to_dict(variant)}, keep=1)
    pack(str(folder / "checkpoints" / "00000001"), folder / "small.safetensors", tracking="unused")
    model = Model.load(str(folder / "small.safetensors"))
    talk = model.sample(1, times=model.times(4, (0, 1)), cameras=trajectory("orbit", 4))
    motion = np.random.default_rng(0).normal(size=(4, talk.z_m.shape[1])).astype(np.float32)
    talk = replace(talk, z_m=motion)
    replace(talk, target=model.render(talk)).save(folder / "talk")
    face = model.sample(2, times=np.zeros(1, np.float32))
    replace(face, target=model.render(face)).save(folder / "face")
    return folder


def pv3d(*words: object) -> tuple[int, dict, str]:
    answer = CliRunner().invoke(main, [*map(str, words), "--json"])
    last = answer.stdout.splitlines()[-1] if answer.stdout else "{}"
    return answer.exit_code, json.loads(last) if answer.exit_code == 0 else {}, answer.stderr


def files_of(answer: tuple[int, dict, str]) -> list[str]:
    status, told, errors = answer
    assert status == 0, errors
    assert all(Path(file).exists() for file in told["files"])
    return [Path(file).name for file in told["files"]]


def test_a_face_is_animated_by_every_seed(place: Path, tmp_path: Path) -> None:
    words = ("animate", place / "face", "--seeds", "1,3", "--frames", 3, "--views=-20,20")
    found = files_of(pv3d(*words, "--camera", "orbit", "--kinds", "image,depth", "--out", tmp_path))
    assert found == [
        "face-motion0001.mp4", "face-motion0001-depth.mp4", "face-motion0003.mp4",
        "face-motion0003-depth.mp4",
    ]  # fmt: skip
    info = probe(tmp_path / found[0])
    assert (info.width, info.height, info.frame_count) == (128, 64, 3)


def test_an_edited_video_is_a_latent_again(place: Path, tmp_path: Path) -> None:
    words = ("edit", place / "talk.json", "--scale", 0, "--format", "png", "--out", tmp_path / "out")
    assert files_of(pv3d(*words, "--save", tmp_path / "calm")) == ["talk-scale0", "calm.safetensors"]
    calm = Latent.load(tmp_path / "calm")
    assert not calm.z_m.any()
    np.testing.assert_array_equal(calm.cameras, Latent.load(place / "talk").cameras)
    assert len(list((tmp_path / "out" / "talk-scale0").iterdir())) == 4


def test_a_face_is_driven_by_a_video(place: Path, tmp_path: Path) -> None:
    found = files_of(pv3d("transfer", place / "face", "--driving", place / "talk", "--out", tmp_path))
    assert found == ["face-as-talk.mp4"]
    assert probe(tmp_path / found[0]).frame_count == 4


def test_a_reconstruction_is_shown_beside_its_picture_and_measured(place: Path, tmp_path: Path) -> None:
    status, told, _ = pv3d("reconstruct", place / "face.safetensors", "--out", tmp_path)
    assert status == 0
    assert told["psnr"] == 100
    assert told["l1"] == 0
    assert told["lpips"] is None
    assert "vgg16.pt missing" in told["not_computed"]["lpips"]
    assert [Path(file).name for file in told["files"]] == ["face-reconstruction.png"]
    assert files_of(pv3d("reconstruct", place / "talk", "--out", tmp_path)) == ["talk-reconstruction.mp4"]


def test_a_latent_has_a_mesh(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    words = ("mesh", "--latent", place / "talk", "--frames", 2, "--level", 0)    # of its own model
    found = files_of(pv3d(*words, "--resolution", 16, "--out", tmp_path / "a.ply"))
    assert found == ["a-0000.ply", "a-0001.ply"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("animate", "nobody"), "latent nobody: no nobody.safetensors; `pv3d invert` writes both"),
        (("edit", "{talk}"), "--scale, --seed: give one of them, or both"),
        (("edit", "{face}", "--scale", "2"), "is of a picture, which has no motion"),
        (("transfer", "{face}", "--driving", "{face}"), "is of a picture, which has no motion"),
        (("edit", "{talk}", "--scale", "inf"), "--scale inf: give a number from -100 to 100"),
        (("edit", "{talk}", "--scale", "1", "--camera", "spiral"), "--camera spiral: no such file"),
        (("animate", "{face}", "--model", "{other}"), "the latent is of another model"),
        (("animate", "{face}", "--frames", "17"), "frames 17: this model was trained on windows of 16"),
        (("animate", "{face}", "--seeds", "0-1", "--save", "x"), "one latent is written; give one seed"),
        (("edit", "{talk}", "--scale", "0", "--save", "{talk}"), "is a latent that is read here"),
        (("transfer", "{face}", "--driving", "{talk}", "--save", "{talk}.json"), "is a latent that is read"),
        (("animate", "{face}", "--views", "a"), "--views a: write degrees such as -30,0,30"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    words: tuple[str, ...], message: str, place: Path, tmp_path: Path
) -> None:
    if "{other}" in words:
        torch.manual_seed(9)
        state = {k: torch.randn_like(v) for k, v in small_model().opened.generator.state_dict().items()}
        save_other(tmp_path / "other.safetensors", place / "small.safetensors", state)
    names = {"talk": place / "talk", "face": place / "face", "other": tmp_path / "other.safetensors"}
    given = [word.format(**names) for word in words]
    status, _, errors = pv3d(*given, "--out", tmp_path / "out")
    assert status == 2
    assert message in errors
    assert len([line for line in errors.splitlines() if line.startswith("pv3d:")]) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [("absent.jpg", "absent.jpg: no such file"), ("junk.png", "cannot be decoded as a picture")],
)
def test_what_cannot_be_inverted_is_one_line_and_leaves_nothing(
    name: str, message: str, place: Path, tmp_path: Path
) -> None:
    (tmp_path / "junk.png").write_bytes(b"junk" * 99)
    words = ("invert", tmp_path / name, "--model", place / "small.safetensors")
    status, _, errors = pv3d(*words, "--out", tmp_path / "out" / "x")
    assert status == 2
    assert message in errors
    assert not (tmp_path / "out").exists()


def save_other(path: Path, like: Path, state: dict) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(str(like), "pt") as file:
        save_file(state, path, file.metadata())
