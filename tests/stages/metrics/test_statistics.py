"""Sums of features, files of statistics, and the authors' published one."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from stages.metrics.frechet import distance_to, frechet_distance, jackknife, whole
from stages.metrics.frechet import statistics as batch_statistics
from stages.metrics.statistics import Moments, Statistics, from_bytes, read_statistics

RANDOM = np.random.default_rng(3)


def moments(x: np.ndarray, step: int) -> Moments:
    out = Moments()
    for at in range(0, len(x), step):
        out.add(x[at : at + step])
    return out


@pytest.mark.parametrize("step", [1, 7, 300, 1000])
def test_streamed_moments_are_those_of_the_whole(step: int) -> None:
    x = RANDOM.normal(1000, 3, (700, 5))                     # far from 0: sums of squares would lose digits
    mean, covariance = batch_statistics(x)
    found = moments(x, step)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-14)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(found.covariance, np.cov(x.T, bias=True), rtol=1e-11, atol=1e-11)


def test_merged_moments_are_those_of_all_and_change_neither_part() -> None:
    x = RANDOM.normal(2, 1, (90, 4))
    parts = [moments(x[start::3], 5) for start in range(3)]
    merged = whole(parts)
    assert merged.count == 90
    np.testing.assert_allclose(merged.covariance, np.cov(x.T, bias=True), atol=1e-12)
    np.testing.assert_allclose(parts[0].covariance, np.cov(x[::3].T, bias=True), atol=1e-12)


def test_what_has_no_covariance_is_refused() -> None:
    one = Moments()
    one.add(np.ones((1, 4)))
    with pytest.raises(ValueError, match="too few for a covariance"):
        _ = one.covariance
    with pytest.raises(ValueError, match="NaN"):
        one.add(np.full((1, 4), np.nan))
    with pytest.raises(ValueError, match="one network"):
        one.add(np.ones((1, 5)))


def test_statistics_survive_their_file(tmp_path: Path) -> None:
    x = RANDOM.normal(size=(30, 4))
    made = Statistics(*batch_statistics(x), 30, "ab" * 32, {"real": "k"}, x.astype(np.float32))
    path = tmp_path / "real.npz"
    path.write_bytes(made.to_bytes())
    found = read_statistics(path)
    assert (found.count, found.network, found.about) == (30, made.network, {"real": "k"})
    np.testing.assert_array_equal(found.covariance, made.covariance)
    np.testing.assert_array_equal(found.features, made.features)
    assert made.to_bytes() == found.to_bytes()


def test_statistics_of_another_network_are_refused() -> None:
    made = Statistics(*batch_statistics(RANDOM.normal(size=(30, 4))), 30, "ab" * 32)
    made.check_network("ab" * 32, 4, "file")
    with pytest.raises(ValueError, match="another network: 4 features, this one gives 5"):
        made.check_network("ab" * 32, 5, "file")
    with pytest.raises(ValueError, match="another network: of sha256 abab"):
        made.check_network("cd" * 32, 4, "file")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch " + os.environ["EVIL_FILE"],)


def test_a_pickle_that_runs_something_is_refused_unexecuted(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("EVIL_FILE", str(tmp_path / "ran"))
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"num_items": 5, "raw_mean": Evil(), "raw_cov": np.eye(2)}))
    with pytest.raises(ValueError, match=r"evil\.pkl: cannot be read \(it names (posix|nt|os)\.system"):
        read_statistics(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("count", [-1, 1, 10**400])
def test_a_count_that_no_features_have_is_refused(count: int, tmp_path: Path) -> None:
    path = tmp_path / "count.pkl"
    path.write_bytes(pickle.dumps({"num_items": count, "raw_mean": np.zeros(2), "raw_cov": np.eye(2)}))
    with pytest.raises(ValueError, match=r"count\.pkl: .* do not fit"):
        read_statistics(path)


@pytest.mark.parametrize("data", [b"", b"nothing", b"PK\x03\x04 cut", pickle.dumps([1]), pickle.dumps({})])
def test_what_is_no_statistics_file_is_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=str(path)) as error:
        read_statistics(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["U4", complex])
def test_arrays_of_what_is_no_real_number_are_refused(kind: type) -> None:
    odd = Statistics(np.ones(2).astype(kind), np.eye(2).astype(kind), 9)
    with pytest.raises(ValueError, match=r"f: .* arrays, not of real numbers"):
        from_bytes(odd.to_bytes(), "f")


def test_an_npz_with_pickles_is_refused() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, head=np.array([object()]), mean=np.ones(2), covariance=np.eye(2))
    with pytest.raises(ValueError, match="no statistics"):
        from_bytes(buffer.getvalue(), "file")


@pytest.mark.parametrize("name", ["head", "mean", "covariance", "features"])
def test_an_npz_whose_array_runs_something_is_refused_unexecuted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVIL_FILE", str(tmp_path / "ran"))
    whole_file = Statistics(np.ones(2), np.eye(2), 5, features=np.ones((5, 2), np.float32)).to_bytes()
    with np.load(io.BytesIO(whole_file)) as arrays:
        parts = dict(arrays)
    buffer = io.BytesIO()
    np.savez(buffer, **{**parts, name: np.array([Evil()], dtype=object)})
    with pytest.raises(ValueError, match=r"^file: no statistics"):
        from_bytes(buffer.getvalue(), "file")
    assert not (tmp_path / "ran").exists()


def test_the_authors_file_holds_sums_and_is_read_as_mean_and_covariance(shared_data: Path) -> None:
    (path,) = (shared_data / "weights").glob("*i3d-stats.pkl")
    found = read_statistics(path)
    assert (found.count, found.mean.shape, found.network) == (5000, (400,), "")
    values = np.linalg.eigvalsh(found.covariance)
    assert values.min() > 0                                  # the raw sums' "covariance" has 7e6 here
    assert 10 < values.max() < 1000


def test_the_distance_is_right_on_the_authors_statistics(shared_data: Path) -> None:
    """Closed forms of shifted, scaled and equal Gaussians, and scipy's root of the product."""
    from scipy.linalg import sqrtm

    (path,) = (shared_data / "weights").glob("*i3d-stats.pkl")
    real = read_statistics(path)
    mean, covariance, trace = real.mean, real.covariance, np.trace(real.covariance)
    assert frechet_distance(mean, covariance, mean, covariance) == pytest.approx(0, abs=1e-8 * trace)
    shift = RANDOM.normal(size=400)
    assert frechet_distance(mean, covariance, mean + shift, covariance) == pytest.approx(shift @ shift)
    assert frechet_distance(mean, covariance, mean, 4 * covariance) == pytest.approx(trace, rel=1e-9)
    basis = RANDOM.normal(size=(400, 400)) / 20
    other = basis @ covariance @ basis.T
    expected = trace + np.trace(other) - 2 * np.trace(sqrtm(covariance @ other)).real
    assert frechet_distance(mean, covariance, mean, other) == pytest.approx(expected, rel=1e-8)


