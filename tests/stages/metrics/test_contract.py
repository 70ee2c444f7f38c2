import subprocess
import sys

import numpy as np
import pytest

from infra.weights import entry
from stages.metrics import Evaluation, Value, load, mean_of
from stages.metrics.frechet import frechet_distance, statistics
from stages.metrics.fvd import I3D


def test_a_mean_has_an_interval_and_counts_only_videos_with_a_value() -> None:
    value = mean_of([1.0, 3.0, float("nan")], unit="px", direction="lower")
    assert (value.value, value.samples) == (2.0, 2)
    assert value.interval == (1.0, 3.0)  # one of four draws of two videos is twice the first


def test_the_interval_of_a_mean_covers_what_the_normal_law_says_and_does_not_change() -> None:
    numbers = np.random.default_rng(0).normal(5, 2, 400)
    low, high = mean_of(numbers, unit="px", direction="lower").interval
    assert (low, high) == mean_of(numbers, unit="px", direction="lower").interval
    half = 1.96 * numbers.std() / 400**0.5
    assert (low, high) == pytest.approx((numbers.mean() - half, numbers.mean() + half), abs=0.02)


def test_one_video_has_no_interval() -> None:
    assert mean_of([1.0], unit="px", direction="lower").interval is None


def test_fvd_without_weights_says_which_file_is_missing() -> None:
    value = load("stages.metrics.fvd:compute")(Evaluation(views=[], bin_size=1.0))["fvd"]
    assert value.value is None
    assert entry(I3D).file in value.reason


@pytest.mark.parametrize("path", ["stages.metrics.fvdd", "stages.metrics:nothing", "no_such_package.metric"])
def test_a_metric_that_does_not_exist_is_refused_by_name(path: str) -> None:
    with pytest.raises(ValueError, match=r"evaluate\.metrics: .*" + path.split(":")[0].replace(".", r"\.")):
        load(path)


def test_a_value_survives_json() -> None:
    value = mean_of([1.0, 2.0], unit="px", direction="higher", note="n")
    data = value.to_json()
    assert Value(**{**data, "interval": tuple(data["interval"])}) == value


def test_the_frechet_distance_of_known_gaussians_is_exact() -> None:
    """Commuting covariances: |m|^2 + sum (sqrt a - sqrt b)^2."""
    a, b, shift = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 1.0]), np.array([1.0, -2.0, 0.5])
    q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    distance = frechet_distance(shift, q @ np.diag(a) @ q.T, np.zeros(3), q @ np.diag(b) @ q.T)
    assert distance == pytest.approx(shift @ shift + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-12)


def test_the_frechet_distance_of_singular_covariances_is_real() -> None:
    features = np.random.default_rng(2).normal(size=(10, 40))
    assert frechet_distance(*statistics(features), *statistics(features)) == pytest.approx(0, abs=1e-6)


def test_features_that_cannot_have_a_covariance_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        statistics(np.ones((1, 4)))
    with pytest.raises(ValueError, match="NaN"):
        statistics(np.array([[1.0, np.nan], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="one network for both"):
        frechet_distance(np.zeros(3), np.eye(3), np.zeros(4), np.eye(4))


def test_importing_the_contract_stays_light() -> None:
    code = (
        "import sys, stages.metrics, stages.metrics.identity, stages.metrics.warping, stages.metrics.fvd;"
        "print([m for m in ('torch', 'cv2', 'scipy', 'dlib', 'ray') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
