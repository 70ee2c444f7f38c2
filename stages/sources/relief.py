"""A portrait as a textured surface under a moving camera: relief, expression, view. The cameras are exact.

Units: the portrait is brought to `PX_PER_MM` pixels per millimetre of the average face; depths and positions
are in world units (`model.camera`). The geometry is our own: the depths of `stages.face_model` at the
landmarks, a forehead, hair and shoulders laid out by hand, and a flat backdrop, smoothly joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.camera import RADIUS
from stages.cameras import at_radius
from stages.face_model import LANDMARKS, RIGID, WORLD_PER_MM, to_world
from stages.rotations import rotation_from_euler

Array = NDArray[np.float64]
Picture = NDArray[np.uint8]

PX_PER_MM = 2.0                          # of the texture
GRID_PX = 4                              # between samples of the smooth maps
MARGIN_PX = 200                          # of surface known around the texture, a multiple of GRID_PX
PIVOT = np.array([0.0, 0.006, 0.161])    # world: the middle of the alignment crop; the camera looks at it
DISTANCE = 2.7                           # world units from the pivot, about one metre
INVERSION_STEPS = 15

# Millimetres of the average face, x of the right half: forehead, hair, ears, neck, shoulders.
_AROUND_MM = (
    (0, 52, 18), (28, 48, 12), (50, 40, -8), (0, 85, 2), (38, 78, -12), (62, 62, -32), (0, 112, -30),
    (50, 102, -42), (76, 72, -58), (74, 30, -52), (80, -10, -70), (78, -50, -72), (0, -135, -32),
    (45, -128, -52), (0, -190, -40), (70, -190, -58), (140, -190, -72), (0, -300, -40), (120, -300, -60),
)  # fmt: skip
_BACKDROP_MM = -60.0
_KEEP_MM = ((-225.0, -300.0), (260.0, 320.0))   # of a portrait, around the root of the nose
_SHALLOW = to_world([0, 0, -15])[2]       # deeper than this the relief is flattened, or cheeks would fold


@dataclass(frozen=True)
class Expression:
    """`blink` 0 (open) to 1 (shut); `mouth` in mm of opening beyond the portrait's own."""

    blink: float = 0.0
    mouth: float = 0.0


@dataclass(frozen=True)
class View:
    """How one frame is filmed: angles as in `stages.cameras`, and how large and where the face is."""

    yaw_deg: float
    pitch_deg: float
    roll_deg: float
    px_per_mm: float
    centre_px: tuple[float, float]       # where the pivot is seen, px of the frame

    @property
    def rotation(self) -> Array:
        return rotation_from_euler(self.yaw_deg, self.pitch_deg, self.roll_deg)

    @property
    def position(self) -> Array:
        """World position of the camera, before the convention moves it to radius 2.7."""
        return PIVOT - DISTANCE * self.rotation[:, 2]

    def project(self, points: Array) -> NDArray[np.float32]:
        """World [..., 3] -> px of the frame [..., 2]."""
        seen = (points - self.position) @ self.rotation
        focal = self.px_per_mm / WORLD_PER_MM * DISTANCE
        return (focal * seen[..., :2] / seen[..., 2:] + self.centre_px).astype(np.float32)


def truth(view: View) -> tuple[Array, Array]:
    """Rotation [3, 3] and position [3] of a view's camera in the convention of the 25 numbers."""
    return view.rotation, at_radius(view.position, RADIUS)


