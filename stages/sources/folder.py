"""Any folder of videos, with its subfolders; or the demo's own videos."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from stages.base import Source
from stages.clip import Clip

if TYPE_CHECKING:
    from infra.storage import Storage

log = logging.getLogger(__name__)

DEMO = "demo:portraits"


@dataclass
class Folder(Source):
    """Lists by name and suffix; a file that no stage can read is rejected there, with its reason.

    A link to a file is listed when the file lies inside the folder. Other links, and links to folders, are
    passed over with a warning, so that nothing outside the folder is read by accident.
    """

    location: str = "videos"                 # a folder, or demo:portraits
    extensions: list[str] = field(default_factory=lambda: ["mp4", "mov", "mkv", "webm", "avi", "m4v"])
    licence: str = "unknown"                 # of all the footage
    dataset: str = "folder"                  # what to call the collection

    def clips(self, store: Storage) -> Iterator[Clip]:
        """One clip per video, sorted by path. Raises ValueError when there is no folder or no video in it."""
        if self.location.startswith("demo:"):
            yield from self._demo(store)
            return
        folder = self._folder()
        paths = self._videos(folder)
        if not paths:
            raise ValueError(
                f"source.location: {self.location} holds no video ({', '.join(self.extensions)}); "
                "choose another folder"
            )
        names = [path.relative_to(folder).as_posix() for path in paths]
        for path, name, unit in zip(paths, names, unit_ids(names), strict=True):
            status = path.stat()
            yield Clip(
                id=unit, source=name, video=str(path), fingerprint=f"{status.st_size}-{status.st_mtime_ns}",
                dataset=self.dataset, licence=self.licence,
            )  # fmt: skip

    def _demo(self, store: Storage) -> Iterator[Clip]:
        from stages.sources import portraits

        if self.location != DEMO:
            raise ValueError(f"source.location: there is no {self.location}; give a folder or {DEMO}")
        yield from portraits.clips(store)

    def _folder(self) -> Path:
        if "://" in self.location:
            raise ValueError(f"source.location: {self.location} is not supported yet; give a local folder")
        folder = Path(self.location).expanduser().absolute()
        if not folder.exists():
            raise ValueError(f"source.location: {self.location} does not exist; give a folder of videos")
        if not folder.is_dir():
            raise ValueError(f"source.location: {self.location} is a file; give the folder it is in")
        return folder.resolve()

    def _videos(self, folder: Path) -> list[Path]:
        wanted = {extension.lower().lstrip(".") for extension in self.extensions}
        found = []
        for parent, folders, files in os.walk(folder, onerror=_refuse):
            for name in sorted(folders):
                if Path(parent, name).is_symlink():
                    log.warning("%s is a link to a folder and is passed over", Path(parent, name))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in files:
                path = Path(parent, name)
                if name.startswith(".") or path.suffix.lower().lstrip(".") not in wanted:
                    continue
                if path.is_symlink() and not _inside(path, folder):
                    log.warning("%s links to what is not a file in %s and is passed over", path, folder)
                    continue
                if path.is_file():
                    found.append(path)
        return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


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


def _plain(name: str) -> str:
    stem = name.rpartition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")


def _inside(path: Path, folder: Path) -> bool:
    try:
        target = path.resolve()
    except (OSError, RuntimeError):  # RuntimeError: links in a circle, before Python 3.13
        return False
    return target.is_file() and target.is_relative_to(folder)


def _refuse(error: OSError) -> None:
    cause = f"{error.filename} cannot be read ({error.strerror})"
    raise ValueError(f"source.location: {cause}; change its rights")
