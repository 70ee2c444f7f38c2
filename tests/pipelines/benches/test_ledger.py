import pytest

from pipelines.benches import ledger


def test_every_unit_is_done_once_and_then_found_done(monkeypatch):
    monkeypatch.setattr(ledger, "_two_workers", lambda say: {"two_workers_over_two_processes": 1.0})
    figures = ledger.run(units=200)["figures"]
    assert figures["units"] == 200
    assert figures["plan_s"] > 0
    assert figures["ms_per_unit"] == 5 * figures["run_s"]
    assert 0.01 < figures["plan_gb"] < 1
    assert figures["two_workers_over_two_processes"] == 1.0


def test_too_few_units_are_refused():
    with pytest.raises(ValueError, match="--units 5: too few"):
        ledger.run(units=5)
