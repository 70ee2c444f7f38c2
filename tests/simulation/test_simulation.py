"""Ledger, commits, leases and collections hold whatever the store does, whoever dies, and in any order."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from simulate import SETTINGS
from simulated_modules import simulated
from simulated_plans import by_chance, calls_of, crash_points, older_lists, right, starts, two_changes
from simulated_runs import Execution, Setting
from simulated_store import ACTS, FAULTS
from simulated_watch import LATEST
from simulated_world import Turns

SIMULATIONS = int(os.environ.get("PV3D_SIMULATIONS", "1000"))
PROGRAM = Path(__file__).with_name("simulate.py")


@pytest.fixture(autouse=True)
def _simulated():
    with simulated():
        yield


def sound(execution: Execution, what: str) -> None:
    assert not execution.violations, f"{what}: {execution.violations}"


def test_the_small_run_does_all_that_a_large_one_does() -> None:
    kinds = Counter(key.split("/")[0] for key in right())
    assert kinds == {"aligned": 2, "shards": 4, "manifest": 2, "dataset": 2}
    for setting in SETTINGS:
        execution = Execution(setting, Turns(), 0, right(), trace=True)
        execution.add_run("one")
        execution.run()
        sound(execution, "undisturbed")
        assert {key for key in execution.objects.held if key in right()} == set(right())
        assert all(f" {op} " in "\n".join(execution.trace or []) for op in ("read", "list", "exists", *ACTS))


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: f"{'s3' if s.s3 else 'folder'}-{s.leases=}")
def test_a_run_may_die_or_fail_at_any_call(setting: Setting) -> None:
    ends = Counter()
    for number, execution in enumerate(crash_points(setting)):
        sound(execution, f"call {number // 4 + 1}")
        ends.update(p.outcome for p in execution.world.processes.values() if p.name == "one")
    calls = calls_of(setting.s3, setting.leases)
    assert calls > 30
    assert sum(ends.values()) == 4 * calls
    assert ends["dead"] == 2 * calls
    assert (ends["store out of reach"] > calls / 2) != setting.s3    # on S3 they are tried again


@pytest.mark.parametrize("setting", SETTINGS[:2], ids=lambda s: "s3" if s.s3 else "folder")
def test_an_older_list_that_was_interrupted_leaves_nothing_that_the_next_run_keeps(setting: Setting) -> None:
    moved = 0
    for number, execution in enumerate(older_lists(setting), 1):
        sound(execution, f"call {number}")
        moved += execution.watch.events["pointer moved"]
    assert moved > 1                         # by the older one, and back


def test_two_runs_at_once_may_change_turns_anywhere() -> None:
    for setting in (Setting(), Setting(s3=True)):
        number = 0
        for execution in two_changes(setting, step=6):
            number += 1
            sound(execution, f"{setting}, {number}")
        assert number > 25


def test_two_runs_at_once_hold_whatever_happens() -> None:
    outcomes, seen, events, readers = Counter(), Counter(), Counter(), 0
    for seed in range(SIMULATIONS):
        execution = by_chance(seed)
        sound(execution, f"python tests/simulation/simulate.py --seed {seed}")
        events += execution.watch.events
        for process in execution.world.processes.values():
            seen.update(process.faults.done)
            readers += process.name == "reader"
            outcomes.update([process.outcome] if process.name in ("one", "two") else [])
    assert set(events) == {
        "create lost", "segment merged", "orphan collected", "lease taken over", "pointer moved",
    }  # fmt: skip
    assert set(FAULTS) <= set(seen)          # each kind of fault came, and each kind of end
    assert set(outcomes) == {"done", "dead", "refused", "interrupted", "store out of reach"}
    assert min(outcomes.values()) > SIMULATIONS / 50
    assert readers > SIMULATIONS / 10


def test_what_killed_runs_leave_is_all_different_and_never_half_a_dataset() -> None:
    for leases in (False, True):
        left = starts(leases)
        assert len(left) >= 2 * calls_of(leases=leases)
        assert len({frozenset(held) for held in left}) > 12
        assert any(LATEST in held for held in left)
        assert any("shards" in key for held in left if LATEST not in held for key in held)


@pytest.mark.parametrize("seed", [11])
def test_a_seed_replays_every_call(seed: int) -> None:
    first, again = by_chance(seed, trace=True).trace, by_chance(seed, trace=True).trace
    assert first
    assert len(first) > 30
    assert first == again
    command = [sys.executable, str(PROGRAM), "--seed", str(seed)]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    said = answer.stdout.splitlines()
    assert said[: len(first)] == first
    assert said[-1] == "no violation"
