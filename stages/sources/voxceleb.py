"""VoxCeleb 1 and 2: trees of text files, one face track each, people labelled.

Nagrani et al. 2017, Chung et al. 2018. Licence of the lists: CC BY 4.0; the videos are their owners'.
Take the two best clips of each person with `stages.probe:ProbeVideos` and `stages.probe:KeepBestClips`
before the download.
"""

from __future__ import annotations

import csv
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.storage import Storage
from stages.base import Drop, Source
from stages.clip import Clip
from stages.sources import lists
from stages.sources.lists import Span, error_unit, number, split_of, unit, youtube_url

LICENCE = "VoxCeleb list: CC BY 4.0; footage: YouTube, its owners'"
FPS = 25.0                       # the rate that FRAME counts, whatever the video's own
SCALED_HEIGHT = 360.0            # px: VoxCeleb1's boxes are pixels of a version of this height
BOX_EVERY = 100                  # rows between the boxes that are kept
VOX1_TEST = range(10270, 10310)  # the official test people of VoxCeleb1

MOST_TEXT = 1 << 24              # bytes of a text file; a track of an hour has 4 MB

_PERSON = re.compile(r"id[0-9]{5}")
Rows = NDArray[np.float64]       # [N, 5]: FRAME, X, Y, W, H
Text = tuple[str, Callable[[], bytes]]      # name with person/video/utterance at its end, and how to read it


@dataclass
class VoxCeleb(Source):
    """The text files of `vox1_*_txt.zip` or `vox2_*_txt.zip`: the zip itself, or a folder with the tree.

    Only the version tells whether boxes are fractions (2) or pixels (1). Official test people, which are
    those of VoxCeleb1's paper, those below a folder or zip whose name has the word "test", and those in the
    file `test_people` (one id per line), never count as "train"; the others are "train" or "held-out" by a
    hash of the person.
    """

    location: str
    version: int                             # 1 or 2
    splits: list[str] = field(default_factory=lambda: ["train"])    # wanted ones of train, held-out, test
    held_out_percent: int = 2                # of the people
    test_people: str = ""

    def __post_init__(self) -> None:
        if self.version not in (1, 2):
            raise ValueError(f"version: {self.version} is neither 1 nor 2; it tells the unit of the boxes")
        _check_splits(self.splits, self.held_out_percent)

    def clips(self, store: Storage) -> Iterator[Clip]:
        """One unit per person and video, its parts the utterances. Raises ValueError."""
        tested = {line for _, line in lists.lines_of(Path(self.test_people))} if self.test_people else set()
        checked = False
        for (person, video_id), texts in groupby(tree(Path(self.location)), lambda text: _names(text[0])[:2]):
            spans: list[Span] = []
            for name, read in texts:
                split = "test" if person in tested or self._official(person, name) else ""
                spans += self._spans(name, read, split or split_of(person, self.held_out_percent), checked)
                checked = True
            yield self._unit(person, video_id, lists.keep_splits(spans, self.splits))
        if not checked:
            raise ValueError(
                f"location: {self.location} holds no id#####/<video>/<utterance>.txt; give the tree"
            )

    def _official(self, person: str, name: str) -> bool:
        if self.version == 1 and int(person[2:]) in VOX1_TEST:
            return True
        return any("test" in re.split(r"[^a-z]+", part.lower()) for part in Path(name).parts[:-3])

    def _unit(self, person: str, video_id: str, spans: list[Span]) -> Clip:
        dataset = f"vox{self.version}"
        try:
            return unit(dataset, f"{person}-{video_id}", youtube_url(video_id), spans, LICENCE, person)
        except Drop as drop:
            return error_unit(dataset, f"{person}-{video_id}", video_id, drop.reason, drop.detail)

    def _spans(self, name: str, read: Callable[[], bytes], split: str, checked: bool) -> list[Span]:
        person, _, utterance = _names(name)
        common: Span = {"key": lists.safe_name(utterance), "identity": person, "split": split}
        try:
            text = lists.decode(read(), name)
            header, rows = read_track(text, name)
            self._check_unit(name, rows, checked)
        except Drop as drop:
            return [{**common, "error": drop.reason, "detail": drop.detail}]
        common |= {
            "box_unit": "frame" if self.version == 2 else "height", "box_kind": "face", "fps_ref": FPS,
            "row_sha1": lists.row_sha1(text), "row": header,
        }
        runs = contiguous(rows)
        return [
            {**common, "key": common["key"] + (f"-{n}" if len(runs) > 1 else ""), **self._part(run)}
            for n, run in enumerate(runs)
        ]

    def _check_unit(self, name: str, rows: Rows, checked: bool) -> None:
        """Boxes of the wrong version: a wrong setting when it is the first file, else one bad file."""
        fractions = bool(rows[:, 1:].max() <= 1.5)
        if fractions == (self.version == 2):
            return
        found = 2 if fractions else 1
        message = f"{name} has boxes of VoxCeleb{found}, not {self.version}"
        if not checked:
            raise ValueError(f"version: {message}; set version: {found}")
        raise Drop("bad row", message)

    def _part(self, run: Rows) -> Span:
        first, last = int(run[0, 0]), int(run[-1, 0])
        scale = 1.0 if self.version == 2 else SCALED_HEIGHT
        chosen = [*run[:-1:BOX_EVERY].tolist(), run[-1].tolist()]
        return {
            "start_s": first / FPS, "end_s": (last + 1) / FPS, "frames": [first, last + 1],
            "boxes": [
                [(frame - first) / FPS, *(round(v / scale, 5) for v in (x, y, x + w, y + h))]
                for frame, x, y, w, h in chosen
            ],
        }


