"""The one warp of `stages.crop` and its padding against the two steps that are published."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from two_step import psnr, quad_of, two_step

from stages.affine import warp
from stages.clip import Clip
from stages.crop import AlignCrop, crop_transforms, ffhq_quad, padded_fraction
from stages.padding import blend, ffhq_padding
from stages.sources import portraits

SIZE = 512
PORTRAITS = {"eileen": portraits.EILEEN_COLLINS, "grace": portraits.GRACE_HOPPER}


def picture_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A portrait of the demo, uint8 [H, W, 3], and its landmarks."""
    import importlib.util

    portrait = PORTRAITS[name]
    spec = importlib.util.find_spec(portrait.package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    with Image.open(Path(spec.submodule_search_locations[0], portrait.path)) as image:
        frame = np.asarray(image.convert("RGB"))
    return frame, np.array(portrait.landmarks, np.float64)


def turned(
    frame: np.ndarray, points: np.ndarray, degrees: float, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """The frame turned about the face and scaled, in a frame of the same proportions, mirrored beyond."""
    import cv2

    height, width = (round(scale * side) for side in frame.shape[:2])
    centre = points.mean(axis=0)
    matrix = cv2.getRotationMatrix2D(tuple(centre), degrees, scale)
    matrix[:, 2] += scale * centre - centre
    how = {"flags": cv2.INTER_CUBIC, "borderMode": cv2.BORDER_REFLECT_101}
    return cv2.warpAffine(frame, matrix, (width, height), **how), points @ matrix[:, :2].T + matrix[:, 2]


def ours(frame: np.ndarray, points: np.ndarray, size: int = SIZE) -> np.ndarray:
    transform = crop_transforms(points, size)
    oversample = max(1, int(np.ceil(1 / np.sqrt(np.linalg.det(transform[:, :2])))))
    return blend(warp(frame, transform, size, oversample), frame, transform, ffhq_quad(points))


def test_the_reference_has_the_same_quad() -> None:
    _, points = picture_of("grace")
    np.testing.assert_allclose(quad_of(points), ffhq_quad(points))


@pytest.mark.parametrize(
    ("name", "degrees", "scale", "size"),
    [("grace", 0, 1, 512), ("eileen", 0, 1, 512), ("grace", 12, 1, 512), ("eileen", -20, 2, 512),
     ("grace", 5, 2, 256), ("grace", 0, 0.5, 128)],
)  # fmt: skip
def test_one_warp_is_the_two_published_steps(name: str, degrees: float, scale: float, size: int) -> None:
    """40 dB is what JPEG of quality 95 leaves of a photograph."""
    frame, points = turned(*picture_of(name), degrees, scale)
    assert psnr(ours(frame, points, size), two_step(frame, points, size)) >= 40


@pytest.mark.parametrize(("x", "y"), [(0, 0), (90, 0), (0, 100), (120, 140)])
def test_where_the_square_leaves_the_frame_the_published_padding_is_shown(x: int, y: int) -> None:
    """The frame is cut so that the face comes near its left or upper edge."""
    frame, points = picture_of("grace")
    frame, points = np.ascontiguousarray(frame[y:, x:420]), points - (x, y)
    got, expected = ours(frame, points), two_step(frame, points, SIZE)
    assert psnr(got, expected) >= 40
    transform = crop_transforms(points, SIZE)
    outside = padded_fraction(transform[None], SIZE, frame.shape[1], frame.shape[0])[0]
    if outside > 0.1:  # and the mirror image alone is something else
        assert psnr(warp(frame, transform, SIZE, 1), expected) < 32


def test_a_face_in_the_middle_of_a_large_frame_needs_no_padding() -> None:
    frame, points = picture_of("grace")
    wide = np.pad(frame, ((700, 700), (700, 700), (0, 0)), "reflect")
    points = points + 700
    quad, transform = ffhq_quad(points), crop_transforms(points, SIZE)
    assert ffhq_padding(quad, wide.shape[1], wide.shape[0]) is None
    square = warp(wide, transform, SIZE, 1)
    assert blend(square, wide, transform, quad) is square


def test_padding_that_does_not_reach_the_crop_changes_nothing() -> None:
    frame, points = picture_of("grace")
    wide = np.pad(frame, ((60, 60), (60, 60), (0, 0)), "reflect")
    points = points + 60
    quad, transform = ffhq_quad(points), crop_transforms(points, SIZE)
    assert ffhq_padding(quad, wide.shape[1], wide.shape[0]) is not None
    square = warp(wide, transform, SIZE, 1)
    assert blend(square, wide, transform, quad) is square


@pytest.mark.parametrize("padding", ["ffhq", "mirror"])
def test_the_stage_pads_as_its_setting_says(tmp_path: Path, store, padding: str) -> None:
    from stages.video import read_all, write_video

    frame, points = picture_of("grace")
    frame, points = np.ascontiguousarray(frame[100:500, 100:420]), points - 100
    write_video(tmp_path / "a.mp4", [frame] * 3, 25)
    clip = Clip(
        id="a", source="a.mp4", video=str(tmp_path / "a.mp4"), fps=25.0, width=320, height=400,
        frame_times_s=np.arange(3) / 25, smooth_landmarks=np.tile(points, (3, 1, 1)).astype(np.float32),
    )  # fmt: skip
    stage = AlignCrop(size=256, padding=padding, max_padded=1.0)
    stage.setup(store)
    (cropped,) = stage.process(clip)
    with tarfile.open(fileobj=io.BytesIO(store.read(cropped.aligned))) as tar:
        member = tar.extractfile("0001.jpg")
        assert member is not None
        with Image.open(member) as image:
            square = np.asarray(image)
    decoded = [picture for _, picture in read_all(tmp_path / "a.mp4")][1]
    expected = two_step(decoded, points, 256)
    assert (psnr(square, expected) > 36) == (padding == "ffhq")
