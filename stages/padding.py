"""What FFHQ's alignment shows where its square leaves the frame: the mirror image, blurred, fading to grey.

The published recipe pads the frame before it cuts: mirrored, blended into a blurred copy from a third of the
padding's width inside the frame on, and outside more and more into the median colour. Here the same is done
to the crop alone, after its one warp, and only where it reaches the crop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Picture = NDArray[np.uint8]

# In sides of the quad:
BORDER = 0.1                     # that the recipe keeps around the quad
LEAST_PAD = 0.3                  # if it pads at all
BLUR = 0.02                      # sigma
TOUCHES_PX = 4.0                 # it pads when the quad comes so near to the edge of the frame
COARSE_PX = 2.0                  # the blur's sigma in the small copy that is blurred
WEIGHTS_EVERY = 4                # px of the crop: weights are linear in between


@dataclass(frozen=True)
class Padding:
    """The padding of one frame: left, top, right, bottom; px of the frame."""

    edges: Array                             # [4] where the picture ends, or the recipe cuts it
    pads: Array                              # [4] width of what is added there
    sigma: float                             # of the blur

    def depth(self, points: Array) -> Array:
        """[..., 2] -> [...]: 0 at the edge of the picture, 1 at the end of the padding, negative inside."""
        x, y = points[..., 0], points[..., 1]
        left, top, right, bottom = self.edges
        inside = np.stack([x - left, y - top, right - x, bottom - y], axis=-1)
        return np.asarray((-inside / self.pads).max(axis=-1), np.float64)


def ffhq_padding(quad: Array, width: int, height: int) -> Padding | None:
    """The padding that the recipe gives a frame for a quad [4, 2], or None when it needs none."""
    side = float(np.linalg.norm(quad[3] - quad[0]))
    border = max(BORDER * side, 3.0)
    low, high = quad.min(axis=0) - border, quad.max(axis=0) + border
    beyond = np.array([-low[0], -low[1], high[0] - (width - 1), high[1] - (height - 1)])
    if beyond.max() <= border - TOUCHES_PX:
        return None
    edges = np.array([max(low[0], 0), max(low[1], 0), min(high[0], width - 1), min(high[1], height - 1)])
    return Padding(edges, np.maximum(beyond, LEAST_PAD * side), BLUR * side)


def blend(square: Picture, frame: Picture, transform: Array, quad: Array) -> Picture:
    """Blend a crop uint8 [S, S, 3], cut by `transform` [2, 3] out of the mirrored `frame`, as published.

    `quad` [4, 2] is FFHQ's, in px of the frame.
    """
    import cv2

    size = len(square)
    padding = ffhq_padding(quad, frame.shape[1], frame.shape[0])
    if padding is None:
        return square
    depth = padding.depth(_places(transform, size))
    if depth.max() <= -1 / 3:
        return square
    shrink = min(COARSE_PX / padding.sigma, 1.0)
    outside, corner = _outside(frame, padding, shrink)
    # From px of the crop to px of the small copy.
    back = cv2.invertAffineTransform(transform)
    back[:, 2] += 0.5 - corner
    back = shrink * back
    back[:, 2] -= 0.5
    soft = cv2.warpAffine(
        outside, back, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    weight = cv2.resize(_blurred_share(depth).astype(np.float32), (size, size))
    return np.asarray(cv2.blendLinear(soft, square, weight, 1 - weight), np.uint8)


def _blurred_share(depth: Array) -> Array:
    return np.clip(3 * depth + 1, 0, 1)


def _places(transform: Array, size: int) -> Array:
    """[n, n, 2]: px of the frame at a coarse grid over the crop."""
    import cv2

    count = max(size // WEIGHTS_EVERY, 1)
    ticks = (np.arange(count) + 0.5) * size / count - 0.5
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1)
    return np.asarray(cv2.transform(grid, cv2.invertAffineTransform(transform)), np.float64)


def _outside(frame: Picture, padding: Padding, shrink: float) -> tuple[Picture, Array]:
    """What is blended in, at a smaller size, and where its corner is, px from the frame's corner."""
    import cv2

    corner = padding.edges[:2] - padding.pads[:2]    # its edge: the frame's own corner is at (-0.5, -0.5)
    far = padding.edges[2:] + padding.pads[2:]
    width, height = np.ceil((far - corner + 1) * shrink).astype(int).tolist()
    mirrored = _mirrored(frame, corner, shrink, width, height)
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
    depth = padding.depth((grid + 0.5) / shrink + corner - 0.5)[..., None]
    blurred = cv2.GaussianBlur(mirrored, (0, 0), padding.sigma * shrink, borderType=cv2.BORDER_REFLECT_101)
    blended = mirrored + (blurred - mirrored) * _blurred_share(depth)
    median = np.median(blended[::2, ::2], axis=(0, 1))
    faded = blurred + (median - blurred) * np.clip(depth, 0, 1)
    return np.asarray(np.rint(faded), np.uint8), corner


def _mirrored(frame: Picture, corner: Array, shrink: float, width: int, height: int) -> NDArray[np.float32]:
    """A small copy of the frame, and its mirror images around it."""
    import cv2

    # Shrunk first, by the mean of what is under a pixel, so that the warp need not be finer.
    count = (max(round(frame.shape[1] * shrink), 1), max(round(frame.shape[0] * shrink), 1))
    small = cv2.resize(frame, count, interpolation=cv2.INTER_AREA)
    scale = np.array(count) / (frame.shape[1], frame.shape[0])
    matrix = np.column_stack([np.diag(scale / shrink), scale * (corner + 0.5 / shrink) - 0.5])
    picture = cv2.warpAffine(
        small, matrix, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT,       # at the edge: the middle of the last pixel is far from it here
    )  # fmt: skip
    return np.asarray(picture, np.float32)