def read_track(text: str, name: str) -> tuple[dict[str, str], Rows]:
    """(header, float64 [N, 5] of FRAME, X, Y, W, H) of one file. Raises Drop, naming file and line."""
    lines = text.split("\n")
    table = next((n for n, line in enumerate(lines) if line.split()[:2] == ["FRAME", "X"]), None)
    if table is None:
        raise Drop("bad row", f"{name}:{len(lines)}: has no line FRAME X Y W H")
    pairs = (line.partition(":") for line in lines[:table] if ":" in line)
    header = {key.strip(): value.strip() for key, _, value in pairs}
    rows = _rows(lines[table + 1:], f"{name}:{{}}:", table + 2)
    if not len(rows):
        raise Drop("bad row", f"{name}:{len(lines)}: has no frame")
    if (np.diff(rows[:, 0]) <= 0).any():
        raise Drop("bad row", f"{name}: frames do not ascend")
    listed = header.get("Reference", _names(name)[1])
    if listed != _names(name)[1]:
        raise Drop("bad row", f"{name}: Reference names another video, {listed[:20]!r}")
    return header, rows


def _rows(lines: list[str], where: str, first: int) -> Rows:
    """The table; a million of them are read, so soundness is seen at once and its lack looked for after."""
    filled = [line for line in lines if line and not line.isspace()]
    values = "\t".join(filled).split()
    try:
        rows = np.array(values, np.float64)
    except ValueError:
        rows = np.zeros(0)
    if len(rows) == 5 * len(filled) and bool((np.abs(rows) < 1e9).all()):        # nor is any of them nan
        rows = rows.reshape(-1, 5)
        if rows.size == 0 or rows[:, [0, 3, 4]].min() >= 0:
            return rows
    for n, line in enumerate(lines, first):
        fields = line.split()
        if fields and len(fields) != 5:
            raise Drop("bad row", f"{where.format(n)} {len(fields)} values, 5 are needed")
        if fields and min([number(value, where.format(n)) for value in fields][i] for i in (0, 3, 4)) < 0:
            raise Drop("bad row", f"{where.format(n)} negative frame or size")
    raise Drop("bad row", f"{where.format(first)} is no table")


def contiguous(rows: Rows) -> list[Rows]:
    """Runs of rows whose frames follow each other."""
    return np.split(rows, np.flatnonzero(np.diff(rows[:, 0]) != 1) + 1)


def tree(location: Path) -> Iterator[Text]:
    """The utterance files of a folder or a zip, sorted by person, video and name. Raises ValueError."""
    if location.is_dir():
        yield from _folder(location)
    elif location.is_file():
        try:
            with zipfile.ZipFile(location) as archive:
                texts = (name for name in archive.namelist() if name.endswith(".txt"))
                for name in sorted((n for n in texts if _PERSON.fullmatch(_names(n)[0])), key=_names):
                    yield f"{location.stem}/{name}", partial(_member, archive, name)
        except zipfile.BadZipFile as error:
            raise ValueError(f"location: {location} is no sound zip ({error}); download it again") from None
    else:
        raise ValueError(f"location: {location} does not exist; give the folder or zip of the text files")


def _folder(location: Path) -> Iterator[Text]:
    people: list[tuple[str, str]] = []
    for folder, below, _ in os.walk(location):
        people += [(name, folder) for name in below if _PERSON.fullmatch(name)]
        below[:] = [name for name in below if not _PERSON.fullmatch(name)]       # a million files lie below
    if _PERSON.fullmatch(location.name):
        people = [(location.name, str(location.parent))]
    for person, same in groupby(sorted(people), lambda found: found[0]):
        files = [f for _, folder in same for f in Path(folder, person).glob("*/*.txt")]
        for path in sorted(files, key=lambda f: (f.parent.name, f.name, str(f))):
            # `location` is kept in the name, for it may say "test"; nothing above it is.
            inside = path.relative_to(location.parent if location.name != person else location.parent.parent)
            yield inside.as_posix(), partial(_file, path)


