"""Simulate: `python tests/simulation/simulate.py`, or `make simulate`; `--seed N` replays one execution.

Exit status 1 when something was violated. The report is one line of JSON.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).absolute().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from simulated_modules import simulated  # noqa: E402
from simulated_plans import (  # noqa: E402
    by_chance,
    crash_points,
    double_crash_points,
    older_lists,
    two_changes,
)
from simulated_runs import Execution, Setting  # noqa: E402

SETTINGS = [Setting(s3=s3, leases=leases, apart=leases) for leases in (False, True) for s3 in (False, True)]
SYSTEMATIC = {
    "crash points": (crash_points, SETTINGS),
    "second crash points": (double_crash_points, SETTINGS[3:]),
    "older lists": (older_lists, SETTINGS),
    "two changes of turns": (two_changes, SETTINGS[:1]),
}
INTERLEAVINGS = ("two changes of turns", "chance")
COUNT = 100_000
CHUNK = 500                                  # seeds
EVERY_S = 10.0                               # it tells how far it is
MOST = 3                                     # violations after which it is over

Job = tuple[str, int, int]                   # kind; setting and nothing, or first seed and number of seeds


def executions(job: Job) -> Iterator[tuple[str, Execution]]:
    """Each with what replays it."""
    kind, first, count = job
    if kind == "chance":
        yield from ((f"--seed {seed}", by_chance(seed)) for seed in range(first, first + count))
        return
    function, settings = SYSTEMATIC[kind]
    for number, execution in enumerate(function(settings[first])):
        yield f"--kind {kind!r} --setting {first} --number {number}", execution


def perform(job: Job) -> tuple[Job, int, list[tuple[str, list[str]]]]:
    """(the job, number of executions, what replays each bad one and what it violates)."""
    done, bad = 0, []
    with simulated():
        for how, execution in executions(job):
            done += 1
            if done % 200 == 0:
                gc.collect()                 # seldom: it looks at all that is there
            if execution.violations:
                bad.append((how, execution.violations))
                if len(bad) == MOST:
                    break
    return job, done, bad


def jobs(count: int, first: int) -> list[Job]:
    """The long ones first."""
    found = [(kind, number, 0) for kind, (_, settings) in reversed(SYSTEMATIC.items())
             for number in range(len(settings))]  # fmt: skip
    seeds = range(first, first + count, CHUNK)
    return [*found, *(("chance", seed, min(CHUNK, first + count - seed)) for seed in seeds)]


def simulate(count: int, first: int, processes: int) -> dict[str, Any]:
    """Every crash point, and `count` interleavings of two runs; those of chance by seeds from `first` on."""
    begun = time.monotonic()
    done: dict[str, int] = {}
    bad: list[tuple[str, list[str]]] = []
    last = first
    work = jobs(count, first)
    left = sum(kind != "chance" for kind, _, _ in work)
    told = begun
    with multiprocessing.get_context("fork").Pool(processes, maxtasksperchild=100) as pool:
        for (kind, at, seeds), number, found in pool.imap_unordered(perform, work):
            done[kind] = done.get(kind, 0) + number
            bad += found
            left -= kind != "chance"
            last = max(last, at + seeds - 1) if kind == "chance" else last
            if time.monotonic() - told >= EVERY_S:
                told = time.monotonic()
                _tell(_interleavings(done), count, told - begun)
            if len(bad) >= MOST or (not left and _interleavings(done) >= count):
                break
    return {
        "interleavings": _interleavings(done), "executions": done, "seeds": [first, last],
        "seconds": round(time.monotonic() - begun, 1), "cpu_seconds": round(_cpu_s(), 1),
        "violations": len(bad), "bad": bad,
    }  # fmt: skip


def _tell(done: int, count: int, seconds: float) -> None:
    rate = done / seconds
    left = f", {max(count - done, 0) / rate:.0f} s to go" if done else ""
    print(f"{done} of {count} interleavings, {rate:.0f}/s{left}", file=sys.stderr, flush=True)


def _cpu_s() -> float:
    """Of all processes that are over."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _interleavings(done: dict[str, int]) -> int:
    return sum(done.get(kind, 0) for kind in INTERLEAVINGS)


def replay(kind: str, setting: int, number: int, seed: int | None) -> Execution:
    """One execution again, with its trace."""
    with simulated():
        if seed is not None:
            return by_chance(seed, trace=True)
        function, settings = SYSTEMATIC[kind]
        return next(itertools.islice(function(settings[setting], trace=True), number, None))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    count = int(os.environ.get("PV3D_SIMULATIONS", COUNT))
    parser.add_argument("--count", type=int, default=count, help="interleavings of two runs")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, help="replay this one, and print every call of the store")
    parser.add_argument("--kind", choices=SYSTEMATIC, help="replay one of these instead")
    parser.add_argument("--setting", type=int, default=0)
    parser.add_argument("--number", type=int, default=0)
    asked = parser.parse_args()
    if asked.seed is not None or asked.kind:
        execution = replay(asked.kind, asked.setting, asked.number, asked.seed)
        print("\n".join(execution.trace or []))
        print("\n".join(execution.violations) or "no violation")
        return bool(execution.violations)
    report = simulate(asked.count, asked.first, asked.processes)
    for how, violations in report.pop("bad"):
        print(f"replay with: python tests/simulation/simulate.py {how}", *violations, sep="\n    ")
    print(json.dumps(report))
    return bool(report["violations"])


if __name__ == "__main__":
    sys.exit(main())
