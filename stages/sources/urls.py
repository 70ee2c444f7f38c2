"""A list of addresses of one's own: csv (also with ";"), tsv or jsonl with a column `url`, and what is known.

Columns: url · start, end (s, the end excluded) · box ("left,top,right,bottom" as fractions of the upright
frame; in jsonl also a list) · identity · licence · split. All others are kept in the part's `row`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.storage import Storage
from stages.base import Drop, Source
from stages.clip import Clip
from stages.sources import lists
from stages.sources.lists import Span, number

KNOWN = ("url", "start", "end", "box", "identity", "licence", "split")
Row = dict[str, Any]


@dataclass
class Urls(Source):
    """A file of addresses, one row per wanted part; rows of one video become one unit."""

    location: str                            # path of a .csv, .tsv or .jsonl file
    dataset: str = "urls"                    # the name of the list, in ids and reports
    licence: str = "unknown"                 # of rows that name none

    def __post_init__(self) -> None:
        if lists.safe_name(self.dataset) != self.dataset:
            raise ValueError(f"dataset: {self.dataset!r}; use letters, digits, _ and -")

    def clips(self, store: Storage) -> Iterator[Clip]:
        """One unit per video. Raises ValueError naming file and line for a file that is no such list."""
        videos: dict[str, list[tuple[str, Span]]] = {}
        for line, row in read_rows(Path(self.location)):
            url = str(row.get("url") or "").strip()
            try:
                if None in row:
                    raise Drop("bad row", "more values than columns")
                if not url:
                    raise Drop("bad row", "the url is empty")
                identity = lists.source_id(url)
                span = self._span(row)
            except Drop as drop:
                where = f"{Path(self.location).name}:{line}"
                yield lists.error_unit(
                    self.dataset, f"line-{line}", where, drop.reason, f"{where}: {drop.detail}"
                )
            else:
                videos.setdefault(identity, []).append((url, span))
        for identity, rows in videos.items():
            yield self._unit(identity, rows)

    def _unit(self, identity: str, rows: list[tuple[str, Span]]) -> Clip:
        name = identity.removeprefix("youtube:")
        if name == identity:
            name = hashlib.sha256(identity.encode()).hexdigest()[:12]
        url = rows[0][0]
        spans = _distinct([span for _, span in rows])
        people = {span.get("identity", "") for span in spans}
        licences = {span["licence"] for span in spans}
        return lists.unit(
            self.dataset, name, url, spans, licences.pop() if len(licences) == 1 else "several",
            people.pop() if len(people) == 1 else "",
        )

    def _span(self, row: Row) -> Span:
        span: Span = {"licence": _text(row, "licence") or self.licence, "box_kind": "unknown"}
        for column in ("start", "end"):
            if _text(row, column):
                span[f"{column}_s"] = number(row[column], column)
        start, end = span.get("start_s", 0.0), span.get("end_s", 1e9)
        if not 0 <= start < end:
            raise Drop("bad row", f"it runs from {start:g} to {end:g} s")
        if row.get("box") not in (None, "", []):
            span |= {"boxes": [[0.0, *_box(row["box"])]], "box_unit": "frame"}
        span |= {column: _text(row, column) for column in ("identity", "split") if _text(row, column)}
        rest = {k: v for k, v in row.items() if k not in KNOWN and v not in (None, "")}
        return {**span, "row_sha1": lists.row_sha1(json.dumps(row, sort_keys=True)), "row": rest}


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    return "" if value is None else str(value).strip()


def _box(value: Any) -> list[float]:
    sides = value if isinstance(value, list) else str(value).replace(";", ",").split(",")
    if len(sides) != 4:
        raise Drop("bad row", f"box has {len(sides)} sides; write left,top,right,bottom")
    return lists.checked_box([number(side, "box") for side in sides])


def _distinct(spans: list[Span]) -> list[Span]:
    """Give the parts of a video their keys: the start in ms, and a number where parts start together."""
    taken: dict[str, int] = {}
    for span in spans:
        key = f"{round(span.get('start_s', 0.0) * 1000):07d}"
        taken[key] = taken.get(key, -1) + 1
        span["key"] = key + (f"-{taken[key]}" if taken[key] else "")
    return spans


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(line, row) of a list. Raises ValueError naming file and line for a file without a column `url`."""
    kind = path.suffix.lower()
    if kind == ".jsonl":
        yield from _json_rows(path)
    elif kind in (".csv", ".tsv"):
        yield from _csv_rows(path)
    else:
        raise ValueError(f"location: {path} is no .csv, .tsv or .jsonl file; name one")


def _csv_rows(path: Path) -> Iterator[tuple[int, Row]]:
    text = lists.text_of(path)
    # Spreadsheets write what their country's comma leaves free.
    first = text.partition("\n")[0]
    delimiter = max("\t;,", key=first.count)
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        columns = [name.strip() for name in reader.fieldnames or []]
        if "url" not in columns:
            given = ", ".join(columns)[:80] or "none"
            raise ValueError(f"{path}:1: no column 'url' among {given}; add it")
        if len(set(columns)) != len(columns):
            raise ValueError(f"{path}:1: two columns of one name; rename one")
        reader.fieldnames = columns
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        line = reader.reader.line_num
        raise ValueError(f"{path}:{line}: is no sound csv ({error}); mend or remove the line") from None


def _json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    found = False
    for line, text in lists.lines_of(path):
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            cure = "mend or remove the line"
            raise ValueError(f"{path}:{line}: is no complete json ({error.msg}); {cure}") from None
        if not isinstance(row, dict) or (not found and "url" not in row):
            raise ValueError(f"{path}:{line}: is no object with a \"url\"; write one object per line")
        found = True
        yield line, row
