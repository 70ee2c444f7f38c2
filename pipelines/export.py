"""`pv3d export`: write the dataset as a folder that other programs read.

    <out>/export.json           what this folder is: made first, and marked complete last
    <out>/provenance/<clip>.json    written after all other files of a clip, which are whole once it is there
    <out>/...                   the layout's own files, `stages.layouts`; its list comes last of them

A second run writes what is missing. When the dataset has another version by then, the list is taken away
first, so that nobody reads a mixture; clips of rewritten shards are written again, and what the dataset does
not hold any more is deleted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

from infra.paths import expanded
from infra.storage import Storage, StorageError, open_storage
from infra.words import many
from pipelines.policy import Policy
from pipelines.progress import Progress
from pipelines.workflow import Workflow
from stages.layouts import (
    PROVENANCE,
    Eg3dLayout,
    Layout,
    Pv3dLayout,
    provenance,
    provenance_key,
)
from stages.shards import Dataset, Sample, open_dataset

log = logging.getLogger(__name__)

SCHEMA = 1
MARK = "export.json"
ALL = "all"                                  # of the splits


def make_layout(
    kind: str, *, crf: int | None = None, every: int = 0, per_clip: int = 0, mirror: bool = False
) -> Layout:
    """The layout that the options ask for. Raises ValueError for options that do not go together."""
    if kind == "eg3d":
        if crf is not None:
            raise ValueError("--crf: EG3D's images are PNG, without loss; leave it out or use --format pv3d")
        if every and per_clip:
            raise ValueError("--every and --per-clip: both choose frames; give one of them")
        return Eg3dLayout(every=every or 1, per_clip=per_clip, mirror=mirror)
    if kind != "pv3d":
        raise ValueError(f"--format {kind}: there is no such layout; use pv3d or eg3d")
    if every or per_clip or mirror:
        raise ValueError("--every, --per-clip and --mirror: only for --format eg3d; pv3d takes whole clips")
    return Pv3dLayout() if crf is None else Pv3dLayout(crf)


@dataclass
class Plan:
    """What an export comes to, before anything is written."""

    dataset: Dataset
    layout: Layout
    out: Storage
    split: str
    samples: list[Sample]                    # what belongs in the folder, sorted by id
    other_split: int                         # clips left out for their split
    todo: list[Sample]
    stale: list[str]                         # keys of files that do not belong here any more
    mark: dict[str, Any]                     # of the export that is there; empty for a new folder
    listed: bool                             # whether the layout's list is there
    kept_bytes: int = 0
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        same = self.mark.get("version") == self.dataset.version and self.mark.get("complete") is True
        return same and self.listed and not self.todo and not self.stale


def export(
    workflow: Workflow, layout: Layout, out: str, *, version: str | None = None, split: str = "train",
    workers: int = 0, dry_run: bool = False,
) -> tuple[dict[str, Any], str]:
    """Write the clips of one `split` of the dataset to `out`, a folder or s3://bucket/prefix.

    Raises ValueError when there is no dataset, when it holds what must not be used, or when `out` holds
    anything else than this export.
    """
    started = time.monotonic()
    dataset = open_dataset(workflow.store(), version)
    Policy(workflow, workflow.store()).check_dataset(dataset)
    if dataset.size % 2:
        raise ValueError(f"{dataset.size} px: H.264 and EG3D want an even side; set stages.AlignCrop.size")
    try:
        plan = make_plan(dataset, layout, _open(workflow, out), split)
        if dry_run:
            return _foretold(plan, out)
        removed = len(plan.stale)
        if not plan.complete:
            _run(plan, workers or os.cpu_count() or 1)
    except StorageError as error:
        raise StorageError(str(error).replace("storage.root", "--out")) from error
    return _told(plan, out, removed, time.monotonic() - started)


def make_plan(dataset: Dataset, layout: Layout, out: Storage, split: str) -> Plan:
    """Compare the dataset with what `out` holds. Raises ValueError when that is something else."""
    samples = sorted(
        (s for s in dataset.samples if split in (ALL, s.split)), key=lambda sample: sample.clip_id
    )
    if not samples:
        there = ", ".join(sorted({s.split for s in dataset.samples})) or "no clip at all"
        raise ValueError(f"--split {split}: dataset {dataset.version} holds none; it holds {there}")
    present = set(out.list(""))
    mark = _mark(out, present, layout, split)
    wanted = {key for s in samples for key in (*layout.files(s), provenance_key(s))}
    owned = tuple(f"{folder}/" for folder in (*layout.folders, PROVENANCE))
    plan = Plan(
        dataset, layout, out, split, samples, len(dataset.samples) - len(samples), [],
        sorted(key for key in present - wanted if key.startswith(owned)), mark, layout.last in present,
    )
    for sample in samples:
        size = _written(plan, sample) if present.issuperset(layout.files(sample)) else None
        if size is None or provenance_key(sample) not in present:
            plan.todo.append(sample)
        else:
            plan.kept_bytes += size
    return plan


def _open(workflow: Workflow, out: str) -> Storage:
    place = expanded(out)
    if "://" not in out and place.exists() and not place.is_dir():
        raise ValueError(f"--out {out}: is a file; give a folder")
    opened, own = open_storage(out, **workflow.storage.s3.model_dump()), workflow.store().root.rstrip("/")
    if f"{opened.root.rstrip('/')}/".startswith(f"{own}/"):
        raise ValueError(f"--out {out}: lies in the store {own}; give a folder outside of it")
    return opened


def _mark(out: Storage, present: set[str], layout: Layout, split: str) -> dict[str, Any]:
    """What the export that is there says of itself."""
    if MARK not in present:
        if present:
            other = min(present)
            raise ValueError(f"--out {out.root}: holds {other!r}, no export; give a new or empty folder")
        return {}
    try:
        mark = json.loads(out.read(MARK))
        known = mark["schema"] == SCHEMA and isinstance(mark["options"], dict)
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise ValueError(f"--out {out.root}: its {MARK} cannot be read; give a new or empty folder")
    ours = _options(layout, split)
    for name, value in ours.items():
        if mark["options"].get(name) != value:
            theirs = mark["options"].get(name)
            raise ValueError(
                f"--out {out.root}: holds an export with {name} {theirs}, not {value}; give another folder"
            )
    return dict(mark)


def _options(layout: Layout, split: str) -> dict[str, Any]:
    return {"format": layout.name, "split": split, **asdict(layout)}  # type: ignore[call-overload]


def _written(plan: Plan, sample: Sample) -> int | None:
    """Bytes of a sample's files, as its provenance says; None when they are of other content."""
    try:
        said = json.loads(plan.out.read(provenance_key(sample)))["export"]
        return int(said["bytes"]) if said["content"] == _content(sample) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _content(sample: Sample) -> str:
    """What decides a sample's files, besides the options: its shard is named by its content."""
    return hashlib.sha256(f"{sample.tar} {sample.clip_id}".encode()).hexdigest()[:16]


