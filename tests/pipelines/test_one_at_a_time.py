"""Two runs of one store at once, as a user starts them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.storage import FolderStorage
from pipelines.benches.victim import session
from pipelines.ledger import Ledger

TINY = str(Path(__file__).parent)
SLOW = ("--set", "stages.Mark.seconds=0.3", "--set", "storage.lease_s=30")


def start(tiny, *arguments, name="run", own_session=False):
    program = "from pipelines.cli import main; main()"
    command = [sys.executable, "-c", program, name, str(tiny.path), *arguments]
    surroundings = {**os.environ, "PYTHONPATH": TINY, "RAY_AUTH_MODE": "disabled"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=surroundings,
        start_new_session=own_session,
    )  # fmt: skip


def run(tiny, *arguments):
    return start(tiny, "--until", "Write", "--in-process", *arguments)


def until(true, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def working(tiny):
    """The first unit is under way: the lease is held."""
    log = Path(tiny.root, "calls.log")
    return log.exists() and "Mark" in log.read_text()


def seen(tiny, stage):
    """The units that a stage has begun."""
    lines = [line.split() for line in Path(tiny.root, "calls.log").read_text().splitlines()]
    return [line[1] for line in lines if line[0] == stage]


@pytest.mark.slow
def test_the_second_of_two_runs_says_who_has_the_store_and_one_that_waits_comes_after_it(tiny):
    first = run(tiny, *SLOW)
    until(lambda: working(tiny))
    waits = run(tiny, *SLOW, "--wait")
    refused = run(tiny, *SLOW)
    out, err = refused.communicate(timeout=60)
    assert (refused.returncode, out) == (2, "")
    (line,) = [line for line in err.splitlines() if line.startswith("pv3d: ")]
    assert line.startswith(f"pv3d: storage.root: {tiny.root} is in use by pv3d run on ")
    assert f"(pid {first.pid}) since 20" in line
    assert line.endswith("wait for its end (--wait), or stop it")
    assert first.poll() is None
    for reader in ("status", "describe"):
        read = start(tiny, name=reader)
        assert read.wait(60) == 0, read.communicate()[1]
    assert first.wait(60) == 0
    assert waits.wait(60) == 0, waits.communicate()[1]
    assert len(list(FolderStorage(tiny.root).list("lease"))) >= 4      # two that were held and given back
    marks = [call for call in tiny.calls() if call.startswith("Mark")]
    assert len(marks) == len(set(marks)) == 8                          # nothing twice


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_after_a_run_that_was_ended_the_next_one_goes_on_at_once(tiny, end):
    first = run(tiny, *SLOW)
    until(lambda: working(tiny))
    first.send_signal(end)
    first.communicate(timeout=60)
    assert first.returncode == (-end if end == signal.SIGKILL else 128 + end)
    begun = time.monotonic()
    second = run(tiny, "--set", "storage.lease_s=300")
    assert second.wait(60) == 0, second.communicate()[1]
    assert time.monotonic() - begun < 30
    assert len(tiny.output()) > 1


@pytest.mark.slow
def test_a_run_on_ray_that_is_preempted_keeps_what_is_done_and_leaves_nothing_running(tiny):
    pytest.importorskip("ray")
    words = ("--until", "Write", "--set", "stages.Mark.seconds=0.2", "--set", "source.count=60")
    run = start(tiny, *words, own_session=True)
    until(lambda: working(tiny) and len(seen(tiny, "Second")) > 3, 120)
    run.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (143, ""), err
    assert time.monotonic() - begun < 30
    assert err.splitlines()[-1].startswith("pv3d: ended by SIGTERM; what is done is kept")
    assert "Traceback" not in err
    assert FolderStorage(tiny.root).exists("lease/00000001.end.json")
    until(lambda: not session(run.pid))
    ended = {record.unit for record in Ledger(tiny.store).records("Second")}
    assert len(ended) >= 2                   # all but what two workers had in hand
    assert ended <= set(seen(tiny, "Second"))


def test_a_run_that_fails_gives_the_store_back(tiny):
    failed = run(tiny, "--set", "stages.Mark.bug=[v00-0]")
    _, err = failed.communicate(timeout=60)
    assert failed.returncode == 1, err
    keys = list(FolderStorage(tiny.root).list("lease"))
    assert "lease/00000001.end.json" in keys


SHARDS = """\
storage:
  root: {root}
  lease_s: 1.2
source:
  use: tiny_stages:Numbers
  count: 12
stages:
  - use: tiny_shards:Finish
    seconds: 0.1
  - use: tiny_shards:SlowShards
    buckets: 8
    seconds: 0.2
train:
  variant: model.config:tiny
"""
started: list[subprocess.Popen[str]] = []
ELSEWHERE = "import infra.lease; infra.lease._place = lambda: 'another machine'; "
DEAF = "infra.lease.Lease.beat = lambda lease: None; "


def shards(path, *arguments, before=""):
    """A run in a process of its own, which is told what to believe `before` it starts."""
    program = f"{before}from pipelines.cli import main; main()"
    words = [sys.executable, "-c", program, "run", str(path), "--until", "WriteShards", "--in-process"]
    surroundings = {**os.environ, "PYTHONPATH": TINY}
    started.append(subprocess.Popen(
        [*words, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=surroundings
    ))
    return started[-1]


def committed(root):
    store = FolderStorage(root)
    return {key: store.read(key) for part in ("shards", "manifest", "dataset") for key in store.list(part)}


@pytest.fixture(autouse=True)
def _ended():
    """A process that a failed test has stopped would stay for ever."""
    yield
    while started:
        started.pop().kill()


@pytest.fixture
def alone(tmp_path):
    """What one run that nobody disturbs commits, and a workflow with an empty store."""
    for name in ("alone", "both"):
        (tmp_path / f"{name}.yaml").write_text(SHARDS.format(root=tmp_path / name))
    one = shards(tmp_path / "alone.yaml", "--set", "stages.Finish.seconds=0")
    assert one.wait(60) == 0, one.communicate()[1]
    return committed(tmp_path / "alone"), tmp_path / "both.yaml", tmp_path / "both"


def calls(root):
    log = Path(root, "calls.log")
    return log.read_text().count("Finish") if log.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("notices", [True, False])
def test_two_runs_that_both_hold_the_lease_commit_each_shard_once(alone, notices):
    """The first is held up for longer than a lease lasts; what it says when it notices, and what if not."""
    expected, path, root = alone
    first = shards(path, before="" if notices else "import infra.lease; " + DEAF)
    until(lambda: calls(root) > 2)
    first.send_signal(signal.SIGSTOP)
    begun = calls(root)
    second = shards(path, before=ELSEWHERE)
    until(lambda: calls(root) > begun)
    first.send_signal(signal.SIGCONT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == (2 if notices else 0), err
    if notices:
        (line,) = [line for line in err.splitlines() if line.startswith("pv3d: ")]
        assert line.startswith(f"pv3d: storage.root: {root} was taken over by pv3d run on ")
        assert line.endswith("which saw no sign of this run for 1.2 s; what is done is kept")
    assert second.wait(60) == 0, second.communicate()[1]
    assert calls(root) > 12                  # some of it was done twice
    assert committed(root) == expected
    assert len([key for key in expected if key.startswith("manifest/")]) > 4
