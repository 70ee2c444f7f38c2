import io
import json
import os
import tracemalloc
from datetime import UTC, datetime
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import pytest

from pipelines import ledger as ledger_file
from pipelines.ledger import (
    ClipFile,
    Ledger,
    LostSegmentError,
    Output,
    Record,
    Ref,
    encode_clips,
    members_digest,
)
from pipelines.segments import write_packed
from stages import Clip


def clip(name="a", value=1.0):
    return Clip(
        name, f"{name}.mp4", f"/x/{name}.mp4", fps=25.0, listed={"row": 3}, frame_times_s=np.arange(4.0),
        landmarks=np.full((4, 68, 2), value, np.float32),
    )  # fmt: skip


def record(unit, out, state="ok"):
    outputs = [Output(out.id, out.digest(), state, "" if state == "ok" else "short")]
    return Record(unit, f"{unit}.mp4", "key", "input", "ok", outputs=outputs)


def test_clips_come_back_equal_from_one_npz():
    clips = [clip("a"), Clip("b", "b.mp4", "/x/b.mp4"), clip("c", 2.0)]
    file = ClipFile(encode_clips(clips))
    assert [file.clip(row).digest() for row in range(len(file))] == [c.digest() for c in clips]
    assert file.clip(0, arrays=()).landmarks is None
    assert file.clip(0, arrays=()).listed == {"row": 3}


def test_records_and_clips_are_there_for_the_next_process(store):
    first = Ledger(store)
    first.add("S", record("u", clip()), [clip()])
    first.flush()
    again = Ledger(store)
    found = again.current("S", "key", Ref("u", "input", "u.mp4"))
    assert found is not None
    (ref,) = again.outputs(found)
    assert again.load(ref).digest() == clip().digest()


def test_a_record_of_another_key_or_input_is_not_current(store):
    ledger = Ledger(store)
    ledger.add("S", record("u", clip()), [clip()])
    assert ledger.current("S", "other", Ref("u", "input", "")) is None
    assert ledger.current("S", "key", Ref("u", "other", "")) is None
    assert ledger.current("S", "key", Ref("v", "input", "")) is None


def test_many_units_make_few_objects(store, monkeypatch):
    monkeypatch.setattr(ledger_file, "BATCH_UNITS", 10)
    ledger = Ledger(store)
    for number in range(35):
        ledger.add("S", record(f"u{number}", clip()), [clip()])
    ledger.flush()
    assert len(list(store.list("ledger"))) == 8


def test_a_batch_is_written_when_it_has_waited_long_enough(store, monkeypatch):
    ledger = Ledger(store)
    ledger.add("S", record("u", clip()), [clip()])
    ledger.flush(due=True)
    assert list(store.list("ledger")) == []
    monkeypatch.setattr(ledger_file, "BATCH_SECONDS", 0.0)
    ledger.flush(due=True)
    assert len(list(store.list("ledger"))) == 2


def test_later_segments_win(store):
    ledger = Ledger(store)
    ledger.add("S", record("u", clip(value=1.0)), [clip(value=1.0)])
    ledger.flush()
    ledger.add("S", record("u", clip(value=2.0)), [clip(value=2.0)])
    ledger.flush()
    again = Ledger(store)
    (ref,) = again.outputs(again.record("S", "u"))
    assert again.load(ref).digest() == clip(value=2.0).digest()


