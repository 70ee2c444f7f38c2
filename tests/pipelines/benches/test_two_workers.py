import pytest

from pipelines.benches.two_workers import compute, run

pytestmark = pytest.mark.slow


def test_both_sides_do_every_unit_and_the_figures_are_of_them(ray_session):
    told = []
    figures = run(units=6, unit_s=0.02, rounds=1, progress=told.append)["figures"]
    assert len(told) == 2
    ratio = figures["ray_units_per_s"] / figures["bare_units_per_s"]
    assert figures["two_workers_over_two_processes"] == pytest.approx(ratio)
    assert 0 < figures["ray_units_per_s"] < 1000


def test_the_work_is_the_same_for_the_same_unit():
    assert compute("a", 3) == compute("a", 3) != compute("b", 3)
