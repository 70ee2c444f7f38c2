"""What of the listed videos did not come, in words: what is gone for good, and what may still come."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from infra.words import printable

EXAMPLES = 3
MOST = 1000                                  # units of a kind that are kept to be listed

# How the reasons of a kind begin; what is said of it.
KINDS: tuple[tuple[str, str], ...] = (
    ("gone", "gone for good"),
    ("gated", "behind a login, an age check or a payment: cookies of an account may help"),
    ("regional", "not shown in this country: a proxy in another one may help"),
    ("later", "not got this time: the next run tries again"),
    ("bad row", "rows of a list that cannot be used"),
    ("duplicate", "listed twice"),
)


class Ended(Protocol):
    """Where a unit ended, as `pipelines.status` says it."""

    source: str
    state: str
    reason: str
    detail: str
    again: bool


@dataclass
class Loss:
    """All units of one kind."""

    kind: str
    what: str
    reasons: Counter[str] = field(default_factory=Counter)
    units: list[Ended] = field(default_factory=list)      # the first ones, in the order of their lists

    def add(self, unit: Ended) -> None:
        self.reasons[unit.reason.removeprefix(f"{self.kind}: ")] += 1
        self.units.append(unit)
        if len(self.units) >= 2 * MOST:
            self.sort()

    def sort(self) -> None:
        by_place = self.kind == "bad row"
        self.units.sort(key=lambda unit: _natural(unit.detail if by_place else unit.source))
        del self.units[MOST:]

    @property
    def text(self) -> str:
        """A line, and for rows that nobody finds without it where the first ones are."""
        lines = [f"{self.reasons.total():>7}  {self.what}"]
        if set(self.reasons) != {self.kind}:
            said = (f"{printable(text)} ({n})" for text, n in self.reasons.most_common())
            lines.append(" " * 9 + ", ".join(said))
        if self.kind == "bad row":
            lines += [" " * 9 + printable(unit.detail or unit.source) for unit in self.units[:EXAMPLES]]
        return "\n".join(lines)


class Losses:
    """Told of every unit, it keeps what was lost: all counts, and the first thousand units of each kind."""

    def __init__(self) -> None:
        self._found = {kind: Loss(kind, what) for kind, what in KINDS}

    def add(self, unit: Ended) -> None:
        kind = kind_of(unit)
        if kind:
            self._found[kind].add(unit)

    def found(self) -> list[Loss]:
        """The kinds of which there are any, in the order of `KINDS`."""
        for loss in self._found.values():
            loss.sort()
        return [loss for loss in self._found.values() if loss.reasons]


def losses(units: Iterable[Ended]) -> list[Loss]:
    """As `Losses.found`."""
    kept = Losses()
    for unit in units:
        kept.add(unit)
    return kept.found()


def _natural(text: str) -> list[tuple[int, str]]:
    """Line 9 before line 10."""
    pieces = re.split(r"([0-9]+)", text)
    return [(int(piece[:15]), "") if piece.isdecimal() else (-1, piece) for piece in pieces]


def kind_of(unit: Ended) -> str:
    """A kind of `KINDS`, or empty."""
    if unit.again:
        return "later"
    kind = unit.reason.partition(":")[0]
    kind = "bad row" if kind == "refused url" else kind
    return kind if unit.state == "rejected" and any(kind == known for known, _ in KINDS) else ""


def as_json(found: Iterable[Loss]) -> dict[str, Any]:
    """Per kind how many, and the first thousand with the reason and what is known beyond."""
    return {
        loss.kind: {
            "what": loss.what,
            "count": loss.reasons.total(),
            "reasons": dict(loss.reasons),
            "units": [{"source": u.source, "reason": u.reason, "detail": u.detail} for u in loss.units],
        }
        for loss in found
    }
