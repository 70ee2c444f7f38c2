"""What is told of a run while it goes on elsewhere, and of one that was killed."""

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
import uuid
from pathlib import Path

import pytest

from infra.holder import holder
from infra.storage import FolderStorage, StorageError
from pipelines import gc, lines, live
from pipelines.plan import describe_plan
from pipelines.progress import Progress
from pipelines.run import run_workflow
from pipelines.runner import prepare
from pipelines.status import workflow_status

TINY = str(Path(__file__).parent)
SLOW = ("--set", "stages.Mark.seconds=0.3", "--set", "source.count=12")


def start(tiny, *arguments):
    program = "from pipelines.cli import main; main()"
    command = [sys.executable, "-c", program, arguments[0], str(tiny.path), *arguments[1:]]
    surroundings = {**os.environ, "PYTHONPATH": TINY}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=surroundings
    )


def slow_run(tiny):
    return start(tiny, "run", "--until", "Write", "--in-process", *SLOW)


def asked(tiny):
    """The object of `pv3d status --json`, in a process of its own."""
    answer = start(tiny, "status", "--json", *SLOW)
    out, err = answer.communicate(timeout=60)
    assert answer.returncode == 0, err
    (line,) = out.splitlines()
    return json.loads(line)


def told(tiny):
    """How many units the run says that it has marked."""
    return live.read(tiny.store, 1).get("stages", {}).get("Mark", {}).get("done", 0)


def marked(tiny):
    log = tiny.root / "calls.log"
    return log.read_text().count("Mark ") if log.exists() else 0