def _run(plan: Plan, workers: int) -> None:
    out, layout = plan.out, plan.layout
    before, now = plan.mark.get("version"), plan.dataset.version
    if plan.mark and before != now:
        log.info("%s: was made from dataset %s, now %s", out.root, before, now)
    _write_mark(plan, complete=False)
    if plan.todo or plan.stale:
        out.delete(layout.last)
    _delete(plan)
    with Progress(["export"]) as progress:
        progress.expect("export", len(plan.todo))
        with ThreadPoolExecutor(min(workers, max(len(plan.todo), 1)), "export") as pool:
            for dataset, samples in _by_shard(plan.dataset, plan.todo):
                futures = [pool.submit(_write, plan, dataset, sample) for sample in samples]
                try:
                    for future in as_completed(futures):
                        future.result()
                        progress.done("export")
                        progress.tick()
                finally:
                    for future in futures:       # of the first failure, or an interruption
                        future.cancel()
    layout.finish(plan.dataset, plan.samples, out)
    _write_mark(plan, complete=True)


def _delete(plan: Plan) -> None:
    for key in plan.stale:
        plan.out.delete(key)
    if plan.stale:
        log.info("%s: deleted %d files that are not in the dataset now", plan.out.root, len(plan.stale))


def _by_shard(dataset: Dataset, samples: Sequence[Sample]) -> Iterator[tuple[Dataset, list[Sample]]]:
    """Samples of one shard at a time, with a reader of their own, whose caches go with it."""
    for _, group in groupby(sorted(samples, key=lambda s: (s.tar, s.clip_id)), key=lambda s: s.tar):
        some = list(group)
        yield Dataset(
            dataset.store, dataset.version, dataset.size, dataset.fps, some, dataset.manifests
        ), some


def _write(plan: Plan, dataset: Dataset, sample: Sample) -> None:
    size = plan.layout.write(dataset, sample, plan.out)
    said = {"content": _content(sample), "bytes": size, "files": len(plan.layout.files(sample))}
    record = {**provenance(dataset, sample), "export": said}
    plan.out.write(provenance_key(sample), _json(record))
    plan.sizes[sample.clip_id] = size


def _write_mark(plan: Plan, complete: bool) -> None:
    mark = {
        "schema": SCHEMA, "options": _options(plan.layout, plan.split), "version": plan.dataset.version,
        "clips": len(plan.samples), "complete": complete,
    }
    plan.out.write(MARK, _json(mark))


def _json(value: Any) -> bytes:
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def _counts(plan: Plan) -> dict[str, Any]:
    return {
        "format": plan.layout.name, "out": plan.out.root, "version": plan.dataset.version,
        "clips": len(plan.samples), "other_split": plan.other_split,
        "frames": sum(plan.layout.frame_count(sample) for sample in plan.samples),
    }


def _foretold(plan: Plan, out: str) -> tuple[dict[str, Any], str]:
    """What would be done, with the bytes tried on one clip."""
    trial = plan.layout.bytes_per_frame(plan.dataset, plan.todo[0]) if plan.todo else 0.0
    size = round(trial * sum(plan.layout.frame_count(sample) for sample in plan.todo))
    value = {
        **_counts(plan), "dry_run": True, "to_write": len(plan.todo), "to_delete": len(plan.stale),
        "kept": len(plan.samples) - len(plan.todo), "bytes_to_write": size,
    }
    text = (
        f"would write {len(plan.todo)} of {many(len(plan.samples), 'clip')} to {out}, about {_size(size)}, "
        f"and delete {many(len(plan.stale), 'file')}{_left_out(plan)}"
    )
    return value, text


def _told(plan: Plan, out: str, removed: int, seconds: float) -> tuple[dict[str, Any], str]:
    written = sum(plan.sizes.values())
    value = {
        **_counts(plan), "written": len(plan.todo), "kept": len(plan.samples) - len(plan.todo),
        "deleted_files": removed, "bytes": plan.kept_bytes + written, "seconds": round(seconds, 2),
    }
    text = (
        f"{out}: {many(value['clips'], 'clip')}, {many(value['frames'], 'frame')}, "
        f"{_size(plan.kept_bytes + written)}; {many(value['written'], 'clip')} written, "
        f"{value['kept']} kept, {many(removed, 'file')} deleted{_left_out(plan)}"
    )
    return value, text


def _left_out(plan: Plan) -> str:
    return f"; {many(plan.other_split, 'clip')} of another split left out" if plan.other_split else ""


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
