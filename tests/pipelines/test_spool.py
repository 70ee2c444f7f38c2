import random

import numpy as np

from pipelines.ledger import Ledger, Output, Record, Ref, members_digest
from pipelines.spool import Spool
from stages import Clip


def written(store, count):
    """A ledger with as many clips of one stage, the last of which wait in it still."""
    ledger, refs = Ledger(store), []
    for number in random.Random(0).sample(range(count), count):
        clip = Clip(f"c{number:04d}", "s", "v", extra={"n": number}, frame_times_s=np.arange(2.0) + number)
        record = Record(clip.id, "s", "key", "in", "ok", outputs=[Output(clip.id, clip.digest())])
        refs += ledger.add("S", record, [clip])
    return ledger, refs


def test_clips_come_back_as_they_came_and_in_groups_sorted(store):
    ledger, refs = written(store, 1000)
    spool, groups = Spool(ledger), Spool(ledger)
    for ref in refs:
        spool.add(ref)
        groups.add(ref, ref.id[-1])
    assert spool.digest() == members_digest(refs)
    assert [clip.extra["n"] for clip in spool.clips()] == list(range(1000))
    assert all(clip.frame_times_s is None for clip in spool.clips())
    assert spool.count == 1000
    back = list(spool)
    assert [ref.id for ref in back] == [ref.id for ref in refs]
    assert all(ledger.load(ref).digest() == ref.digest for ref in back)
    found = list(groups.groups())
    assert [name for name, _ in found] == list("0123456789")
    assert [ref.id for ref in found[3][1]] == [f"c{number:04d}" for number in range(3, 1000, 10)]


def test_listed_clips_need_no_record(store):
    ledger = Ledger(store)
    clips = [Clip(f"v{number}", f"{number}.mp4", "v", listed={"row": number}) for number in range(5000)]
    spool = Spool(ledger)
    for clip in clips:
        spool.add(Ref(clip.id, clip.digest(), clip.source, clip=clip))
    assert all(ledger.load(ref).digest() == ref.digest for ref in spool)
    assert spool.count == 5000
    assert list(store.list("ledger")) == []


def test_nothing_is_in_it_when_nothing_came(store):
    spool = Spool(Ledger(store))
    assert spool.digest() == members_digest([])
    assert list(spool.clips()) == []
    assert list(spool) == []
