"""Small segments become few, whatever stops it, and nothing that counts is lost."""

import numpy as np
import pytest

from infra.storage import FolderStorage
from pipelines import compact as compact_file
from pipelines.compact import compact
from pipelines.ledger import Ledger, LostSegmentError, Output, Record, Ref
from pipelines.runner import prepare
from stages import Clip


def clip(name, value):
    return Clip(
        name, f"{name}.mp4", f"/x/{name}.mp4", frame_times_s=np.arange(value % 3.0),
        landmarks=np.full((2, 68, 2), value, np.float32),
    )  # fmt: skip


def write(store, units, value=0):
    """One segment per unit."""
    ledger = Ledger(store)
    for number in units:
        out = clip(f"u{number}", value + number)
        ledger.add("S", Record(out.id, "s", "key", "in", "ok", outputs=[Output(out.id, out.digest())]), [out])
        ledger.flush()


def contents(store):
    """By unit, the digests of what came out, as loaded."""
    ledger = Ledger(store)
    return {r.unit: [ledger.load(ref).digest() for ref in ledger.outputs(r)] for r in ledger.records("S")}


def segments(store):
    return [key for key in store.list("ledger/S") if key.endswith(".jsonl")]


def test_small_segments_become_one_that_says_the_same(store):
    write(store, range(30))
    before = contents(store)
    ledger = Ledger(store)
    assert compact(ledger, ["S"]) == 29
    assert len(list(store.list("ledger"))) == 2
    assert contents(store) == before
    assert {r.unit: [ledger.load(ref).digest() for ref in ledger.outputs(r)]
            for r in ledger.records("S")} == before   # also for who merged them
    assert compact(Ledger(store), ["S"]) == 0


def test_the_latest_record_stays_and_what_it_superseded_goes(store):
    write(store, range(10))
    write(store, range(5), value=50)
    before = contents(store)
    compact(Ledger(store), ["S"])
    assert contents(store) == before
    assert before["u3"] == [clip("u3", 53).digest()]
    (key,) = segments(store)
    assert store.read(key).count(b"\n") == 11


def test_what_comes_after_a_merged_segment_wins_over_it(store):
    write(store, range(10))
    compact(Ledger(store), ["S"])
    write(store, range(10), value=70)
    before = contents(store)
    compact(Ledger(store), ["S"])
    write(store, [3], value=90)
    assert contents(store) == {**before, "u3": [clip("u3", 93).digest()]}


def test_a_full_segment_stays_where_it_is_between_small_ones(store, monkeypatch):
    monkeypatch.setattr(compact_file, "SMALL_UNITS", 10)
    write(store, range(10))
    ledger = Ledger(store)
    for number in range(100, 120):
        out = clip(f"u{number}", number)
        ledger.add("S", Record(out.id, "s", "key", "in", "ok", outputs=[Output(out.id, out.digest())]), [out])
    ledger.flush()
    (full,) = set(segments(store)[10:])
    write(store, [5, *range(20, 30)], value=60)
    before = contents(store)
    compact(Ledger(store), ["S"])
    assert contents(store) == before
    assert ["-m" in key for key in segments(store)] == [True, False, True]
    assert segments(store)[1] == full


class StoppedError(Exception):
    pass


class Dying(FolderStorage):
    """Stops before the change of this number."""

    def __init__(self, root, at):
        super().__init__(root)
        self.left = at

    def _change(self):
        if not self.left:
            raise StoppedError
        self.left -= 1

    def write(self, key, data):
        self._change()
        super().write(key, data)

    def delete(self, key):
        self._change()
        super().delete(key)


@pytest.mark.parametrize("at", range(0, 22, 3))
def test_wherever_it_stops_the_ledger_says_the_same_and_the_next_one_ends_it(store, at):
    write(store, range(10))
    before = contents(store)
    with pytest.raises(StoppedError):
        compact(Ledger(Dying(store.root, at)), ["S"])
    assert contents(store) == before
    compact(Ledger(store), ["S"], least=0)
    assert contents(store) == before
    write(store, range(20, 30))
    after = contents(store)
    compact(Ledger(store), ["S"])
    assert contents(store) == after
    assert len(segments(store)) == 1


def test_who_reads_meanwhile_lists_again(store):
    write(store, range(20))
    before = contents(store)
    reader = Ledger(store)
    (ref,) = reader.outputs(reader.record("S", "u7"))
    compact(Ledger(store), ["S"])
    with pytest.raises(LostSegmentError):                # of the old place: plan again
        reader.load(ref)
    assert {r.unit: [reader.load(ref).digest() for ref in reader.outputs(r)]
            for r in reader.records("S")} == before
    assert len(segments(store)) == 1


def test_segments_that_vanish_between_listing_and_reading_are_listed_again(store):
    write(store, range(20))
    before = contents(store)
    reader = Ledger(store)
    listed = store.entries

    def entries(prefix=""):
        found = list(listed(prefix))
        if len(found) > 2:
            compact(Ledger(FolderStorage(store.root)), ["S"])
        return iter(found)

    store.entries = entries
    assert {r.unit for r in reader.records("S")} == set(before)


def test_damaged_segments_and_those_of_another_version_are_left_alone(store, caplog):
    write(store, range(30))
    keys = segments(store)
    store.write(keys[3], store.read(keys[3])[:-5])
    store.write(keys[5], store.read(keys[5]).replace(b'"schema": 2', b'"schema": 99'))
    before = contents(store)
    compact(Ledger(store), ["S"])
    assert contents(store) == before
    assert len(before) == 28
    assert {keys[3], keys[5]} < set(segments(store))


def test_a_run_merges_what_it_leaves_and_the_next_one_redoes_nothing(tiny, monkeypatch):
    monkeypatch.setattr("pipelines.ledger.BATCH_UNITS", 1)
    prepare(tiny.load("source.count=9"), in_process=True)
    (made,) = (key for key in tiny.store.list("ledger/Mark") if key.endswith(".jsonl"))
    assert "-m" in made
    done = prepare(tiny.load("source.count=9"), in_process=True)
    assert set(done.redone.values()) == {0}
    assert prepare(tiny.load("source.count=10"), in_process=True).redone["Mark"] == 2
    assert Ledger(tiny.store).current("Mark", "key", Ref("v00-0", "", "")) is None


def test_a_segment_tells_its_own_records_when_its_last_was_superseded(store):
    write(store, range(12))
    ledger = Ledger(store)
    assert ledger.count("S") == 12
    for value in (70, 80):
        out = clip("u11", value)
        ledger.add("S", Record(out.id, "s", "key", "in", "ok", outputs=[Output(out.id, out.digest())]), [out])
        ledger.flush()
    before = contents(store)
    told = [[record.unit for record in ledger.records("S", one)] for one, _ in list(ledger.segments("S"))]
    assert told == [*([f"u{number}"] for number in range(11)), [], [], ["u11"]]
    compact(ledger, ["S"])
    assert contents(store) == before
    assert len(segments(store)) == 1
