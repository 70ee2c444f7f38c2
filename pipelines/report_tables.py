"""The tables of the report: the run in figures, stages, losses, and where units ended."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.storage import Storage
from pipelines.report_figures import Seen
from pipelines.report_sources import rows
from pipelines.report_walk import Tally, Walk
from stages.provenance import clean, config_hash
from stages.versions import figures_of, latest_version

if TYPE_CHECKING:
    from pipelines.workflow import Workflow

STATES = ("ok", "rejected", "failed", "todo")
REASONS_SHOWN = 40  # of a stage
LOSSES_BY_REASON = 16
LOSSES_SHOWN = 200  # videos of each kind


def run(workflow: Workflow, store: Storage) -> dict[str, Any]:
    """Who, what and when."""
    sources = getattr(workflow.source, "sources", [workflow.source])  # of a list of them
    named = [str(getattr(source, "location", "")) for source in sources]
    last = max((entry.modified_s for entry in store.entries("ledger")), default=None)
    return {
        "name": f"pv3d: {Path(workflow.storage.root).name}",
        "workflow": workflow.path,
        "profile": workflow.profile or "",
        "overrides": [public(text) for text in workflow.overrides],
        "source": public(", ".join(name for name in named if name) or workflow.source_use),
        "root": public(workflow.storage.root),
        "written": _when(datetime.now(UTC).timestamp()),
        "last": "" if last is None else _when(last),
        "config": config_hash([step.facts for step in workflow.steps]),
    }


def public(text: str) -> str:
    """Without the credentials that an address may hold; local paths stay, the reader knows them."""
    return str(clean(text)) if "://" in text and "sqlite:" not in text else text


def _when(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M UTC")


def dataset(store: Storage) -> dict[str, Any] | None:
    """The version that training reads; None before the first, and after a takedown of all."""
    version = latest_version(store)
    found = None if version is None else figures_of(store, version)
    if found is None:
        return None
    return {
        "version": version, "sha256": hashlib.sha256(found.data).hexdigest(), "clips": found.samples,
        "people": found.identities, "frames": found.frames, "bytes": found.bytes, "shards": found.shards,
        "fps": found.fps, "size": found.size,
    }  # fmt: skip


def dataset_of(found: Walk, made: dict[str, Any] | None) -> str:
    """What the latest dataset is where it is not that of the clips which are kept now; else empty."""
    if made is None:
        return ""
    if any(tally.counts.stale for tally in found.tallies):
        return "latest dataset (of earlier settings or videos)"
    waits = any(tally.counts.todo for tally in found.tallies) or made["clips"] != found.clips
    return "latest dataset (without what waits)" if waits else ""


def tiles(found: Walk, seen: Seen, made: dict[str, Any] | None) -> list[dict[str, str]]:
    """The run in figures. Hours are those of the dataset; before there is one, a guess from the sample."""

    def tile(label: str, value: str, note: str = "") -> dict[str, str]:
        return {"label": label, "value": value, "note": note}

    other = dataset_of(found, made)
    answer = [tile("videos listed", f"{found.listed:,}"), tile("clips kept", f"{found.clips:,}")]
    if made and made["fps"]:
        seconds = made["frames"] / made["fps"]
        frames = f"{made['frames']:,} frames"
        answer.append(tile(*duration(seconds), f"{frames}; {other}" if other else f"{frames} in the dataset"))
    elif seen.lengths_s:
        value, label = duration(float(np.mean(seen.lengths_s)) * found.clips)[::-1]
        answer.append(tile(label, f"≈ {value}", "from a sample; no dataset yet"))
    if found.people:
        answer.append(tile("people", f"{len(found.people):,}"))
    if made:
        shards = f"{made['shards']:,} shards of {made['size']} px"
        answer.append(tile("in shards", _bytes(made["bytes"]), f"{shards}; {other}" if other else shards))
    work = sum(sum(t.seconds) * t.step.resources.cpus for t in found.tallies)
    answer.append(tile("core time", _spent(work), "of the units that hold now"))
    return answer


def duration(seconds: float) -> tuple[str, str]:
    """(label, value) of so much video."""
    if seconds >= 3600:
        return "hours of video", f"{seconds / 3600:,.1f}"
    return (
        ("minutes of video", f"{seconds / 60:.1f}")
        if seconds >= 60
        else ("seconds of video", f"{seconds:.1f}")
    )


def _bytes(count: int) -> str:
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def _spent(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


# --- stages ------------------------------------------------------------------------------------------------


def stages(found: Walk) -> list[dict[str, Any]]:
    """One row per stage, in the order of the workflow."""
    return [_stage(tally) for tally in found.tallies]


def _stage(tally: Tally) -> dict[str, Any]:
    step, counts = tally.step, tally.counts
    done = counts.ok + tally.lost
    cpus, gpus = step.resources.cpus, step.resources.gpus
    settings = step.facts["settings"]  # those of pace and access change nothing, and may be secret
    spent = np.asarray(tally.seconds, np.float64)
    mean = float(spent.mean()) if len(spent) else 0.0
    reasons = tally.by_count()
    return {
        "name": step.name, "what": _first_line(step.stage), "use": step.use, "version": step.stage.version,
        **{state: getattr(counts, state) for state in STATES}, "units": counts.done,
        "lost_share": _percent(tally.lost, done), "again": counts.again, "stale": counts.stale,
        "retried": tally.retried, "cpus": cpus, "gpus": gpus,
        "core_s": _figure(mean * cpus) if len(spent) else "",
        "gpu_s": _figure(mean * gpus) if len(spent) and gpus else "",
        "rate": _figure(1 / mean) if mean > 0 else "",
        "total": _spent(float(spent.sum()) * cpus) if len(spent) else "",
        "times": _times(spent, tally.slowest),
        "workers": _workers(step.workers), "key": step.key,
        "settings": [(name, json.dumps(value, ensure_ascii=False)) for name, value in settings.items()],
        "reasons": [
            {
                "text": s.reason or s.state, "state": s.state, "count": s.count,
                "share": _percent(s.count, done),
            }
            for s in reasons[:REASONS_SHOWN]
        ],
        "more_reasons": len(reasons[REASONS_SHOWN:]),
    }  # fmt: skip


def _times(spent: np.ndarray[Any, Any], slowest: tuple[float, str]) -> str:
    """ "0.1 s median, 0.9 s 95 %, 2 s slowest (clip)"."""
    if not len(spent):
        return ""
    middle, late = np.percentile(spent, [50, 95])
    return (
        f"median {_figure(middle)} s, 95 % {_figure(late)} s, slowest {_figure(slowest[0])} s ({slowest[1]})"
    )


def _workers(workers: Any) -> str:
    low, high = getattr(workers, "min", None), getattr(workers, "max", None)
    return f"{low}" if low == high else f"{low} to {high if high is not None else 'as many as fit'}"


def _first_line(stage: Any) -> list[tuple[str, str]]:
    """The first line of its docstring: ("text" or "code", piece) in turn."""
    pieces = (type(stage).__doc__ or "").strip().split("\n")[0].split("`")
    return [("code" if number % 2 else "text", piece) for number, piece in enumerate(pieces)]


def _percent(part: int, whole: int) -> str:
    """ "" of nothing; no part is 0 %, and a small one is not."""
    if not whole:
        return ""
    share = 100 * part / whole
    return "0 %" if not part else "< 0.1 %" if share < 0.1 else f"{share:.1f} %"


def _figure(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value <= 0:
        return "0"
    digits = min(max(2 - int(np.floor(np.log10(value))), 0), 4)
    text = f"{value:,.{digits}f}"
    text = text.rstrip("0").rstrip(".") if digits else text
    return "< 0.0001" if text == "0" else text


def flow(found: Walk) -> list[dict[str, Any]]:
    """How much is left after each stage: {"text", "count", "share"} of the largest."""
    left = [("videos listed", found.listed)] + [(tally.step.name, tally.counts.ok) for tally in found.tallies]
    top = max(count for _, count in left) or 1
    return [{"text": text, "count": count, "share": count / top} for text, count in left]


def losses_by_reason(found: Walk) -> list[dict[str, Any]]:
    """What was lost anywhere, by reason and stage, the most frequent first."""
    counts = Counter({
        f"{sheet.reason or sheet.state} · {tally.step.name}": sheet.count
        for tally in found.tallies for sheet in tally.sheets.values()
    })  # fmt: skip
    return rows(counts, LOSSES_BY_REASON)


def losses(found: Walk) -> list[dict[str, Any]]:
    """Listed videos that did not come, by kind."""
    return [
        {
            "what": loss.what, "count": loss.reasons.total(), "units": loss.units[:LOSSES_SHOWN],
            "reasons": ", ".join(f"{text} ({count:,})" for text, count in loss.reasons.most_common(8)),
        }
        for loss in found.losses.found()
    ]  # fmt: skip
