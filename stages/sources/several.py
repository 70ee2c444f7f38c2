"""Several lists as one source, and what is listed twice: the same seconds of the same face."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

from infra.json_text import encoder
from infra.scratch import Seen, Shelf
from infra.storage import Storage
from stages.base import Source
from stages.clip import Clip
from stages.sources.lists import Span, box_at

TOUCH_S = 0.05                   # parts that share less than this, about a frame, do not overlap
CHUNK_S = 75.0                   # a chunk of a minute may be so long
FEW = 16                         # parts of a video that are simply gone through
SAME_FACE = 0.3                  # of the smaller box, covered by the other: they may show one face

_encode = encoder(compact=True)


@dataclass
class Several(Source):
    """Lists in order: `source` of the workflow, when it is a list. Ids are made unique over all of them."""

    sources: list[Any]

    def clips(self, store: Storage) -> Iterator[Clip]:
        """All units of all lists."""
        ids = Seen()
        for source in self.sources:
            for clip in source.clips(store):
                yield _with_own_id(clip, ids)


def mark_duplicates(clips: Iterable[Clip], names_once: bool = False) -> Iterator[Clip]:
    """Mark what an earlier unit or part names already with the error "duplicate": the first stage rejects it.

    Parts of one video (`source_id`, or one file) are the same when they overlap in time, unless their boxes
    show two faces. A video listed as a whole overlaps with all of its parts. `names_once`: see `Source`.
    """
    seen: Shelf[_Video] = Shelf(_Video, _Video.to_json, _Video.from_json)
    files: Shelf[list[str]] = Shelf(list, json.dumps, json.loads)    # of videos without parts
    for clip in clips:
        name = clip.listed.get("source_id")
        if "error" in clip.listed or not clip.video or (names_once and len(clip.listed.get("spans", ())) < 2):
            yield clip
        elif name is None:
            first = files[clip.video]
            if first:
                yield clip.copy(listed={**clip.listed, **_duplicate(first[0])})
            else:
                first.append(clip.id)
                yield clip
        elif "spans" not in clip.listed:
            before = seen[name]
            same = before.same({})
            before.add(clip.id, "", {})
            yield clip.copy(listed={**clip.listed, **_duplicate(same)}) if same else clip
        else:
            spans = list(_marked(clip, _Video() if names_once else seen[name]))
            plain = all(map(is_, spans, clip.listed["spans"]))
            yield clip if plain else clip.copy(listed={**clip.listed, "spans": spans})


def _marked(clip: Clip, before: _Video) -> Iterator[Span]:
    for span in clip.listed["spans"]:
        same = "" if "error" in span else before.same(span)
        if "error" not in span and not same:
            before.add(clip.id, span["key"], span)
        yield {**span, **_duplicate(same)} if same else span


def _with_own_id(clip: Clip, ids: Seen) -> Clip:
    number, own = 1, clip.id
    while ids.again(own):
        number += 1
        own = f"{clip.id}-{number}"
    return clip if own == clip.id else clip.copy(id=own)


def _duplicate(same: str) -> dict[str, str]:
    return {"error": "duplicate", "detail": f"same as {same}"}


class _Part(NamedTuple):
    """What is kept of a part: little, for there are millions."""

    unit: str
    key: str
    start_s: float | None
    end_s: float | None
    chunk: Sequence[int] | None              # and its frames
    boxes: array[float]                      # all numbers of all boxes
    box_unit: str

    @classmethod
    def of(cls, unit: str, key: str, span: Span) -> _Part:
        chunk = (span["chunk"], *span["frames"]) if "chunk" in span else None
        boxes = array("f", chain.from_iterable(span.get("boxes", ())))
        return cls(unit, key, span.get("start_s"), span.get("end_s"), chunk, boxes, span.get("box_unit", ""))

    @property
    def times(self) -> tuple[float, float]:
        """As `_times`."""
        if self.chunk is not None and self.start_s is None:
            return 60.0 * self.chunk[0], 60.0 * self.chunk[0] + CHUNK_S
        return self.start_s or 0.0, 1e9 if self.end_s is None else self.end_s

    @property
    def span(self) -> Span:
        """As listed, as far as it tells where the part is."""
        found: Span = {"boxes": [self.boxes[n:n + 5] for n in range(0, len(self.boxes), 5)]}
        if self.chunk is not None:
            found |= {"chunk": self.chunk[0], "frames": self.chunk[1:]}
        known = {"start_s": self.start_s, "end_s": self.end_s, "box_unit": self.box_unit}
        return found | {name: value for name, value in known.items() if value is not None}

    def __str__(self) -> str:
        return f"{self.unit}-{self.key}" if self.key else self.unit


class _Video:
    """The parts of one video so far; where they are many, found by their minutes."""

    __slots__ = ("_long", "_minutes", "_parts")

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self._minutes: dict[int, list[_Part]] = {}
        self._long: list[_Part] = []

    def add(self, unit: str, key: str, span: Span) -> None:
        self._add(_Part.of(unit, key, span))

    def to_json(self) -> str:
        return _encode([[*part[:5], list(part.boxes), part.box_unit] for part in self._parts])

    @classmethod
    def from_json(cls, text: str) -> _Video:
        found = cls()
        for unit, key, start_s, end_s, chunk, boxes, box_unit in json.loads(text):
            found._add(_Part(unit, key, start_s, end_s, chunk, array("f", boxes), box_unit))
        return found

    def _add(self, part: _Part) -> None:
        self._parts.append(part)
        if len(self._parts) == FEW:
            for one in self._parts:
                self._index(one)
        elif len(self._parts) > FEW:
            self._index(part)

    def _index(self, part: _Part) -> None:
        minutes = self._of(part.span)
        for minute in minutes or ():
            self._minutes.setdefault(minute, []).append(part)
        if minutes is None:
            self._long.append(part)

    def same(self, span: Span) -> str:
        """The part that shows the same as `span`, or empty."""
        if not self._parts:
            return ""
        minutes = self._of(span)
        candidates = self._parts
        if len(self._parts) >= FEW and minutes is not None:
            candidates = [*self._long, *(part for m in minutes for part in self._minutes.get(m, []))]
        times = _times(span)
        near = (part for part in candidates if _meet(part.times, times))
        return next((str(part) for part in near if overlap(part.span, span)), "")

    @staticmethod
    def _of(span: Span) -> range | None:
        start, end = _times(span)
        return range(int(start // 60), int(end // 60) + 1) if end - start < 3600 else None


def overlap(a: Span, b: Span) -> bool:
    """Whether two parts of one video share time and may show the same face."""
    first, second = _times(a), _times(b)
    if a.get("chunk") is not None and b.get("chunk") is not None:
        if a["chunk"] != b["chunk"]:
            return False
        (a0, a1), (b0, b1) = a["frames"], b["frames"]
        if min(a1, b1) <= max(a0, b0):
            return False
    elif not _meet(first, second):
        return False
    middle = (max(first[0], second[0]) + min(first[1], second[1])) / 2
    one, other = box_at(a, middle, 16, 9), box_at(b, middle, 16, 9)
    if one is None or other is None:
        return True
    return _covered(one, other) > SAME_FACE


def _meet(first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Whether two stretches of time, (start, end) in s, share more than they touch."""
    shorter = min(first[1] - first[0], second[1] - second[0])
    return min(first[1], second[1]) - max(first[0], second[0]) >= min(TOUCH_S, shorter / 2)


def _times(span: Span) -> tuple[float, float]:
    if "chunk" in span and "start_s" not in span:
        # Not located yet: somewhere in its minute, which key frames move by some seconds.
        return 60.0 * span["chunk"], 60.0 * span["chunk"] + CHUNK_S
    return span.get("start_s", 0.0), span.get("end_s", 1e9)


def _covered(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection of two boxes over the smaller one."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(width, 0.0) * max(height, 0.0) / smaller if smaller > 0 else 0.0
