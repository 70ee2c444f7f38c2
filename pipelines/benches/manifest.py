"""A folder of real clips that a bench measures on: `manifest.csv`, `videos/`, `reference/`, `weights/`."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from infra.storage import Storage
from stages.base import Source
from stages.clip import Clip
from stages.sources import lists
from stages.sources.folder import unit_ids

NEEDED = ("file", "kind", "identity")


@dataclass(frozen=True)
class Listed:
    """One row of the manifest."""

    name: str                                # the file's stem
    path: Path
    kind: str                                # talk: framed; raw: to be cropped; neg: something is wrong
    identity: str                            # label of the person; several for "a+b"
    aligned: bool                            # cropped and aligned already, by the paper's authors

    decodes: bool = True                     # to its end, as far as the manifest says

    @property
    def one_person(self) -> bool:
        """Whether `identity` is the label of one person."""
        return "+" not in self.identity and self.identity not in ("", "none", "several")

    @property
    def good(self) -> bool:
        """Whether the clip ought to be kept."""
        return self.kind != "neg"


@dataclass
class Videos(Source):
    """Some rows of a manifest as a source; `source` of a clip is the name of its row."""

    rows: list[Listed]

    def clips(self, store: Storage) -> Iterator[Clip]:
        for row, unit in zip(self.rows, unit_ids([row.path.name for row in self.rows]), strict=True):
            yield Clip(id=unit, source=row.name, video=str(row.path), dataset="manifest")


def read(data: Path) -> list[Listed]:
    """The rows of DATA/manifest.csv whose files are there. Raises ValueError naming the file."""
    path = data / "manifest.csv"
    if not path.is_file():
        raise ValueError(f"--data {data}: has no manifest.csv; give a folder of clips with one")
    rows = _rows(path)
    missing = [name for name in NEEDED if rows and name not in rows[0]]
    if not rows or missing:
        raise ValueError(f"{path}: {f'has no column {missing[0]!r}' if missing else 'is empty'}")
    root = data.resolve()
    found = []
    for row in rows:
        if None in row or not row["file"] or not row["file"].isprintable():
            raise ValueError(f"{path}: file {row['file']!r} is no name, or its row is too long; mend the row")
        file_path = (root / row["file"]).resolve()
        if not file_path.is_relative_to(root):
            raise ValueError(f"{path}: file {row['file']!r} leaves the folder")
        if file_path.is_file():
            found.append(Listed(
                file_path.stem, file_path, row["kind"], row["identity"], row.get("aligned", "no") == "yes",
                _decodes(row),
            ))  # fmt: skip
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    """Raises ValueError naming file and line."""
    reader = csv.DictReader(lists.text_of(path).split("\n"), restval="", strict=True)
    try:
        return list(reader)
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: is no sound csv ({error}); mend the line") from None


def _decodes(row: dict[str, str]) -> bool:
    """By the columns of frames, where there are any; a twentieth may be missing."""
    promised, decoded = (row.get(name) or "" for name in ("frames_header", "frames_decoded"))
    if not (promised.isdecimal() and decoded.isdecimal()):
        return True
    return int(decoded) > 0.95 * int(promised)
