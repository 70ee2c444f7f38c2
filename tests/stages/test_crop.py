import csv
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from model.camera import FOCAL
from stages.affine import apply, invert, warp
from stages.base import Drop
from stages.clip import Clip
from stages.crop import (
    STANDARD_FIVE,
    AlignCrop,
    clip_transforms,
    crop_transforms,
    ffhq_quad,
    five_points,
    padded_fraction,
    pos,
    quad_to_square,
    smooth_transforms,
)
from stages.face_model import LANDMARKS

RANDOM = np.random.default_rng(0)
SIZE = 512


def face(scale: float = 900.0, centre: tuple[float, float] = (400, 300), turn_deg: float = 0.0) -> np.ndarray:
    """Our face seen from straight ahead, px, y down, turned clockwise in the picture."""
    flat = LANDMARKS[:, :2] * (scale, -scale)
    angle = np.deg2rad(turn_deg)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return flat @ rotation.T + centre


def similarity(scale: float, turn_deg: float, shift: tuple[float, float]) -> np.ndarray:
    angle = np.deg2rad(turn_deg)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]])


def test_pos_is_exact_on_affine_data() -> None:
    turn = np.linalg.qr(RANDOM.normal(size=(3, 3)))[0][:2]
    five = 37.0 * STANDARD_FIVE @ turn.T + (11, -5)
    scale, origin = pos(five)
    np.testing.assert_allclose(scale, 37.0)
    np.testing.assert_allclose(origin, (11, -5), atol=1e-9)


def test_the_quad_of_an_upright_face_is_upright_and_square() -> None:
    north_west, south_west, south_east, north_east = ffhq_quad(face(), margin=1.0)
    assert north_west[0] == pytest.approx(south_west[0])
    assert north_west[1] == pytest.approx(north_east[1])
    assert south_west[1] > north_west[1]  # y down
    assert north_east[0] > north_west[0]
    assert np.linalg.norm(north_east - north_west) == pytest.approx(np.linalg.norm(south_east - north_east))


def test_the_quad_is_the_published_formula() -> None:
    points = face(turn_deg=13)
    eyes = points[36:42].mean(0), points[42:48].mean(0)
    eye, down = (eyes[0] + eyes[1]) / 2, (points[48] + points[54]) / 2 - (eyes[0] + eyes[1]) / 2
    quad = ffhq_quad(points, margin=1.8)
    np.testing.assert_allclose(quad.mean(0), eye + 0.1 * down)
    half = 1.8 * max(2.0 * np.linalg.norm(eyes[1] - eyes[0]), 1.8 * np.linalg.norm(down))
    assert np.linalg.norm(quad[3] - quad[0]) == pytest.approx(2 * half)


def test_the_square_of_a_quad_has_its_corners() -> None:
    quad = ffhq_quad(face(turn_deg=30))
    corners = apply(quad_to_square(quad, 1500), quad)
    expected = np.array([(0, 0), (0, 1500), (1500, 1500), (1500, 0)]) - 0.5
    np.testing.assert_allclose(corners, expected, atol=1e-8)


@pytest.mark.parametrize("turn_deg", [0, 90, 180, -37])
def test_a_turned_face_gives_the_same_crop(turn_deg: float) -> None:
    upright, turned = face(), face(turn_deg=turn_deg, scale=400, centre=(90, 1000))
    expected = apply(crop_transforms(upright, SIZE), upright)
    np.testing.assert_allclose(apply(crop_transforms(turned, SIZE), turned), expected, atol=1e-6)


def test_the_crop_puts_a_face_where_the_lens_of_the_cameras_sees_it() -> None:
    """A frontal camera at the crop's distance sees our face as the crop shows it."""
    depth = 2.86 - LANDMARKS[:, 2]
    seen = FOCAL * SIZE * LANDMARKS[:, :2] * (1, -1) / depth[:, None] + (SIZE - 1) / 2
    transform = crop_transforms(seen, SIZE)
    assert np.sqrt(np.linalg.det(transform[:, :2])) == pytest.approx(1, abs=0.02)
    middle = np.array([[(SIZE - 1) / 2] * 2])
    np.testing.assert_allclose(apply(transform, middle), middle, atol=4)


def test_inverse_undoes() -> None:
    transform = similarity(0.3, 25, (100, -7))
    points = RANDOM.normal(size=(9, 2))
    np.testing.assert_allclose(apply(invert(transform), apply(transform, points)), points, atol=1e-12)


