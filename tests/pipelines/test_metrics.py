from collections import Counter

import pytest

from pipelines.ledger import Ledger
from pipelines.progress import Progress
from pipelines.runner import prepare

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]


def test_prometheus_is_told_of_every_record_of_the_ledger_and_of_what_is_left(tiny, monkeypatch):
    from ray.util import metrics

    told, left = Counter(), {}
    count, put = metrics.Counter.inc, metrics.Gauge.set

    def inc(counter, value=1.0, tags=None):
        if counter.info["name"] == "pv3d_units":
            told[(tags["stage"], tags["state"])] += value
        count(counter, value, tags)

    def set_(gauge, value, tags=None):
        assert gauge.info["name"] == "pv3d_units_to_do"
        left.setdefault(tags["stage"], []).append(value)
        put(gauge, value, tags)

    monkeypatch.setattr(metrics.Counter, "inc", inc)
    monkeypatch.setattr(metrics.Gauge, "set", set_)
    crews = []
    tick = Progress.tick

    def watched(progress, crew=None):
        tick(progress, crew)
        crews.append(dict(progress.crew))

    monkeypatch.setattr(Progress, "tick", watched)
    prepare(tiny.load("source.count=3", "stages.Mark.crash=[v01-0]", "stages.Mark.seconds=0.4"))
    names = [step.name for step in tiny.load().steps]
    written = Counter((n, r.state) for n in names for r in Ledger(tiny.store).records(n))
    assert told == written
    assert told[("Mark", "failed")] == 1
    assert set(left) == set(names)
    assert max(left["Mark"]) >= 2
    assert [values[-1] for values in left.values()] == [0] * len(names)
    marking = [crew["Mark+Second"] for crew in crews if "Mark+Second" in crew]
    assert max(one["busy"] for one in marking) >= 1
    assert all(one["busy"] <= one["workers"] for one in marking)
    assert max(one["queued"] for one in marking) >= 1
