"""`pv3d run --dry-run`: per stage what is done, stale and to do, what lies in the store, what a run costs.

It reads records, listings and sizes; it starts nothing and writes nothing. Times and bytes to come are
estimates: what the units that are recorded took, times the units that are to come.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from infra.storage import Storage, StorageError
from pipelines.after_data import Later, later
from pipelines.ledger import Ledger, Record, Ref
from pipelines.rates import Ahead, duration, units_ahead
from pipelines.stage_keys import Changes
from pipelines.survey import Counts, Survey, note, survey
from pipelines.workflow import Step, Workflow

Answer = tuple[dict[str, Any], str]

# What a stage writes outside of the ledger: by the field of the clip that names it, folder and ending.
_OBJECTS = {
    "aligned": (("aligned", ".tar"),),
    "audio": (("aligned", ".flac"),),
    "shard": (("shards", ""), ("manifest", ""), ("dataset", "")),
}
_FETCHED = ("videos", "")
_IN_STORE = "store:"                         # how a video of the store is named
_CAUSES = 5                                  # per stage that are told
_SAMPLE = 2000                               # records of a stage that figures rest on where none was met


@dataclass
class _Plan(Survey):
    """Also notes why units are stale, and the size of listed files that are to be read."""

    store: Storage | None = None
    changes: Changes | None = None
    why: dict[str, Counter[str]] = field(default_factory=dict)
    listed: int = 0                          # listed videos that are to be read
    sized: int = 0                           # of these, those whose size is known
    bytes: int = 0
    recorded: dict[str, int] = field(default_factory=dict)   # units per stage, whatever their settings

    def over(self, ledger: Ledger) -> None:
        """Where what is to do comes before a stage, no record of it was met: look at some as they are."""
        for stage, counts in self.stages.items():
            self.recorded[stage] = ledger.count(stage)
            if not counts.noted:
                for record in islice(ledger.records(stage), _SAMPLE):
                    note(counts, record)

    def to_do(self, step: Step, ref: Ref, before: Record | None) -> None:
        if before is not None and self.changes is not None:
            why = self.changes.why(step, ref, before)
            self.why.setdefault(step.name, Counter())[why] += 1
        if ref.clip is not None and ref.clip.video and "error" not in ref.clip.listed:
            self.listed += 1
            size = _size(ref.clip.video, self.store)
            self.sized += size is not None
            self.bytes += size or 0


def _size(video: str, store: Storage | None) -> int | None:
    """Of a file here or in the store; None for addresses, and for what is not there."""
    try:
        if video.startswith(_IN_STORE) and store is not None:
            return store.size(video.removeprefix(_IN_STORE))
        return None if "://" in video else Path(video).stat().st_size
    except (OSError, StorageError, ValueError):
        return None


@dataclass
class _Row:
    """A stage, as it is and as it will be."""

    counts: Counts
    cpus: float
    most: int                                # workers at once, on this machine
    held: int                                # bytes in the store
    recorded: int                            # units whose records take these
    units: float = 0.0                       # that will come to it

    @property
    def seconds_each(self) -> float | None:
        return self.counts.seconds / self.counts.timed if self.counts.timed else None

    @property
    def work_s(self) -> float | None:
        """Worker-seconds to come; None where nothing tells."""
        if not self.units:
            return 0.0
        return None if self.seconds_each is None else self.units * self.seconds_each

    @property
    def add(self) -> int | None:
        """Bytes to come; None where nothing tells."""
        if not self.units:
            return 0
        return round(self.held / self.recorded * self.units) if self.recorded else None


def describe_plan(workflow: Workflow, until: str | None) -> Answer:
    """The command. `until`: as for a run, the name of a stage, "train", "evaluate", "register" or None."""
    store = workflow.store()
    data_only = any(step.name == until for step in workflow.steps)
    changes = Changes(store)
    found = survey(workflow, lambda: _Plan(store=store, changes=changes), until if data_only else None)
    rows = _rows(workflow, store, found)
    todo = any(counts.todo or counts.again for counts in found.stages.values())
    after = [] if data_only else later(workflow, store, until, dataset_changes=todo)
    answer = _answer(found, rows, after)
    return answer, "\n".join(_lines(answer, after))


def _rows(workflow: Workflow, store: Storage, found: _Plan) -> dict[str, _Row]:
    cores = os.cpu_count() or 1
    steps = [step for step in workflow.steps if step.name in found.stages]
    held = _held(store, steps)
    rows: dict[str, _Row] = {}
    for step in steps:
        room = max(1, math.floor(cores / step.resources.cpus)) if step.resources.cpus else cores
        most = min(room, step.workers.max or room)
        counts, recorded = found.stages[step.name], found.recorded[step.name]
        rows[step.name] = _Row(counts, step.resources.cpus, most, held[step.name], recorded)
    ahead = []
    for row in rows.values():
        passes = row.counts.passes
        ahead.append(Ahead(row.counts.todo + row.counts.again, 1.0 if passes is None else passes))
    for row, units in zip(rows.values(), units_ahead(ahead), strict=True):
        row.units = units
    return rows


def _held(store: Storage, steps: list[Step]) -> dict[str, int]:
    """Bytes that each stage has in the store: its records, and what it writes beside them."""
    owner: dict[tuple[str, str], str] = {}
    for step in steps:
        for name in step.stage.writes:
            owner.update(dict.fromkeys(_OBJECTS.get(name, ()), step.name))
        if getattr(step.stage, "fetches", False):
            owner[_FETCHED] = step.name
    held = {step.name: sum(e.bytes for e in store.entries(f"ledger/{step.name}")) for step in steps}
    for folder in sorted({folder for folder, _ in owner}):
        endings = {ending: stage for (place, ending), stage in owner.items() if place == folder}
        for entry in store.entries(folder):
            for ending, stage in endings.items():
                held[stage] += entry.bytes if entry.key.endswith(ending) else 0
    return held


def _answer(found: _Plan, rows: dict[str, _Row], after: list[Later]) -> dict[str, Any]:
    stages = {
        name: {"done": c.done - c.again, "stale": c.stale, "todo": c.todo + c.again}
        for name, c in found.stages.items()
    }
    figures = {
        name: {
            "bytes": row.held, "units_to_come": round(row.units), "bytes_to_come": row.add,
            "seconds_each": row.seconds_each, "work_seconds": row.work_s, "workers": row.most,
            "from_units": row.counts.timed,
        }
        for name, row in rows.items()
    }  # fmt: skip
    adds = [row.add for row in rows.values()]
    unknown = [name for name, row in rows.items() if row.work_s is None]
    total = {
        "bytes": sum(row.held for row in rows.values()),
        "bytes_to_come": sum(add or 0 for add in adds),
        "bytes_complete": None not in adds,
        "read_bytes": found.bytes, "read_videos": found.listed, "read_videos_sized": found.sized,
        "cores": os.cpu_count() or 1, "seconds": _total_s(rows), "seconds_without": unknown,
    }  # fmt: skip
    return {
        "stages": stages, "estimate": figures, "total": total,
        "why": {name: dict(why.most_common()) for name, why in found.why.items()},
        "after": {one.name: one.as_json() for one in after},
    }  # fmt: skip


def _total_s(rows: dict[str, _Row]) -> float:
    """Stages share the cores, and each has its most workers: whichever takes longer. Those that nothing is
    known of are left out."""
    cores = os.cpu_count() or 1
    shared = sum((row.work_s or 0.0) * row.cpus for row in rows.values()) / cores
    return max([shared, *((row.work_s or 0.0) / row.most for row in rows.values())])


def _lines(answer: dict[str, Any], after: list[Later]) -> Iterator[str]:
    names = ("done", "stale", "todo")
    yield f"{'stage':<20}" + "".join(f"{n:>10}" for n in (*names, "to come", "in store", "adds", "work"))
    for name, row in answer["stages"].items():
        figures = answer["estimate"][name]
        work = figures["work_seconds"]
        cells = [
            *(row[n] for n in names), figures["units_to_come"], size(figures["bytes"]),
            _told(figures["bytes_to_come"], size), _told(work, duration),
        ]  # fmt: skip
        yield f"{name:<20}" + "".join(f"{cell:>10}" for cell in cells)
    for one in after:
        yield f"{one.name:<20}{one.text}"
    for name, why in answer["why"].items():
        for text, count in list(why.items())[:_CAUSES]:
            yield f"  {count:>5}  stale at {name}: {text}"
    yield "A unit to do is counted at the first stage that it needs; 'to come' adds what that sends on."
    yield from _total_lines(answer)


def _total_lines(answer: dict[str, Any]) -> Iterator[str]:
    total = answer["total"]
    if total["read_videos"]:
        known = total["read_videos_sized"]
        of = "" if known == total["read_videos"] else f"; the size of {known:,} of them is known"
        yield f"To read: {total['read_videos']:,} listed videos, {size(total['read_bytes'])}{of}."
    if not any(row["from_units"] or not row["units_to_come"] for row in answer["estimate"].values()):
        yield "No record tells yet what these stages add to the store, or how long they take."
        return
    less = "" if total["bytes_complete"] else "at least "
    yield (
        f"In the store {size(total['bytes'])}; to come {less}{size(total['bytes_to_come'])}, an estimate by "
        "the bytes per recorded unit."
    )
    less = "at least " if total["seconds_without"] else ""
    yield (
        f"Time of the data stages: {less}{duration(total['seconds'])} on the {total['cores']} cores of this "
        "machine, an estimate by the seconds per recorded unit."
    )
    if total["seconds_without"]:
        yield f"No record tells yet how long these take: {', '.join(total['seconds_without'])}."


def _told(value: Any, text: Any) -> str:
    return "?" if value is None else "-" if not value else text(value)


def size(count: float) -> str:
    """"0 B", "12.3 kB", "4.0 GB"."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
