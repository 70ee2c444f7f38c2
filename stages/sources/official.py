"""The folder that the authors of PV3D published and train from: clips cut, cropped and with cameras.

    recrop_faces/<clip>.mp4             the aligned square
    smoothed_camera2world/<clip>.json   [[frame name, [25 numbers]], ...], a row per frame
    voxceleb.list                       the path of one mp4 below recrop_faces/ per line
    provenance/<clip>.json              ours, where `pv3d export` made the folder: identity, licence, source

`stages.aligned:TakeAligned` is the stage for such clips; see docs/layouts.md. As in the authors' reader, a
path loses its folder where its cameras are looked up.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from infra.paths import expanded
from infra.storage import Storage
from stages.base import Drop, Source
from stages.clip import Clip
from stages.layouts import CAMERAS, LIST, PROVENANCE, VIDEOS
from stages.sources import lists
from stages.sources.folder import unit_ids

MOST_PROVENANCE = 1 << 20        # bytes
WHOLE_FRAME = {"boxes": [[0.0, 0.0, 0.0, 1.0, 1.0]], "box_unit": "frame", "box_kind": "head"}

KEPT = (
    "clip_id", "source", "source_id", "dataset", "licence", "identity", "split", "fps", "source_span_s",
    "list_row_sha1", "listed",
)
"""Of a provenance: the rest says how the clip was made, which is over."""


@dataclass
class Official(Source):
    """One unit per line of the list. What is known of people comes from provenance, or from `people`."""

    location: str                            # the folder
    list: str = LIST                         # file in it
    people: str = ""                         # a pattern; its group, found in the file's name, is the person
    licence: str = "unknown"                 # of clips without provenance
    dataset: str = "official"                # what to call the collection

    writes: ClassVar[tuple[str, ...]] = ("identity",)

    def __post_init__(self) -> None:
        if lists.safe_name(self.dataset) != self.dataset:
            raise ValueError(f"dataset: {self.dataset!r}; use letters, digits, _ and -")
        try:
            groups = re.compile(self.people).groups
        except re.error as error:
            cure = "write such as ^(id\\d+)"
            raise ValueError(f"people: {self.people!r} is no pattern ({error}); {cure}") from None
        if self.people and groups != 1:
            raise ValueError(f"people: {self.people!r} has {groups} groups; put one (...) around the person")

    def clips(self, store: Storage) -> Iterator[Clip]:
        """Rows that cannot be used become units with an error. Raises ValueError for no such folder."""
        folder = self._folder()
        rows = dict[str, int]()
        for line, name in lists.lines_of(folder / self.list):
            if name in rows:
                yield self._error(line, Drop("duplicate", f"same as line {rows[name]}"))
            else:
                rows[name] = line
        if not rows:
            raise ValueError(f"{folder / self.list}: is empty; write the name of one mp4 per line")
        shared = Counter(PurePosixPath(name).name for name in rows)
        for (name, line), unit in zip(rows.items(), unit_ids([*rows]), strict=True):
            try:
                if shared[PurePosixPath(name).name] > 1:
                    raise Drop("bad row", f"{name[:80]!r} would share its camera file with another row")
                yield self._clip(folder, name, unit)
            except Drop as drop:
                yield self._error(line, drop)

    def _folder(self) -> Path:
        folder = expanded(self.location).absolute()
        if not folder.is_dir():
            raise ValueError(f"location: {self.location} is no folder; give the one that holds {self.list}")
        for name in (VIDEOS, CAMERAS):
            if not (folder / name).is_dir():
                raise ValueError(f"location: {self.location} holds no {name}; give the authors' folder")
        return folder

    def _clip(self, folder: Path, name: str, unit: str) -> Clip:
        checked(name)
        base = PurePosixPath(name).stem
        video, cameras = folder / VIDEOS / name, folder / CAMERAS / f"{base}.json"
        marks = [_mark(folder, video, "no video"), _mark(folder, cameras, "no cameras")]
        known = read_provenance(folder, folder / PROVENANCE / f"{base}.json")
        person = re.search(self.people, name) if self.people else None
        listed = {
            "row": name, "row_sha1": lists.row_sha1(name), "cameras": f"{CAMERAS}/{base}.json",
            "span": {**WHOLE_FRAME, **{key: known[key] for key in ("split",) if key in known}},
        }
        return Clip(
            id=unit, source=known.get("source") or f"{VIDEOS}/{name}", video=str(video),
            fingerprint=" ".join(marks), dataset=self.dataset, licence=known.get("licence") or self.licence,
            identity=known.get("identity") or (person and person[1]) or "",
            listed={**listed, **({"provenance": known} if known else {})},
        )

    def _error(self, line: int, drop: Drop) -> Clip:
        where = f"{PurePosixPath(self.list).name}:{line}"
        return lists.error_unit(self.dataset, f"line-{line}", where, drop.reason, f"{where}: {drop.detail}")


def checked(name: str) -> str:
    """A path of a list that stays below its folder. Raises Drop."""
    parts = name.split("/")
    if re.search(r"[\x00-\x1f\x7f\\]", name) or any(part in ("", ".", "..") for part in parts):
        raise Drop("bad row", f"{name[:80]!r} is no path below {VIDEOS}")
    if not name.endswith(".mp4") or len(name) > 1000:
        raise Drop("bad row", f"{name[:80]!r} does not end in .mp4, or is too long")
    return name


def camera_file(clip: Clip) -> Path:
    """Where the cameras of a listed clip are. Raises Drop for a clip of another source."""
    row, cameras = clip.listed.get("row"), clip.listed.get("cameras")
    tail = f"/{VIDEOS}/{row}"
    if not isinstance(row, str) or not isinstance(cameras, str) or not clip.video.endswith(tail):
        raise Drop("no cameras", "only clips of stages.sources.official:Official are aligned already")
    return Path(clip.video.removesuffix(tail), cameras)


def read_provenance(folder: Path, path: Path) -> dict[str, Any]:
    """What `pv3d export` wrote of a clip; empty when it did not. Raises Drop for what is damaged."""
    if not path.exists():
        return {}
    _mark(folder, path, "bad provenance")
    if path.stat().st_size > MOST_PROVENANCE:
        raise Drop("bad provenance", f"more than {MOST_PROVENANCE:,} bytes")
    try:
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("no object")
        known = {key: value[key] for key in KEPT if key in value}
        lists.check_kept(known)
    except (ValueError, RecursionError, OSError) as error:
        raise Drop("bad provenance", f"{path.name}: {error}"[:200]) from None
    for key in ("source", "licence", "identity", "split"):
        if not isinstance(known.get(key, ""), str) or len(known.get(key, "")) > 1000:
            raise Drop("bad provenance", f"{path.name}: {key} is no short text")
    return known


def _mark(folder: Path, path: Path, reason: str) -> str:
    """Size and time of a file that is in the folder, links followed. Raises Drop."""
    try:
        inside = path.resolve().is_relative_to(folder.resolve()) and path.is_file()
        status = path.stat()
    except (OSError, RuntimeError, ValueError) as error:
        cause = getattr(error, "strerror", None) or type(error).__name__
        raise Drop(reason, f"{path.relative_to(folder)}: {cause}") from None
    if not inside:
        raise Drop(reason, f"{path.relative_to(folder)} is no file in the folder")
    return f"{status.st_size}-{status.st_mtime_ns}"
