"""The alignment as it is published: two pictures, one after the other, by Pillow. The reference of tests.

Written from the formulas of FFHQ's quad, its padding, and the re-crop of EG3D; slow, one frame at a time.
"""

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

Q, FIRST, SECOND, KEPT, PX_PER_UNIT = 1.8, 1500, 1024, 700, 300.0
# left eye, right eye, tip of the nose, corners of the mouth; y up
STANDARD = np.array([
    (-0.31148657, 0.29036078, 0.13377953), (0.30979887, 0.28972036, 0.13179526),
    (0.0032535, -0.04617932, 0.55244243),
    (-0.25216928, -0.38133916, 0.22405732), (0.2484662, -0.38128236, 0.22235769),
])  # fmt: skip


def quad_of(points: np.ndarray) -> np.ndarray:
    """NW, SW, SE, NE."""
    left, right = points[36:42].mean(axis=0), points[42:48].mean(axis=0)
    eye, across = (left + right) / 2, right - left
    down = (points[48] + points[54]) / 2 - eye
    x = across - (-down[1], down[0])
    x *= max(np.hypot(*across) * 2.0, np.hypot(*down) * 1.8) / np.hypot(*x) * Q
    y = np.array((-x[1], x[0]))
    c = eye + 0.1 * down
    return np.stack([c - x - y, c - x + y, c + x + y, c + x - y])


def first_picture(frame: np.ndarray, quad: np.ndarray) -> Image.Image:
    """1500 px: cut to the quad's surroundings, padded where these leave the frame, turned upright."""
    image, quad = Image.fromarray(frame), quad.copy()
    side = np.hypot(*(quad[3] - quad[0]))
    shrink = int(np.floor(side / FIRST * 0.5))
    if shrink > 1:
        smaller = (round(image.width / shrink), round(image.height / shrink))
        image = image.resize(smaller, Image.Resampling.LANCZOS)
        quad, side = quad / shrink, side / shrink
    border = max(round(side * 0.1), 3)
    low, high = np.floor(quad.min(axis=0)).astype(int), np.ceil(quad.max(axis=0)).astype(int)
    cut = (max(low[0] - border, 0), max(low[1] - border, 0),
           min(high[0] + border, image.width), min(high[1] + border, image.height))  # fmt: skip
    image, quad = image.crop(tuple(map(int, cut))), quad - cut[:2]
    low, high = np.floor(quad.min(axis=0)).astype(int), np.ceil(quad.max(axis=0)).astype(int)
    pad = np.maximum([-low[0] + border, -low[1] + border,
                      high[0] - image.width + border, high[1] - image.height + border], 0)  # fmt: skip
    if pad.max() > border - 4:
        pad = np.maximum(pad, round(side * 0.3))
        left, top, right, bottom = map(int, pad)
        pixels = np.pad(np.float32(image), ((top, bottom), (left, right), (0, 0)), "reflect")
        h, w, _ = pixels.shape
        y, x, _ = np.ogrid[:h, :w, :1]
        across, along = np.minimum(x / left, (w - 1 - x) / right), np.minimum(y / top, (h - 1 - y) / bottom)
        m = np.maximum(1 - across, 1 - along)
        soft = gaussian_filter(pixels, [0.02 * side, 0.02 * side, 0])
        pixels += (soft - pixels) * np.clip(3 * m + 1, 0, 1)
        pixels += (np.median(pixels, axis=(0, 1)) - pixels) * np.clip(m, 0, 1)
        image, quad = Image.fromarray(np.uint8(np.clip(np.rint(pixels), 0, 255))), quad + pad[:2]
    image = image.transform(
        (4096, 4096), Image.Transform.QUAD, tuple((quad + 0.5).ravel()), Image.Resampling.BILINEAR
    )
    return image.resize((FIRST, FIRST), Image.Resampling.LANCZOS)


def into_first(points: np.ndarray, quad: np.ndarray) -> np.ndarray:
    """Points of the frame -> px of the first picture."""
    x, y = (quad[3] - quad[0]) / FIRST, (quad[1] - quad[0]) / FIRST
    return (points - quad[0]) @ np.linalg.inv(np.stack([x, y])) - 0.5


def second_picture(first: Image.Image, points: np.ndarray, size: int) -> np.ndarray:
    """The middle 700 of 1024 px around the origin of the standard points, at `size`."""
    five = np.stack([points[[36, 39]].mean(axis=0), points[[42, 45]].mean(axis=0),
                     points[30], points[48], points[54]])  # fmt: skip
    five[:, 1] = FIRST - 1 - five[:, 1]
    solved = np.linalg.lstsq(np.column_stack([STANDARD, np.ones(5)]), five, rcond=None)[0]
    t, s = solved[3], PX_PER_UNIT / np.linalg.norm(solved[:3], axis=0).mean()
    w = h = int(FIRST * s)
    left = int(w / 2 - SECOND / 2 + (t[0] - FIRST / 2) * s)
    up = int(h / 2 - SECOND / 2 + (FIRST / 2 - t[1]) * s)
    image = first.resize((w, h), Image.Resampling.BICUBIC).crop((left, up, left + SECOND, up + SECOND))
    edge = (SECOND - KEPT) // 2
    image = image.crop((edge, edge, edge + KEPT, edge + KEPT))
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


def two_step(frame: np.ndarray, landmarks: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W, 3] and [68, 2] -> uint8 [size, size, 3]."""
    points = landmarks.astype(np.float64)
    quad = quad_of(points)
    return second_picture(first_picture(frame, quad), into_first(points, quad), size)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """dB, of pictures with 255 levels."""
    return float(10 * np.log10(255**2 / ((a.astype(np.float64) - b) ** 2).mean()))
