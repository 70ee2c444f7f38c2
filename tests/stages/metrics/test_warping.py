import numpy as np
import pytest

from model.camera import Camera, canonical_camera, orbit
from stages.metrics import Evaluation, MultiView
from stages.metrics.warping import compute, lift, official_warp, project, warping_error

SIZE = 64
FRONT, SIDE = canonical_camera(), orbit(30.0)


def rays(camera: Camera) -> np.ndarray:
    return (lift(camera, np.ones((SIZE, SIZE))) - camera.position).reshape(-1, 3)


def depth_of_plane(camera: Camera, z: float) -> np.ndarray:
    return ((z - camera.position[2]) / rays(camera)[:, 2]).reshape(SIZE, SIZE)


def depth_of_sphere(camera: Camera, radius: float) -> np.ndarray:
    """Distance to the sphere about the origin, to its silhouette's depth where the ray misses it."""
    half = rays(camera) @ camera.position
    root = np.clip(half**2 - (camera.position @ camera.position - radius**2), 0, None)
    return (-half - np.sqrt(root)).reshape(SIZE, SIZE)


def paint(camera: Camera, depth: np.ndarray) -> np.ndarray:
    """A smooth texture fixed to the world, seen by `camera`."""
    x, y, z = np.moveaxis(lift(camera, depth), -1, 0)
    channels = [
        127 + 100 * np.sin(6 * x + 2 * z),
        127 + 100 * np.cos(5 * y),
        127 + 60 * np.sin(4 * (x + y) + 1),
    ]
    return np.stack(channels, -1)


@pytest.mark.parametrize("surface", [lambda c: depth_of_plane(c, 0.1), lambda c: depth_of_sphere(c, 0.6)])
def test_true_depth_of_a_painted_surface_has_almost_no_error(surface) -> None:
    depth = surface(SIDE)
    error = warping_error(
        FRONT.encode(), SIDE.encode(), paint(FRONT, surface(FRONT)), paint(SIDE, depth), depth
    )
    assert error < 0.5
    assert (
        warping_error(
            FRONT.encode(), SIDE.encode(), paint(FRONT, surface(FRONT)), paint(SIDE, depth), depth + 0.1
        )
        > 3
    )


def test_a_constant_difference_of_brightness_is_the_error() -> None:
    depth, dark = depth_of_plane(SIDE, 0.0), np.full((SIZE, SIZE, 3), 40.0)
    assert warping_error(FRONT.encode(), SIDE.encode(), dark + 25, dark, depth) == pytest.approx(25)


def test_no_pixel_in_view_has_no_error() -> None:
    behind = Camera(
        rotation=np.diag([-1.0, -1.0, 1.0]), position=np.array([0, 0, -2.7]), intrinsics=FRONT.intrinsics
    )
    near = np.full((SIZE, SIZE), 0.1)
    away = Camera(rotation=behind.rotation, position=np.array([0, 0, 9.0]), intrinsics=FRONT.intrinsics)
    assert np.isnan(
        warping_error(
            FRONT.encode(), away.encode(), np.zeros((SIZE, SIZE, 3)), np.zeros((SIZE, SIZE, 3)), near
        )
    )


def test_projection_undoes_lifting_also_with_skew() -> None:
    skewed = Camera(
        rotation=SIDE.rotation,
        position=SIDE.position,
        intrinsics=np.array([[4.2, 0.3, 0.48], [0, 4.4, 0.53], [0, 0, 1]]),
    )
    uv, in_front = project(skewed, lift(skewed, np.full((SIZE, SIZE), 2.5)))
    centre = (np.arange(SIZE) + 0.5) / SIZE
    np.testing.assert_allclose(uv, np.stack(np.meshgrid(centre, centre), -1), atol=1e-12)
    assert in_front.all()


def test_the_official_warp_of_one_camera_onto_itself_is_the_identity() -> None:
    depth, image = (
        depth_of_plane(FRONT, 0.0),
        np.random.default_rng(0).integers(1, 255, (SIZE, SIZE, 3)).astype(float),
    )
    warped, mask, error = official_warp(FRONT.encode(), FRONT.encode(), image, image, depth)
    assert mask.all()
    np.testing.assert_array_equal(warped, image)
    assert error == 0


def test_a_video_is_the_mean_of_its_front_side_pairs() -> None:
    cameras = [FRONT, SIDE, SIDE, FRONT]
    images = np.stack([np.full((SIZE, SIZE, 3), level, np.uint8) for level in (10, 20, 40, 80)])
    depth = np.stack([depth_of_plane(c, 0.0) for c in cameras]).astype(np.float32)
    view = MultiView(
        images=images,
        depth=depth,
        opacity=np.ones_like(depth),
        points=np.zeros((4, SIZE, SIZE, 3), np.float32),
        cameras=np.stack([c.encode() for c in cameras]),
        times=np.zeros(4, np.float32),
    )
    value = compute(Evaluation(views=[view], bin_size=1.0))["warping_error"]
    assert value.value == pytest.approx(np.mean([40 - 10, 80 - 20, 20 - 10, 80 - 40]))


@pytest.mark.parametrize("wrong", [0.0, 0.05, 0.2])
def test_a_moved_camera_has_the_slope_of_the_picture_times_what_it_is_wrong_by(wrong: float) -> None:
    """A plane whose brightness rises by `slope` per world unit, seen from the front and from beside it; the
    second picture is painted as if the plane had moved along by `wrong`."""
    slope, aside = 150.0, np.array([0.1, 0.05, 0])
    moved = Camera(
        rotation=FRONT.rotation, position=FRONT.position + aside, intrinsics=FRONT.intrinsics
    )

    def ramp(camera: Camera, by: float = 0.0) -> np.ndarray:
        x = lift(camera, depth_of_plane(camera, 0.0))[..., 0]
        return np.repeat((127 + slope * (x + by))[..., None], 3, axis=-1)

    depth = depth_of_plane(moved, 0.0)
    error = warping_error(FRONT.encode(), moved.encode(), ramp(FRONT), ramp(moved, wrong), depth)
    assert error == pytest.approx(slope * wrong, abs=0.05)  # the edge's pixels are repeated
