"""A list of addresses of one's own: csv (also with ";"), tsv or jsonl with a column `url`, and what is known.

Columns: url · start, end (s, the end excluded) · box ("left,top,right,bottom" as fractions of the upright
frame; in jsonl also a list) · identity · licence · split. All others are kept in the part's `row`.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar

from infra.json_text import encoder
from infra.scratch import put_all, temporary_database
from infra.storage import Storage
from stages.base import Drop, Source
from stages.clip import Clip
from stages.sources import lists
from stages.sources.lists import Span, number

_TEXTS = frozenset({"start", "end", "identity", "licence", "split"})
KNOWN = ("url", "start", "end", "box", "identity", "licence", "split")
ROWS = 512                                   # that are written and read at a time
Row = dict[str, Any]
_encode = encoder(compact=True)
_encode_sorted = encoder(sort_keys=True)


class _Rows:
    """The rows of a file, which may be millions: on the local disk until all are read."""

    def __init__(self) -> None:
        self._db = temporary_database()
        self._db.execute("CREATE TABLE rows (n INTEGER PRIMARY KEY, video TEXT, url TEXT, part TEXT)")
        self._db.execute("CREATE TABLE faults (line INTEGER, reason TEXT, detail TEXT)")
        self._page: list[tuple[str, str, str]] = []

    def add(self, video: str, url: str, part: str) -> None:
        self._page.append((video, url, part))
        if len(self._page) == ROWS:
            self._put()

    def fault(self, line: int, why: Drop) -> None:
        self._db.execute("INSERT INTO faults VALUES (?, ?, ?)", (line, why.reason, why.detail))

    def _put(self) -> None:
        put_all(self._db, "INSERT INTO rows (video, url, part) VALUES (?, ?, ?)", self._page)
        self._page = []

    def faults(self) -> Iterator[tuple[int, str, str]]:
        return self._db.execute("SELECT line, reason, detail FROM faults ORDER BY rowid")

    def videos(self) -> Iterator[tuple[str, str, list[Span]]]:
        """(video, its first address, its parts), in the order in which videos come first in the file."""
        self._put()
        for _, of_video in groupby(self._in_order(), itemgetter(0)):
            held = list(of_video)
            yield held[0][1], held[0][2], [row[3] for row in held]

    def _in_order(self) -> Iterator[tuple[int, str, str, Span]]:
        """(number of the first row of its video, video, url, part) of every row."""
        twice = self._db.execute("SELECT 1 FROM rows GROUP BY video HAVING count(*) > 1 LIMIT 1").fetchone()
        rows = self._db.execute(
            "SELECT first, video, url, part FROM "
            "(SELECT *, min(n) OVER (PARTITION BY video) AS first FROM rows) ORDER BY first, n"
            if twice else "SELECT n, video, url, part FROM rows ORDER BY n"
        )
        while page := rows.fetchmany(ROWS):
            parts = json.loads(f"[{','.join([row[3] for row in page])}]")
            yield from ((*row[:3], part) for row, part in zip(page, parts, strict=True))


@dataclass
class Urls(Source):
    """A file of addresses, one row per wanted part; rows of one video become one unit."""

    location: str                            # path of a .csv, .tsv or .jsonl file
    dataset: str = "urls"                    # the name of the list, in ids and reports
    licence: str = "unknown"                 # of rows that name none

    names_once: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if lists.safe_name(self.dataset) != self.dataset:
            raise ValueError(f"dataset: {self.dataset!r}; use letters, digits, _ and -")

    def clips(self, store: Storage) -> Iterator[Clip]:
        """One unit per video. Raises ValueError naming file and line for a file that is no such list."""
        rows = _Rows()
        from_json = Path(self.location).suffix.lower() == ".jsonl"
        for line, row in read_rows(Path(self.location)):
            url = str(row.get("url") or "").strip()
            try:
                if None in row:
                    raise Drop("bad row", "more values than columns")
                if from_json:
                    _check(row)
                if not url:
                    raise Drop("bad row", "the url is empty")
                identity = lists.source_id(url)
                rows.add(identity, url, _encode(self._span(row)))
            except Drop as drop:
                rows.fault(line, drop)
        for line, reason, detail in rows.faults():       # none before the whole file is known to be a list
            where = f"{Path(self.location).name}:{line}"
            yield lists.error_unit(self.dataset, f"line-{line}", where, reason, f"{where}: {detail}")
        for identity, url, parts in rows.videos():
            yield self._unit(identity, url, parts)

    def _unit(self, identity: str, url: str, found: list[Span]) -> Clip:
        name = identity.removeprefix("youtube:")
        if name == identity:
            name = hashlib.sha256(identity.encode()).hexdigest()[:12]
        spans = _distinct(found)
        people = {span.get("identity", "") for span in spans}
        licences = {span["licence"] for span in spans}
        return lists.unit(
            self.dataset, name, url, spans, licences.pop() if len(licences) == 1 else "several",
            people.pop() if len(people) == 1 else "", identity,
        )

    def _span(self, row: Row) -> Span:
        texts = {column: _text(row, column) for column in row.keys() & _TEXTS}
        span: Span = {"licence": texts.get("licence") or self.licence, "box_kind": "unknown"}
        for column in ("start", "end"):
            if texts.get(column):
                span[f"{column}_s"] = number(row[column], column)
        start, end = span.get("start_s", 0.0), span.get("end_s", 1e9)
        if not 0 <= start < end:
            raise Drop("bad row", f"it runs from {start:g} to {end:g} s")
        if row.get("box") not in (None, "", []):
            span |= {"boxes": [[0.0, *_box(row["box"])]], "box_unit": "frame"}
        span |= {column: texts[column] for column in ("identity", "split") if texts.get(column)}
        rest = {k: v for k, v in row.items() if k not in KNOWN and v not in (None, "")}
        return {**span, "row_sha1": lists.row_sha1(_encode_sorted(row)), "row": rest}


def _check(row: Row) -> None:
    try:
        lists.check_kept(row)
    except ValueError as error:
        raise Drop("bad row", f"a value cannot be kept ({error})") from None


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
    lines = lists.text_lines(path)
    first = next(lines, "")
    # Spreadsheets write what their country's comma leaves free.
    delimiter = max("\t;,", key=first.count)
    reader = csv.DictReader(chain([first], lines), delimiter=delimiter, strict=True)
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
        except (ValueError, RecursionError) as error:    # of syntax, of numbers too long, of depth
            cause = getattr(error, "msg", error)
            raise ValueError(
                f"{path}:{line}: is no complete json ({cause}); mend or remove the line"
            ) from None
        if not isinstance(row, dict) or (not found and "url" not in row):
            raise ValueError(f"{path}:{line}: is no object with a \"url\"; write one object per line")
        found = True
        yield line, row