def until(true, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_status_in_another_process_sees_a_run_move_and_watches_it_to_its_end(tiny):
    run = slow_run(tiny)
    until(lambda: told(tiny) >= 2)
    watch = start(tiny, "status", "--watch", "--every", "0.5", "--json", "--units", "rejected", *SLOW)
    seen = asked(tiny)["run"]
    assert (seen["what"], seen["pid"], seen["alive"], seen["phase"]) == ("pv3d run", run.pid, True, "data")
    assert 0.3 < seen["stages"]["Mark"]["per_s_now"] < 1.2 / 0.3        # no faster than it sleeps
    assert seen["stages"]["Mark"]["eta_s"] > 0
    assert seen["eta_s"] >= seen["stages"]["Mark"]["eta_s"]
    until(lambda: told(tiny) > seen["stages"]["Mark"]["done"])
    out, err = watch.communicate(timeout=60)
    assert (run.wait(30), watch.returncode) == (0, 0)
    (line,) = out.splitlines()
    last = json.loads(line)
    assert (last["run"], last["stages"]["Write"]["ok"]) == (None, 24)
    assert (last["units"], last["units_total"]) == ([], 24)
    said = [line for line in err.splitlines() if " Mark: " in line]
    done = [int(line.split(" Mark: ")[1].split()[0]) for line in said]
    assert done
    assert done == sorted(set(done))
    ended = live.read(tiny.store, 1)
    assert (ended["ended"], ended["stages"]["Mark"]["done"]) == ("done", 24)


def test_who_watches_may_stop_to_and_the_run_goes_on(tiny):
    run = slow_run(tiny)
    until(lambda: marked(tiny) >= 1)
    watch = start(tiny, "status", "--watch", "--every", "0.2", "--json")
    until(lambda: "Mark" in watch.stderr.readline())
    watch.send_signal(signal.SIGINT)
    out, err = watch.communicate(timeout=30)
    assert watch.returncode == 0, err
    assert json.loads(out)["run"]["pid"] == run.pid
    assert run.poll() is None
    run.kill()
    run.communicate()


def test_a_killed_run_is_told_as_what_shows_no_sign_of_life(tiny):
    run = slow_run(tiny)
    until(lambda: marked(tiny) >= 2)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    answer, text = workflow_status(tiny.load("source.count=12"))
    assert answer["run"]["alive"] is False
    beat = holder(tiny.store).beat
    first = text.splitlines()[0]
    assert first.startswith(f"pv3d run on {answer['run']['host']} (pid {run.pid}) since 20")
    assert f"no sign of life since {beat}" in first
    assert "time left" not in text
    prepare(tiny.load(), in_process=True)
    assert workflow_status(tiny.load())[0]["stages"]["Write"]["ok"] == 8


def test_a_run_elsewhere_is_alive_for_as_long_as_its_lease_allows(tiny):
    owner = {"what": "pv3d run", "host": "elsewhere", "pid": 1, "place": "another", "expires_s": 45.0}
    tiny.store.write("lease/00000003.json", json.dumps(owner).encode())
    assert holder(tiny.store).alive
    path = tiny.store.path("lease/00000003.json")
    os.utime(path, (time.time() - 60, time.time() - 60))
    assert not holder(tiny.store).alive
    tiny.store.write("lease/00000003.beat.json", b'{"at": "now"}')
    assert (holder(tiny.store).alive, holder(tiny.store).beat) == (True, "now")
    tiny.store.write("lease/00000003.end.json", b"{}")
    assert not holder(tiny.store).alive
    assert workflow_status(tiny.load())[0]["run"] is None


def test_a_store_that_takes_nothing_is_warned_of_once_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    class Full(FolderStorage):
        puts = 0

        def write(self, key, data):
            self.puts += 1
            raise StorageError("no room")

    monkeypatch.setattr(live, "_FIRST_S", (0.01, 0.01, 0.01, 0.01))
    store = Full(tmp_path)
    with live.Live(store, 1):
        until(lambda: store.puts >= 3)
    assert [record.message for record in caplog.records] == [
        "status cannot be told (no room); the run goes on"
    ]


def test_what_a_run_tells_is_small_and_seldom(tmp_path, monkeypatch):
    puts = []

    class Counted(FolderStorage):
        def write(self, key, data):
            puts.append((key, len(data)))

    monkeypatch.setattr(live, "_FIRST_S", ())
    monkeypatch.setattr(live, "EVERY_S", 0.2)
    progress = Progress([f"Stage{number}" for number in range(12)])
    with live.Live(Counted(tmp_path), 7) as teller:
        teller.progress = progress
        begun = time.monotonic()
        while time.monotonic() - begun < 1.05:
            for number in range(12):
                progress.expect(f"Stage{number}")
                progress.done(f"Stage{number}", state="ok")
                progress.failed(f"Stage{number}", "unit", "crashed")
    assert 2 <= len(puts) <= 6               # five, and the end
    assert {key for key, _ in puts} == {"lease/00000007.progress.json"}
    assert max(size for _, size in puts) < 8000


def test_what_another_version_told_is_not_believed(tiny):
    for said in (b"{", b"[]", b'{"schema": 99}'):
        tiny.store.write(live.key_of(1), said)
        assert live.read(tiny.store, 1) == {}


WRONG = [
    {"stages": []}, {"stages": {"Mark": "x"}}, {"stages": {"Mark": {"done": "1"}}}, {"workers": [1]},
    {"stages": {"Mark": {"done": -1}}}, {"stages": {"Mark": {"done": 10**400}}}, {"workers": {"Mark": 5}},
    {"stages": {"Mark": {"per_s": float("nan")}}}, {"failures": "abc"}, {"failures": [1]}, {"phase": [1]},
    {"listing": "no"}, {"failures": [{"unit": 5}]},
]  # fmt: skip


@pytest.mark.parametrize("wrong", [*WRONG, None], ids=str)
def test_what_is_told_in_wrong_types_is_not_believed(tiny, wrong):
    said = b"[" * 200_000 if wrong is None else json.dumps({"schema": 1, **wrong}).encode()
    tiny.store.write(live.key_of(1), said)
    assert live.read(tiny.store, 1) == {}


def test_what_is_told_shows_nothing_but_text(tiny):
    owner = {"what": "\x1b[31mrun\nx", "host": "h" * 10**6, "pid": 1, "place": "another"}
    said = {
        "schema": 1, "phase": "data", "stages": {"Mark": {"done": 1, "known": 10**15, "per_s": 1e-300}},
        "workers": {"\x1b[2J": {}}, "failures": [{"stage": "Mark", "unit": "\x07", "reason": "\x1b" * 10**5}],
        "listing": False,
    }  # fmt: skip
    tiny.store.write("lease/00000001.json", json.dumps(owner).encode())
    tiny.store.write(live.key_of(1), json.dumps(said).encode())
    answer, text = workflow_status(tiny.load())
    assert answer["run"]["alive"]
    assert "failed: \\x07 at Mark: \\x1b" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) < 500


TOLD = {"step": 2, "steps": 10, "steps_per_second": 0.5, "eta_s": 16.0, "time": 5.0}


