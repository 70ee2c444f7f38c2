"""Download listed videos, once each, into the store.

    videos/<name>-<hash>/whole.<ext>                a whole video
    videos/<name>-<hash>/<first>-<last>.<ext>       the seconds that were wanted, with their own time stamps
    videos/<name>-<hash>/index.json                 what is there; written after the files

The hash is of the video's address, so two lists share one download, and a second run asks no site. What is
under way lies in a local work folder, and is continued after an interruption on the same machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from infra.storage import Storage, StorageError
from stages import ytdlp
from stages.base import PACE, Drop, Rejected, Resources, TryLater
from stages.clip import Clip
from stages.sources import lists
from stages.sources.lists import Span
from stages.web import WebStage
from stages.ytdlp import Fetched, Section

PAD_S = 1.0                      # around every wanted part, so that its first and last frames are there
OURS = "store:videos/"           # how `Clip.video` begins when we brought it
NEAR_S = 20.0                    # parts as near as this share one section


@dataclass(frozen=True)
class Held:
    """One file in the store; `start_s` and `end_s` say what part of the source it holds, None for all."""

    key: str
    fingerprint: str
    bytes: int
    width: int
    height: int
    start_s: float | None = None
    end_s: float | None = None

    def covers(self, section: Section) -> bool:
        if self.start_s is None or self.end_s is None:
            return True
        return self.start_s <= section[0] and section[1] <= self.end_s


@dataclass
class Download(WebStage):
    """Bring the videos of a list into the store; videos that are files already pass unchanged.

    What is gone for good is rejected with its reason ("gone: private", "gated: members only", "regional: …");
    what another run may get is failed. Comes first, since it rejects the rows that the list could not use.
    """

    sections: bool = True                    # only the wanted seconds, where ffmpeg is there
    # False: a video is deleted when all its clips are through the stages that read it, and comes again when a
    # changed setting needs it.
    keep_videos: bool = field(default=True, metadata=PACE)

    name: ClassVar[str] = "Download"
    reads: ClassVar[tuple[str, ...]] = ("video",)
    writes: ClassVar[tuple[str, ...]] = ("video", "fingerprint")
    resources: ClassVar[Resources] = Resources(cpus=0.25)
    fetches: ClassVar[bool] = True

    def lost(self, store: Storage, clip: Clip) -> bool:
        return clip.video.startswith(OURS) and not store.exists(clip.video.removeprefix("store:"))

    def release(self, store: Storage, clip: Clip) -> None:
        if not self.keep_videos and clip.video.startswith(OURS):
            store.delete(clip.video.removeprefix("store:"))

    def visit(self, clip: Clip) -> Iterator[Clip | Rejected]:
        if lists.is_here(clip.video):
            yield clip                               # a file, or a key of the store
            return
        source = lists.source_id(clip.video)
        sections = merge(clip.listed.get("spans", [])) if self.sections else []
        with self._alone(source) as folder:
            held = self._held(clip, source, sections, folder)
        yield from hand_over(clip, held)

    def _held(self, clip: Clip, source: str, sections: list[Section], folder: Path) -> list[Held]:
        place = f"videos/{store_name(source)}"
        index = self._index(place)
        missing = [s for s in sections if not any(held.covers(s) for held in index)]
        if not missing and (sections or any(held.start_s is None for held in index)):
            return index
        try:
            fetched = self._persist(clip.video, lambda: self._fetch(clip.video, missing, folder))
        except Drop as drop:
            if not isinstance(drop, TryLater):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        try:
            index = [*index, *(self._keep(place, got) for got in fetched)]
            record = {"source": source, "format": self._wish, "files": [asdict(held) for held in index]}
            self._store.write(f"{place}/index.json", json.dumps(record, indent=1).encode())
        except OSError as error:
            raise StorageError(f"cannot keep {place} in the store ({error.strerror or error})") from None
        shutil.rmtree(folder, ignore_errors=True)
        return index

    @property
    def _wish(self) -> list[str]:
        return [self.format, *self.format_sort]

    def _index(self, place: str) -> list[Held]:
        """What the store holds of a video, in the format that is wished for now."""
        try:
            record = json.loads(self._store.read(f"{place}/index.json"))
            files = [Held(**row) for row in record["files"]] if record["format"] == self._wish else []
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError):
            return []                                # of another version, or damaged: download again
        return [held for held in files if self._store.exists(held.key)]

    def _fetch(self, url: str, sections: list[Section], folder: Path) -> list[Fetched]:
        """Download and look at what came. Raises OSError for what is no sound video, to be tried again."""
        ffmpeg = ytdlp.find_ffmpeg() if sections and not self._options.proxy.startswith("socks") else ""
        got = ytdlp.fetch(url, self._options, folder, sections, ffmpeg)
        whole = any(file.section is None for file in got)
        came = {file.section for file in got if file.section is not None and reaches(file.path, file.section)}
        if not whole and not came.issuperset(sections):
            # The site cannot seek, or the stream has other times than it says, or ends before.
            _remove(got)
            got = ytdlp.fetch(url, self._options, folder)
        for file in got:
            with _sound(got):
                _size(file.path)
        return got

    def _keep(self, place: str, got: Fetched) -> Held:
        """Upload a file. Its key tells what it holds, so that a repeated upload replaces it."""
        start, end = got.section or (None, None)
        name = "whole" if got.section is None else "{:.0f}-{:.0f}".format(*got.section)
        with got.path.open("rb") as file:
            sha = hashlib.file_digest(file, "sha256").hexdigest()
        key = f"{place}/{name}.{got.ext}"
        width, height = _size(got.path)
        self._store.upload(key, got.path)
        return Held(key, f"sha256:{sha}", got.path.stat().st_size, width, height, start, end)


def merge(spans: Sequence[Span]) -> list[Section]:
    """The seconds to download for the wanted parts, whole and padded, ascending; none when one is unknown."""
    if any("start_s" not in span or "end_s" not in span for span in spans):
        return []
    merged: list[Section] = []
    for first, last in sorted((span["start_s"] - PAD_S, span["end_s"] + PAD_S) for span in spans):
        start, end = float(max(math.floor(first), 0)), float(math.ceil(last))
        if merged and start <= merged[-1][1] + NEAR_S:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def hand_over(clip: Clip, held: Sequence[Held]) -> Iterator[Clip]:
    """The unit with its file; one unit per file when its parts lie in several.

    Such a unit gets the first second of its file into its id, and keeps the old id as `listed["unit"]`.
    """
    whole = next((one for one in held if one.start_s is None), None)
    spans = clip.listed.get("spans", [])
    files: dict[str, tuple[Held, list[Span]]] = {}
    for span in spans if whole is None else []:
        needed = merge([span])[0]
        one = next(one for one in held if one.covers(needed))
        files.setdefault(one.key, (one, []))[1].append(span)
    if whole is not None or len(files) == 1:
        one = whole or next(iter(files.values()))[0]
        yield clip.copy(video=f"store:{one.key}", fingerprint=one.fingerprint)
        return
    for one, own in files.values():
        listed = {**clip.listed, "spans": own, "unit": clip.id}
        name = f"{clip.id}-at{one.start_s or 0:.0f}"
        yield clip.copy(id=name, video=f"store:{one.key}", fingerprint=one.fingerprint, listed=listed)


def store_name(source: str) -> str:
    """A name for people, and a hash, for file systems know no difference of large and small letters."""
    path = source.partition("?")[0]          # what follows may be a signature
    tail = re.sub(r"[^A-Za-z0-9_-]+", "-", path.split(":", 1)[-1])[-40:].strip("-")
    return f"{tail}-{hashlib.sha256(source.encode()).hexdigest()[:16]}"


def reaches(path: Path, section: Section) -> bool:
    """Whether a file has the frames of a section at the times of the source."""
    from stages import video

    try:
        times = video.frame_times(path)
    except Drop:
        return False
    # The pads may lie beyond the end of the video.
    inside = times[(times >= section[0]) & (times <= section[1])]
    return bool(len(inside) and times[0] <= section[0] + 0.1 and times[-1] >= section[1] - 2 * PAD_S)


def _size(path: Path) -> tuple[int, int]:
    from stages import video

    info = video.probe(path)
    return info.width, info.height


@contextlib.contextmanager
def _sound(files: Sequence[Fetched]) -> Iterator[None]:
    """What cannot be decoded came broken: remove it, so that the next attempt starts anew."""
    try:
        yield
    except Drop as drop:
        _remove(files)
        raise OSError(f"incomplete read: {drop}") from None


def _remove(files: Sequence[Any]) -> None:
    for file in files:
        file.path.unlink(missing_ok=True)