def test_a_still_face_is_cut_at_the_published_whole_pixels() -> None:
    still = np.tile(face(turn_deg=7), (30, 1, 1))
    expected = crop_transforms(still, SIZE)
    found = clip_transforms(still, SIZE, 25, 0.04, 0.12)
    corners = np.array([(0, 0), (SIZE, 0), (0, SIZE), (SIZE, SIZE)], np.float64)
    seen = apply(invert(expected), np.tile(corners, (30, 1, 1)))
    np.testing.assert_allclose(apply(found, seen), np.tile(corners, (30, 1, 1)), atol=0.2)
    even = crop_transforms(still, SIZE, whole_pixels=False)
    assert np.abs(apply(even, seen) - corners).max() > 0.3


def test_a_moving_face_is_not_shaken_by_whole_pixels() -> None:
    moving = np.tile(face(), (60, 1, 1))
    moving[:, 30, 1] += 0.03 * np.arange(60)  # the tip of the nose sinks
    spot = np.tile([[[400.0, 300.0]]], (60, 1, 1))
    ways = clip_transforms(moving, SIZE, 25, 0, 0), crop_transforms(moving, SIZE)
    shaking = [np.abs(np.diff(apply(transforms, spot), 2, axis=0)).max() for transforms in ways]
    assert shaking[0] < 0.01
    assert shaking[1] > 0.5


def test_smoothing_keeps_a_still_crop_and_calms_a_shaking_one() -> None:
    still = np.tile(similarity(0.7, 170, (30, 40)), (50, 1, 1))
    np.testing.assert_allclose(smooth_transforms(still, SIZE, 25, 0.04, 0.12), still, atol=1e-9)
    shaken = crop_transforms(face() + RANDOM.normal(size=(50, 68, 2)), SIZE)
    calm = smooth_transforms(shaken, SIZE, 25, 0.04, 0.12)
    corner = np.array([[0.0, 0.0]])
    jitter = [np.abs(np.diff(apply(invert(t), corner), 2, axis=0)).mean() for t in (shaken, calm)]
    assert jitter[1] < 0.4 * jitter[0]


def test_padding_is_the_share_outside_the_frame() -> None:
    inside, half, outside = ([[1.0, 0, shift], [0, 1, -10]] for shift in (-20, 32, 500))
    padded = padded_fraction(np.array([inside, half, outside]), 64, 200, 200)
    np.testing.assert_allclose(padded, [0, 0.5, 1], atol=0.02)


@pytest.mark.parametrize(("scale", "oversample"), [(1.2, 1), (0.5, 2), (0.5, 5)])
def test_warping_puts_a_spot_where_the_transform_says(scale: float, oversample: int) -> None:
    frame = np.zeros((1200, 1200, 3), np.uint8)
    frame[600:604, 500:504] = 255
    middle = np.array([[501.5, 601.5]])
    turned = similarity(scale, 20, (0, 0))
    transform = turned + np.column_stack([np.zeros((2, 2)), (120.3, 131.7) - apply(turned, middle)[0]])
    picture = warp(frame, transform, 256, oversample).astype(float).mean(-1)
    ys, xs = np.mgrid[:256, :256]
    found = np.array([(xs * picture).sum(), (ys * picture).sum()]) / picture.sum()
    np.testing.assert_allclose(found, (120.3, 131.7), atol=0.05)


def test_a_fine_pattern_turns_grey_when_it_shrinks() -> None:
    frame = np.zeros((512, 512, 3), np.uint8)
    frame[::2, ::2] = frame[1::2, 1::2] = 255
    grey = warp(frame, similarity(1 / 7.3, 0, (0, 0)), 64, 8)
    assert grey.std() < 3
    assert grey.mean() == pytest.approx(127.5, abs=2)


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    """Half a second of noise with a face's landmarks in it."""
    from stages.video import write_video

    frames = RANDOM.integers(0, 255, (12, 360, 480, 3), np.uint8)
    write_video(tmp_path / "noise.mp4", frames, 25)
    landmarks = np.stack([face(600, (240 + t, 180)) for t in range(12)]).astype(np.float32)
    return Clip(
        id="noise", source="noise.mp4", video=str(tmp_path / "noise.mp4"), fps=25.0, width=480, height=360,
        frame_times_s=np.arange(12) / 25, smooth_landmarks=landmarks,
    )  # fmt: skip


def run(stage: AlignCrop, clip: Clip, store) -> Clip:
    stage.setup(store)
    (cropped,) = stage.process(clip)
    return cropped