@pytest.mark.parametrize(
    "wrong",
    [
        {"step": "x"}, {"steps": None}, {"time": float("nan")}, {"time": None}, {"eta_s": float("inf")},
        {"eta_s": None}, {"steps_per_second": "z"}, {"step": -1}, {"dataset": 5}, {"steps": 10**400}, None,
    ],
    ids=str,
)  # fmt: skip
def test_what_a_training_tells_in_wrong_types_is_not_believed(tiny, wrong):
    from pipelines.after_data import told

    tiny.store.write("train/a/progress.json", json.dumps(TOLD).encode())
    assert told(tiny.store, "train/a") == TOLD
    said = b"[" * 200_000 if wrong is None else json.dumps({**TOLD, **wrong}).encode()
    tiny.store.write("train/a/progress.json", said)
    assert told(tiny.store, "train/a") is None


def test_what_old_runs_told_goes_with_their_leases(tiny):
    for number in (1, 2):
        tiny.store.write(f"lease/{number:08d}.json", b"{}")
        tiny.store.write(live.key_of(number), b"{}")
    old = gc.find(tiny.load(), tiny.store, before_s=time.time() + 9).old
    assert [entry.key for entry in old["leases"]] == ["lease/00000001.json", live.key_of(1)]


def test_units_are_listed_as_asked_for_and_counted_all(tiny):
    workflow = tiny.load("stages.Mark.drop=[v01-0,v02-1]")
    prepare(workflow, in_process=True)
    every, _ = workflow_status(workflow)
    rejected, _ = workflow_status(workflow, "rejected")
    three, _ = workflow_status(workflow, "3")
    assert (len(every["units"]), len(three["units"])) == (8, 3)
    assert {unit["clip"] for unit in rejected["units"]} == {"v01-0", "v02-1"}
    assert every["units_total"] == rejected["units_total"] == three["units_total"] == 8
    assert every["reasons"] == [{"state": "rejected", "stage": "Mark", "reason": "two faces", "count": 2}]


