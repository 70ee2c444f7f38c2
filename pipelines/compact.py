"""Merge small segments of the ledger: a slow stage writes one every few seconds, and each costs two reads.

Only a run does it, which holds the lease, at its end and where it finds very many at its start. Neighbours in
the order of the store become one segment of their latest records, under a name that sorts where the last of
them did. It is written first and they are deleted then: where that stops, both say the same. Who reads
meanwhile and finds a segment gone lists them again.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator

from pipelines.index import Segment
from pipelines.ledger import Ledger
from pipelines.records import Record
from pipelines.segments import DAMAGED, arrays_bytes, checked, write_packed

log = logging.getLogger(__name__)

MERGED_UNITS = 4096                          # most records of a merged segment
SMALL_UNITS = 512                            # a segment of more is no small one
MERGED_BYTES = 16 << 20                      # most bytes of its arrays
LEAST = 8                                    # segments that are worth it

_AGAIN = re.compile(r"(-[mt][0-9a-f]{12})+$")            # of what was merged, or rewritten by a takedown


def compact(ledger: Ledger, stages: Iterable[str], least: int = LEAST) -> int:
    """Merge what is worth it, where a stage has at least so many small segments. No clip that was read from
    them may be in use. Returns how many segments are gone."""
    gone = 0
    for stage in stages:
        runs = [run for run in _runs(ledger.segments(stage)) if len(run) >= LEAST]
        if sum(map(len, runs)) >= least:
            merged = sum(len(run) - 1 for run in runs if _merge(ledger, stage, run))
            log.info("ledger: %s: %d segments fewer", stage, merged)
            gone += merged
    return gone


def _runs(segments: Iterable[tuple[Segment, int]]) -> Iterator[list[Segment]]:
    """Small neighbours, as many as one segment may hold."""
    run: list[Segment] = []
    units = size = 0
    for segment, live in segments:
        share = segment.arrays * live // max(segment.rows, 1)
        small = live <= SMALL_UNITS and share <= MERGED_BYTES // 4
        if run and (not small or units + live > MERGED_UNITS or size + share > MERGED_BYTES):
            yield run
            run, units, size = [], 0, 0
        if small:
            run, units, size = [*run, segment], units + live, size + share
    if run:
        yield run


def _merge(ledger: Ledger, stage: str, run: list[Segment]) -> bool:
    """Whether it was done: not where a segment turns out to be damaged."""
    records: list[Record] = []
    rows: list[tuple[bytes, bytes]] = []
    try:
        arrays = ledger.fetched([segment.key.removesuffix("jsonl") + "npz" for segment in run])
        for segment, (_, data) in zip(run, arrays, strict=True):
            for record in ledger.records(stage, segment):
                records.append(record)
                rows.extend(_clips(data, record))
    except (FileNotFoundError, *DAMAGED) as error:
        log.warning("ledger: %s and what follows cannot be merged (%s)", run[0].key, error)
        return False
    if records:
        names = hashlib.sha256("\n".join(segment.key for segment in run).encode()).hexdigest()[:12]
        key = f"{_AGAIN.sub('', run[-1].key.removesuffix('.jsonl'))}-m{names}.jsonl"
        ledger.replace(stage, key, *write_packed(ledger.store, key, records, rows))
    ledger.delete([segment.key for segment in run])
    return True


def _clips(data: bytes, record: Record) -> Iterator[tuple[bytes, bytes]]:
    for out in record.outputs:
        if out.at is None:
            raise ValueError(f"the place of {out.id} is not known")
        start, length, _, first = out.at
        line = checked(data[start : start + length], out.at)
        size = arrays_bytes(line)
        held = data[first : first + size]
        if len(held) != size:
            raise ValueError(f"the arrays of {out.id} are cut short")
        yield line, held
