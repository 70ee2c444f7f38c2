"""`pv3d run --dry-run`: per stage what is done, stale and to do, what lies in the store, what a run costs.

It reads records, listings and sizes; it starts nothing and writes nothing. Times and bytes to come are
estimates: what the units that are recorded took, times the units that are to come.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.storage import Storage, StorageError
from infra.words import many
from pipelines.after_data import Later, later
from pipelines.ledger import Ledger, Record, Ref
from pipelines.rates import Ahead, duration, units_ahead
from pipelines.stage_keys import Changes
from pipelines.survey import Counts, Survey, look_back, survey
from pipelines.workflow import Step, Workflow
from stages.dataset import LATEST

Answer = tuple[dict[str, Any], str]

# What a stage writes outside of the ledger: by the field of the clip that names it, folder and ending.
_OBJECTS = {
    "aligned": (("aligned", ".tar"),),
    "extra.audio": (("aligned", ".flac"),),
    "shard": (("shards", ""), ("manifest", ""), ("dataset", "")),
}
_FETCHED = ("videos", "")
_PER_CLIP = (("aligned", ".tar"), ("aligned", ".flac"), _FETCHED)
_IN_STORE = "store:"                         # how a video of the store is named
_WIDTHS = (8, 8, 8, 8, 9, 9, 12)              # of the columns after the stage: 80 characters in all
_CAUSES = 5                                  # per stage that are told


@dataclass
class _Plan(Survey):
    """Also notes why units are stale, and the size of listed files that are to be read."""

    store: Storage | None = None
    changes: Changes | None = None
    why: dict[str, Counter[str]] = field(default_factory=dict)
    listed: int = 0                          # listed videos that are to be read
    sized: int = 0                           # of these, those whose size is known
    bytes: int = 0
    line: dict[str, float] = field(default_factory=dict)     # bytes of a record in the ledger, per stage

    def over(self, ledger: Ledger) -> None:
        look_back(self.stages, ledger)
        for stage, counts in self.stages.items():
            sizes = {entry.key: entry.bytes for entry in ledger.store.entries(f"ledger/{stage}")}
            live = sum(                      # superseded records lie in segments until these are merged
                (sizes.get(one.key, 0) + one.arrays) * latest / one.rows
                for one, latest in ledger.segments(stage) if one.rows
            )  # fmt: skip
            self.line[stage] = live / max(counts.recorded, 1)

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
    held: int                                # bytes in the store, also of what was superseded
    each: float                              # of these, those of a unit
    units: float = 0.0                       # that will come to it

    @property
    def seconds_each(self) -> float | None:
        return self.counts.seconds_each

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
        return round(self.each * self.units) if self.counts.recorded else None


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
    if after and until in (None, "register"):
        from pipelines.gate import out_of_reach

        answer["out_of_reach"] = out_of_reach(workflow)
    return answer, "\n".join(_lines(answer, after))


def _rows(workflow: Workflow, store: Storage, found: _Plan) -> dict[str, _Row]:
    cores = os.cpu_count() or 1
    steps = [step for step in workflow.steps if step.name in found.stages]
    objects = _objects(store, steps)
    rows: dict[str, _Row] = {}
    for step in steps:
        room = max(1, math.floor(cores / step.resources.cpus)) if step.resources.cpus else cores
        most = min(room, step.workers.max or room)
        counts, (held, of_clip) = found.stages[step.name], objects[step.name]
        each = found.line[step.name] + of_clip * (counts.passes or 0.0)
        rows[step.name] = _Row(counts, step.resources.cpus, most, held, each)
    ahead = []
    for row in rows.values():
        passes = row.counts.passes
        ahead.append(Ahead(row.counts.todo + row.counts.again, 1.0 if passes is None else passes))
    for row, units in zip(rows.values(), units_ahead(ahead), strict=True):
        row.units = units
    return rows


def _objects(store: Storage, steps: list[Step]) -> dict[str, tuple[int, float]]:
    """Per stage bytes in the store, of its records and what it writes beside them; and of the latter those
    of one clip that comes out. Objects that were superseded count for the first, and as a clip each."""
    found = {}
    owner = {kind: step.name for step in steps for kind in _kinds(step)}
    for step in steps:
        held = sum(entry.bytes for entry in store.entries(f"ledger/{step.name}"))
        of_clip = 0.0
        for folder, ending in (kind for kind, name in owner.items() if name == step.name):
            sizes = [entry.bytes for entry in store.entries(folder) if entry.key.endswith(ending)]
            held += sum(sizes)
            of_clip += _of_sample(store) if folder == "shards" else 0.0
            if sizes and (folder, ending) in _PER_CLIP:
                of_clip += sum(sizes) / len(sizes)
        found[step.name] = held, of_clip
    return found


def _kinds(step: Step) -> Iterator[tuple[str, str]]:
    for name in step.stage.writes:
        yield from _OBJECTS.get(name, ())
    if getattr(step.stage, "fetches", False):
        yield _FETCHED


def _of_sample(store: Storage) -> float:
    """Bytes of shards per sample of the latest dataset."""
    with contextlib.suppress(FileNotFoundError, ValueError, LookupError, TypeError):
        content = json.loads(store.read(f"dataset/{json.loads(store.read(LATEST))['version']}.json"))
        return float(content["bytes"]) / max(int(content["samples"]), 1)
    return 0.0


def _answer(found: _Plan, rows: dict[str, _Row], after: list[Later]) -> dict[str, Any]:
    stages = {
        name: {"done": c.done - c.again, "stale": c.stale, "todo": c.todo + c.again}
        for name, c in found.stages.items()
    }
    figures = {
        name: {
            "bytes": row.held, "units_to_come": round(row.units), "bytes_to_come": row.add,
            "bytes_each": round(row.each), "seconds_each": row.seconds_each, "work_seconds": row.work_s,
            "workers": row.most, "from_units": row.counts.timed,
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
    heads = (*names, "to come", "in store", "adds", "work")
    yield f"{'stage':<17} " + "".join(f"{n:>{w}}" for n, w in zip(heads, _WIDTHS, strict=True))
    for name, row in answer["stages"].items():
        figures = answer["estimate"][name]
        work = figures["work_seconds"]
        cells = [
            *(row[n] for n in names), figures["units_to_come"], size(figures["bytes"]),
            _told(figures["bytes_to_come"], size), _told(work, duration),
        ]  # fmt: skip
        yield f"{name:<17} " + "".join(f"{c:>{w}}" for c, w in zip(cells, _WIDTHS, strict=True))
    for one in after:
        yield f"{one.name:<17} {one.text}"
    for name, why in answer["why"].items():
        for text, count in list(why.items())[:_CAUSES]:
            yield f"  {count:>5}  stale at {name}: {text}"
    yield "A unit to do is counted at the first stage that it needs; 'to come' adds what that sends on."
    yield from _total_lines(answer)
    for text in answer.get("out_of_reach", ()):
        yield f"{text}; no version becomes champion"


def _total_lines(answer: dict[str, Any]) -> Iterator[str]:
    total = answer["total"]
    if total["read_videos"]:
        known = total["read_videos_sized"]
        of = "" if known == total["read_videos"] else f"; the size of {known:,} of them is known"
        read = f"To read: {many(total['read_videos'], 'listed video')}"
        yield f"{read}, {size(total['read_bytes'])}{of}." if known else f"{read}, size not known."
    if not any(row["from_units"] or not row["units_to_come"] for row in answer["estimate"].values()):
        yield "No record tells yet what these stages add to the store, or how long they take."
        return
    if not any(row["units_to_come"] for row in answer["estimate"].values()):
        later = any(one["todo"] for one in answer["after"].values())
        yield f"Nothing to do{' in the data stages' if later else ''}; in the store {size(total['bytes'])}."
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
