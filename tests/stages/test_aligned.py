"""Clips that are aligned already: taken frame by frame with their cameras, or rejected with a reason."""

import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from model.camera import canonical_camera, orbit
from stages.aligned import TakeAligned, mean_face, read_cameras
from stages.base import Drop
from stages.clip import Clip
from stages.face_model import LANDMARKS
from stages.shards import aligned_frames, decode_jpeg
from stages.sources.official import Official
from stages.video import write_video

SIZE = 64


def picture(index: int, width: int = SIZE, height: int = SIZE) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    grey = 30 + 6 * index
    colours = [x * 128 // width + grey, y * 128 // height + grey, 0 * x + grey]
    return np.stack(colours, -1).clip(0, 255).astype(np.uint8)


def cameras(count: int) -> list[list[float]]:
    return [orbit(i, i / 4).encode().tolist() for i in range(count)]


def make(
    folder: Path, frames: int = 20, numbers: object = None, *, fps: float = 25, width: int = SIZE,
    height: int = SIZE,
) -> Clip:
    """The unit of a folder with one clip. `numbers`: rows of cameras, or their number, or raw bytes."""
    pictures = (picture(i, width, height) for i in range(frames))
    write_video(folder / "recrop_faces" / "a.mp4", pictures, fps, 10)
    if numbers is None or isinstance(numbers, int):
        count = frames if numbers is None else int(numbers)
        numbers = [[f"{i:04d}.png", camera] for i, camera in enumerate(cameras(count))]
    data = numbers if isinstance(numbers, bytes) else json.dumps(numbers).encode()
    (folder / "smoothed_camera2world").mkdir()
    (folder / "smoothed_camera2world" / "a.json").write_bytes(data)
    (folder / "voxceleb.list").write_text("a.mp4\n")
    (clip,) = Official(location=str(folder)).clips(None)
    return clip


def take(store, clip: Clip, **settings: object) -> Clip:
    stage = TakeAligned(**{"size": SIZE, **settings})
    stage.setup(store)
    (taken,) = stage.process(clip)
    return taken


def shown(store, clip: Clip) -> list[np.ndarray]:
    return [decode_jpeg(data, "frame") for data in aligned_frames(store, clip)]


def test_every_frame_keeps_its_own_camera(tmp_path: Path, store) -> None:
    clip = take(store, make(tmp_path / "v"))
    assert (clip.fps, clip.crop_size, clip.frame_count, clip.width) == (25, SIZE, 20, SIZE)
    np.testing.assert_array_equal(clip.cameras, np.float32(cameras(20)))
    for index, frame in enumerate(shown(store, clip)):
        assert np.abs(frame.astype(int) - picture(index)).mean() < 2
    np.testing.assert_array_equal(clip.crop_transforms, np.tile(np.eye(3)[:2], (20, 1, 1)))


def test_cameras_are_in_the_order_of_the_file_whatever_the_frames_are_called(tmp_path: Path, store) -> None:
    names = [f"{index}.png" for index in np.random.default_rng(0).permutation(20)]
    rows = [[name, camera] for name, camera in zip(names, cameras(20), strict=True)]
    clip = take(store, make(tmp_path / "v", 20, rows))
    np.testing.assert_array_equal(clip.cameras, np.float32(cameras(20)))


@pytest.mark.parametrize(("frames", "numbers"), [(20, 18), (18, 20)])
def test_what_has_no_counterpart_is_cut_off_and_recorded(
    frames: int, numbers: int, tmp_path: Path, store
) -> None:
    clip = take(store, make(tmp_path / "v", frames, numbers))
    assert clip.frame_count == len(clip.cameras) == len(shown(store, clip)) == 18
    assert clip.extra["aligned"] == {"frames": frames, "cameras": numbers}


@pytest.mark.parametrize("fps", [50, 30, 29.97])
def test_frames_are_resampled_together_with_their_cameras(fps: float, tmp_path: Path, store) -> None:
    clip = take(store, make(tmp_path / "v", 30, fps=fps), minimum_frames=10)
    assert clip.frame_count == len(clip.cameras) == pytest.approx(30 * 25 / fps, abs=1)
    nearest = [round(k * fps / 25) for k in range(clip.frame_count)]
    np.testing.assert_allclose(clip.frame_times_s * fps, nearest, atol=0.51)
    for index, frame in enumerate(shown(store, clip)):
        source = round(clip.frame_times_s[index] * fps)
        assert np.abs(frame.astype(int) - picture(source)).mean() < 2
        np.testing.assert_array_equal(clip.cameras[index], np.float32(cameras(30)[source]))


def test_a_larger_video_is_made_smaller_and_places_are_in_its_pixels(tmp_path: Path, store) -> None:
    clip = take(store, make(tmp_path / "v", width=128, height=128))
    assert (clip.width, clip.crop_size) == (128, SIZE)
    small = cv2.resize(picture(3, 128, 128), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    assert np.abs(shown(store, clip)[3].astype(int) - small).mean() < 2
    in_crop = clip.crop_transforms[:, :, :2] @ clip.landmarks.swapaxes(1, 2) + clip.crop_transforms[:, :, 2:]
    np.testing.assert_allclose(in_crop.swapaxes(1, 2), mean_face(clip.cameras, SIZE), atol=1e-3)


def test_frames_that_stages_before_chose_keep_their_cameras_and_landmarks(tmp_path: Path, store) -> None:
    unit = make(tmp_path / "v", 30)
    points = np.random.default_rng(0).random((18, 68, 2), np.float32)
    part = unit.copy(
        id="a_7", fps=25.0, frame_times_s=np.arange(7, 25) / 25, landmarks=points,
        landmark_backend="some:Model", face_boxes=points[:, :2].reshape(18, 4),
    )
    clip = take(store, part)
    assert (clip.id, clip.frame_count, clip.landmark_backend) == ("a_7", 18, "some:Model")
    np.testing.assert_array_equal(clip.cameras, np.float32(cameras(30)[7:25]))
    np.testing.assert_array_equal(clip.landmarks, points)
    for index, frame in enumerate(shown(store, clip)):
        assert np.abs(frame.astype(int) - picture(index + 7)).mean() < 2


def test_a_part_at_the_end_loses_the_frames_without_a_camera(tmp_path: Path, store) -> None:
    points = np.zeros((20, 68, 2), np.float32)
    part = make(tmp_path / "v", 30, 28).copy(fps=25.0, frame_times_s=np.arange(10, 30) / 25, landmarks=points)
    clip = take(store, part)
    np.testing.assert_array_equal(clip.cameras, np.float32(cameras(30)[10:28]))
    assert len(clip.landmarks) == len(clip.crop_transforms) == clip.frame_count == 18
    assert len(shown(store, clip)) == 18


def test_equal_input_gives_equal_bytes_under_an_equal_name(tmp_path: Path, store) -> None:
    unit = make(tmp_path / "v")
    one, two = take(store, unit), take(store, unit)
    assert one.digest() == two.digest()
    assert take(store, unit, quality=80).aligned != one.aligned
    with store.local(one.aligned) as path, tarfile.open(path) as tar:
        assert [member.name for member in tar] == [f"{i:04d}.jpg" for i in range(20)]


def test_the_mean_face_is_in_the_middle_and_turns_with_the_camera() -> None:
    turned = np.stack([canonical_camera().encode(), orbit(20).encode(), orbit(-20).encode()])
    front, right, left = mean_face(turned, 512)
    eyes = front[36:48].mean(axis=0)
    assert abs(eyes[0] - 255.5) < 2
    assert eyes[1] < front[48:].mean(axis=0)[1]
    assert front.min() > 0
    assert front.max() < 512
    # The nose stands out of the face, so it moves against the eyes when the camera goes round.
    nose = [p[30, 0] - p[36:48, 0].mean() for p in (left, front, right)]
    assert nose[0] > nose[1] > nose[2] or nose[0] < nose[1] < nose[2]
    assert front.shape == LANDMARKS[:, :2].shape


GOOD = cameras(20)


def rows(index: int, row: object) -> bytes:
    """Sound cameras, but for one row."""
    every: list[object] = [[f"{i}.png", camera] for i, camera in enumerate(GOOD)]
    every[index] = row
    return json.dumps(every).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"[]", b"3", b"\xff\xfe", b"[" * 200_000, rows(3, None), rows(3, ["a", GOOD[3], 1]),
        rows(3, [GOOD[3], "a"]), rows(3, ["a", GOOD[3][:24]]), rows(3, ["a", [*GOOD[3][:24], "1"]]),
        rows(3, ["a", [*GOOD[3][:24], True]]), rows(3, ["a", [float("nan")] * 25]),
        rows(3, ["a", [0.0] * 25]), rows(3, ["a", [float("inf"), *GOOD[3][1:]]]),
        rows(3, ["a", [10**400, *GOOD[3][1:]]]), rows(3, ["a", [None] * 25]),
        rows(3, ["a", [1e300, *GOOD[3][1:]]]), rows(3, ["a", [-v for v in GOOD[3][:3]] + GOOD[3][3:]]),
        rows(3, ["a", [*GOOD[3][:3], 9.0, *GOOD[3][4:]]]), b'[["a", [' + b"9" * 10_000 + b"]]]",
    ],
)
def test_cameras_that_are_none_are_rejected_with_one_line(data: bytes, tmp_path: Path, store) -> None:
    clip = make(tmp_path / "v", 20, data)
    with pytest.raises(Drop, match="bad cameras") as drop:
        take(store, clip)
    assert "\n" not in str(drop.value)
    assert len(str(drop.value)) < 300