def _file(path: Path) -> bytes:
    """Raises Drop for what is no file that can be read."""
    try:
        if not path.is_file():
            raise Drop("bad row", f"{path.name} is no file")
        if path.stat().st_size > MOST_TEXT:
            raise Drop("bad row", f"{path.name}: more than {MOST_TEXT:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise Drop("bad row", f"{path.name}: {error.strerror}") from None


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Raises Drop for a damaged, encrypted or huge one."""
    if archive.getinfo(name).file_size > MOST_TEXT:
        raise Drop("bad row", f"{name}: more than {MOST_TEXT:,} bytes")
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, RuntimeError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise Drop("bad row", f"{name}: cannot be unpacked ({error})") from None


def _names(name: str) -> tuple[str, str, str]:
    """(person, video id, utterance) of a file name."""
    parts = ["", "", *name.removesuffix(".txt").split("/")]
    return parts[-3], parts[-2], parts[-1]


def _check_splits(splits: list[str], held_out_percent: int) -> None:
    unknown = set(splits) - {"train", "held-out", "test"}
    if unknown or not splits:
        raise ValueError(f"splits: {sorted(unknown) or 'none'}; choose from train, held-out, test")
    if not 0 <= held_out_percent <= 100:
        raise ValueError(f"held_out_percent: {held_out_percent} is no percentage; give 0 to 100")


@dataclass
class VoxMetadata(Source):
    """`vox-metadata.csv` of the video-preprocessing project: chunks of VoxCeleb1 with one box each."""

    location: str
    splits: list[str] = field(default_factory=lambda: ["train"])
    held_out_percent: int = 2

    COLUMNS = ("video_id", "start", "end", "bbox", "fps", "width", "height", "partition", "person_id")

    def __post_init__(self) -> None:
        _check_splits(self.splits, self.held_out_percent)

    def clips(self, store: Storage) -> Iterator[Clip]:
        """One unit per person and video. Raises ValueError naming file and line when columns are missing."""
        reader = csv.DictReader(lists.text_of(Path(self.location)).split("\n"))
        try:
            yield from self._units(reader)
        except csv.Error as error:
            where = f"{self.location}:{reader.line_num}"
            raise ValueError(f"{where}: is no sound csv ({error}); mend or remove the line") from None

    def _units(self, reader: csv.DictReader[str]) -> Iterator[Clip]:
        missing = [name for name in self.COLUMNS if name not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(f"{self.location}:1: no column {missing[0]!r}; give vox-metadata.csv")
        units: dict[tuple[str, str], list[Span]] = {}
        for row in reader:
            try:
                youtube_url(row["video_id"])
                span = self._span(row)
                units.setdefault((row["person_id"], row["video_id"]), []).append(span)
            except (Drop, TypeError, AttributeError) as error:
                detail = f"{self.location}:{reader.line_num}: {getattr(error, 'detail', 'too few columns')}"
                yield error_unit("voxmeta", f"line-{reader.line_num}", detail, "bad row", detail)
        for (person, video_id), spans in units.items():
            wanted = lists.keep_splits(spans, self.splits)
            yield unit("voxmeta", f"{person}-{video_id}", youtube_url(video_id), wanted, LICENCE, person)

    def _span(self, row: dict[str, str]) -> Span:
        columns = ("start", "end", "fps", "width", "height")
        start, end, fps, width, height = (number(row[column], column) for column in columns)
        sides = [number(v, "bbox") for v in row["bbox"].split("-")]
        if not (0 <= start < end and min(fps, width, height) > 0 and len(sides) == 4):
            raise Drop("bad row", f"start {start}, end {end}, fps {fps}, bbox {row['bbox']!r}")
        fractions = [side / size for side, size in zip(sides, (width, height) * 2, strict=True)]
        test = row["partition"].strip() == "test"
        return {
            "key": lists.safe_name(f"{row['start']}-{row['end']}-{row['bbox']}"),
            "start_s": start / fps, "end_s": end / fps, "frames": [int(start), int(end)], "fps_ref": fps,
            "boxes": [[0.0, *lists.checked_box(fractions, "bbox")]], "box_unit": "frame", "box_kind": "face",
            "identity": row["person_id"],
            "split": "test" if test else split_of(row["person_id"], self.held_out_percent),
            "row_sha1": lists.row_sha1(",".join(row.values())),
        }