def test_a_long_list_of_units_is_written_without_being_held(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_IN_MEMORY", 1 << 20)
    units = lines.Lines()
    tracemalloc.start()
    for number in range(40_000):
        units.append({"source": f"list/v{number:07d}.mp4", "clip": None, "state": "todo", "detail": "x" * 40})
    with (tmp_path / "out").open("w") as file:
        lines.write_json({"stages": {}, "units": units, "total": len(units)}, file)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held < 2 << 20                    # 5 MB were written
    (line,) = (tmp_path / "out").read_text().splitlines()
    found = json.loads(line)
    assert (found["total"], len(found["units"])) == (40_000, 40_000)
    assert found["units"][-1]["source"] == "list/v0039999.mp4"


def test_the_training_is_told_with_its_rate_and_the_time_it_still_takes(tiny):
    from pipelines.after_data import training_of

    workflow = tiny.load("train.steps=1000")
    tiny.store.write("dataset/latest.json", b'{"version": "abc"}')
    assert workflow_status(workflow)[0]["training"] is None
    said = {"step": 200, "steps": 1000, "steps_per_second": 0.5, "eta_s": 1600.0, "time": time.time()}
    tiny.store.write(f"{training_of(workflow, tiny.store)}/progress.json", json.dumps(said).encode())
    answer, text = workflow_status(workflow)
    assert answer["training"] == said
    assert "training: update 200 of 1,000, 30/min, 26 min 40 s left" in text
    other, text = workflow_status(tiny.load("train.steps=1000", "train.seed=9"))
    assert (other["training"]["step"], other["other_training"]) == (0, {**said, "dataset": ""})
    assert "training: update 0 of 1,000; anew when the dataset changes" in text
    assert "another training, with other settings: update 200 of 1,000, 30/min" in text


def test_of_a_new_dataset_the_training_is_told_as_not_begun(tiny):
    from pipelines.after_data import training_of

    workflow = tiny.load("train.steps=24")
    tiny.store.write("dataset/latest.json", b'{"version": "abc"}')
    said = {"step": 24, "steps": 24, "steps_per_second": 0.5, "eta_s": 0.0, "time": 9.0, "dataset": "abc"}
    tiny.store.write(f"{training_of(workflow, tiny.store)}/progress.json", json.dumps(said).encode())
    prepare(workflow, in_process=True)
    assert "training: update 24 of 24\n" in workflow_status(workflow)[1] + "\n"
    assert "training: update 24 of 48" in workflow_status(tiny.load("train.steps=48"))[1]
    tiny.store.write("dataset/latest.json", b'{"version": "def"}')
    answer, text = workflow_status(workflow)
    plan, _ = describe_plan(workflow, "train")
    assert (answer["training"]["step"], plan["after"]["train"]["done"]) == (0, 0)
    assert "training: update 0 of 24\nanother training, of dataset abc: update 24 of 24" in text


def going(tiny, told, *changes):
    """The status while a run elsewhere tells this."""
    owner = {"what": "pv3d run", "host": "elsewhere", "pid": 7, "place": "another", "expires_s": 45.0}
    tiny.store.write("lease/00000009.json", json.dumps(owner).encode())
    said = {"schema": 1, "phase": "data", "listing": True, **told}
    tiny.store.write(live.key_of(9), json.dumps(said).encode())
    return workflow_status(tiny.load(*changes))


def test_at_its_start_the_time_left_rests_on_the_records_of_before(tiny):
    prepare(tiny.load("stages.Mark.seconds=0.2", "stages.Keep.most=2"), in_process=True)
    changes = ("stages.Mark.seconds=0.2", "stages.Keep.most=2", "stages.Cut.short=true")
    plan, _ = describe_plan(tiny.load(*changes), "Write")
    answer, text = going(tiny, {}, *changes)
    come = {name: row["units_to_come"] for name, row in plan["estimate"].items()}
    assert {name: row["to_come"] for name, row in answer["run"]["stages"].items()} == come
    assert come["Write"] == 2
    assert answer["run"]["eta_s"] >= 0.9 * plan["total"]["seconds"] >= 0.5
    assert "at least" not in text


def test_a_run_with_other_settings_than_asked_is_told_with_their_names(tiny):
    from pipelines.stage_keys import keys_asked

    theirs = tiny.load("stages.Mark.value=2", "source.count=3")
    prepare(theirs, in_process=True)
    told = {"keys": keys_asked(theirs)}
    answer, text = going(tiny, told)
    assert answer["run"]["other_settings"] == ["stages.Mark.value", "source"]
    assert "the run has other settings than asked: stages.Mark.value, source\n" in text
    assert "other settings" not in going(tiny, told, "stages.Mark.value=2", "source.count=3")[1]
    assert live.read(tiny.store, 9)["keys"] == told["keys"]
    assert going(tiny, {"keys": {"stages.Mark": "../../secret"}})[0]["run"]["phase"] == ""


def test_lines_of_a_run_fit_80_columns_and_leave_out_pools_with_nothing_to_do(tiny):
    pools = {f"Stage{number}": {"workers": 2, "busy": 1, "queued": 40} for number in range(5)}
    idle = {"Idle": {"workers": 0, "busy": 0, "queued": 0}}
    rates = {"known": 2_000_000, "done": 1_234_567, "per_s_now": 1234.5, "per_s": 1.0}
    _, text = going(tiny, {"workers": {**idle, **pools}, "stages": {"Mark": rates}})
    assert max(map(len, text.splitlines())) == 80
    assert all(text.count(f" {name} 2 (1 busy, 40 waiting)") == 1 for name in pools)
    assert "Idle" not in text
    assert " 1234/s" in text


def test_of_an_empty_store_one_line_says_so(tiny):
    for text in (workflow_status(tiny.load())[1], gc.gc(tiny.load(), dry_run=True)[1]):
        assert text == f"nothing below {tiny.root} yet"
    assert not tiny.root.exists()


def test_on_s3_too_a_run_tells_how_far_it_is_and_a_dry_run_what_is_stale(s3, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)              # where the tiny stages leave their notes
    place = (f"storage.root=s3://pv3d-test/{uuid.uuid4().hex}", f"storage.s3.endpoint={s3.endpoint}")
    monkeypatch.setattr(live, "_FIRST_S", (0.2, 0.2, 0.2))
    workflow = tiny.load(*place)
    run_workflow(workflow, until="Write", in_process=True)
    store = workflow.store()
    told = live.read(store, 1)
    assert (told["ended"], told["stages"]["Write"]["done"]) == ("done", 8)
    answer, _ = workflow_status(workflow)
    assert (answer["run"], answer["stages"]["Write"]["ok"]) == (None, 8)
    owner = {"what": "pv3d run", "host": "elsewhere", "pid": 7, "place": "another", "expires_s": 45.0}
    store.write("lease/00000002.json", json.dumps(owner).encode())
    store.write(live.key_of(2), json.dumps(told).encode())
    seen = workflow_status(workflow)[0]["run"]
    assert (seen["alive"], seen["host"], seen["stages"]["Mark"]["done"]) == (True, "elsewhere", 8)
    plan, _ = describe_plan(tiny.load(*place, "stages.Keep.most=3"), "Write")
    assert plan["why"]["Keep"] == {"settings of Keep changed: most 100 -> 3": 8}
    held = sum(entry.bytes for entry in store.entries("ledger/Mark"))
    assert plan["estimate"]["Mark"]["bytes"] == held > 0
