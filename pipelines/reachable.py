"""Which records of the ledger still count, and which objects of the store their clips name.

A record counts when it is the latest of its unit in its stage, and the unit still comes out of the stage
before. Settings do not matter: a mistyped one costs nothing. In doubt a record counts: of a stage that the
workflow does not have, of a video of which something on the way is still to be done, of one no longer listed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from infra.storage import Storage
from pipelines.ledger import Ledger
from pipelines.records import At, Record
from pipelines.segments import DAMAGED, checked

log = logging.getLogger(__name__)

# In the values of a clip, as JSON has them. Whatever field a stage has put it in.
_NAME = re.compile(rb'"(?:store:)?((?:aligned|manifest|shards)/[^"\\]*)"')


@dataclass
class Reachable:
    """What must stay."""

    segments: set[str] = field(default_factory=set)          # keys, of those with a record that counts
    names: set[str] = field(default_factory=set)             # keys that clips of such records name
    complete: bool = True                    # False: some clips could not be read, so names are missing


def reachable(store: Storage, stages: Sequence[str]) -> Reachable:
    """Everything that counts. `stages`: the names of the workflow's, in its order. Reads the whole ledger."""
    found = Reachable()
    for other in sorted({key.split("/")[1] for key in store.list("ledger")} - set(stages)):
        _note(found, store, Ledger(store).records(other))
    known: set[str] = set()                  # videos that the first stage has a record of
    open_: set[str] = set()                  # videos of which not all is known that comes of them
    came: dict[str, str] = {}                # unit -> its video
    for number, stage in enumerate(stages):
        ledger = Ledger(store)
        if number == 0:
            known = {record.source for record in ledger.records(stage)}
        else:
            done = {record.unit for record in ledger.records(stage)}
            open_.update(source for unit, source in came.items() if unit not in done)
        came = _counting(found, store, ledger, stage, (came if number else None, open_, known))
        ledger.close()
    return found


def _counting(
    found: Reachable, store: Storage, ledger: Ledger, stage: str,
    places: tuple[dict[str, str] | None, set[str], set[str]],
) -> dict[str, str]:  # fmt: skip
    """Note the records of a stage that count. Returns the units that come out, each with its video."""
    before, open_, known = places
    came: dict[str, str] = {}

    def counting() -> Iterator[Record]:
        for record in ledger.records(stage):
            source = record.source
            if before is None or record.unit in before or source in open_ or source not in known:
                came.update((out.id, source) for out in record.outputs if out.state == "ok")
                again.update({source} if record.again else ())
                yield record

    again: set[str] = set()
    _note(found, store, counting())
    open_ |= again
    if ledger.unreadable:
        found.segments |= ledger.unreadable
        found.complete = False
    return came


def _note(found: Reachable, store: Storage, records: Iterable[Record]) -> None:
    """As the records lie in the store, those of a segment one after the other."""
    for segment, of_segment in groupby(records, lambda record: record.segment):
        wanted = [out.at for record in of_segment for out in record.outputs]
        found.segments.add(segment)
        try:
            lines = _values(store, segment, wanted)
        except (FileNotFoundError, *DAMAGED):
            log.warning("ledger: the clips of %s are damaged; what they name cannot be told", segment)
            found.complete = False
            continue
        found.names.update(name.decode() for line in lines for name in _NAME.findall(line))


def _values(store: Storage, segment: str, wanted: Sequence[At | None]) -> list[bytes]:
    """The values of clips of a segment, one JSON object each, without reading any arrays."""
    places = [at for at in wanted if at is not None]
    if len(places) < len(wanted):
        raise ValueError("a clip without a place")
    if not places:
        return []
    first, last = min(at[0] for at in places), max(at[0] + at[1] for at in places)
    data = store.read_range(segment.removesuffix("jsonl") + "npz", first, last - first)
    return [checked(data[at[0] - first : at[0] - first + at[1]], at) for at in places]
