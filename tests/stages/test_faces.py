"""Following a face, on the two portraits that ship inside matplotlib and scikit-image, set in motion."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
import skimage.data

from infra import weights
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

    made: dict[tuple[tuple[str, float | str], ...], FollowFace] = {}

    def make(**settings: float | str) -> FollowFace:
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


def outputs(stage: FollowFace, clip: Clip) -> tuple[list[Clip], dict[str, str]]:
    """(the clips that are kept, the reasons of the parts that are not)."""
    out = list(stage.process(clip))
    return (
        [o for o in out if isinstance(o, Clip)], {o.clip.id: o.reason for o in out if isinstance(o, Rejected)}
    )


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


def test_a_face_that_leaves_divides_the_clip(
    tmp_path: Path, grace: Picture, stage: Callable[..., FollowFace]
) -> None:
    frames = moving(grace, 150)
    gone = [blank(f) if 52 <= i < 92 else f for i, f in enumerate(frames)]
    clip = clip_of(tmp_path / "a.mp4", gone)
    kept, rejected = outputs(stage(), clip)
    assert [c.id for c in kept] == ["a_00000", "a_00095"], "what is lost is looked for at every detection"
    assert rejected == {"a_00052": "face lost"}
    assert [c.frame_count for c in kept] == [52, 55]
    for part, first in zip(kept, (0, 95), strict=True):
        end = first + part.frame_count
        np.testing.assert_array_equal(part.frame_times_s, clip.frame_times_s[first:end])
        shift = np.array([wander(i) for i in range(first, end)])
        still = part.landmarks - shift[:, None]
        assert np.abs(still - np.median(still, axis=0)).mean() < 1.0
        assert part.face_boxes.shape == (part.frame_count, 4)


def test_a_part_that_is_too_short_is_rejected_by_itself(
    tmp_path: Path, grace: Picture, stage: Callable[..., FollowFace]
) -> None:
    gone = [blank(f) if 20 <= i < 40 else f for i, f in enumerate(moving(grace, 100))]
    kept, rejected = outputs(stage(), clip_of(tmp_path / "a.mp4", gone))
    assert [c.id for c in kept] == ["a_00040"]
    assert rejected == {"a_00000": "too short", "a_00020": "face lost"}


def test_a_second_person_who_comes_ends_the_clip(
    tmp_path: Path, grace: Picture, astronaut: Picture, stage: Callable[..., FollowFace]
) -> None:
    left = moving(grace, 90)
    right = moving(astronaut[30:330, 80:380], 90, scale=1.0)
    right = [b if i >= 60 else blank(b) for i, b in enumerate(right)]
    both = [np.hstack(pair) for pair in zip(left, right, strict=True)]
    kept, rejected = outputs(stage(), clip_of(tmp_path / "a.mp4", both))
    assert [c.id for c in kept] == ["a_00000"]
    assert 55 <= kept[0].frame_count <= 60
    assert list(rejected.values()) == ["two faces"]


def test_a_face_that_takes_the_place_of_another_is_another_clip(
    tmp_path: Path, grace: Picture, astronaut: Picture, stage: Callable[..., FollowFace]
) -> None:
    first = [np.hstack([f, blank(f)]) for f in moving(grace, 60)]
    then = [np.hstack([blank(f), f]) for f in moving(astronaut[30:330, 80:380], 60, scale=1.0)]
    kept, rejected = outputs(stage(minimum_face_px=80.0), clip_of(tmp_path / "a.mp4", [*first, *then]))
    assert [round(float(c.landmarks[..., 0].mean()) / SIDE - 0.5) for c in kept] == [0, 1]
    assert list(rejected.values()) == ["face lost"]


def test_many_frames_at_once_give_the_same_points_and_parts(
    tmp_path: Path, grace: Picture, stage: Callable[..., FollowFace]
) -> None:
    from stages.backends.dlib import DlibFaces

    class ManyFaces(DlibFaces):
        """As FAN does, for which there may be no weights."""

        def __init__(self) -> None:
            super().__init__()
            self.counts: list[int] = []

        def landmarks_many(self, frames: list[Picture], boxes: list[tuple[float, ...]]) -> np.ndarray:
            self.counts.append(len(frames))
            return np.stack([self.landmarks(f, b) for f, b in zip(frames, boxes, strict=True)])

    gone = [blank(f) if 52 <= i < 92 else f for i, f in enumerate(moving(grace, 148))]
    clip = clip_of(tmp_path / "a.mp4", gone)
    one_by_one = stage()
    many = FollowFace()
    many.model, many._store = ManyFaces(), one_by_one._store
    (kept, rejected), (wanted, reasons) = outputs(many, clip), outputs(one_by_one, clip)
    assert rejected == reasons
    assert [c.id for c in kept] == [c.id for c in wanted]
    side = 110
    for a, b in zip(kept, wanted, strict=True):
        assert np.abs(a.landmarks - b.landmarks).mean() < 0.01 * side
    assert many.model.counts.count(5) >= 19, "nearly all of the frames that have a face"


def blurred(frame: Picture, share: float = 0.03) -> Picture:
    return cv2.GaussianBlur(frame, (0, 0), share * 105)         # of the face's side, in px


def test_a_face_that_is_blurred_throughout_is_rejected_and_one_for_a_while_divides(
    tmp_path: Path, grace: Picture, stage: Callable[..., FollowFace]
) -> None:
    frames = moving(grace, 160)
    with pytest.raises(Drop, match="face blurred: sharpness 0"):
        follow(stage(), clip_of(tmp_path / "a.mp4", [blurred(f) for f in frames[:60]]))
    for_a_while = [blurred(f) if 55 <= i < 105 else f for i, f in enumerate(frames)]
    kept, rejected = outputs(stage(), clip_of(tmp_path / "b.mp4", for_a_while))
    assert [c.frame_count > 50 for c in kept] == [True, True]
    assert list(rejected.values()) == ["face blurred"]
    for_a_moment = [blurred(f) if 55 <= i < 67 else f for i, f in enumerate(frames[:120])]
    assert follow(stage(), clip_of(tmp_path / "c.mp4", for_a_moment)).frame_count == 120


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


def test_refuses_settings_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="detect_every: 0 is below 1"):
        FollowFace(detect_every=0)
    with pytest.raises(ValueError, match="minimum_frames: 0 is below 1"):
        FollowFace(minimum_frames=0)
    with pytest.raises(ValueError, match="second_face_size: 0 is not above 0"):
        FollowFace(second_face_size=0)


MEDIAPIPE = "stages.backends.mediapipe:MediaPipeFaces"


@pytest.fixture
def mesh_stage(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch, stage: Callable[..., FollowFace]
) -> FollowFace:
    pytest.importorskip("mediapipe")
    monkeypatch.setenv("PV3D_WEIGHTS", str(shared_data / "weights"))
    if any(weights.find(name) is None for name in ("yunet", "mediapipe")):
        pytest.skip("no weights for mediapipe")
    return stage(backend=MEDIAPIPE)


def listed(shared_data: Path, *kinds: str) -> list[dict[str, str]]:
    with (shared_data / "manifest.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["kind"] in kinds]


def beginning(shared_data: Path, row: dict[str, str], count: int) -> Clip:
    """The first frames of a listed video."""
    path = shared_data / row["file"]
    info, times_s = video.probe(path), video.frame_times(path)[:count]
    size = {"width": info.width, "height": info.height}
    return Clip("a", "a", str(path), fps=info.fps, frame_times_s=times_s, **size)


@pytest.mark.timeout(300)
def test_a_mesh_is_kept_with_its_68_points_and_hardly_depends_on_how_often_faces_are_looked_for(
    shared_data: Path, mesh_stage: FollowFace
) -> None:
    row = min(listed(shared_data, "talk"), key=lambda row: int(row["bytes"]))
    clip = beginning(shared_data, row, 40)
    out = follow(mesh_stage, clip)
    assert out.landmark_backend == MEDIAPIPE
    assert out.mesh.shape == (40, 478, 2)
    np.testing.assert_array_equal(out.landmarks, out.mesh[:, mesh_stage.model.points68])
    every = FollowFace(backend=MEDIAPIPE, detect_every=1)
    every.model, every._store = mesh_stage.model, mesh_stage._store
    apart = [
        np.linalg.norm(c.landmarks[:, 36:42].mean(1) - c.landmarks[:, 42:48].mean(1), axis=-1)
        for c in (out, follow(every, clip))
    ]
    assert np.median(np.abs(apart[0] / apart[1] - 1)) < 0.01


@pytest.mark.timeout(300)
def test_a_mesh_is_divided_as_the_points_are(
    tmp_path: Path, grace: Picture, mesh_stage: FollowFace
) -> None:
    gone = [blank(f) if 52 <= i < 92 else f for i, f in enumerate(moving(grace, 145))]
    kept, rejected = outputs(mesh_stage, clip_of(tmp_path / "a.mp4", gone))
    assert [len(c.mesh) for c in kept] == [c.frame_count for c in kept] == [52, 50]
    assert list(rejected.values()) == ["face lost"]


@pytest.mark.timeout(300)
def test_a_face_of_a_few_pixels_is_too_small_rather_than_none(
    tmp_path: Path, grace: Picture, mesh_stage: FollowFace
) -> None:
    tiny = moving(grace, 10, scale=0.17, size=(1280, 720))           # 31 px
    with pytest.raises(Drop, match="face too small"):
        follow(mesh_stage, clip_of(tmp_path / "a.mp4", tiny))
    with pytest.raises(Drop, match="no face"):
        follow(mesh_stage, clip_of(tmp_path / "b.mp4", [blank(f) for f in tiny]))


@pytest.mark.timeout(300)
def test_talking_heads_are_sharp_enough_and_blurred_ones_are_not(
    tmp_path: Path, shared_data: Path, mesh_stage: FollowFace
) -> None:
    rows = sorted(listed(shared_data, "talk"), key=lambda row: int(row["bytes"]))
    for number, row in enumerate(rows[::6]):
        clip = beginning(shared_data, row, 20)
        out = follow(mesh_stage, clip)
        side = float(np.median(out.face_boxes[:, 3] - out.face_boxes[:, 1]))
        frames = video.read_frames(Path(clip.video), clip.frame_times_s)
        soft = [cv2.GaussianBlur(f, (0, 0), 0.035 * side) for f in frames]
        with pytest.raises(Drop, match=r"face blurred|no face"):
            follow(mesh_stage, clip_of(tmp_path / f"{number}.mp4", soft))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", ["dlib", "mediapipe"])
def test_real_videos_end_as_their_list_says(
    shared_data: Path, store: Storage, stage: Callable[..., FollowFace], backend: str,
    request: pytest.FixtureRequest,
) -> None:
    """The smallest files: talking heads are kept, mostly or all, and what the list calls wrong is not."""
    chosen = stage() if backend == "dlib" else request.getfixturevalue("mesh_stage")
    rows = [r for r in listed(shared_data, "talk", "neg") if 48 <= int(r["frames_decoded"]) <= 150]
    rows = [r for r in rows if int(r["width"]) <= 800]
    split = SplitShots(minimum_source_fps=5)
    split.setup(store)
    wrong = [r for r in rows if any(word in r["note"] for word in ("NO face", "TWO faces", "TINY face"))]
    talking = [r for r in rows if r["kind"] == "talk" and int(r["width"]) <= 256][:4]
    shots, kept = {}, {}
    for row in [*talking, *wrong]:
        name = row["file"]
        shots[name] = kept[name] = 0
        with contextlib.suppress(Drop):
            clip = Clip(id="v", source=name, video=str(shared_data / name))
            found = [s for s in split.process(clip) if not isinstance(s, Rejected)]
            shots[name] = len(found)
            kept[name] = sum(len(outputs(chosen, s)[0]) for s in found)
    assert not any(kept[r["file"]] for r in wrong)
    reached = [r["file"] for r in talking if shots[r["file"]]]
    least = len(reached) / 2 if backend == "dlib" else len(reached)
    assert reached
    assert sum(kept[name] > 0 for name in reached) >= least
