"""Choose by resolution before anything is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from stages import ytdlp
from stages.base import GroupStage, Rejected, Resources
from stages.clip import Clip
from stages.sources import lists
from stages.sources.lists import Span
from stages.web import WebStage
from stages.ytdlp import Options


class Ask(Protocol):
    """How the size of a video is found out; `width` and `height` in px, absent when unknown."""

    def __call__(self, url: str, options: Options, folder: Path) -> dict[str, Any]: ...


@dataclass
class ProbeVideos(WebStage):
    """Ask for the size of the best format of every listed video; download nothing. Comes first.

    Videos that are gone are rejected here, with the same reasons as by `Download`.
    """

    ask: Ask = field(default_factory=lambda: ytdlp.metadata, init=False, repr=False, compare=False)

    name: ClassVar[str] = "ProbeVideos"
    reads: ClassVar[tuple[str, ...]] = ("video",)
    writes: ClassVar[tuple[str, ...]] = ("width", "height")
    resources: ClassVar[Resources] = Resources(cpus=0.25)

    def visit(self, clip: Clip) -> Iterator[Clip | Rejected]:
        width, height = self._size(clip)
        yield clip.copy(width=width, height=height)

    def _size(self, clip: Clip) -> tuple[int, int]:
        if lists.is_here(clip.video):
            from stages import video

            with video.resolve(self._store, clip.video) as path:
                info = video.probe(path)
            return info.width, info.height
        with self._alone(lists.source_id(clip.video)) as folder:
            known = self._persist(clip.video, lambda: self.ask(clip.video, self._options, folder))
        return int(known.get("width") or 0), int(known.get("height") or 0)


@dataclass
class KeepBestClips(GroupStage):
    """Keep the `clips_per_person` listed parts of highest resolution of each labelled person.

    Resolution is the shorter side of the video. Among equals, parts of different videos come first, then long
    ones. Parts under `minimum_seconds` do not count. Videos without a label, or with several, pass.
    """

    clips_per_person: int = 2
    minimum_seconds: float = 2.0

    name: ClassVar[str] = "KeepBestClips"
    reads: ClassVar[tuple[str, ...]] = ("video", "width", "height")
    writes: ClassVar[tuple[str, ...]] = ("listed",)

    def __post_init__(self) -> None:
        if self.clips_per_person < 1:
            raise ValueError(f"clips_per_person: {self.clips_per_person} keeps nothing; give 1 or more")

    def group(self, clip: Clip) -> str:
        return f"person {clip.identity}" if clip.identity else f"video {clip.id}"

    def process_group(self, group: str, clips: list[Clip]) -> Iterator[Clip | Rejected]:
        if not clips[0].identity:
            yield from clips
            return
        ranked = []
        for clip in clips:
            parts = clip.listed.get("spans") or [{}]
            long = [part for part in parts if _seconds(part) >= self.minimum_seconds]
            for place, part in enumerate(sorted(long, key=_seconds, reverse=True)):
                ranked.append((-min(clip.width, clip.height), place, -_seconds(part), clip.id, part))
        ranked.sort(key=lambda row: (*row[:4], row[4].get("key", "")))
        best = [(row[3], row[4].get("key")) for row in ranked[:self.clips_per_person]]
        for clip in clips:
            yield self._cut(clip, [key for name, key in best if name == clip.id])

    def _cut(self, clip: Clip, keys: list[str | None]) -> Clip | Rejected:
        parts = clip.listed.get("spans")
        if not keys:
            detail = f"{len(parts or [1])} parts of {clip.width}x{clip.height} px"
            return Rejected(clip, "not among the best of the person", detail)
        if not parts:
            return clip
        kept = [part for part in parts if part["key"] in keys]
        return clip.copy(listed={**clip.listed, "spans": kept, "parts_left_out": len(parts) - len(kept)})


def _seconds(part: Span) -> float:
    return float(part.get("end_s", 1e9)) - float(part.get("start_s", 0.0))