class Relief:
    """A portrait with depth. `picture` uint8 [H, W, 3] RGB, `landmarks` [68, 2] px of it, iBUG order.

    `lid` is how far above the eye the skin of a closing lid comes from, as a share of the way to the brow.
    """

    def __init__(self, picture: Picture, landmarks: ArrayLike, lid: float = 0.5) -> None:
        self.lid = lid
        points = np.asarray(landmarks, np.float64)
        scale = PX_PER_MM / _px_per_mm(points)
        keep = points[27] + np.array(_KEEP_MM) * PX_PER_MM / scale
        left, top, right, bottom = (max(round(edge), 0) for edge in keep.ravel())
        picture, points = picture[top:bottom, left:right], points - (left, top)
        size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
        self.texture: Picture = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)
        self.landmarks = (points + 0.5) * scale - 0.5
        self._base = _pose(self.landmarks)
        self._surface = self._points(*_depths(self.landmarks, self._base, self.texture.shape))

    def frame(self, view: View, expression: Expression, width: int, height: int) -> Picture:
        """Render uint8 [height, width, 3] RGB."""
        source = self.texture_map(view, width, height)
        texture = express(self.texture, self.landmarks, expression, self.lid)
        shown = cv2.remap(
            texture, source[..., 0], source[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
        )
        return np.asarray(shown, np.uint8)

    def texture_map(self, view: View, width: int, height: int) -> NDArray[np.float32]:
        """[height, width, 2]: which texture px is seen at each frame px.

        The surface says where each texture px is seen; that map is inverted by fixed-point steps: each
        corrects the guess by what it misses, as if the face were flat.
        """
        seen = view.project(self._surface)
        flat = self._flat(view)
        wanted = _grid(width, height)
        back = cv2.invertAffineTransform(flat)
        guess = cv2.transform(wanted, back).astype(np.float32)
        for _ in range(INVERSION_STEPS):
            at = _cell(guess)
            reached = cv2.remap(
                seen, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
            guess += 0.8 * cv2.transform(wanted - reached, np.hstack([back[:, :2], np.zeros((2, 1))]))
        full = (wanted.shape[1] * GRID_PX, wanted.shape[0] * GRID_PX)
        return np.ascontiguousarray(cv2.resize(guess, full, interpolation=cv2.INTER_CUBIC)[:height, :width])

    def _flat(self, view: View) -> Array:
        """[2, 3]: the affine map from texture px to frame px that is right at eyes and nose."""
        corners = self.landmarks[[36, 45, 33]].astype(np.float32)
        at = _cell(corners)
        seen = cv2.remap(view.project(self._surface), at[:, None, 0], at[:, None, 1], cv2.INTER_LINEAR)
        return np.asarray(cv2.getAffineTransform(corners, seen.reshape(3, 2)), np.float64)

    def _points(self, grid: NDArray[np.float32], depth: Array) -> Array:
        """World points [h, w, 3] of texture px [h, w, 2] at camera depths [h, w]."""
        rotation, position, focal, middle = self._base
        rays = np.concatenate([(grid - middle) / focal, np.ones((*depth.shape, 1))], axis=-1)
        return (rays * depth[..., None]) @ rotation.T + position


def express(texture: Picture, landmarks: Array, expression: Expression, lid: float = 0.5) -> Picture:
    """The texture with lids lowered and the jaw dropped."""
    shown = texture.copy()
    if expression.blink > 0:
        for eye, brow in ((landmarks[36:42], landmarks[18:21]), (landmarks[42:48], landmarks[23:26])):
            _lower_lid(shown, texture, eye, lid * (eye[:, 1].min() - brow[:, 1].mean()), expression.blink)
    if expression.mouth > 0:
        _drop_jaw(shown, landmarks, expression.mouth * PX_PER_MM)
    return shown


def _lower_lid(shown: Picture, texture: Picture, eye: Array, skin: float, blink: float) -> None:
    left, right = eye[0, 0], eye[3, 0]
    x0, x1 = int(left), int(np.ceil(right)) + 1
    xs = np.arange(x0, x1, dtype=np.float64)
    upper, lower = _arch(eye[[0, 1, 2, 3]], xs), _arch(eye[[0, 5, 4, 3]], xs)
    fold = upper - skin                                            # above it the skin stays
    edge = upper + 0.95 * blink * np.maximum(lower - upper, 0)
    y0, y1 = int(fold.min()) - 2, int(lower.max()) + 3
    ys = np.arange(y0, y1, dtype=np.float64)[:, None]
    stretched = fold + (ys - fold) * (upper - fold) / (edge - fold)
    source = np.where((ys > fold) & (ys < edge), stretched, ys).astype(np.float32)
    columns = np.broadcast_to(xs.astype(np.float32), source.shape)
    lid = cv2.remap(texture, np.ascontiguousarray(columns), source, cv2.INTER_LINEAR)
    cover = np.clip(edge - ys, 0, 1) * np.clip(np.minimum(xs - left, right - xs) / 3, 0, 1)
    _blend(shown[y0:y1, x0:x1], lid, cover)


def _drop_jaw(shown: Picture, landmarks: Array, opening: float) -> None:
    left, right = landmarks[60], landmarks[64]
    chin = landmarks[8, 1]
    half, middle = (right[0] - left[0]) / 2, (right[0] + left[0]) / 2
    x0, x1 = int(landmarks[3, 0]), int(landmarks[13, 0])
    y0, y1 = int(min(left[1], right[1])) - 4, min(int(chin + 4 * opening + 60), shown.shape[0])
    xs, ys = np.arange(x0, x1, dtype=np.float64), np.arange(y0, y1, dtype=np.float64)[:, None]
    lip = np.interp(xs, landmarks[[60, 67, 66, 65, 64], 0], landmarks[[60, 67, 66, 65, 64], 1])
    below = np.clip((ys - lip) / (0.6 * (chin - lip.max())), 0, 1)  # 0 at the lips, 1 well below them
    below = below * below * (3 - 2 * below)
    lips = np.sqrt(np.clip(1 - ((xs - middle) / half) ** 2, 0, 1))
    jaw = np.cos(np.clip((xs - middle) / (x1 - x0), -0.5, 0.5) * np.pi) ** 2
    fade = np.clip((y1 - ys) / (y1 - chin), 0, 1)
    shift = opening * ((1 - below) * lips + below * jaw) * fade * fade * (3 - 2 * fade)
    source = np.maximum(ys - shift, lip)
    source = np.where(ys > lip, source, ys).astype(np.float32)
    columns = np.broadcast_to(xs.astype(np.float32), source.shape)
    moved = cv2.remap(shown, np.ascontiguousarray(columns), source, cv2.INTER_LINEAR)
    gap = np.clip(ys - lip, 0, 1) * np.clip(lip + opening * lips - ys, 0, 1)
    depth = np.clip((ys - lip) / max(opening, 1), 0, 1)[..., None]
    inside = np.array([70, 30, 28]) * (1 - depth) + np.array([38, 14, 14]) * depth
    _blend(moved, np.broadcast_to(inside, moved.shape), cv2.GaussianBlur(gap, (0, 0), 1.0))
    shown[y0:y1, x0:x1] = moved


def _arch(points: Array, xs: Array) -> Array:
    """A parabola through four points of a lid, evaluated at `xs`."""
    return np.asarray(np.polyval(np.polyfit(points[:, 0], points[:, 1], 2), xs), np.float64)


def _blend(below: Picture, above: NDArray[np.generic], weight: Array) -> None:
    mixed = below + (above.astype(np.float64) - below) * weight[..., None]
    below[...] = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def _grid(width: int, height: int) -> NDArray[np.float32]:
    """[h, w, 2] px at the centres of `GRID_PX` cells that cover the picture."""
    xs = (np.arange(-(-width // GRID_PX), dtype=np.float32) + 0.5) * GRID_PX - 0.5
    ys = (np.arange(-(-height // GRID_PX), dtype=np.float32) + 0.5) * GRID_PX - 0.5
    return np.stack(np.meshgrid(xs, ys), axis=-1)


def _cell(texture_px: NDArray[np.float32]) -> NDArray[np.float32]:
    """Where texture px lie in the arrays over the surface, which begin `MARGIN_PX` before the texture."""
    return np.asarray((texture_px + MARGIN_PX + 0.5) / GRID_PX - 0.5, np.float32)


def _px_per_mm(landmarks: Array) -> float:
    model = LANDMARKS[RIGID] / WORLD_PER_MM
    return float(np.ptp(landmarks[RIGID, 0]) / np.ptp(model[:, 0]))


def _pose(landmarks: Array) -> tuple[Array, Array, float, Array]:
    """Camera of the portrait itself: rotation, position, focal length in px, principal point in px."""
    focal = PX_PER_MM / WORLD_PER_MM * DISTANCE
    middle = landmarks[[27, 33]].mean(axis=0)
    lens = np.array([[focal, 0, middle[0]], [0, focal, middle[1]], [0, 0, 1]])
    turn, shift = cv2.Rodrigues(np.diag([1.0, -1.0, -1.0]))[0], np.array([[0.0], [0.0], [DISTANCE]])
    _, turn, shift = cv2.solvePnP(LANDMARKS[RIGID], landmarks[RIGID], lens, None, turn, shift, True)
    rotation = np.asarray(cv2.Rodrigues(turn)[0].T, np.float64)
    return rotation, (-rotation @ shift).ravel(), focal, middle


def _depths(
    landmarks: Array, base: tuple[Array, Array, float, Array], shape: Sequence[int]
) -> tuple[NDArray[np.float32], Array]:
    """Depth from the camera of the portrait, joined between known points: [h, w, 2] texture px, [h, w]."""
    from scipy.interpolate import RBFInterpolator

    rotation, position, focal, middle = base
    right = np.array(_AROUND_MM, np.float64)
    around = np.concatenate([right, right[right[:, 0] > 0] * (-1, 1, 1)])
    world = np.concatenate([LANDMARKS[:60], to_world(around)])    # closed inner lips: two depths in one place
    world[:, 2] -= 0.4 * np.minimum(world[:, 2] - _SHALLOW, 0)
    seen = (world - position) @ rotation
    at = focal * seen[:, :2] / seen[:, 2:] + middle
    at[:60] = landmarks[:60]                                        # this person's own places
    far = float(((to_world([0, 0, _BACKDROP_MM]) - position) @ rotation)[2])
    height, width = shape[:2]
    ring = _ring(landmarks)
    plate = RBFInterpolator(
        np.concatenate([at, ring]),
        np.concatenate([seen[:, 2], np.full(len(ring), far)]),
        kernel="thin_plate_spline",
    )
    grid = _grid(width + 2 * MARGIN_PX, height + 2 * MARGIN_PX) - MARGIN_PX
    depth = plate(grid.reshape(-1, 2)).reshape(grid.shape[:2])
    return grid, np.asarray(cv2.GaussianBlur(np.minimum(depth, far), (0, 0), 1.0), np.float64)


def _ring(landmarks: Array) -> Array:
    """Points of the backdrop: around the head from shoulder to shoulder, and far away, in texture px."""
    middle = landmarks[27]
    angles = np.deg2rad(np.arange(-20, 201, 20))
    near = middle + PX_PER_MM * np.stack([118 * np.cos(angles), -145 * np.sin(angles)], axis=-1)
    angles = np.deg2rad(np.arange(0, 360, 30))
    far = middle + PX_PER_MM * 450 * np.stack([np.cos(angles), -np.sin(angles)], axis=-1)
    return np.concatenate([near, far])