def test_nearly_orthonormal_cameras_are_taken_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    given = np.float32(GOOD)
    given[:, :3] *= 1.004                       # a linear low-pass of matrices shrinks or stretches a little
    path.write_text(json.dumps([["x", row] for row in given.tolist()]))
    np.testing.assert_array_equal(read_cameras(path, 0.02), given)
    with pytest.raises(Drop, match="bad cameras"):
        read_cameras(path, 0.001)


@pytest.mark.parametrize(
    ("made", "settings", "reason"),
    [
        ({"numbers": 15}, {}, "cameras do not fit"),
        ({"frames": 16}, {}, "too short"),
        ({"width": 96}, {}, "not square"),
        ({}, {"size": 128}, "too small"),
        ({"fps": 10}, {}, "low frame rate"),
    ],
)
def test_what_does_not_fit_is_rejected_with_its_reason(
    made: dict, settings: dict, reason: str, tmp_path: Path, store
) -> None:
    with pytest.raises(Drop) as drop:
        take(store, make(tmp_path / "v", **made), **settings)
    assert drop.value.reason == reason


def test_a_broken_video_and_a_clip_of_another_source_are_rejected(tmp_path: Path, store) -> None:
    clip = make(tmp_path / "v")
    data = Path(clip.video).read_bytes()
    Path(clip.video).write_bytes(data[:len(data) // 2])
    with pytest.raises(Drop):
        take(store, clip)
    with pytest.raises(Drop, match="no cameras"):
        take(store, Clip("x", "x.mp4", clip.video))
    assert list(store.list()) == []


@pytest.mark.parametrize(
    "settings", [{"size": 63}, {"quality": 0}, {"fps": 0.0}, {"maximum_unmatched": -1}, {"tolerance": 0.0}]
)
def test_settings_that_make_no_sense_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        TakeAligned(**settings)
