"""MediaPipe's mesh and YuNet's boxes, on real clips, of which the manifest says what they show."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
import skimage.data

from infra.weights import WeightsError
from stages import backends, face_model, pnp
from stages.affine import apply
from stages.crop import crop_transforms
from stages.rotations import angle_between

pytest.importorskip("mediapipe")

video = pytest.importorskip("stages.video")

PATH = "stages.backends.mediapipe:MediaPipeFaces"
EYES = [33, 263]                                 # outer corners, among the 478


@pytest.fixture(scope="module")
def faces(shared_data: Path):
    """The backend, with the weights of the test data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PV3D_WEIGHTS", str(shared_data / "weights"))
        try:
            yield backends.load(PATH)
        except ValueError as error:              # no weights there, or a bare system without libEGL
            pytest.skip(str(error))


@pytest.fixture(scope="module")
def clips(shared_data: Path) -> list[list[np.ndarray]]:
    """The first frames of a few clips that show one face throughout."""
    with (shared_data / "manifest.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["kind"] == "talk" and int(r["frames_decoded"]) > 60]
    chosen = rows[:: max(len(rows) // 4, 1)][:4]
    return [
        list(video.read_frames(shared_data / r["file"], np.arange(30) / float(r["fps"]))) for r in chosen
    ]


def follow(faces: backends.FaceBackend, frames: list[np.ndarray], restart: bool = False) -> np.ndarray:
    """Points [T, 478, 2] of a clip, each frame looked at where the face was."""
    faces.start()
    box = faces.detect(frames[0])[0].box
    points = []
    for frame in frames:
        if restart:
            faces.start()
        points.append(faces.landmarks(frame, box))
        box = faces.box(points[-1])
    return np.stack(points)


def eye_distance(points: np.ndarray) -> float:
    return float(np.median(np.linalg.norm(points[..., EYES[0], :] - points[..., EYES[1], :], axis=-1)))


def jitter(points: np.ndarray) -> float:
    """Median absolute second difference over time."""
    return float(np.median(np.abs(np.diff(points, n=2, axis=0))))


def portraits() -> list[np.ndarray]:
    grace = cv2.imread(str(Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")))
    return [cv2.cvtColor(grace, cv2.COLOR_BGR2RGB), skimage.data.astronaut()]


def test_believes_one_face_in_each_portrait_and_in_each_clip(
    faces: backends.FaceBackend, clips: list[list[np.ndarray]]
) -> None:
    for picture in [*portraits(), *(frames[0] for frames in clips)]:
        seen = faces.detect(picture)
        assert sum(d.score >= faces.believe_above for d in seen) == 1
        assert [d.score for d in seen] == sorted((d.score for d in seen), reverse=True)


def test_sees_no_face_where_there_is_none(faces: backends.FaceBackend) -> None:
    shades = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (256, 1, 3))
    assert faces.detect(shades) == []
    faces.start()
    assert np.isnan(faces.landmarks(shades, (80, 80, 180, 200))).all()


def test_points_are_where_the_face_is(faces: backends.FaceBackend) -> None:
    for picture in portraits():
        box = faces.detect(picture)[0].box
        faces.start()
        points = faces.landmarks(picture, box)
        assert points.shape == (478, 2)
        assert points.dtype == np.float32
        parts = [(36, 42), (42, 48), (27, 36), (48, 68)]
        left_eye, right_eye, nose, mouth = (points[faces.points68][a:b].mean(axis=0) for a, b in parts)
        assert left_eye[0] < nose[0] < right_eye[0]
        assert left_eye[1] < nose[1] < mouth[1]
        np.testing.assert_allclose(faces.box(points), box, atol=0.15 * (box[3] - box[1]))


def test_the_68_are_near_those_that_people_marked(faces: backends.FaceBackend, shared_data: Path) -> None:
    marked = sorted((shared_data / "images").glob("*.pts"))
    if not marked:
        pytest.skip("no image with 68 marked points")
    for file in marked:
        lines = file.read_text().split("{")[1].split("}")[0].split()
        truth = np.array(lines, np.float64).reshape(-1, 2)
        picture = cv2.cvtColor(cv2.imread(str(file.with_suffix(".png"))), cv2.COLOR_BGR2RGB)
        faces.start()
        points = faces.landmarks(picture, faces.detect(picture)[0].box)
        ours = backends.to_68(type(faces), points)
        errors = np.linalg.norm(ours - truth, axis=1)[17:]       # the jaw is another curve
        assert errors.mean() < 0.06 * eye_distance(points)


def test_a_clip_gives_the_same_bits_whatever_the_worker_saw_before(
    faces: backends.FaceBackend, clips: list[list[np.ndarray]]
) -> None:
    first = [follow(faces, frames[:12]) for frames in clips]
    again = [follow(faces, frames[:12]) for frames in reversed(clips)][::-1]
    for one, other in zip(first, again, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_array_equal(one, other)


def test_following_is_steadier_than_a_new_look_at_every_frame(
    faces: backends.FaceBackend, clips: list[list[np.ndarray]]
) -> None:
    ratios = [
        jitter(follow(faces, frames[:20])) / jitter(follow(faces, frames[:20], restart=True))
        for frames in clips[:3]
    ]
    assert np.median(ratios) < 0.8


def test_a_small_face_is_found_where_it_moves_and_stays_as_steady(
    faces: backends.FaceBackend, clips: list[list[np.ndarray]]
) -> None:
    frames = clips[0][:20]
    alone = follow(faces, frames)
    side = 8 * max(frames[0].shape)
    wide = np.full((max(frames[0].shape), side, 3), 127, np.uint8)
    moved, offsets = [], np.linspace(0, side - frames[0].shape[1], len(frames)).astype(int)
    for frame, left in zip(frames, offsets, strict=True):        # about a third of its own width per frame
        shown = wide.copy()
        shown[: frame.shape[0], left : left + frame.shape[1]] = frame
        moved.append(shown)
    faces.start()
    for frame, shown, left, expected in zip(frames, moved, offsets, alone, strict=True):
        box = faces.detect(frame)[0].box
        points = faces.landmarks(shown, (box[0] + left, box[1], box[2] + left, box[3]))
        found = points - np.array([left, 0], np.float32)
        assert np.linalg.norm(found - expected, axis=1).mean() < 0.05 * eye_distance(alone)


def test_looks_at_the_face_in_the_box_and_not_at_its_neighbour(
    faces: backends.FaceBackend, clips: list[list[np.ndarray]]
) -> None:
    pair = [cv2.resize(frames[0], (256, 256), interpolation=cv2.INTER_AREA) for frames in clips[:2]]
    alone = []
    for picture in pair:
        faces.start()
        alone.append(faces.landmarks(picture, faces.detect(picture)[0].box))
    both = np.concatenate(pair, axis=1)
    for turn in (0, 1, 0):
        left, top, right, bottom = faces.box(alone[turn])
        points = faces.landmarks(both, (left + 256 * turn, top, right + 256 * turn, bottom))
        expected = alone[turn] + np.array([256 * turn, 0], np.float32)
        assert np.linalg.norm(points - expected, axis=1).mean() < 0.1 * eye_distance(alone[turn])


def test_the_same_picture_again_costs_nothing(faces: backends.FaceBackend) -> None:
    picture = portraits()[0]
    box = faces.detect(picture)[0].box
    faces.start()
    points = faces.landmarks(picture, box)
    assert faces.landmarks(picture, faces.box(points)) is points


def test_the_mesh_and_the_68_points_see_the_same_camera(faces: backends.FaceBackend) -> None:
    indices, places = faces.rigid()
    ours = face_model.RIGID
    for picture in portraits():
        faces.start()
        points = faces.landmarks(picture, faces.detect(picture)[0].box)[None].astype(np.float64)
        few = backends.to_68(type(faces), points)
        transform = crop_transforms(few, 512)
        mesh, _, error = pnp.fit_poses(apply(transform, points[:, indices]), places, 512)
        plain, _, _ = pnp.fit_poses(apply(transform, few[:, ours]), face_model.LANDMARKS[ours], 512)
        assert error[0] < 0.03                   # what a camera may miss by, `stages.cameras`
        assert angle_between(mesh, plain)[0] < 6     # degrees


def test_the_canonical_head_lies_where_our_face_lies(faces: backends.FaceBackend) -> None:
    from stages.backends import mediapipe

    ours = face_model.RIGID
    apart = mediapipe.canonical()[mediapipe.POINTS_68[ours]] - face_model.LANDMARKS[ours]
    assert np.sqrt((apart**2).sum(axis=1).mean()) < 6 * face_model.WORLD_PER_MM


def test_a_missing_file_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PV3D_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=r"yunet_n_dynamic\.onnx missing in .*; `pv3d weights") as error:
        backends.load(PATH)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setup", "told"),
    [
        ("sys.modules['mediapipe'] = None", "ValueError: backend mediapipe: .*; `make setup` installs it"),
        ("real = ctypes.CDLL\n"
         "def without(name, *rest, **more):\n"
         "    if 'libmediapipe' in str(name):\n"
         "        name = 'libno-such-library.so.1'\n"
         "    return real(name, *rest, **more)\n"
         "ctypes.CDLL = without",
         "ValueError: backend mediapipe: libno-such-library.so.1: cannot .*; on Debian: apt-get install"),
        ("", None),
    ],
    ids=["no package", "no system library", "all there"],
)  # fmt: skip
def test_a_worker_says_what_is_not_installed_and_ends_quietly(
    faces: backends.FaceBackend, shared_data: Path, setup: str, told: str | None
) -> None:
    code = (
        f"import ctypes, sys\nimport numpy as np\n{setup}\nfrom stages import backends\n"
        f"faces = backends.load({PATH!r})\n"
        "faces.landmarks(np.zeros((200, 200, 3), np.uint8), (50, 50, 150, 150))\n"
    )
    environment = {"PV3D_WEIGHTS": str(shared_data / "weights"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment,
        cwd=Path(__file__).parents[3], check=False,
    )  # fmt: skip
    if told is None:
        assert done.returncode == 0
        assert done.stderr == ""
    else:
        assert done.returncode == 1
        assert re.search(told, done.stderr.strip().splitlines()[-1])
