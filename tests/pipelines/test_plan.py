"""`pv3d run --dry-run`: what it says is what a run then does; it does nothing itself."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.plan import describe_plan
from pipelines.runner import prepare
from pipelines.stage_keys import Changes, difference

WRITE = "Write"


def plan(tiny, *changes, until=WRITE):
    return describe_plan(tiny.load(*changes), until)


def files(tiny):
    return {str(path): path.read_bytes() for path in sorted(tiny.root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("change", "stage", "cause"),
    [
        ("stages.Mark.value=2", "Mark", "settings of Mark changed: value 1.0 -> 2.0"),
        ("stages.Mark.drop=[v09-0]", "Mark", 'settings of Mark changed: drop [] -> ["v09-0"]'),
        ("stages.Keep.most=3", "Keep", "settings of Keep changed: most 100 -> 3"),
        ("source.changed=v02", "Cut", "its input changed"),
    ],
)
def test_it_says_what_is_stale_and_why_and_a_run_does_just_that(tiny, change, stage, cause):
    prepare(tiny.load(), in_process=True)
    answer, text = plan(tiny, change)
    stale = answer["stages"][stage]["stale"]
    assert answer["why"][stage] == {cause: stale}
    assert f"stale at {stage}: {cause}" in text
    done = prepare(tiny.load(change), in_process=True)
    assert done.redone[stage] == stale == answer["stages"][stage]["todo"]
    assert max(row["todo"] + row["stale"] for row in plan(tiny, change)[0]["stages"].values()) == 0


def test_a_group_with_other_members_is_stale_by_its_input(tiny):
    prepare(tiny.load(), in_process=True)
    answer, _ = plan(tiny, "source.count=5")
    assert answer["stages"]["Cut"] == {"done": 4, "stale": 0, "todo": 1}
    prepare(tiny.load("source.count=5"), in_process=True, until="Second")
    answer, _ = plan(tiny, "source.count=5")
    assert answer["why"]["Keep"] == {"its group has other members": 8}


def test_settings_of_access_are_named_but_never_told(tiny):
    guarded = tiny.path.read_text().replace("tiny_stages:Mark", "tiny_stages:Guarded")
    tiny.path.write_text(guarded)
    anna = tiny.load("stages.Guarded.guarded=[v01-0]", "stages.Guarded.account=secret-anna")
    prepare(anna, in_process=True)
    prepare(tiny.load("stages.Guarded.guarded=[v01-0,v02-0]"), in_process=True)
    answer, _ = plan(tiny, "stages.Guarded.guarded=[v01-0,v02-0]", "stages.Guarded.account=secret-bert")
    assert answer["why"] == {"Guarded": {"settings of access of Guarded changed": 2}}
    assert not [path for path, data in files(tiny).items() if b"secret" in data]


def test_it_writes_nothing_and_works_where_nothing_can_be_written(tiny):
    before, _ = plan(tiny)
    assert not tiny.root.exists()
    prepare(tiny.load(), in_process=True)
    held = files(tiny)
    folders = [tiny.root, *(path for path in tiny.root.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        answer, _ = plan(tiny, "stages.Second.value=2", until=None)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert files(tiny) == held
    assert before["stages"]["Cut"]["todo"] == 4
    assert answer["stages"]["Second"] == {"done": 0, "stale": 8, "todo": 8}


def test_units_to_come_bytes_and_time_follow_from_the_records(tiny):
    prepare(tiny.load("stages.Mark.seconds=0.05"), in_process=True)
    changes = ("stages.Mark.seconds=0.05", "source.count=12")
    answer, text = plan(tiny, *changes)
    come = {name: row["units_to_come"] for name, row in answer["estimate"].items()}
    assert (come["Cut"], come["Mark"], come["Second"]) == (8, 16, 16)     # two clips of each video
    mark = answer["estimate"]["Mark"]
    held = sum(entry.bytes for entry in tiny.store.entries("ledger/Mark"))
    assert mark["bytes"] == held
    records = sum(e.bytes for e in tiny.store.entries("ledger/Mark") if e.key.endswith((".jsonl", ".npz")))
    assert mark["bytes_to_come"] == pytest.approx(records / 8 * 16, abs=1)
    assert 0.05 <= mark["seconds_each"] < 1
    assert mark["work_seconds"] == pytest.approx(16 * mark["seconds_each"])
    assert answer["total"]["seconds"] >= mark["work_seconds"] / (os.cpu_count() or 1) - 1e-6
    assert "an estimate by the seconds per recorded unit" in text
    done = prepare(tiny.load(*changes), in_process=True)
    assert {name: done.redone[name] for name in ("Cut", "Mark", "Second")} == {
        name: come[name] for name in ("Cut", "Mark", "Second")
    }


def test_before_the_first_run_it_says_that_nothing_tells_the_time(tiny):
    answer, text = plan(tiny)
    assert answer["total"]["seconds_without"] == ["Cut", "Mark", "Second", "Keep", "Write"]
    assert "No record tells yet what these stages add to the store, or how long they take." in text
    prepare(tiny.load(), in_process=True, until="Mark")
    _, text = plan(tiny, "source.count=9")
    assert "No record tells yet how long these take: Second, Keep, Write." in text


def test_what_is_damaged_is_told_as_to_do_and_left_as_it_is(tiny):
    prepare(tiny.load(), in_process=True)
    for path in (tiny.root / "ledger" / "Second").glob("*.npz"):
        path.write_bytes(bytes(path.stat().st_size))
    held = files(tiny)
    answer, _ = plan(tiny, "stages.Keep.most=3")
    assert answer["stages"]["Second"]["todo"] == 8
    assert files(tiny) == held


def test_the_videos_of_the_demo_are_not_made_for_it(tmp_path, monkeypatch):
    from pipelines.workflow import load
    from stages.sources import portraits

    pytest.importorskip("cv2")
    name, scene = next(iter(portraits.SCENES.items()))
    monkeypatch.setattr(portraits, "SCENES", {name: replace(scene, frames=2)})
    path = Path(__file__).parents[2] / "workflow.yaml"
    workflow = load(path, "demo", [f"storage.root={tmp_path}/store", f"storage.tracking=sqlite:///{tmp_path}/db"])
    answer, _ = describe_plan(workflow, "SplitShots")
    assert answer["stages"]["SplitShots"]["todo"] == 1
    assert not (tmp_path / "store").exists()


def test_listed_files_are_measured(tmp_path):
    from pipelines.workflow import load

    videos = tmp_path / "videos"
    videos.mkdir()
    for name, count in (("a.mp4", 1000), ("b.mp4", 234)):
        (videos / name).write_bytes(b"x" * count)
    path = tmp_path / "workflow.yaml"
    path.write_text(
        f"storage: {{root: {tmp_path}/store}}\nsource: {{use: stages.sources.folder:Folder, "
        f"location: {videos}}}\nstages: [{{use: stages.shots:SplitShots}}]\n"
        "train: {variant: model.config:tiny}\n"
    )
    answer, text = describe_plan(load(path), "SplitShots")
    total = answer["total"]
    assert (total["read_videos"], total["read_videos_sized"], total["read_bytes"]) == (2, 2, 1234)
    assert "To read: 2 listed videos, 1.2 kB." in text


@pytest.mark.parametrize(
    ("until", "named"),
    [(None, ["train", "evaluate", "register"]), ("train", ["train"]), ("evaluate", ["train", "evaluate"]),
     ("Write", [])],
)  # fmt: skip
def test_what_comes_after_the_data_is_listed_too(tiny, until, named):
    answer, text = plan(tiny, "train.steps=7", until=until)
    assert list(answer["after"]) == named
    for name in named:
        assert answer["after"][name]["todo"] == (7 if name == "train" else 1)
        assert name in text


def test_a_key_that_nobody_wrote_down_is_told_as_changed(tiny):
    prepare(tiny.load(), in_process=True)
    shutil.rmtree(tiny.root / "ledger" / "Mark" / "keys")
    answer, _ = plan(tiny, "stages.Mark.value=2")
    assert answer["why"] == {"Mark": {"settings or version of Mark changed": 8}}
    damaged = tiny.root / "ledger" / "Second" / "keys"
    for path in damaged.iterdir():
        path.write_text("[]")
    answer, _ = plan(tiny, "stages.Second.value=2")
    assert answer["why"] == {"Second": {"settings or version of Second changed": 8}}


def test_differences_are_told_as_people_set_them(tiny):
    facts = {"use": "a:A", "version": 1, "settings": {"size": 256, "limits": {"blur": 1.0, "yaw": 40}}}
    assert difference("A", facts, {**facts, "use": "b:B"}) == "A is another class: a:A -> b:B"
    assert difference("A", facts, {**facts, "version": 2}) == "A is another version: 1 -> 2"
    forged = difference("A", {**facts, "use": "\x1b[31m" + "u" * 10**6}, facts)
    assert (forged[:30], len(forged) < 300) == ("A is another class: \\x1b[31muu", True)
    now = {**facts, "settings": {"size": 512, "limits": {"blur": 1.0, "yaw": 60}, "new": "x" * 100}}
    told = difference("A", facts, now)
    assert told.startswith("settings of A changed: size 256 -> 512, limits.yaw 40 -> 60, new unset -> ")
    assert len(told) < 160
    step = tiny.load().steps[1]
    assert difference("Mark", json.loads(json.dumps(step.facts)), step.facts).startswith("settings of access")
    assert Changes(tiny.store)._known == {}


def test_what_was_superseded_does_not_count_for_what_is_to_come(tiny):
    prepare(tiny.load(), in_process=True)
    once = plan(tiny, "stages.Mark.value=9")[0]["estimate"]["Mark"]
    for value in (2, 3):
        prepare(tiny.load(f"stages.Mark.value={value}"), in_process=True)
    more = plan(tiny, "stages.Mark.value=9")[0]["estimate"]["Mark"]
    assert more["bytes"] > 2.5 * once["bytes"]
    assert more["bytes_to_come"] == pytest.approx(once["bytes_to_come"], rel=0.1)


def test_frames_of_old_settings_do_not_count_for_those_to_come(tiny):
    from pipelines.plan import _objects

    step = next(step for step in tiny.load().steps if step.name == "Mark")
    step = replace(step, stage=replace(step.stage))
    step.stage.writes = ("aligned",)
    tiny.store.write("aligned/v00-0-aa.tar", bytes(1000))
    tiny.store.write("aligned/v00-0-bb.tar", bytes(3000))
    assert _objects(tiny.store, [step]) == {"Mark": (4000, 2000.0)}


def test_a_few_records_that_hold_do_not_decide_how_many_come_through_a_stale_group(tiny):
    prepare(tiny.load("stages.Keep.most=2"), in_process=True)
    changes = ("stages.Keep.most=2", "stages.Second.value=2")
    whole = plan(tiny, *changes)[0]["estimate"]["Write"]["units_to_come"]
    prepare(tiny.load(*changes, "source.count=1"), in_process=True, until="Second")
    answer, _ = plan(tiny, *changes)
    assert answer["stages"]["Second"] == {"done": 2, "stale": 6, "todo": 6}
    assert answer["estimate"]["Write"]["units_to_come"] == whole == 2


def test_with_nothing_to_do_it_says_so_in_a_table_of_80_columns(tiny):
    prepare(tiny.load(), in_process=True)
    _, text = plan(tiny)
    assert "Nothing to do; in the store" in text
    assert "estimate" not in text
    _, text = plan(tiny, "stages.Mark.value=2", until=None)
    assert max(len(line) for line in text.splitlines() if not line.startswith("  ")) <= 110
    table = [line for line in text.splitlines() if line[:17].strip() in ("stage", "Mark", "Write", "train")]
    assert {len(line) for line in table[:3]} == {80}
    assert len(table[3]) <= 80
