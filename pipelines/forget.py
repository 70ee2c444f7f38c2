"""Take clips out of the ledger: their own records, and what other records hold of them.

A segment that holds some is written once more under a name that sorts where the old one did, and the old one
is deleted: whenever that stops, either of them tells the truth, and doing it again ends the same.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from infra.storage import Storage
from pipelines.records import Output, Record
from pipelines.segments import DAMAGED, ClipFile, read_segment, rows_of, write_segment
from stages.clip import Clip
from stages.takedown import TAKEN_DOWN

log = logging.getLogger(__name__)

_AGAIN = re.compile(r"-t[0-9a-f]{12}(?=\.jsonl$)")       # what this module adds to the name of a segment

Means = Callable[[str], bool]                # whether a unit's id is one to forget


def segments(store: Storage) -> Iterator[tuple[str, list[Record]]]:
    """(key, records) of every segment of every stage that ever ran here; no records of a damaged one."""
    for key in list(store.list("ledger")):
        if key.endswith(".jsonl"):
            try:
                yield key, read_segment(store, key)
            except DAMAGED as error:
                log.warning("ledger: %s is damaged (%s)", key, error)
                yield key, []


def clips(store: Storage, key: str) -> ClipFile | None:
    """The clips of a segment, None when they cannot be read."""
    try:
        return ClipFile(store.read(key.removesuffix("jsonl") + "npz"))
    except (FileNotFoundError, *DAMAGED) as error:
        log.warning("ledger: the clips of %s are damaged (%s)", key, error)
        return None


def forget(store: Storage, means: Means) -> int:
    """Remove every record of units that `means` names, and every clip of them.

    Segments that nobody can read, and no run would use, go too. Returns the number of segments rewritten.
    """
    count = 0
    for key, records in segments(store):
        if not records or any(_held(record, means) for record in records):
            _rewrite(store, key, records, means)
            count += 1
    _sweep(store)
    return count


def _held(record: Record, means: Means) -> bool:
    return means(record.unit) or any(means(out.id) and not _is_stub(out) for out in record.outputs)


def _is_stub(out: Output) -> bool:
    return out.reason == TAKEN_DOWN and not out.digest


def _rewrite(store: Storage, key: str, records: list[Record], means: Means) -> None:
    held = clips(store, key)
    kept: list[Record] = []
    rows: list[Clip] = []
    for record, of_record in rows_of(records):
        if means(record.unit) or held is None:
            continue  # of a segment that cannot be read, all units are done again
        outputs = []
        for row, out in zip(of_record, record.outputs, strict=True):
            gone = means(out.id)
            outputs.append(Output(out.id, "", "rejected", TAKEN_DOWN) if gone else out)
            rows.append(Clip(out.id, record.source, "") if gone else held.clip(row))
        kept.append(_judged(replace(record, outputs=outputs)))
    if kept:
        ids = "\n".join(f"{r.unit} {[(out.id, out.digest) for out in r.outputs]}" for r in kept)
        name = f"-t{hashlib.sha256(ids.encode()).hexdigest()[:12]}.jsonl"
        write_segment(store, _AGAIN.sub("", key).removesuffix(".jsonl") + name, kept, rows)
    store.delete(key)
    store.delete(key.removesuffix("jsonl") + "npz")


def _judged(record: Record) -> Record:
    """With the state that a worker would have given it, had it made these outputs."""
    if record.outputs and all(out.state == "rejected" for out in record.outputs):
        return replace(record, state="rejected", reason=record.outputs[0].reason)
    return record


def _sweep(store: Storage) -> None:
    """Delete arrays that belong to no segment, as interrupted writers leave them, and what says that group
    stages are finished: with fewer clips they are not."""
    keys = set(store.list("ledger"))
    for key in sorted(keys):
        orphan = key.endswith(".npz") and key.removesuffix("npz") + "jsonl" not in keys
        if orphan or key.endswith("/finished.json"):
            store.delete(key)