def test_the_stage_writes_one_picture_per_frame(clip: Clip, store) -> None:
    cropped = run(AlignCrop(size=64), clip, store)
    assert cropped.crop_size == 64
    assert cropped.crop_transforms.shape == (12, 2, 3)
    with tarfile.open(fileobj=io.BytesIO(store.read(cropped.aligned))) as tar:
        assert tar.getnames() == [f"{t:04d}.jpg" for t in range(12)]
        assert {(member.mtime, member.uid, member.gid) for member in tar} == {(0, 0, 0)}
    five = five_points(apply(cropped.crop_transforms, clip.smooth_landmarks))
    assert ((five > 0) & (five < 64)).all()


def test_the_stage_writes_equal_bytes_again(clip: Clip, store) -> None:
    first = run(AlignCrop(size=64), clip, store)
    data = store.read(first.aligned)
    assert run(AlignCrop(size=64), clip, store).digest() == first.digest()
    assert store.read(first.aligned) == data


def test_another_quality_shows_in_the_record(clip: Clip, store) -> None:
    fine, coarse = (run(AlignCrop(size=64, quality=q), clip, store) for q in (95, 60))
    assert fine.digest() != coarse.digest()


def test_rejects_a_face_that_leaves_the_frame(clip: Clip, store) -> None:
    outside = clip.copy(smooth_landmarks=clip.smooth_landmarks - np.float32(160))
    with pytest.raises(Drop) as dropped:
        run(AlignCrop(size=64), outside, store)
    assert dropped.value.reason == "face partly outside the frame"
    assert not list(store.list())


def test_rejects_a_small_face(clip: Clip, store) -> None:
    small = clip.copy(smooth_landmarks=(clip.smooth_landmarks - 200) * np.float32(0.3) + 200)
    with pytest.raises(Drop, match="face too small"):
        run(AlignCrop(size=64), small, store)


@pytest.mark.parametrize(
    "settings",
    [{"size": 0}, {"size": 33}, {"size": 10**9}, {"quality": 101}, {"max_padded": -0.1},
     {"scale_sigma_s": -1}, {"scale_sigma_s": 1e9}, {"padding": "black"}],
)
def test_refuses_settings_that_mean_nothing(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        AlignCrop(**settings)


@pytest.mark.parametrize("backend", ["mediapipe:MediaPipeFaces", "dlib:DlibFaces"])
def test_a_clip_that_is_aligned_already_stays_as_it_is(
    shared_data: Path, store, monkeypatch, backend: str
) -> None:
    """The authors' own crops are the reference: the same scale and place, by other landmarks than theirs."""
    from stages.faces import FollowFace
    from stages.smooth import SmoothLandmarks
    from stages.video import frame_times

    module, _, _ = backend.partition(":")
    pytest.importorskip(module)
    monkeypatch.setenv("PV3D_WEIGHTS", str(shared_data / "weights"))
    with (shared_data / "manifest.csv").open(newline="", encoding="utf-8") as file:
        aligned = [row for row in csv.DictReader(file) if row.get("aligned") == "yes"]
    if not aligned:
        pytest.skip("no clip of the manifest is aligned")
    stages = [FollowFace(backend=f"stages.backends.{backend}"), SmoothLandmarks(), AlignCrop(size=SIZE)]
    for stage in stages:
        stage.setup(store)
    for row in aligned:
        path = shared_data / row["file"]
        clips = [Clip(
            id="a", source=row["file"], video=str(path), fps=float(row["fps"]), width=int(row["width"]),
            height=int(row["height"]), frame_times_s=frame_times(path)[:60],
        )]  # fmt: skip
        for stage in stages:
            clips = [out for clip in clips for out in stage.process(clip)]
        (clip,) = clips
        identity = np.diag([SIZE / clip.width, SIZE / clip.height]) @ np.array([[1, 0, 0.5], [0, 1, 0.5]])
        identity[:, 2] -= 0.5
        zoom = np.sqrt(np.linalg.det(clip.crop_transforms[:, :, :2]) / np.linalg.det(identity[:, :2]))
        corners = np.array([[0.0, 0], [clip.width - 1, 0], [0, clip.height - 1]])
        middle = corners[1:].mean(axis=0, keepdims=True)
        shift = apply(clip.crop_transforms, middle) - apply(identity, middle)
        assert np.abs(zoom - 1).max() <= 0.03, row["file"]
        assert np.abs(shift).max() <= 10 * SIZE / 512, row["file"]
