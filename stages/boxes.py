"""Boxes of faces, (left, top, right, bottom) in px: how large, how far apart, how much in common."""

from __future__ import annotations

import math

from stages.backends import Box


def side(box: Box) -> float:
    """Geometric mean of width and height, px; never 0."""
    return max(math.sqrt(max((box[2] - box[0]) * (box[3] - box[1]), 0.0)), 1e-6)


def apart(box: Box, other: Box) -> float:
    """Distance of the centres, in sides of `other`."""
    x = (box[0] + box[2] - other[0] - other[2]) / 2
    y = (box[1] + box[3] - other[1] - other[3]) / 2
    return math.hypot(x, y) / side(other)


def overlap(box: Box, other: Box) -> float:
    """Intersection over union."""
    common = _common(box, other)
    return common / (side(box) ** 2 + side(other) ** 2 - common)


def inside(box: Box, other: Box) -> float:
    """Share of `box` that lies in `other`."""
    return _common(box, other) / side(box) ** 2


def scaled(box: Box, scale: float) -> Box:
    """The box in a picture that is `scale` times as large."""
    return (box[0] * scale, box[1] * scale, box[2] * scale, box[3] * scale)


def shifted(box: Box, x: float, y: float) -> Box:
    """The box, moved."""
    return (box[0] + x, box[1] + y, box[2] + x, box[3] + y)


def _common(box: Box, other: Box) -> float:
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return max(width, 0.0) * max(height, 0.0)
