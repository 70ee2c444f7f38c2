"""Our arithmetic against the authors' own, recorded in the golden fixtures (their README names every
array)."""

import os
from pathlib import Path

import numpy as np
import pytest

from stages.metrics.chamfer import chamfer_median
from stages.metrics.frechet import frechet_distance, statistics
from stages.metrics.fvd import i3d_preprocess
from stages.metrics.warping import official_warp

REPOSITORY = Path(__file__).parents[3]
FOLDER = Path(os.environ.get("PV3D_GOLDEN") or REPOSITORY / ".." / "shared" / "golden")
FILE = FOLDER / "metrics.npz"

if not FILE.is_file() and "PV3D_GOLDEN" not in os.environ:
    pytest.skip(f"no golden fixtures at {FOLDER}; PV3D_GOLDEN names their folder", allow_module_level=True)


class Fixtures:
    """The arrays of the file; remembers which were read."""

    def __init__(self) -> None:
        self.arrays = dict(np.load(FILE, allow_pickle=False))
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        self.used.add(name)
        return self.arrays[name]


def check_chamfer_median(golden: Fixtures) -> None:
    x, y, x_mask, y_mask = (golden[f"chamfer_median/{name}"][0] for name in ("x", "y", "x_mask", "y_mask"))
    value = float(golden["chamfer_median/value"])
    assert chamfer_median(x, y, x_mask, y_mask) == pytest.approx(value, rel=1e-9)


def check_warp_error(golden: Fixtures) -> None:
    front, side, depth = (golden[f"warp_error/{name}"][0] for name in ("canonical", "side", "depth_side"))
    images = golden["warp_error/image_front"], golden["warp_error/image_side"]
    warped, mask, error = official_warp(front, side, *images, depth)
    np.testing.assert_array_equal(mask, golden["warp_error/mask"])
    np.testing.assert_array_equal(warped, golden["warp_error/warped"])
    assert error == pytest.approx(float(golden["warp_error/error"]), rel=1e-5)


def check_frechet(golden: Fixtures) -> None:
    real, fake = statistics(golden["frechet/real"]), statistics(golden["frechet/fake"])
    np.testing.assert_allclose(real[0], golden["frechet/mean_real"], atol=1e-7)
    np.testing.assert_allclose(real[1], golden["frechet/cov_real"], atol=1e-6)
    assert frechet_distance(*real, *fake) == pytest.approx(float(golden["frechet/value"]), rel=1e-6)


def check_i3d_preprocess(golden: Fixtures) -> None:
    resolution = int(golden["i3d_preprocess/resolution"])
    out = i3d_preprocess(golden["i3d_preprocess/video_thwc_uint8"], resolution)
    np.testing.assert_allclose(out, golden["i3d_preprocess/out_ctHW"], atol=1e-5)


CHECKS = {
    "chamfer_median": check_chamfer_median,
    "warp_error": check_warp_error,
    "frechet": check_frechet,
    "i3d_preprocess": check_i3d_preprocess,
}


def groups() -> list[str]:
    return sorted({name.split("/")[0] for name in np.load(FILE, allow_pickle=False).files})


@pytest.mark.parametrize("group", groups())
def test_every_golden_metric_array_is_reproduced(group: str) -> None:
    golden = Fixtures()
    assert group in CHECKS, f"nothing compares {group!r} of {FILE}"
    CHECKS[group](golden)
    left = {name for name in golden.arrays if name.startswith(f"{group}/")} - golden.used
    assert not left, f"arrays of {FILE} that no test compares: {sorted(left)}"
