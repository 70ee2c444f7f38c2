"""Align and crop to the training square: the FFHQ quad, then EG3D's re-crop, as one affine warp per frame.

Both steps are similarities, so they compose to one: turn by the FFHQ quad's axis, then scale and shift so
that a face model fitted to five points (POS) has its origin in the middle and a fixed size. Resampling once
keeps the picture sharper than the two or three warps of the published chain, and needs no padded copy: what
that chain paints where its squares leave the frame is painted over the crop (`stages.padding`).

Coordinates: px, x right, y down, the centre of the top left pixel is (0, 0), as everywhere in a `Clip`.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infra.storage import Storage
from stages.affine import apply, invert, linear_apply, warp
from stages.base import Drop, Stage
from stages.clip import Clip
from stages.padding import blend
from stages.smooth import check_not_negative, check_sigma, low_pass

Array = NDArray[np.float64]

STANDARD_FIVE = np.array(
    [
        (-0.31148657, 0.29036078, 0.13377953),  # left eye of the picture
        (0.30979887, 0.28972036, 0.13179526),  # right eye
        (0.0032535, -0.04617932, 0.55244243),  # tip of the nose
        (-0.25216928, -0.38133916, 0.22405732),  # left corner of the mouth
        (0.2484662, -0.38128236, 0.22235769),  # right corner
    ]
)
"""The five standard points of Deep3DFaceReconstruction (MIT licence): x right, y up, z towards the camera."""

FFHQ_SIZE = 1500                 # px, of EG3D's first image
FFHQ_MARGIN = 1.8                # how much wider than FFHQ's own quad that image is
RECROP_SCALE = 300.0             # px per unit of the standard points ...
RECROP_SIZE = 1024               # ... in EG3D's second image,
RECROP_CENTRE = 700              # whose middle is kept

MOST_SIDE = 4096                 # px
PADDINGS = ("ffhq", "mirror")
PADDING_GRID = 64                # points per side at which a crop is tested for lying inside the frame


def five_points(landmarks: ArrayLike) -> Array:
    """[..., 68, 2] -> [..., 5, 2]: eyes (mean of their two corners), nose tip, mouth corners."""
    points = np.asarray(landmarks, np.float64)
    eyes = [points[..., [36, 39], :].mean(axis=-2), points[..., [42, 45], :].mean(axis=-2)]
    return np.stack([*eyes, points[..., 30, :], points[..., 48, :], points[..., 54, :]], axis=-2)


def ffhq_quad(landmarks: ArrayLike, margin: float = FFHQ_MARGIN) -> Array:
    """[..., 68, 2] -> [..., 4, 2]: NW, SW, SE and NE corner of the turned square."""
    points = np.asarray(landmarks, np.float64)
    left, right = points[..., 36:42, :].mean(axis=-2), points[..., 42:48, :].mean(axis=-2)
    eye, between = (left + right) / 2, right - left
    down = (points[..., 48, :] + points[..., 54, :]) / 2 - eye
    x = between + np.stack([down[..., 1], -down[..., 0]], axis=-1)
    half = np.maximum(2.0 * _norm(between), 1.8 * _norm(down))
    x *= margin * half / _norm(x)
    y = np.stack([-x[..., 1], x[..., 0]], axis=-1)
    centre = eye + 0.1 * down
    return np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y], axis=-2)


def quad_to_square(quad: ArrayLike, size: float) -> Array:
    """[..., 4, 2] -> [..., 2, 3]: source px to px of the upright image of `size`."""
    corners = np.asarray(quad, np.float64)
    x = corners[..., 3, :] - corners[..., 0, :]
    side = _norm(x)
    direction = x / side
    linear = (size / side)[..., None] * np.stack(
        [direction, np.stack([-direction[..., 1], direction[..., 0]], axis=-1)], axis=-2
    )
    centre = corners.mean(axis=-2)
    shift = (size - 1) / 2 - linear_apply(linear, centre)
    return np.concatenate([linear, shift[..., None]], axis=-1)


def pos(five: ArrayLike, standard: Array = STANDARD_FIVE) -> tuple[Array, Array]:
    """Fit [..., 5, 2] (y up) as a scaled orthographic view of the standard points [5, 3], by least squares.

    Returns (scale [...] in px per unit, image of the origin [..., 2]). Ten equations in eight unknowns.
    """
    solve = np.linalg.pinv(np.column_stack([standard, np.ones(5)]))        # [4, 5]
    rows = solve @ np.asarray(five, np.float64)                            # [..., 4, 2]: a, b and the shift
    axes = rows[..., :3, :]
    return np.linalg.norm(axes, axis=-2).mean(axis=-1), rows[..., 3, :]


def recrop(five: ArrayLike, height: float, size: int, whole_pixels: bool = True) -> Array:
    """[..., 5, 2] px of an upright square image of `height` -> [..., 2, 3]: its px to px of the final crop.

    The published re-crop resizes to whole pixels and cuts at whole ones, rounded down. Without
    `whole_pixels` nothing is rounded.
    """
    points = np.array(five, np.float64)
    points[..., 1] = height - 1 - points[..., 1]
    scale, origin = pos(points)
    zoom = (RECROP_SCALE / scale)[..., None]         # px of EG3D's second image per px of the first
    width = zoom * height
    if whole_pixels:
        width = np.trunc(width)
    # Where the cut begins: the index of a pixel is taken for the place of its edge, with y pointing up.
    corner = (width - RECROP_SIZE) / 2 + (origin - height / 2) * (1, -1) * zoom
    if whole_pixels:
        corner, zoom = np.trunc(corner), width / height
    corner += (RECROP_SIZE - RECROP_CENTRE) / 2
    final = size / RECROP_CENTRE
    linear = (final * zoom)[..., None] * np.eye(2)
    shift = final * (0.5 * zoom - corner) - 0.5
    return np.concatenate([linear, shift[..., None]], axis=-1)


def crop_transforms(landmarks: ArrayLike, size: int, whole_pixels: bool = True) -> Array:
    """[..., 68, 2] source px -> [..., 2, 3]: source px to px of the crop, each frame by itself.

    `whole_pixels` as in `recrop`.
    """
    first = quad_to_square(ffhq_quad(landmarks), FFHQ_SIZE)
    second = recrop(five_points(apply(first, landmarks)), FFHQ_SIZE, size, whole_pixels)
    linear = second[..., :2] @ first[..., :2]
    shift = linear_apply(second[..., :2], first[..., 2]) + second[..., 2]
    return np.concatenate([linear, shift[..., None]], axis=-1)


def clip_transforms(
    landmarks: ArrayLike, size: int, fps: float, centre_sigma_s: float, scale_sigma_s: float
) -> Array:
    """[T, 68, 2] source px -> [T, 2, 3] of a clip: `crop_transforms`, low-passed over time.

    Rounding each frame to whole pixels would shake the picture. Its mean over the clip is kept, so that a
    still face is cut exactly as published.
    """
    exact, even = (crop_transforms(landmarks, size, whole) for whole in (True, False))
    middle = np.full((1, 2), (size - 1) / 2)
    rounding = apply(exact, apply(invert(even), middle)) - middle
    transforms = smooth_transforms(even, size, fps, centre_sigma_s, scale_sigma_s)
    transforms[..., 2] += rounding.mean(axis=(0, 1))
    return transforms


def smooth_transforms(
    transforms: Array, size: int, fps: float, centre_sigma_s: float, scale_sigma_s: float
) -> Array:
    """Low-pass [T, 2, 3] over time: centre (source px), log scale and turn, each by itself."""
    linear = transforms[:, :, :2]
    scale = np.sqrt(np.linalg.det(linear))
    turn = np.unwrap(np.arctan2(linear[:, 1, 0], linear[:, 0, 0]))
    middle = np.full((len(transforms), 1, 2), (size - 1) / 2)
    centre = low_pass(apply(invert(transforms), middle)[:, 0], centre_sigma_s, fps)
    scale = np.exp(low_pass(np.log(scale), scale_sigma_s, fps))
    turn = low_pass(turn, scale_sigma_s, fps)
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    linear = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], axis=-2)
    shift = (size - 1) / 2 - linear_apply(linear, centre)
    return np.concatenate([linear, shift[..., None]], axis=-1)


def padded_fraction(transforms: Array, size: int, width: int, height: int) -> Array:
    """[T, 2, 3] -> [T]: share of each crop that lies outside the source frame of `width` x `height` px."""
    ticks = (np.arange(PADDING_GRID) + 0.5) * size / PADDING_GRID - 0.5
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    source = apply(invert(transforms), grid)
    outside = (source < -0.5).any(axis=-1) | (source > (width - 0.5, height - 0.5)).any(axis=-1)
    return np.asarray(outside.mean(axis=-1), np.float64)


def check_side(size: int) -> None:
    """Raise ValueError for what is no side of a training square."""
    if not 16 <= size <= MOST_SIDE or size % 2:
        raise ValueError(f"size: {size} is no side of a training square; give an even 16 to {MOST_SIDE}")


@dataclass
class AlignCrop(Stage):
    """Crop every frame to the training square and keep the squares as JPEG files of one tar in the store."""

    size: int = 512                          # px, side of the square
    quality: int = 95                        # of the JPEG files, 4:4:4
    centre_sigma_s: float = 0.04             # s, Gaussian over time on the place of the square
    scale_sigma_s: float = 0.12              # s, on its size and turn
    max_padded: float = 0.3                  # largest share of a square that may lie outside the frame
    padding: str = "ffhq"                    # blurred, as published, also just inside; or mirror: plain
    min_source_px: float = 128.0             # smallest side of a square in the source

    name: ClassVar[str] = "AlignCrop"
    reads: ClassVar[tuple[str, ...]] = (
        "video", "smooth_landmarks", "frame_times_s", "fps", "width", "height"
    )
    writes: ClassVar[tuple[str, ...]] = ("crop_transforms", "crop_size", "padded_fraction", "aligned")
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_sigma(centre_sigma_s=self.centre_sigma_s, scale_sigma_s=self.scale_sigma_s)
        check_not_negative(max_padded=self.max_padded, min_source_px=self.min_source_px)
        check_side(self.size)
        if self.padding not in PADDINGS:
            raise ValueError(f"padding: {self.padding!r} is unknown; give {' or '.join(PADDINGS)}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality: {self.quality} is no JPEG quality; give 1 to 100")

    def setup(self, store: Storage) -> None:
        import cv2

        cv2.setNumThreads(1)                 # one core per worker is what `resources` asks for
        self._store = store

    def process(self, clip: Clip) -> Iterator[Clip]:
        landmarks = clip.need("smooth_landmarks")
        transforms = clip_transforms(
            landmarks, self.size, clip.fps, self.centre_sigma_s, self.scale_sigma_s
        )
        zoom = np.sqrt(np.linalg.det(transforms[:, :, :2]))
        padded = self._check(clip, transforms, zoom)
        key = f"aligned/{clip.id}-{self._digest(clip)}.tar"
        oversample = max(1, int(np.ceil(1 / zoom.min())))
        self._write(key, clip, transforms, ffhq_quad(landmarks), oversample)
        yield clip.copy(
            crop_transforms=transforms, crop_size=self.size, padded_fraction=padded, aligned=key
        )

    def _check(self, clip: Clip, transforms: Array, zoom: Array) -> float:
        source_px = self.size / zoom.max()
        if source_px < self.min_source_px:
            raise Drop(
                "face too small", f"the square is {source_px:.1f} px wide, {self.min_source_px:g} are needed"
            )
        padded = float(padded_fraction(transforms, self.size, clip.width, clip.height).max())
        if padded > self.max_padded:
            raise Drop(
                "face partly outside the frame",
                f"{padded:.1%} of a square would be made up, {self.max_padded:.0%} are allowed",
            )
        return padded

    def _digest(self, clip: Clip) -> str:
        # The settings belong into the name: a changed quality must show in the record, or later stages would
        # not notice that the pixels behind an equal key are others.
        text = clip.digest() + json.dumps([self.version, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _write(self, key: str, clip: Clip, transforms: Array, quads: Array, oversample: int) -> None:
        import cv2

        from stages.video import read_frames, resolve

        how = [cv2.IMWRITE_JPEG_QUALITY, self.quality]
        how += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
        with tempfile.TemporaryDirectory() as folder, resolve(self._store, clip.video) as path:
            local = Path(folder, "aligned.tar")
            with tarfile.open(local, "w", format=tarfile.USTAR_FORMAT) as tar:
                frames = read_frames(path, clip.need("frame_times_s"))
                each = zip(frames, transforms, quads, strict=True)
                for index, (frame, transform, quad) in enumerate(each):
                    square = warp(frame, transform, self.size, oversample)
                    if self.padding == "ffhq":
                        square = blend(square, frame, transform, quad)
                    ok, data = cv2.imencode(".jpg", cv2.cvtColor(square, cv2.COLOR_RGB2BGR), how)
                    assert ok
                    member = tarfile.TarInfo(f"{index:04d}.jpg")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data.tobytes()))
            self._store.upload(key, local)


def _norm(vectors: Array) -> Array:
    return np.asarray(np.linalg.norm(vectors, axis=-1, keepdims=True), np.float64)
