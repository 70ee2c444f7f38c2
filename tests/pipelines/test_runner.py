from pathlib import Path

import pytest

from pipelines.ledger import Ledger
from pipelines.runner import prepare
from pipelines.work import SetupError, StageBugError


def records(tiny, stage):
    return {record.unit: record for record in Ledger(tiny.store).records(stage)}


def test_every_unit_goes_through_every_stage_and_groups_are_concluded_once(tiny):
    done = prepare(tiny.load(), in_process=True)
    assert done.kept == 8
    assert done.redone == {"Cut": 4, "Mark": 8, "Second": 8, "Keep": 8, "Write": 8}
    assert sorted(tiny.output()) == ["out/0.txt", "out/1.txt", "out/all.txt"]
    assert tiny.output()["out/0.txt"] == b"".join(b"t v%02d-0 12.0\n" % i for i in range(4))
    assert tiny.calls().count("finish 8") == 1


def test_a_second_run_does_nothing(tiny):
    prepare(tiny.load(), in_process=True)
    tiny.calls()
    done = prepare(tiny.load(), in_process=True)
    assert tiny.calls() == []
    assert done.kept == 8
    assert set(done.redone.values()) == {0}


def test_until_stops_after_the_stage(tiny):
    assert prepare(tiny.load(), until="Mark", in_process=True).kept == 8
    assert {line.split()[0] for line in tiny.calls()} == {"Mark"}
    assert prepare(tiny.load(), in_process=True).redone["Mark"] == 0


def test_a_changed_setting_redoes_its_stage_and_what_depends_on_it(tiny):
    prepare(tiny.load(), in_process=True)
    assert prepare(tiny.load("stages.Write.title=u"), in_process=True).redone == {
        "Cut": 0, "Mark": 0, "Second": 0, "Keep": 0, "Write": 8,
    }  # fmt: skip
    assert prepare(tiny.load("stages.Second.value=2"), in_process=True).redone == {
        "Cut": 0, "Mark": 0, "Second": 8, "Keep": 8, "Write": 8,
    }  # fmt: skip


def test_a_change_that_changes_no_output_stops_there(tiny):
    prepare(tiny.load(), in_process=True)
    done = prepare(tiny.load("stages.Second.seconds=0.001"), in_process=True)
    assert done.redone == {"Cut": 0, "Mark": 0, "Second": 8, "Keep": 0, "Write": 0}


def test_workers_and_time_limits_are_no_part_of_the_key(tiny):
    prepare(tiny.load(), in_process=True)
    done = prepare(tiny.load("stages.Mark.workers.max=1", "stages.Mark.timeout_s=9"), in_process=True)
    assert set(done.redone.values()) == {0}


def test_a_new_video_costs_its_own_stages_and_the_groups_it_joins(tiny):
    prepare(tiny.load(), in_process=True)
    done = prepare(tiny.load("source.count=5"), in_process=True)
    assert done.redone == {"Cut": 1, "Mark": 2, "Second": 2, "Keep": 10, "Write": 10}
    assert done.kept == 10


def test_a_changed_file_is_done_again(tiny):
    prepare(tiny.load(), in_process=True)
    done = prepare(tiny.load("source.changed=v02"), in_process=True)
    assert done.redone["Cut"] == 1
    assert done.redone["Mark"] == 2


def test_a_video_that_is_gone_leaves_the_groups(tiny):
    prepare(tiny.load(), in_process=True)
    assert prepare(tiny.load("source.count=3"), in_process=True).kept == 6
    assert tiny.output()["out/all.txt"].count(b"\n") == 6


def test_rejected_units_go_no_further_and_keep_their_reason(tiny):
    work = tiny.load("stages.Mark.drop=[v01-0]", "stages.Cut.short=true", "stages.Keep.most=2")
    assert prepare(work, in_process=True).kept == 2
    cut, mark, keep = (records(tiny, name) for name in ("Cut", "Mark", "Keep"))
    assert [(out.state, out.reason) for out in cut["v00"].outputs] == [("ok", ""), ("rejected", "too short")]
    assert (mark["v01-0"].state, mark["v01-0"].reason, mark["v01-0"].detail) == ("rejected", "two faces", "2")
    assert sorted(r.reason for r in keep.values()) == ["", "", "balanced out"]


def test_what_failed_for_now_is_tried_by_the_next_run_and_by_no_other(tiny):
    def work():
        return tiny.load("stages.Mark.later=[v01-0]")

    assert prepare(work(), in_process=True).kept == 7
    failed = records(tiny, "Mark")["v01-0"]
    assert (failed.state, failed.reason, failed.detail) == ("failed", "throttled", "429")
    assert prepare(work(), in_process=True).redone["Mark"] == 1
    Path(tiny.store.root, "there").touch()
    done = prepare(work(), in_process=True)
    assert (done.redone["Mark"], done.kept) == (1, 8)
    assert records(tiny, "Mark")["v01-0"].state == "ok"
    assert set(prepare(work(), in_process=True).redone.values()) == {0}


def test_a_bug_stops_the_run_and_names_stage_and_clip_and_keeps_what_is_done(tiny):
    with pytest.raises(StageBugError, match=r"stage Mark failed on v02-1[\s\S]*KeyError: 'no such thing'"):
        prepare(tiny.load("stages.Mark.bug=[v02-1]"), in_process=True)
    assert len(records(tiny, "Cut")) >= 1


def test_a_stage_that_cannot_start_says_so_in_one_line(tiny):
    with pytest.raises(SetupError, match="stage Mark: weights file x is missing"):
        prepare(tiny.load("stages.Mark.refuse='weights file x is missing'"), in_process=True)


def test_damaged_segments_are_done_again(tiny, caplog):
    prepare(tiny.load(), in_process=True)
    wanted = tiny.output()
    segment = next(key for key in tiny.store.list("ledger/Mark") if key.endswith(".jsonl"))
    tiny.store.write(segment, tiny.store.read(segment)[:-40])
    done = prepare(tiny.load(), in_process=True)
    assert (done.redone["Cut"], done.redone["Mark"], done.redone["Keep"]) == (0, 8, 0)
    assert "is damaged" in caplog.text
    assert tiny.output() == wanted


def test_damaged_arrays_are_found_when_they_are_needed_and_done_again(tiny, caplog):
    prepare(tiny.load(), in_process=True)
    arrays = next(key for key in tiny.store.list("ledger/Second") if key.endswith(".npz"))
    tiny.store.write(arrays, tiny.store.read(arrays)[:100])
    done = prepare(tiny.load("stages.Keep.most=7"), in_process=True)
    assert done.redone["Second"] == 8
    assert done.kept == 7
    assert "is damaged" in caplog.text


def test_two_videos_of_one_id_are_refused(tiny, monkeypatch):
    workflow = tiny.load()
    twice = [*workflow.source.clips(tiny.store), *workflow.source.clips(tiny.store)]
    monkeypatch.setattr(type(workflow.source), "clips", lambda self, store: iter(twice))
    with pytest.raises(ValueError, match="a second video with the id 'v00'"):
        prepare(workflow, in_process=True)
