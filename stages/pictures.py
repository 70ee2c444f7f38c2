"""Libav frames to pictures: uint8 [H, W, 3] RGB, upright, with square pixels."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import cv2
import numpy as np
from av.video.reformatter import Colorspace, Interpolation
from numpy.typing import NDArray

Frame = NDArray[np.uint8]

# Colour conversion for pixels that are kept: the fast way is a level darker and differs between CPU types,
# this one costs 2 ms more at 720p.
EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
EXACT |= Interpolation.FULL_CHR_H_INT

MOST_PIXELS = 1 << 27            # of a picture, once its pixels are square

HALVED = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p")       # 8 bits a sample


def displayed_size(stream: Any, frame: Any) -> tuple[int, int]:
    """Width and height in px as displayed: pixels made square by widening, then turned upright."""
    aspect = stream.sample_aspect_ratio
    width, height = frame.width, frame.height
    if aspect and aspect != 1 and Fraction(1, 8) < aspect < 8:
        width = max(round(width * aspect), 1)
        if width * height > MOST_PIXELS:
            raise ValueError(f"{width} x {height} px, once its pixels are square")
    return (height, width) if _quarter_turns(frame) % 2 else (width, height)


def _quarter_turns(frame: Any) -> int:
    """By how many to turn the picture counter-clockwise, as np.rot90 does; any other angle is rounded."""
    return int(round(frame.rotation / 90) % 4)


def picture_of(stream: Any, frame: Any, long_side: int | None) -> Frame:
    """The picture of a frame; larger ones are scaled down to `long_side` px, the fast way."""
    width, height = displayed_size(stream, frame)
    scale = 1.0
    if long_side is not None and max(width, height) > long_side:
        scale = long_side / max(width, height)
        width, height = max(round(width * scale), 1), max(round(height * scale), 1)
    if _quarter_turns(frame) % 2:
        width, height = height, width
    if scale <= 0.5 and frame.format.name in HALVED:
        picture = _shrunk(frame, width, height)
    else:
        quick = Interpolation.AREA if scale < 1 else Interpolation.FAST_BILINEAR
        converted = frame.reformat(
            width, height, "rgb24",
            src_colorspace=Colorspace.ITU709 if frame.colorspace == 1 else Colorspace.ITU601,
            interpolation=EXACT if long_side is None else quick,
            threads=1,
        )  # fmt: skip
        picture = np.asarray(converted.to_ndarray(), np.uint8)
    quarter_turns = _quarter_turns(frame)
    return np.ascontiguousarray(np.rot90(picture, quarter_turns)) if quarter_turns else picture


def _shrunk(frame: Any, width: int, height: int) -> Frame:
    """Scale before the colours are converted: a third of the time of libav's own way."""
    planes = [_halved(_samples(plane), width, height) for plane in frame.planes]
    full = frame.format.name.startswith("yuvj") or frame.color_range == 2
    return np.asarray(cv2.transform(cv2.merge(planes), _TO_RGB[frame.colorspace == 1, full]), np.uint8)


def _to_rgb(red: float, blue: float, full_range: bool) -> NDArray[np.float32]:
    """[3, 4] from (Y, Cb, Cr, 1), 8 bits, to RGB; `red` and `blue` are their shares of the luma."""
    luma, chroma, black = (1.0, 1.0, 0.0) if full_range else (255 / 219, 255 / 224, 16.0)
    green = 1 - red - blue
    cb = np.array([0, -2 * (1 - blue) * blue / green, 2 * (1 - blue)]) * chroma
    cr = np.array([2 * (1 - red), -2 * (1 - red) * red / green, 0]) * chroma
    constant = -luma * black - 128 * (cb + cr)
    return np.stack([np.full(3, luma), cb, cr, constant], axis=1).astype(np.float32)


# By whether the colours are BT.709's (else BT.601's), and whether black is 0.
_TO_RGB = {
    (hd, full): _to_rgb(*((0.2126, 0.0722) if hd else (0.299, 0.114)), full)
    for hd in (False, True) for full in (False, True)
}  # fmt: skip


def _samples(plane: Any) -> Frame:
    """uint8 [H, W] of a plane of 8-bit samples, without a copy."""
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:plane.height, :plane.width]


def _halved(samples: Frame, width: int, height: int) -> Frame:
    """Scaled down: by halves, each the mean of four, while that is not too small; then between pixels."""
    while samples.shape[1] >= 2 * width and samples.shape[0] >= 2 * height:
        half = (samples.shape[1] // 2, samples.shape[0] // 2)
        samples = np.asarray(cv2.resize(samples, half, interpolation=cv2.INTER_AREA), np.uint8)
    return np.asarray(cv2.resize(samples, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
