"""Several lists as one source; what an earlier list or row names already is marked as a duplicate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from infra.storage import Storage
from stages.base import Source
from stages.clip import Clip
from stages.sources.lists import Span, box_at

TOUCH_S = 0.05                   # parts that share less than this, about a frame, do not overlap
SAME_FACE = 0.3                  # of the smaller box, covered by the other: they may show one face


@dataclass
class Several(Source):
    """Lists in order: `source` of the workflow, when it is a list. Ids are made unique over all of them."""

    sources: list[Any]

    def clips(self, store: Storage) -> Iterator[Clip]:
        """All units of all lists; parts that were listed before carry the error "duplicate"."""
        yield from mark_duplicates(clip for source in self.sources for clip in source.clips(store))


def mark_duplicates(clips: Iterable[Clip]) -> Iterator[Clip]:
    """Mark parts of one video (`source_id`) that overlap in time, unless their boxes show two faces.

    A video listed as a whole overlaps with all of its parts.
    """
    seen: dict[str, _Video] = {}
    ids: set[str] = set()
    for clip in clips:
        clip = _with_own_id(clip, ids)
        name = clip.listed.get("source_id")
        if name is None or "error" in clip.listed:
            yield clip
            continue
        before = seen.setdefault(name, _Video())
        if "spans" not in clip.listed:
            same = before.same({})
            before.add(clip.id, {})
            yield clip.copy(listed={**clip.listed, **_duplicate(same)}) if same else clip
            continue
        spans = []
        for span in clip.listed["spans"]:
            same = "" if "error" in span else before.same(span)
            spans.append({**span, **_duplicate(same)} if same else span)
            if "error" not in spans[-1]:
                before.add(f"{clip.id}-{span['key']}", span)
        yield clip.copy(listed={**clip.listed, "spans": spans})


def _with_own_id(clip: Clip, ids: set[str]) -> Clip:
    number, own = 1, clip.id
    while own in ids:
        number += 1
        own = f"{clip.id}-{number}"
    ids.add(own)
    return clip if own == clip.id else clip.copy(id=own)


def _duplicate(same: str) -> dict[str, str]:
    return {"error": "duplicate", "detail": f"same as {same}"}


class _Video:
    """The parts of one video so far, found by their minutes: a long video may have ten thousand."""

    def __init__(self) -> None:
        self._minutes: dict[int, list[tuple[str, Span]]] = {}
        self._long: list[tuple[str, Span]] = []
        self._all: list[tuple[str, Span]] = []

    def add(self, key: str, span: Span) -> None:
        wanted = ("start_s", "end_s", "chunk", "frames", "boxes", "box_unit")
        entry = key, {name: span[name] for name in wanted if name in span}
        self._all.append(entry)
        minutes = self._of(span)
        for minute in minutes or ():
            self._minutes.setdefault(minute, []).append(entry)
        if minutes is None:
            self._long.append(entry)

    def same(self, span: Span) -> str:
        """The part that shows the same as `span`, or empty."""
        minutes = self._of(span)
        near = self._all if minutes is None else [e for m in minutes for e in self._minutes.get(m, [])]
        candidates = near if minutes is None else [*self._long, *near]
        return next((key for key, other in candidates if overlap(other, span)), "")

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
    elif min(first[1], second[1]) - max(first[0], second[0]) < TOUCH_S:
        return False
    middle = (max(first[0], second[0]) + min(first[1], second[1])) / 2
    one, other = box_at(a, middle, 16, 9), box_at(b, middle, 16, 9)
    if one is None or other is None:
        return True
    return _covered(one, other) > SAME_FACE


def _times(span: Span) -> tuple[float, float]:
    if "chunk" in span and "start_s" not in span:
        # Not located yet: somewhere in its minute, which key frames move by some seconds.
        return 60.0 * span["chunk"], 60.0 * span["chunk"] + 75.0
    return span.get("start_s", 0.0), span.get("end_s", 1e9)


def _covered(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection of two boxes over the smaller one."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(width, 0.0) * max(height, 0.0) / smaller if smaller > 0 else 0.0
