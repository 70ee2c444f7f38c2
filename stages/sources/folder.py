"""Any folder of videos with its subfolders, here or on S3; or the demo's own videos."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from infra.paths import expanded
from stages.base import Source
from stages.clip import Clip

if TYPE_CHECKING:
    from infra.storage import Storage

log = logging.getLogger(__name__)

DEMO = "demo:portraits"
LINKS_TOLD = 5

_told: dict[Path, list[str]] = {}            # links of a folder that this process has warned of


class _Video(NamedTuple):
    """One found video: its name below the location, where it is, and what changes with its content."""

    name: str
    video: str
    fingerprint: str


@dataclass
class Folder(Source):
    """Lists by name and suffix; a file that no stage can read is rejected there, with its reason.

    A link to a file is listed when the file lies inside the folder. Other links, and links to folders, are
    passed over with a warning, so that nothing outside the folder is read by accident.

    On S3 the bucket is reached as the store is: by `storage.s3`, and AWS's usual variables and files.
    """

    location: str = "videos"                 # a folder, s3://bucket/prefix, or demo:portraits
    extensions: list[str] = field(default_factory=lambda: ["mp4", "mov", "mkv", "webm", "avi", "m4v"])
    licence: str = "unknown"                 # of all the footage
    dataset: str = "folder"                  # what to call the collection

    def clips(self, store: Storage) -> Iterator[Clip]:
        """One clip per video, sorted by path. Raises ValueError when there is no folder or no video in it."""
        if self.location.startswith("demo:"):
            yield from self._demo(store)
            return
        videos = self._objects(store) if self.location.startswith("s3://") else self._files()
        found = sorted(one for one in videos if not self._made_by_us(one, store))
        if not found:
            raise ValueError(
                f"source.location: {self.location} holds no video ({', '.join(self.extensions)}); "
                "choose another folder"
            )
        ids = unit_ids([one.name for one in found])
        for (name, video, fingerprint), unit in zip(found, ids, strict=True):
            yield Clip(
                id=unit, source=_as_text(name), video=video, fingerprint=fingerprint,
                dataset=self.dataset, licence=self.licence,
            )  # fmt: skip

    def _demo(self, store: Storage) -> Iterator[Clip]:
        from stages.sources import portraits

        if self.location != DEMO:
            raise ValueError(f"source.location: there is no {self.location}; give a folder or {DEMO}")
        yield from portraits.clips(store)

    def _objects(self, store: Storage) -> Iterator[_Video]:
        from infra.s3 import S3Storage

        bucket = S3Storage(self.location, **store.s3, setting="source.location")
        for one in bucket.objects():
            if self._wanted(one.name):
                yield _Video(one.name, bucket.url(one.name), f"{one.bytes}-{one.etag}")

    def _files(self) -> Iterator[_Video]:
        folder = self._folder()
        passed_over: list[str] = []
        for path in self._videos(folder, passed_over):
            status = path.stat()
            fingerprint = f"{status.st_size}-{status.st_mtime_ns}"
            yield _Video(path.relative_to(folder).as_posix(), str(path), fingerprint)
        _tell(folder, passed_over)

    @staticmethod
    def _made_by_us(one: _Video, store: Storage) -> bool:
        """Whether it lies in the store, where that lies inside the location: what a run made is no source.

        A location inside the store is meant as it is.
        """
        base, own = one.video.removesuffix(one.name), f"{store.root.rstrip('/')}/"
        return own != base and own.startswith(base) and one.video.startswith(own)

    def _wanted(self, name: str) -> bool:
        """Whether a name has one of the suffixes, and no part that is hidden."""
        suffix = Path(name).suffix.lower().lstrip(".")
        wanted = {extension.lower().lstrip(".") for extension in self.extensions}
        return suffix in wanted and not any(part.startswith(".") for part in name.split("/"))

    def _folder(self) -> Path:
        if "://" in self.location:
            raise ValueError(f"source.location: {self.location} is no folder and no s3://bucket/prefix")
        folder = expanded(self.location).absolute()
        if not folder.exists():
            raise ValueError(f"source.location: {self.location} does not exist; give a folder of videos")
        if not folder.is_dir():
            raise ValueError(f"source.location: {self.location} is a file; give the folder it is in")
        return folder.resolve()

    def _videos(self, folder: Path, passed_over: list[str]) -> Iterator[Path]:
        for parent, folders, files in os.walk(folder, onerror=_refuse):
            for name in sorted(folders):
                if Path(parent, name).is_symlink():
                    passed_over.append(f"{Path(parent, name)} is a link to a folder")
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in files:
                path = Path(parent, name)
                if not self._wanted(name):
                    continue
                if path.is_symlink() and not _inside(path, folder):
                    passed_over.append(f"{path} links to what is not a file in {folder}")
                    continue
                if path.is_file():
                    yield path


def unit_ids(names: list[str]) -> list[str]:
    """Unit ids of relative paths: readable, [A-Za-z0-9_-] only, different even where case is ignored.

    Paths that would share an id all get a hash of themselves, so that the order of listing does not matter.
    """
    plain = [_plain(name) for name in names]
    shared = Counter(unit.casefold() for unit in plain)
    return [
        unit if unit and shared[unit.casefold()] == 1 else f"{unit}-{_hash(name)}"
        for name, unit in zip(names, plain, strict=True)
    ]


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _as_text(name: str) -> str:
    """Of a file's name, which may be no text: what can be shown and written."""
    return name.encode(errors="backslashreplace").decode()


def _plain(name: str) -> str:
    stem = name.rpartition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")


def _inside(path: Path, folder: Path) -> bool:
    try:
        target = path.resolve()
    except (OSError, RuntimeError):  # RuntimeError: links in a circle, before Python 3.13
        return False
    return target.is_file() and target.is_relative_to(folder)


def _tell(folder: Path, passed_over: list[str]) -> None:
    """Warn of the first few links, once: a run lists its source several times."""
    if _told.get(folder) == passed_over:
        return
    _told[folder] = passed_over
    for link in passed_over[:LINKS_TOLD]:
        log.warning("%s and is passed over", link)
    if len(passed_over) > LINKS_TOLD:
        log.warning("%d more links below %s are passed over", len(passed_over) - LINKS_TOLD, folder)


def _refuse(error: OSError) -> None:
    cause = f"{error.filename} cannot be read ({error.strerror})"
    raise ValueError(f"source.location: {cause}; change its rights")
