"""Where everything stands: counts per stage, how fast a run gets on that is going on, a line per clip."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from infra.holder import holder
from infra.storage import Storage
from infra.words import printable
from pipelines import live
from pipelines.after_data import trainings
from pipelines.ledger import Ledger
from pipelines.lines import Lines
from pipelines.losses import Losses, as_json
from pipelines.rates import Ahead, duration, per_second, times_left, units_ahead
from pipelines.stage_keys import differing
from pipelines.survey import Counts, Survey, Unit, look_back
from pipelines.survey import survey as walk
from pipelines.workflow import Step, Workflow
from stages.base import GroupStage

__all__ = ["Survey", "Unit", "check_units", "look", "survey", "told_of", "workflow_status"]

Answer = tuple[dict[str, Any], str]

TOLD = ("source", "clip", "stage", "state", "reason", "identity", "detail")       # of every unit, by --json
WIDTH = 80                                   # of a terminal
STATES = ("ok", "rejected", "failed", "todo")


@dataclass
class _Status(Survey):
    """Keeps the units that are to be listed in a file, and what of the listed videos was lost."""

    units: Lines = field(default_factory=Lines)
    total: int = 0
    losses: Losses = field(default_factory=Losses)
    wanted: str = "all"

    def unit(self, unit: Unit) -> None:
        self.total += 1
        self.losses.add(unit)
        if self._lists(unit):
            self.units.append({name: getattr(unit, name) for name in TOLD})

    def over(self, ledger: Ledger) -> None:
        look_back(self.stages, ledger)

    def _lists(self, unit: Unit) -> bool:
        if self.wanted.isdecimal():
            return len(self.units) < int(self.wanted)
        return self.wanted == "all" or unit.state in ("rejected", "failed")


@dataclass
class _AllUnits(Survey):
    units: list[Unit] = field(default_factory=list)

    def unit(self, unit: Unit) -> None:
        self.units.append(unit)


def survey(workflow: Workflow, until: str | None = None) -> _AllUnits:
    """Every listed video with what became of it."""
    return walk(workflow, _AllUnits, until)


def workflow_status(workflow: Workflow, units: str = "all") -> Answer:
    """`pv3d status`: the object of `--json`, and a table.

    `units`: which are listed, "all", "rejected" (and failed) or how many at most. Those that are listed are
    `pipelines.lines.Lines`: read them one after the other, there may be a million.
    """
    return told_of(workflow, look(workflow, units))


def look(workflow: Workflow, units: str) -> _Status:
    """What the records say; with a million units this takes a while."""
    return walk(workflow, lambda: _Status(wanted=units))


def told_of(workflow: Workflow, found: _Status) -> Answer:
    """As `workflow_status`, of records that were looked at; what the run tells is of now."""
    stages = {name: {state: getattr(c, state) for state in STATES} for name, c in found.stages.items()}
    store = workflow.store()
    run, (training, other) = _run(store, workflow, found), trainings(workflow, store)
    lost, reasons = found.losses.found(), _reasons(found)
    lines = [*_run_lines(run), *_table(stages, run)]
    lines += [
        f"  {one['count']:>5}  {one['state']} at {one['stage']}: {printable(one['reason'])}"
        for one in reasons
    ]
    lines += _training_lines(training, other, _dataset_changes(found))
    lines += ["", "Of the listed videos did not come:", *(loss.text for loss in lost)] if lost else []
    answer = {
        "stages": stages, "run": run, "training": training, "other_training": other,
        "reasons": reasons, "losses": as_json(lost),
        "units_total": found.total, "units": found.units,
    }  # fmt: skip
    if run is None and next(store.list(), None) is None:
        return answer, f"nothing below {workflow.storage.root} yet"
    return answer, "\n".join(lines)


def check_units(text: str) -> str:
    """Raise ValueError unless it says which units to list."""
    if text in ("all", "rejected") or (text.isdecimal() and text.isascii()):
        return text
    raise ValueError(f"--units {text}: write all, rejected or how many at most")


# --- the run that is going on -------------------------------------------------------------------------------


def _run(store: Storage, workflow: Workflow, found: Survey) -> dict[str, Any] | None:
    """Who has the store and how fast it gets on; None when nobody has it."""
    last = holder(store)
    if last is None or last.ended:
        return None
    told = live.read(store, last.number)
    rows, left_s = _stages(workflow, found, told)
    unknown = [name for name, row in rows.items() if row["eta_s"] is None]
    alive = last.alive
    return {
        "what": last.owner.what, "host": last.owner.host, "pid": last.owner.pid, "since": last.owner.started,
        "alive": alive, "last_sign": last.beat, "quiet_s": round(last.quiet_s, 1),
        "phase": told.get("phase", ""), "told": told.get("at", ""), "stages": rows,
        "other_settings": differing(store, workflow, told.get("keys", {})) if alive else [],
        "eta_s": left_s if alive and told.get("phase") == "data" else None, "eta_without": unknown,
        "workers": told.get("workers", {}), "failures": told.get("failures", []),
    }  # fmt: skip


def _stages(
    workflow: Workflow, found: Survey, told: dict[str, Any]
) -> tuple[dict[str, dict[str, Any]], float | None]:
    """Per stage units done in this run, rates and seconds left; and seconds for all of the data stages."""
    names = list(found.stages)
    groups = {step.name: isinstance(step.stage, GroupStage) for step in workflow.steps}
    room = {step.name: _room(step) for step in workflow.steps}
    seen = {name: told.get("stages", {}).get(name, {}) for name in names}
    busy = sum(pool.get("busy", 0) for pool in told.get("workers", {}).values())
    began = {name: bool(seen[name].get("done")) for name in names}
    # Those that did not begin yet share the machine with those before them, so one comes after the other.
    ahead = [
        Ahead(_left(found.stages[name], seen[name], told), _passes(found.stages[name], seen[name]),
              _rate(found.stages[name], seen[name], busy or room[name]), groups[name] or not began[name])
        for name in names
    ]  # fmt: skip
    left, together = times_left(ahead)
    rows = {
        name: {
            "done": seen[name].get("done", 0), "per_s_now": seen[name].get("per_s_now", 0.0),
            "per_s": seen[name].get("per_s", 0.0), "to_come": round(units), "eta_s": eta_s,
        }
        for name, units, eta_s in zip(names, units_ahead(ahead), left, strict=True)
    }  # fmt: skip
    return rows, together


def _left(counts: Counts, seen: dict[str, Any], told: dict[str, Any]) -> int:
    """Units that wait for a stage: as the run itself says once it has listed all, else by the records."""
    if told and not told["listing"]:
        return int(seen.get("known", 0)) - int(seen.get("done", 0))
    return counts.todo + counts.again


def _room(step: Step) -> float:
    """Workers of a stage on this machine, as a dry run takes them to be."""
    most = (os.cpu_count() or 1) / (step.resources.cpus or 1.0)
    return min(most, step.workers.max or most)


def _passes(counts: Counts, seen: dict[str, Any]) -> float:
    """How many units a stage sends on for one that comes to it; 1 while nothing is known."""
    if counts.passes is not None:
        return counts.passes
    return float(seen["sent"] / seen["done"]) if seen.get("done") else 1.0


def _rate(counts: Counts, seen: dict[str, Any], workers: float) -> float:
    """Units per second: of the last minute, else of the run, else what the records of before let expect."""
    before = workers * counts.timed / max(counts.seconds, 1e-6)
    return float(seen.get("per_s_now") or seen.get("per_s") or before)


def _run_lines(run: dict[str, Any] | None) -> Iterator[str]:
    if run is None:
        return
    what, host, since = (printable(run[name], 80) for name in ("what", "host", "since"))
    who = f"{what} on {host} (pid {run['pid']}) since {since}"
    if not run["alive"]:
        quiet = duration(run["quiet_s"])
        sign = printable(run["last_sign"], 80)
        yield f"{who}: no sign of life since {sign} ({quiet}); the same command continues"
        yield ""
        return
    yield who
    sign = f"last sign of life {duration(run['quiet_s'])} ago"
    if run["phase"] == "data":
        less = "at least" if run["eta_without"] else "about"
        left = "not known yet" if run["eta_s"] is None else f"{less} {duration(run['eta_s'])}"
        yield f"{sign}; data stages, time left: {left}"
    else:
        yield f"{sign}; at: {printable(run['phase'])}" if run["phase"] else sign
    if run["other_settings"]:
        yield f"the run has other settings than asked: {', '.join(map(printable, run['other_settings']))}"
    yield from _worker_lines(run["workers"])
    for one in run["failures"][-3:]:
        yield "failed: {} at {}: {}".format(*(printable(one[name]) for name in ("unit", "stage", "reason")))
    yield ""


def _worker_lines(pools: dict[str, Any]) -> Iterator[str]:
    """Of the pools that have workers, or work for them; broken between pools."""
    line = "workers:"
    for name, pool in pools.items():
        if pool["workers"] or pool["busy"] or pool["queued"]:
            one = f" {printable(name, 80)} {pool['workers']} ({pool['busy']} busy, {pool['queued']} waiting),"
            if len(line) + len(one) > WIDTH and line.strip() != "workers:":
                yield line
                line = " " * len("workers:")
            line += one
    if line != "workers:":
        yield line.removesuffix(",")


def _table(stages: dict[str, dict[str, int]], run: dict[str, Any] | None) -> Iterator[str]:
    """At most 80 columns wide."""
    going = run is not None and run["alive"] and run["phase"] == "data"
    widths = dict(zip(STATES, (8, 9, 8, 8), strict=True))
    yield f"{'stage':<17} " + "".join(f"{state:>{widths[state]}}" for state in STATES) + (
        f"{'this run':>9}{'now':>8}{'left':>12}" if going else ""
    )
    for name, row in stages.items():
        line = f"{name:<17} " + "".join(f"{row[state]:>{widths[state]}}" for state in STATES)
        if run is not None and going:
            one = run["stages"][name]
            left = "" if one["eta_s"] is None else duration(one["eta_s"]) if one["eta_s"] else "-"
            line += f"{one['done']:>9}{per_second(one['per_s_now']) if one['done'] else '':>8}{left:>12}"
        yield line


def _reasons(found: Survey) -> list[dict[str, Any]]:
    """Why units were rejected or failed, the most frequent first."""
    return [
        {"state": state, "stage": stage, "reason": reason, "count": count}
        for (state, stage, reason), count in sorted(
            found.reasons.items(), key=lambda item: (-item[1], item[0])
        )
    ]


# --- training -----------------------------------------------------------------------------------------------


def _dataset_changes(found: Survey) -> bool:
    return any(counts.todo or counts.again for counts in found.stages.values())


def _training_lines(
    training: dict[str, Any] | None, other: dict[str, Any] | None, anew: bool
) -> Iterator[str]:
    if training is not None:
        yield f"training: {_updates(training)}{'; anew when the dataset changes' if anew else ''}"
    if other is not None:
        of = f"of dataset {printable(other['dataset'], 80)}" if other["dataset"] else "with other settings"
        yield f"another training, {of}: {_updates(other)}"


def _updates(training: dict[str, Any]) -> str:
    text = f"update {training['step']:,} of {training['steps']:,}"
    if training["step"] < training["steps"] and training["steps_per_second"]:
        text += f", {per_second(training['steps_per_second'])}, {duration(training['eta_s'])} left"
    return text
