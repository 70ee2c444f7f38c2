"""Following a face, on the two portraits that ship inside matplotlib and scikit-image, set in motion."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
import skimage.data

from infra.storage import Storage
from stages import video
from stages.base import Drop, Rejected
from stages.clip import Clip
from stages.faces import FollowFace
from stages.shots import SplitShots

pytest.importorskip("dlib")

SIDE = 320
Picture = np.ndarray


@pytest.fixture(scope="module")
def grace() -> Picture:
    whole = cv2.imread(str(Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")))
    return cv2.cvtColor(whole, cv2.COLOR_BGR2RGB)


@pytest.fixture(scope="module")
def astronaut() -> Picture:
    return skimage.data.astronaut()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., FollowFace]:
    from infra.storage import FolderStorage

    made: dict[tuple[tuple[str, float], ...], FollowFace] = {}

    def make(**settings: float) -> FollowFace:
        key = tuple(sorted(settings.items()))
        if key not in made:
            made[key] = FollowFace(**settings)
            made[key].setup(FolderStorage(tmp_path_factory.mktemp("store")))
        return made[key]

    return make


def wander(index: int) -> tuple[float, float]:
    """Where the picture is at a frame, in px."""
    return 20 * np.sin(index / 8), 12 * np.cos(index / 11)


def moving(
    picture: Picture, count: int, scale: float = 0.6, size: tuple[int, int] = (SIDE, SIDE)
) -> list[Picture]:
    """Frames in which the picture wanders, scaled."""
    how = {"flags": cv2.INTER_AREA, "borderMode": cv2.BORDER_REPLICATE}
    frames = []
    for index in range(count):
        x, y = wander(index)
        matrix = np.array([[scale, 0, x], [0, scale, y]])
        frames.append(cv2.warpAffine(picture, matrix, size, **how))
    return frames


def clip_of(path: Path, frames: Iterable[Picture]) -> Clip:
    shown = list(frames)
    video.write_video(path, shown, 25)
    height, width = shown[0].shape[:2]
    return Clip(
        id="a", source="a", video=str(path), fps=25.0, width=width, height=height,
        frame_times_s=np.arange(len(shown)) / 25,
    )


def follow(stage: FollowFace, clip: Clip) -> Clip:
    (out,) = stage.process(clip)
    assert isinstance(out, Clip)
    return out


def blank(frame: Picture) -> Picture:
    return np.full_like(frame, 128)


def test_points_move_with_the_face(tmp_path: Path, grace: Picture, stage: Callable[..., FollowFace]) -> None:
    out = follow(stage(), clip_of(tmp_path / "a.mp4", moving(grace, 30)))
    assert out.landmarks.shape == (30, 68, 2)
    assert out.landmarks.dtype == out.face_boxes.dtype == np.float32
    shift = np.array([wander(i) for i in range(30)])
    still = out.landmarks - shift[:, None]
    assert np.abs(still - np.median(still, axis=0)).mean() < 1.0
    inside = (out.landmarks > out.face_boxes[:, None, :2]) & (out.landmarks < out.face_boxes[:, None, 2:])
    assert inside.mean() > 0.8


def test_detecting_rarely_finds_the_same_points(
    tmp_path: Path, grace: Picture, stage: Callable[..., FollowFace]
) -> None:
    clip = clip_of(tmp_path / "a.mp4", moving(grace, 30))
    every, rarely = follow(stage(detect_every=1), clip), follow(stage(detect_every=10), clip)
    side = np.median(every.face_boxes[:, 2] - every.face_boxes[:, 0])
    assert np.abs(every.landmarks - rarely.landmarks).mean() < 0.01 * side


def test_a_sleeve_is_no_second_face(
    tmp_path: Path, astronaut: Picture, stage: Callable[..., FollowFace]
) -> None:
    frames = moving(astronaut, 30, scale=1.0, size=(512, 512))
    out = follow(stage(minimum_face_px=60.0), clip_of(tmp_path / "a.mp4", frames))
    eyes = out.landmarks[:, 36:48].mean(axis=(0, 1))
    assert eyes[1] < 200, "the sleeve is followed"


def test_a_large_frame_gives_points_in_its_own_pixels(
    tmp_path: Path, grace: Picture, stage: Callable[..., FollowFace]
) -> None:
    small = follow(stage(), clip_of(tmp_path / "a.mp4", moving(grace, 6)))
    enlarged = (cv2.resize(f, None, fx=5, fy=5, interpolation=cv2.INTER_CUBIC) for f in moving(grace, 6))
    large = follow(stage(), clip_of(tmp_path / "b.mp4", enlarged))
    off = np.abs((large.landmarks + 0.5) / 5 - 0.5 - small.landmarks)[:, 17:]      # the jaw is less certain
    assert off.mean() < 1.0


def test_a_short_gap_is_interpolated(
    tmp_path: Path, grace: Picture, stage: Callable[..., FollowFace]
) -> None:
    frames = moving(grace, 30)
    gone = [blank(f) if 12 <= i < 17 else f for i, f in enumerate(frames)]
    out = follow(stage(), clip_of(tmp_path / "a.mp4", gone))
    shift = np.array([wander(i) for i in range(30)])
    still = out.landmarks - shift[:, None]
    assert np.abs(still - np.median(still, axis=0)).max() < 8


@pytest.mark.parametrize("start", [0, 7, 12, 24])
def test_a_long_gap_is_a_lost_face(
    tmp_path: Path, grace: Picture, stage: Callable[..., FollowFace], start: int
) -> None:
    """Wherever it lies between two detections."""
    frames = moving(grace, 30)
    gone = [blank(f) if start <= i < start + 6 else f for i, f in enumerate(frames)]
    with pytest.raises(Drop, match="face lost"):
        follow(stage(), clip_of(tmp_path / "a.mp4", gone))


def test_two_lasting_faces_are_rejected(
    tmp_path: Path, grace: Picture, astronaut: Picture, stage: Callable[..., FollowFace]
) -> None:
    left = moving(grace, 30)
    right = moving(astronaut[30:330, 80:380], 30, scale=1.0)
    both = [np.hstack(pair) for pair in zip(left, right, strict=True)]
    with pytest.raises(Drop, match="two faces"):
        follow(stage(), clip_of(tmp_path / "a.mp4", both))
    right = [b if i < 5 else blank(b) for i, b in enumerate(right)]
    passing = [np.hstack(pair) for pair in zip(left, right, strict=True)]
    follow(stage(), clip_of(tmp_path / "b.mp4", passing))


@pytest.mark.parametrize(("box", "at"), [((0.0, 0.1, 0.5, 0.9), 0), ((0.5, 0.1, 1.0, 0.9), SIDE)])
def test_the_listed_box_says_which_of_two_faces_is_meant(
    tmp_path: Path, grace: Picture, astronaut: Picture, stage: Callable[..., FollowFace],
    box: tuple[float, ...], at: int,
) -> None:
    left, right = moving(grace, 30), moving(astronaut[30:330, 80:380], 30, scale=1.0)
    clip = clip_of(tmp_path / "a.mp4", [np.hstack(pair) for pair in zip(left, right, strict=True)])
    clip.listed = {"span": {"boxes": [[0.0, *box]], "box_unit": "frame"}}
    points = follow(stage(minimum_face_px=80.0), clip).need("landmarks")
    assert ((at < points[..., 0]) & (points[..., 0] < at + SIDE)).all()
    clip.listed = {"span": {"boxes": [[0.0, 0.45, 0.0, 0.55, 0.1]], "box_unit": "frame"}}
    with pytest.raises(Drop, match="no face in the listed box"):
        follow(stage(), clip)


def test_says_whether_there_is_no_face_or_a_small_one(
    tmp_path: Path, grace: Picture, stage: Callable[..., FollowFace]
) -> None:
    with pytest.raises(Drop, match="no face"):
        follow(stage(), clip_of(tmp_path / "a.mp4", (blank(f) for f in moving(grace, 20))))
    with pytest.raises(Drop, match="face too small"):
        follow(stage(minimum_face_px=150.0), clip_of(tmp_path / "b.mp4", moving(grace, 20)))
    tiny = moving(grace, 20, scale=0.42, size=(1280, 1280))
    with pytest.raises(Drop, match="face too small"):
        follow(stage(), clip_of(tmp_path / "c.mp4", tiny))


@pytest.mark.timeout(300)
def test_real_videos_end_as_their_list_says(
    shared_data: Path, store: Storage, stage: Callable[..., FollowFace]
) -> None:
    """The smallest files: talking heads are mostly kept, and what the list calls wrong is not."""
    with (shared_data / "manifest.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if 48 <= int(r["frames_decoded"]) <= 150]
    split = SplitShots()
    split.setup(store)
    rows = [r for r in rows if int(r["width"]) <= 800]
    wrong = [r for r in rows if "NO face" in r["note"] or "TWO faces" in r["note"]]
    talking = [r for r in rows if r["kind"] == "talk" and int(r["width"]) <= 256][:4]
    kept = {}
    for row in [*talking, *wrong]:
        clip = Clip(id="v", source=row["file"], video=str(shared_data / row["file"]))
        try:
            shots = [s for s in split.process(clip) if not isinstance(s, Rejected)]
            kept[row["file"]] = sum(len(list(stage().process(s))) for s in shots)
        except Drop:
            kept[row["file"]] = 0
    assert not any(kept[r["file"]] for r in wrong)
    assert sum(kept[r["file"]] > 0 for r in talking) >= len(talking) / 2
