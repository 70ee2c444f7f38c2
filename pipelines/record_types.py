"""What lines of the ledger may hold: they may have been written by somebody who is not this program.

Checked by the page, since a plan reads a million of them: what has the shape of one before costs little.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

Types = Mapping[str, tuple[type, ...]]

_OF_RECORDS: Types = {
    "unit": (str,), "source": (str,), "key": (str,), "input": (str,), "state": (str,),
    "seconds": (float, int), "reason": (str,), "detail": (str,), "group": (str,), "members": (str,),
    "again": (bool,), "attempts": (int,), "outputs": (list,),
}  # fmt: skip
_OF_OUTPUTS: Types = {
    "id": (str,), "digest": (str,), "at": (list, type(None)),
    "state": (str,), "reason": (str,), "detail": (str,), "identity": (str,),
}  # fmt: skip
_OPTIONAL = {"reason", "detail", "group", "members", "again", "attempts", "outputs", "identity"}
_STATES = {"ok", "rejected", "failed"}
_OF_IDS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
_MOST_SECONDS = 1e12
_MOST_ATTEMPTS = 1 << 31
_MOST_SHAPES = 1000

Shape = tuple[str | type, ...]               # names of the fields, and the types of their values
_records: set[Shape] = set()                 # those that are known to be sound
_outputs: set[Shape] = set()


def check(records: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Raises ValueError unless these are records and all their outputs, as JSON has them."""
    _check_shapes(records, _OF_RECORDS, _records)
    _check_shapes(outputs, _OF_OUTPUTS, _outputs)
    check_ids([values["unit"] for values in records])
    check_ids([values["id"] for values in outputs])
    if not _STATES.issuperset([values["state"] for values in records]):
        raise ValueError("a record of an unknown state")
    if not _STATES.issuperset([values["state"] for values in outputs if "state" in values]):
        raise ValueError("a clip of an unknown state")
    if any(not 0 <= values["seconds"] < _MOST_SECONDS for values in records):            # nor is NaN
        raise ValueError("a record of no number of seconds")
    if any(not 0 <= values["attempts"] < _MOST_ATTEMPTS for values in records if "attempts" in values):
        raise ValueError("a record of no number of attempts")
    _check_places([values["at"] for values in outputs if values["at"] is not None])


def _check_shapes(many: Sequence[Any], types: Types, sound: set[Shape]) -> None:
    if not {dict}.issuperset(map(type, many)):
        raise ValueError("a record or clip that is no object")
    if not {(*values, *map(type, values.values())) for values in many} <= sound:
        for values in many:
            _check_fields(values, types)
            if len(sound) < _MOST_SHAPES:
                sound.add((*values, *map(type, values.values())))


def _check_fields(values: Mapping[str, Any], types: Types) -> None:
    if missing := sorted(types.keys() - values.keys() - _OPTIONAL - ({"state"} if "id" in types else set())):
        raise ValueError(f"a record or clip without {missing[0]}")
    for name, value in values.items():
        if name not in types or type(value) not in types[name]:
            raise ValueError(f"a record or clip of which {name[:20]!r} is a {type(value).__name__}")


def check_ids(ids: Sequence[str]) -> None:
    """Raises ValueError unless all are [A-Za-z0-9_-]+; a line feed is between any two and nowhere else."""
    left = "\n".join(ids).encode(errors="replace").translate(None, _OF_IDS)
    if left != b"\n" * (len(ids) - 1) or "" in ids:
        raise ValueError("an id of other characters than letters, digits, _ and -")


def _check_places(places: Sequence[Sequence[int]]) -> None:
    """Four numbers from 0 to 2**63 - 1 each."""
    numbers = list(itertools.chain.from_iterable(places))
    try:
        array("q", numbers)
    except (TypeError, OverflowError):
        raise ValueError("a clip in a place that is no place") from None
    if min(numbers, default=0) < 0 or any(len(place) != 4 for place in places):
        raise ValueError("a clip in a place that is no place")