def test_the_fast_distance_of_replicates_is_the_exact_one() -> None:
    x, y = RANDOM.normal(size=(200, 12)), RANDOM.normal(0.5, 2, (150, 12))
    exact = frechet_distance(*batch_statistics(x), *batch_statistics(y))
    assert distance_to(*batch_statistics(x))(moments(y, 9)) == pytest.approx(exact, rel=1e-9)


def test_the_jackknife_covers_the_spread_of_repeated_evaluations() -> None:
    """Against the standard deviation over independent draws of the same law."""
    real = batch_statistics(np.random.default_rng(0).normal(size=(4000, 3)))
    measure = distance_to(*real)
    values, halves = [], []
    for seed in range(1, 61):
        x = np.random.default_rng(seed).normal(0.6, 1.2, (300, 3))
        groups = [moments(x[start::10], 30) for start in range(10)]
        value = frechet_distance(*real, *batch_statistics(x))
        low, high = jackknife(value, groups, measure)
        values.append(value)
        halves.append((high - low) / 2)
    assert np.mean(halves) == pytest.approx(2.26 * np.std(values), rel=0.25)


def test_the_jackknife_of_ten_groups_covers_the_expectation_as_often_as_it_says() -> None:
    """1.96 standard errors of ten groups would cover 0.90 to 0.92 of it."""
    draws, real = np.random.default_rng(0).normal(0.5, 1.3, (1000, 200, 2)), (np.zeros(2), np.eye(2))
    measure, values, halves = distance_to(*real), [], []
    for x in draws:
        value = frechet_distance(*real, *batch_statistics(x))
        low, high = jackknife(value, [moments(x[start::10], 20) for start in range(10)], measure)
        values.append(value)
        halves.append((high - low) / 2)
    covered = np.abs(np.asarray(values) - np.mean(values)) <= halves
    assert 0.935 < covered.mean() < 0.97


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1.0, 0.5], [0.0, 1.0]], "not symmetric"),
        ([[1.0, 0.0], [0.0, -0.1]], "a variance is negative"),
        ([[1.0, np.nan], [np.nan, 1.0]], "of no use"),
        ([[1.0]], "of no use"),
    ],
)
def test_a_matrix_that_is_no_covariance_is_refused(matrix: list[list[float]], message: str) -> None:
    broken = Statistics(np.zeros(2), np.array(matrix), 5)
    with pytest.raises(ValueError, match=f"^file: .*{message}"):
        from_bytes(broken.to_bytes(), "file")


def test_the_jackknife_of_too_few_is_none() -> None:
    measure = distance_to(np.zeros(2), np.eye(2))
    assert jackknife(1.0, [moments(np.eye(2), 1)], measure) is None
    assert jackknife(1.0, [moments(np.eye(2)[:1], 1), moments(np.eye(2)[1:], 1)], measure) is None
