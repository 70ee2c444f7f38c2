"""Where everything stands, read from the ledger: counts per stage, and one line per clip."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pipelines.groups import group_outputs, groups_of
from pipelines.ledger import Ledger, LostSegmentError, Record, Ref
from pipelines.listing import listed
from pipelines.losses import as_json, losses
from pipelines.policy import Policy
from pipelines.runner import steps_until
from pipelines.workflow import Step, Workflow
from stages.base import GroupStage

Answer = tuple[dict[str, Any], str]

TOLD = ("source", "clip", "stage", "state", "reason", "identity", "detail")       # of every unit, by --json


@dataclass
class Counts:
    """What came to a stage, by what became of it. A cut counts what came out, so ok is what the next gets."""

    ok: int = 0
    rejected: int = 0
    failed: int = 0
    todo: int = 0
    stale: int = 0                           # of those to do: done before, with other settings or input
    again: int = 0                           # of the failed ones: the next run tries them again


@dataclass
class Unit:
    """Where a clip, or a video that was never cut, ended or waits."""

    source: str
    clip: str | None
    stage: str                               # that ended it or that it waits for; the last when all passed it
    state: str
    reason: str = ""
    identity: str = ""
    detail: str = ""
    again: bool = False                      # failed for now: the next run tries it


@dataclass
class Survey:
    """The whole of it."""

    stages: dict[str, Counts] = field(default_factory=dict)
    units: list[Unit] = field(default_factory=list)


def survey(workflow: Workflow, until: str | None = None) -> Survey:
    """Follow every listed video through the records, without reading an array."""
    store = workflow.store()
    while True:
        try:
            return _survey(workflow, until, Ledger(store))
        except LostSegmentError:
            continue  # its records are dropped


def _survey(workflow: Workflow, until: str | None, ledger: Ledger) -> Survey:
    found = Survey()
    policy = Policy(workflow, ledger.store)
    refs: list[Ref] = list(listed(workflow, ledger.store, policy))
    steps = steps_until(workflow, until)
    cut = False
    for step in steps:
        counts = found.stages.setdefault(step.name, Counts())
        cuts = "frame_times_s" in step.stage.writes
        refs = _admitted(found, counts, step, policy, ledger, refs, is_clip=cut)
        records = _current(step, ledger, policy, refs)
        kept: list[Ref] = []
        for ref, record in records:
            _count(found, counts, step, ledger, ref, record, is_clip=cut)
            if record is not None:
                kept.extend(ledger.outputs(record))
        cut = cut or cuts
        refs = kept
    last = steps[-1].name
    ended = len(refs)
    refs = _admitted(found, found.stages[last], steps[-1], policy, ledger, refs, is_clip=cut)
    found.stages[last].ok -= ended - len(refs)
    found.units.extend(Unit(ref.source, ref.id, last, "ok", "", ref.identity) for ref in refs)
    found.units.sort(key=lambda unit: (unit.source, unit.clip or ""))
    return found


def _admitted(
    found: Survey, counts: Counts, step: Step, policy: Policy, ledger: Ledger, refs: list[Ref], is_clip: bool
) -> list[Ref]:
    """Those that the policy lets through to a step; the others end there."""
    kept, stopped = policy.divide(refs, ledger)
    counts.rejected += len(stopped)
    found.units.extend(
        Unit(ref.source, ref.id if is_clip else None, step.name, "rejected", reason, ref.identity)
        for ref, reason in stopped
    )
    return kept


def _current(
    step: Step, ledger: Ledger, policy: Policy, refs: list[Ref]
) -> Iterable[tuple[Ref, Record | None]]:
    if not isinstance(step.stage, GroupStage):
        return [policy.current(ledger, step, ref) for ref in refs]
    pairs: list[tuple[Ref, Record | None]] = []
    for members in groups_of(step, ledger, refs).values():
        done = group_outputs(step, ledger, members) is not None
        pairs += [(ref, ledger.current(step.name, step.key, ref) if done else None) for ref in members]
    return pairs


def _count(
    found: Survey, counts: Counts, step: Step, ledger: Ledger, ref: Ref, record: Record | None, is_clip: bool
) -> None:
    clip = ref.id if is_clip else None
    if record is None:
        counts.todo += 1
        counts.stale += ref.id in ledger.records(step.name)
        found.units.append(Unit(ref.source, clip, step.name, "todo", "", ref.identity))
        return
    if not record.outputs:
        if record.state == "failed":
            counts.failed += 1
            counts.again += record.again
        else:
            counts.rejected += 1
        found.units.append(
            Unit(
                ref.source, clip, step.name, record.state, record.reason, ref.identity, record.detail,
                record.again,
            )
        )  # fmt: skip
    for out in record.outputs:
        if out.state == "ok":
            counts.ok += 1
        else:
            counts.rejected += 1
            found.units.append(
                Unit(
                    ref.source, out.id, step.name, out.state, out.reason, out.identity or ref.identity,
                    out.detail,
                )
            )


def workflow_status(workflow: Workflow) -> Answer:
    """`pv3d status`: the object of `--json`, and a table."""
    found = survey(workflow)
    states = ("ok", "rejected", "failed", "todo")
    stages = {name: {state: getattr(c, state) for state in states} for name, c in found.stages.items()}
    lines = [f"{'stage':<20}" + "".join(f"{state:>10}" for state in states)]
    lines += [f"{name:<20}" + "".join(f"{row[s]:>10}" for s in states) for name, row in stages.items()]
    lines += [f"  {count:>5}  {text}" for text, count in _reasons(found)]
    lost = losses(found.units)
    lines += ["", "Of the listed videos did not come:", *(loss.text for loss in lost)] if lost else []
    units = [{name: getattr(unit, name) for name in TOLD} for unit in found.units]
    return {"stages": stages, "units": units, "losses": as_json(lost)}, "\n".join(lines)


def _reasons(found: Survey) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for unit in found.units:
        if unit.state in ("rejected", "failed"):
            text = f"{unit.state} at {unit.stage}: {unit.reason}"
            counts[text] = counts.get(text, 0) + 1
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def describe_plan(workflow: Workflow, until: str | None) -> Answer:
    """`pv3d run --dry-run`: per stage what is done, stale and to do."""
    found = survey(workflow, until)
    plan = {
        name: {"done": c.ok + c.rejected + c.failed - c.again, "stale": c.stale, "todo": c.todo + c.again}
        for name, c in found.stages.items()
    }
    lines = [f"{'stage':<20}{'done':>10}{'stale':>10}{'todo':>10}"]
    lines += [f"{n:<20}{row['done']:>10}{row['stale']:>10}{row['todo']:>10}" for n, row in plan.items()]
    lines.append("A unit to do is counted at the first stage that it needs; later stages follow from it.")
    return {"stages": plan}, "\n".join(lines)