def written_at(store, when, value):
    """Write a record as a process on a machine of which the clock says `when`."""
    ledger = Ledger(store)
    ledger.add("S", record("u", clip(value=value)), [clip(value=value)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_file, "datetime", SimpleNamespace(now=lambda zone: when))
        ledger.flush()


def value_of(ledger):
    (ref,) = ledger.outputs(ledger.record("S", "u"))
    return ledger.load(ref).landmarks[0, 0, 0]


@pytest.mark.parametrize("before", [datetime(2030, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)])
def test_later_segments_win_whatever_the_clock_says(store, before):
    written_at(store, before, 1.0)
    for value in (2.0, 3.0):
        written_at(store, datetime(2026, 1, 1, tzinfo=UTC), value)
        assert value_of(Ledger(store)) == value


@pytest.mark.parametrize("name", ["99991231T235959.000000Z-0-a", "zzz", "20261341T000000.000000Z-0-a"])
def test_a_segment_that_nothing_could_come_after_is_passed_over(store, name, caplog):
    written_at(store, datetime(2026, 1, 1, tzinfo=UTC), 1.0)
    for key in list(store.list("ledger")):
        store.write(f"ledger/S/{name}.{key.rpartition('.')[2]}", store.read(key))
        store.delete(key)
    assert Ledger(store).record("S", "u") is None
    assert name in caplog.text
    written_at(store, datetime(2026, 1, 1, tzinfo=UTC), 2.0)
    assert value_of(Ledger(store)) == 2.0


def test_rejected_outputs_keep_their_clip_and_do_not_go_on(store):
    ledger = Ledger(store)
    assert ledger.add("S", record("u", clip(), "rejected"), [clip()]) == []
    ledger.flush()
    found = Ledger(store).record("S", "u")
    assert Ledger(store).outputs(found) == []
    assert found.outputs[0].reason == "short"


@pytest.mark.parametrize("damage", ["cut", "changed", "schema", "no arrays", "cut arrays"])
def test_a_damaged_or_older_segment_is_passed_over_with_a_warning(store, caplog, damage):
    ledger = Ledger(store)
    ledger.add("S", record("u", clip()), [clip()])
    ledger.flush()
    lines, arrays = sorted(store.list("ledger"))
    data = store.read(lines)
    if damage == "no arrays":
        store.delete(arrays)
    elif damage == "cut arrays":
        store.write(arrays, store.read(arrays)[:-50])
    else:
        changes = {
            "cut": data[:-9], "changed": data.replace(b'"u.mp4"', b'"v.mp4"'),
            "schema": data.replace(b'"schema": 2', b'"schema": 0'),
        }  # fmt: skip
        store.write(lines, changes[damage])
    assert list(Ledger(store).records("S")) == []
    assert lines in caplog.text


def with_line(store, change):
    """The one clip of a ledger with another line in the .npz, and checksums that fit it."""
    ledger = Ledger(store)
    ledger.add("S", record("u", clip()), [clip()])
    ledger.flush()
    key = next(key for key in store.list("ledger") if key.endswith(".jsonl"))
    line, arrays = ClipFile(store.read(key.removesuffix("jsonl") + "npz")).raw(0)
    told = json.loads(line)
    change(told["values"], told["arrays"]["landmarks"])
    found = ledger.record("S", "u")
    write_packed(store, key, [found], [(json.dumps(told).encode(), arrays)])


@pytest.mark.parametrize("change", [
    lambda values, place: place.__setitem__(1, [10**12]), lambda values, place: place.__setitem__(1, [-3, 4]),
    lambda values, place: place.__setitem__(2, -(10**6)), lambda values, place: place.__setitem__(2, 2**62),
    lambda values, place: place.__setitem__(2, ""), lambda values, place: place.__setitem__(0, "V2000000"),
    lambda values, place: place.__setitem__(0, None), lambda values, place: place.__setitem__(0, "i4," * 999),
    lambda values, place: values.update(fps="x"), lambda values, place: values.update(fps=float("nan")),
    lambda values, place: values.update(id="../../x"), lambda values, place: values.update(id=5),
    lambda values, place: values.update(extra="abc"), lambda values, place: values.update(identity=[1]),
    lambda values, place: values.update(frame_times_s="abc"), lambda values, place: values.clear(),
])  # fmt: skip
def test_a_clip_that_somebody_forged_is_lost_and_asks_for_no_memory(store, change):
    with_line(store, change)
    ledger = Ledger(store)
    (ref,) = ledger.outputs(ledger.record("S", "u"))
    tracemalloc.start()
    with pytest.raises(LostSegmentError):
        ledger.load(ref)
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()
    assert Ledger(store).record("S", "u") is None


@pytest.mark.parametrize("at", [(0, 2**40, 0, 0), (2**62, 2**40, 0, 0), (0, 2**63 - 1, 0, 0)])
def test_a_clip_that_claims_to_be_elsewhere_is_lost(store, at):
    def moved(body, data):
        told = json.loads(body)
        told["outputs"][0]["at"] = at
        return json.dumps(told, separators=(",", ":")).encode() + b"\n", data

    resealed(store, moved)
    ledger = Ledger(store)
    (ref,) = ledger.outputs(ledger.record("S", "u"))
    with pytest.raises(LostSegmentError):
        ledger.load(ref)


@pytest.mark.parametrize("change", [b'"fps"', np.full(3, 1.0, np.float32).tobytes()])
def test_arrays_that_cannot_be_read_take_their_records_with_them(store, change):
    ledger = Ledger(store)
    ledger.add("S", record("u", clip()), [clip()])
    ledger.flush()
    arrays = next(key for key in store.list("ledger") if key.endswith("npz"))
    store.write(arrays, store.read(arrays).replace(change, change[::-1]))
    again = Ledger(store)
    (ref,) = again.outputs(again.record("S", "u"))
    with pytest.raises(LostSegmentError):
        again.load(ref)
    assert list(again.records("S")) == []
    assert list(Ledger(store).records("S")) == []


@pytest.mark.parametrize("damage", ["[" * 100_000, "null", '{"digest": 5}', '{"digest": "d"'])
def test_a_group_stage_of_which_the_note_is_damaged_is_not_finished(store, damage):
    Ledger(store).finish("S", "d")
    assert Ledger(store).finished("S") == "d"
    store.write("ledger/S/finished.json", damage.encode())
    assert Ledger(store).finished("S") == ""


def test_the_digest_of_members_ignores_their_order():
    a, b = Ref("a", "1", ""), Ref("b", "2", "")
    assert members_digest([a, b]) == members_digest([b, a])
    assert members_digest([a]) != members_digest([a, b])


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trap",)


def resealed(store, change):
    """The one segment of a ledger with other arrays or lines, and checksums that fit them."""
    first = Ledger(store)
    first.add("S", record("u", clip()), [clip()])
    first.flush()
    (key,) = (key for key in store.list("ledger") if key.endswith(".jsonl"))
    arrays = key.removesuffix("jsonl") + "npz"
    head, _, body = store.read(key).partition(b"\n")
    body, data = change(body, store.read(arrays))
    sums = {"sha256": sha256(body).hexdigest(), "arrays_sha256": sha256(data).hexdigest()}
    header = {**json.loads(head), **sums, "arrays_bytes": len(data)}
    store.write(arrays, data)
    store.write(key, json.dumps(header).encode() + b"\n" + body)


def pickled(body, data):
    buffer = io.BytesIO()
    np.savez(buffer, values=np.array([Trap()], object), allow_pickle=True)
    return body, buffer.getvalue()


@pytest.mark.parametrize("change", [
    pickled, lambda body, data: (body, b"no zip"), lambda body, data: (body, encode_clips([])),
    lambda body, data: (b"null\n", data), lambda body, data: (b"[" * 100_000 + b"\n", data),
    lambda body, data: (b'{"outputs": [null]}\n', data), lambda body, data: (b'{"outputs": 5}\n', data),
])  # fmt: skip
def test_a_segment_that_somebody_forged_is_passed_over_and_nothing_in_it_is_run(
    store, change, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    resealed(store, change)
    ledger = Ledger(store)
    found = ledger.current("S", "key", Ref("u", "input", "u.mp4"))
    if found is not None:
        with pytest.raises(LostSegmentError):
            ledger.load(ledger.outputs(found)[0])
    assert Ledger(store).current("S", "key", Ref("u", "input", "u.mp4")) is None
    assert not (tmp_path / "trap").exists()
