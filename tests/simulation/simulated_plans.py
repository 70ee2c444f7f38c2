"""What is simulated: every crash point of a run, all schedules of two runs with two changes, and chance."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from random import Random

from simulated_runs import COMMITTED, Execution, Setting
from simulated_store import FAULTS
from simulated_world import Actor, Faults, Turns

MOMENTS = ("crash before", "crash after")
ENDS = (*MOMENTS, "refused", "lost")
DEADLY = {*MOMENTS, "interrupt"}
STILL = {"pause", "slow", "slow answer", "late", "outage"}       # a lease may be over before they are


class At(Faults):
    """One fault, at the n-th call of the process."""

    def __init__(self, number: int, fault: str) -> None:
        super().__init__()
        self.number, self.what, self.calls = number, fault, 0

    def fault(self, actor: Actor, op: str, key: str) -> str:
        self.calls += 1
        if self.calls != self.number:
            return ""
        self.done.add(self.what)
        return self.what


class Chance(Faults):
    """Any of `kinds` at any call; a process dies once at most."""

    def __init__(self, random: Random, share: float, kinds: list[str]) -> None:
        super().__init__()
        self.random, self.share, self.kinds = random, share, kinds

    def fault(self, actor: Actor, op: str, key: str) -> str:
        if not self.kinds or self.random.random() >= self.share:
            return ""
        kind = self.random.choice(self.kinds)
        if kind in DEADLY and self.done & DEADLY:
            return ""
        self.done.add(kind)
        return kind


class Mixed(Turns):
    """Another one comes with the probability `share`; half a call takes `tick_s` on average."""

    def __init__(self, random: Random, share: float, tick_s: float) -> None:
        self.random, self.share, self.tick_s = random, share, tick_s

    def choose(self, current: Actor | None, ready: list[Actor]) -> Actor:
        if current in ready and self.random.random() >= self.share:
            return current
        return self.random.choice(ready)

    def seconds(self) -> float:
        return 2 * self.tick_s * self.random.random()


class Changes(Turns):
    """The other one goes on from these points of the execution on.

    The moment after a call has acted is none of them: the caller does nothing that others could see until the
    moment before its next call, so that to change turns at either is the same.
    """

    def __init__(self, points: tuple[int, ...]) -> None:
        self.points, self.number = points, 0

    def choose(self, current: Actor | None, ready: list[Actor]) -> Actor:
        if current not in ready:
            return ready[0]
        self.number += not self.acted
        change = self.number in self.points and not self.acted
        return next((actor for actor in ready if actor is not current), current) if change else current


# --- beginnings ------------------------------------------------------------------------------------------


@functools.cache
def right(count: int = 3) -> Mapping[str, bytes]:
    """What an undisturbed run leaves for good, over the first `count` videos of the list."""
    execution = Execution(Setting(), Turns(), 0, {})
    execution.add_run("one", count=count)
    execution.run()
    assert not execution.violations, execution.violations
    return {key: data for key, data in execution.objects.held.items() if key.startswith(COMMITTED)}


@functools.cache
def calls_of(s3: bool = False, leases: bool = False) -> int:
    """Of an undisturbed run."""
    execution = Execution(Setting(s3=s3, leases=leases), Turns(), 0, right())
    faults = At(0, "")
    execution.add_run("one", faults)
    execution.run()
    assert not execution.violations, execution.violations
    return faults.calls


@functools.cache
def starts(leases: bool) -> tuple[Mapping[str, bytes], ...]:
    """What killed runs leave, one per crash point; nothing; what a run over fewer videos leaves."""
    found: list[Mapping[str, bytes]] = [{}]
    setting = Setting(leases=leases)
    for number, moment in itertools.product(range(1, calls_of(setting.s3, setting.leases) + 1), MOMENTS):
        execution = Execution(setting, Turns(), number, right())
        execution.add_run("one", At(number, moment))
        execution.run()
        found.append(dict(execution.objects.held))
    for count in (1, 2):
        execution = Execution(setting, Turns(), 0, {})
        execution.add_run("one", count=count)
        execution.run()
        found.append(dict(execution.objects.held))
    return tuple(found)


@functools.cache
def littered(leases: bool) -> tuple[Mapping[str, bytes], ...]:
    """Of `starts` those with something that nothing names: half a segment, half a commit."""

    def orphan(held: Mapping[str, bytes], key: str) -> bool:
        shard = key.startswith("shards/") and f"manifest/{key[7:].partition('.')[0]}.json" not in held
        return shard or (key.endswith(".npz") and key.removesuffix("npz") + "jsonl" not in held)

    return tuple(held for held in starts(leases) if any(orphan(held, key) for key in held))


# --- executions ------------------------------------------------------------------------------------------


def crash_points(setting: Setting, trace: bool = False) -> Iterator[Execution]:
    """A run that dies at each of its calls, before and after the call acts, or whose call fails."""
    for number, what in itertools.product(range(1, calls_of(setting.s3, setting.leases) + 1), ENDS):
        execution = Execution(setting, Turns(), number, right(), trace)
        execution.add_run("one", At(number, what))
        execution.run()
        execution.conclude()
        yield execution


def double_crash_points(setting: Setting, trace: bool = False) -> Iterator[Execution]:
    """A run that dies at each of its calls, over what each killed one has left.

    Before a call leaves what after the one before it does, and is not done again.
    """
    left = starts(setting.leases)
    for begin, start in enumerate((*left[:-2:2], *left[-2:])):
        again = replace(setting, start=start)
        for number in itertools.count(1):
            faults = At(number, MOMENTS[1])
            execution = Execution(again, Turns(), begin, right(), trace)
            execution.add_run("two", faults)
            execution.run()
            execution.conclude()
            yield execution
            if faults.calls < number:        # it came to its end
                break


def older_lists(setting: Setting, trace: bool = False) -> Iterator[Execution]:
    """A run over an older list that dies at each of its calls, where a run over the whole one has ended."""
    again = replace(setting, start=starts(setting.leases)[-3])
    for number in itertools.count(1):
        faults = At(number, MOMENTS[1])
        execution = Execution(again, Turns(), number, right(), trace)
        execution.right_too = right(1)
        execution.add_run("one", faults, count=1)
        execution.run()
        execution.conclude()
        yield execution
        if faults.calls < number:
            return


def two_changes(setting: Setting, trace: bool = False, step: int = 1) -> Iterator[Execution]:
    """Two runs without a lease that change turns once and twice, at all points, or at every `step`-th."""
    assert not setting.leases
    for first in itertools.count(1, step):
        for second in itertools.count(first, step):
            turns = Changes((first, second))
            execution = Execution(setting, turns, 0, right(), trace)
            execution.add_run("one")
            execution.add_run("two")
            execution.run()
            execution.conclude()
            yield execution
            if turns.number <= second:
                break
        if turns.number <= first:
            return


def by_chance(seed: int, trace: bool = False) -> Execution:
    """Two runs, perhaps a reader and a collection, from some beginning, as the seed says.

    With leases it mostly begins late: it takes longest then, and what is made matters less.
    """
    random = Random(seed)
    leases, gc = random.random() < 0.4, random.random() < 0.3
    kinds = random.sample(FAULTS, random.randint(1, len(FAULTS)))
    if gc and random.random() < 0.6:
        kinds = [kind for kind in kinds if kind not in STILL]
    share = random.choice([0.0, 0.03, 0.08, 0.2]) if kinds else 0.0
    execution = Execution(_setting(random, leases, gc), _turns(random), seed, right(), trace)
    older = 1 if random.random() < 0.2 else 3    # the list when run "one" began
    execution.right_too = right(older)
    for name, count in (("one", older), ("two", 3)):
        execution.add_run(name, Chance(random, share, kinds), random.random() < 0.3, count)
    if random.random() < 0.25:
        execution.add_reader()
    if leases and gc:
        grace, wait = "24h" if STILL & set(kinds) else "0", random.random() < 0.7
        execution.add_gc(grace, Chance(random, share, kinds), wait)
    execution.run()
    execution.conclude()
    return execution


def _setting(random: Random, leases: bool, gc: bool) -> Setting:
    known = littered(leases) if gc and random.random() < 0.5 else starts(leases)
    late = max(random.random(), random.random()) if leases else random.random()
    s3, apart = random.random() < 0.5, random.random() < 0.5
    return Setting(s3, leases, apart, known[int(len(known) * late)], page=random.choice([2, 3, 1000]))


def _turns(random: Random) -> Turns:
    return Mixed(random, random.choice([0.02, 0.1, 0.3, 1.0]), random.choice([0.01, 0.1, 0.5]))
