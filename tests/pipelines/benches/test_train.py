"""The bench of the training loop, at its smallest: it runs the real loop and says plausible things."""

from __future__ import annotations

import pytest

from pipelines.benches.train import run


@pytest.mark.slow
def test_the_loop_and_the_bare_updates_are_timed() -> None:
    figures = run(variant="tiny", batch=4, updates=1, rounds=1)["figures"]
    assert 0 < figures["bare_update_s"] < 60
    assert 0 < figures["update_s"] < 60
    assert 0 <= figures["data_wait_pct"] < 100


def test_what_makes_no_sense_is_one_line() -> None:
    with pytest.raises(ValueError, match="--variant tine: unknown, did you mean 'tiny'"):
        run(variant="tine")
    with pytest.raises(ValueError, match="--batch, --updates and --rounds are 1 or more"):
        run(updates=0)
    with pytest.raises(ValueError, match="minibatch-std groups"):
        run(variant="tiny", batch=3)
