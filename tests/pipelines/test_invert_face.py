from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("av")
pytest.importorskip("dlib")
image = pytest.importorskip("PIL.Image")

from model.camera import RADIUS, check_cameras  # noqa: E402
from pipelines import invert_face  # noqa: E402
from pipelines.invert_face import find_face, read_picture, write_lossless  # noqa: E402
from stages import backends  # noqa: E402
from stages.cameras import euler_degrees  # noqa: E402
from stages.sources.portraits import EILEEN_COLLINS, GRACE_HOPPER, _path  # noqa: E402
from stages.video import read_frames, write_video  # noqa: E402


@pytest.fixture(scope="module")
def grace() -> np.ndarray:
    return read_picture(_path(GRACE_HOPPER))


@pytest.fixture(autouse=True)
def one_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading dlib's points takes as long as all else here."""
    if not hasattr(one_detector, "model"):
        one_detector.model = backends.load(invert_face.FACE)
    monkeypatch.setattr(backends, "load", lambda path, **options: one_detector.model)


def png(folder: Path, picture: np.ndarray) -> Path:
    path = folder / "picture.png"
    assert cv2.imwrite(str(path), picture[..., ::-1])
    return path


def test_a_portrait_is_cut_as_the_training_s_own_and_has_a_camera(tmp_path: Path, grace: np.ndarray) -> None:
    found = find_face(png(tmp_path, grace), 64)
    assert found.pictures.shape == (1, 64, 64, 3)
    check_cameras(found.cameras, radius=RADIUS)
    yaw, pitch, _ = euler_degrees(found.cameras)
    assert abs(yaw[0]) < 25
    assert abs(pitch[0]) < 25
    assert found.warnings == ()
    turned = find_face(png(tmp_path, np.ascontiguousarray(grace[:, ::-1])), 64)
    assert euler_degrees(turned.cameras)[0][0] == pytest.approx(-yaw[0], abs=4)
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_of_two_faces_the_largest_is_taken_with_a_warning_or_the_one_that_is_named(
    tmp_path: Path, grace: np.ndarray
) -> None:
    eileen = read_picture(_path(EILEEN_COLLINS))
    both = png(tmp_path, np.concatenate([eileen, grace[:512]], axis=1))
    found = find_face(both, 64)
    assert found.warnings == ("2 faces; the largest is taken, --face 2 takes the next",)
    alone = find_face(png(tmp_path, grace[:512]), 64).pictures.astype(int)
    assert np.abs(found.pictures - alone).mean() < 8
    both = png(tmp_path, np.concatenate([eileen, grace[:512]], axis=1))
    second = find_face(both, 64, face=2)
    assert np.abs(second.pictures - alone).mean() > 30
    assert second.warnings == ()
    with pytest.raises(ValueError, match="--face 3: 2 found; give 1, the largest, to 2"):
        find_face(both, 64, face=3)


def test_a_small_face_is_told_from_none(tmp_path: Path, grace: np.ndarray) -> None:
    scale = 40 / 180  # her face is about 180 px wide
    small = cv2.resize(grace, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    with pytest.raises(ValueError, match=r"face too small \(about [34][0-9] px, 80 are needed\)"):
        find_face(png(tmp_path, small), 64)
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    with pytest.raises(ValueError, match="no face; a profile, and a face of under 80 px, is not found"):
        find_face(png(tmp_path, noise), 64)


def test_a_video_is_followed_up_to_its_cut(tmp_path: Path, grace: np.ndarray) -> None:
    shown = [np.roll(grace, shift, axis=1)[:512] for shift in range(12)]
    other = [np.random.default_rng(i).integers(0, 255, shown[0].shape, np.uint8) for i in range(6)]
    write_video(tmp_path / "talk.mp4", [*shown, *other], 25.0)
    found = find_face(tmp_path / "talk.mp4", 64, frames=4, start_s=0.12)
    assert found.pictures.shape == (4, 64, 64, 3)
    assert found.cameras.shape == (4, 25)
    assert found.warnings == ()
    with pytest.raises(ValueError, match=r"too short \(no shot of two frames after 60 s\)"):
        find_face(tmp_path / "talk.mp4", 64, frames=4, start_s=60.0)


def test_a_picture_is_a_video_of_one_frame_without_loss(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (62, 99, 3), np.uint8)
    write_lossless(tmp_path / "p.mkv", picture)
    np.testing.assert_array_equal(next(iter(read_frames(tmp_path / "p.mkv", [0.0]))), picture)


def test_a_turned_photograph_is_read_upright(tmp_path: Path) -> None:
    exif = image.Exif()
    exif[0x0112] = 6  # held a quarter turn: to be turned clockwise
    picture = image.new("RGB", (8, 4))
    picture.putpixel((0, 0), (255, 0, 0))
    picture.save(tmp_path / "turned.png", exif=exif)
    read = read_picture(tmp_path / "turned.png")
    assert read.shape == (8, 4, 3)
    assert read[0, 3].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("cut.jpg", lambda p: p.write_bytes(_path(GRACE_HOPPER).read_bytes()[:20000]), "truncated"),
        ("junk.png", lambda p: p.write_bytes(b"junk" * 99), "cannot be decoded as a picture"),
        ("empty.jpg", lambda p: p.touch(), "cannot be decoded as a picture"),
        ("huge.png", lambda p: image.new("1", (9000, 9000)).save(p), "is huge; scale it"),
        ("absent.jpg", lambda p: None, "no such file"),
        ("folder.jpg", lambda p: p.mkdir(), "no such file"),
        ("junk.mp4", lambda p: p.write_bytes(b"junk" * 99), "cannot decode"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line(name: str, make, message: str, tmp_path: Path) -> None:
    make(tmp_path / name)
    with pytest.raises(ValueError, match=message) as caught:
        find_face(tmp_path / name, 64)
    assert "\n" not in str(caught.value)
