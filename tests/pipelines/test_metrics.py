from collections import Counter

import pytest

from pipelines.ledger import Ledger
from pipelines.runner import prepare

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]


def test_prometheus_is_told_of_every_record_of_the_ledger(tiny, monkeypatch):
    from ray.util import metrics

    told = Counter()
    real = metrics.Counter.inc

    def inc(counter, value=1.0, tags=None):
        if counter.info["name"] == "pv3d_units":
            told[(tags["stage"], tags["state"])] += value
        real(counter, value, tags)

    monkeypatch.setattr(metrics.Counter, "inc", inc)
    prepare(tiny.load("source.count=3", "stages.Mark.crash=[v01-0]"))
    names = [step.name for step in tiny.load().steps]
    written = Counter((n, r.state) for n in names for r in Ledger(tiny.store).records(n))
    assert told == written
    assert told[("Mark", "failed")] == 1
