"""What must not be used: a list of videos, addresses, people and clips, and who is meant by it.

The file is text, csv, tsv or jsonl (UTF-8), one entry per line:

    text    video:ID · url:ADDRESS · identity:NAME · clip:ID · a bare address or id, of whatever kind
            lines that begin with "#", and what follows " #", are comments
    csv     with a header: columns of these names; or `kind` and `id`; all other columns are notes
            without one: the first column is as in text, the others are notes
    jsonl   objects with these keys, or texts

A YouTube address means its id, in every form that YouTube has for it. Other addresses mean the same with http
and https. `clip` also means what was cut from a clip or video of that id.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.paths import expanded
from stages.base import Drop
from stages.provenance import clean
from stages.sources import lists

TAKEN_DOWN = "taken down"                    # the reason of what the list names
KINDS = ("video", "url", "identity", "clip")
LONGEST = 2000                               # characters of an entry
_TYPED = re.compile(r"([A-Za-z_]+):(?!//)\s*(.*)")
_YOUTUBE = re.compile(r"([a-z]+\.)?(youtube(-nocookie)?\.com|youtu\.be)/", re.IGNORECASE)
_CUT = re.compile(r"_\d{7,}([_-].*)?$")      # what cutting adds to an id: see stages.shots


@dataclass(frozen=True)
class Entry:
    """One line of the list, normalised: "video:id", "url:host/path", "identity:name", "clip:id", "any:id"."""

    text: str
    line: int

    @property
    def hash(self) -> str:
        """What stays in the store of an entry."""
        return hash_of(self.text)


@dataclass(frozen=True)
class Takedown:
    """A list. Empty when there is none."""

    path: str = ""
    entries: tuple[Entry, ...] = ()
    _keys: dict[str, Entry] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._keys.update((entry.text, entry) for entry in reversed(self.entries))

    def __bool__(self) -> bool:
        return bool(self.entries)

    @property
    def digest(self) -> str:
        """Equal for equal lists, whatever their order and form."""
        return hashlib.sha256("\n".join(sorted(self._keys)).encode()).hexdigest()

    def find(self, *, unit: str = "", identity: str = "", sources: Iterable[str] = ()) -> Entry | None:
        """The entry that means a unit: by its id, its person, or any of its video's names."""
        if not self._keys:
            return None
        names = [*_of_unit(unit), *((f"identity:{identity}", f"any:{identity}") if identity else ())]
        for name in names:
            if name in self._keys:
                return self._keys[name]
        for source in sources:
            for name in _of_source(source):
                if name in self._keys:
                    return self._keys[name]
        return None

    def videos(self) -> Iterator[str]:
        """`source_id` of every video that the list names as such, as downloads are kept by it."""
        for text in self._keys:
            kind, _, value = text.partition(":")
            if kind in ("video", "any") and lists.YOUTUBE_ID.fullmatch(value):
                yield f"youtube:{value}"
            elif kind == "url":
                yield from (f"https://{value}", f"http://{value}")


def hash_of(text: str) -> str:
    """A name that tells who knows the text, and nobody else, what is meant. 32 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def uncut(unit: str) -> str:
    """The id of the listed part, or video, that a clip was cut from."""
    return _CUT.sub("", unit)


def _of_unit(unit: str) -> tuple[str, ...]:
    names = dict.fromkeys((unit, uncut(unit))) if unit else ()
    return tuple(f"{kind}:{name}" for name in names for kind in ("clip", "any"))


@functools.lru_cache(maxsize=1 << 16)
def _of_source(source: str) -> tuple[str, ...]:
    """All entries that would mean a video: of its address, or of the path that a list names it by."""
    if source.startswith("youtube:"):
        name = source.removeprefix("youtube:")
        return f"video:{name}", f"any:{name}"
    address = _address(source) if "://" in source else ""
    if address.startswith("youtube:"):
        return _of_source(address)
    if address:
        last = address.partition("?")[0].rpartition("/")[2]
        return f"url:{address}", f"video:{last}", f"video:{_stem(last)}"
    parts = [part for part in re.split(r"[/\\#]", source) if part]
    names = dict.fromkeys([source, _stem(source), *parts, *map(_stem, parts)])
    last = parts[-1] if parts else source
    return (
        *(f"video:{name}" for name in names),
        *(f"any:{name}" for name in dict.fromkeys((source, _stem(source), last, _stem(last)))),
    )


def _address(url: str) -> str:
    """"youtube:<id>", or host, path and query; "" for what is no address."""
    try:
        found = lists.source_id(str(clean(url.strip())))
    except Drop:
        return ""
    return found if found.startswith("youtube:") else found.partition("://")[2]


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


# --- the file --------------------------------------------------------------------------------------------


def read_takedown(path: str | Path) -> Takedown:
    """Read a list. Raises ValueError, one line with file and line, for one that cannot be followed."""
    name = str(path)
    try:
        text = lists.decode(expanded(path).read_bytes(), name)
    except OSError as error:
        cause = error.strerror or "no such file"
        raise ValueError(f"policy.takedown: cannot read {name} ({cause}); name an existing file") from None
    kind = Path(path).suffix.lower()
    if kind in (".csv", ".tsv"):
        rows = _csv_rows(text, name, "\t" if kind == ".tsv" else ",")
    else:
        rows = _json_rows(text, name) if kind == ".jsonl" else _text_rows(text)
    entries = []
    for line, kind, value in rows:
        try:
            entries.append(Entry(_normal(kind, value), line))
        except ValueError as error:
            raise ValueError(f"{name}:{line}: {error}") from None
    return Takedown(name, tuple(entries))


Row = tuple[int, str, str]                   # line, kind ("" for one to be found out), value


def _text_rows(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        kept = "" if line.lstrip().startswith("#") else re.split(r"\s#", line, maxsplit=1)[0].strip()
        if kept:
            yield number, "", kept


def _csv_rows(text: str, name: str, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if not any(cells) or cells[0].startswith("#"):
                continue
            if columns is None:
                columns = [cell.lower() for cell in cells]
                if {*columns} & {*KINDS} or {"kind", "id"} <= {*columns}:
                    continue
                columns = []
            line = reader.line_num
            if not columns:
                yield line, "", cells[0]
                continue
            found = list(_of_mapping(dict(zip(columns, cells, strict=False)), line))
            if len(cells) > len(columns) or not found:
                problem = "more values than columns" if found else f"none of {', '.join(KINDS)} is filled"
                raise ValueError(f"{name}:{line}: {problem}; mend or remove the line")
            yield from found
    except csv.Error as error:
        raise ValueError(f"{name}:{reader.line_num}: is no sound csv ({error}); mend the line") from None


def _json_rows(text: str, name: str) -> Iterator[Row]:
    for line, raw in enumerate(text.split("\n"), 1):
        if not raw.strip() or raw.lstrip().startswith("#"):
            continue
        try:
            row = json.loads(raw)
        except (ValueError, RecursionError):             # of syntax, of numbers too long, of depth
            raise ValueError(f"{name}:{line}: is no complete json; mend or remove the line") from None
        found = [(line, "", row)] if isinstance(row, str) else []
        found = found or list(_of_mapping(row, line) if isinstance(row, dict) else [])
        if not found:
            raise ValueError(f"{name}:{line}: names nothing; write an object with one of {', '.join(KINDS)}")
        yield from found


def _of_mapping(row: dict[str, Any], line: int) -> Iterator[Row]:
    for kind in KINDS:
        if row.get(kind) not in (None, ""):
            yield line, kind, str(row[kind])
    if "kind" in row and row.get("id") not in (None, ""):
        yield line, str(row["kind"]).strip().lower() or "nothing", str(row["id"])


def _normal(kind: str, value: str) -> str:
    """The normalised text of an entry. Raises ValueError."""
    value = value.strip()
    if not kind and (typed := _TYPED.fullmatch(value)):
        kind, value = typed[1].lower(), typed[2].strip()
        if kind == "youtube":
            kind = "video"
    if kind and kind not in KINDS:
        raise ValueError(f"no kind {kind[:40]!r}; write {':, '.join(KINDS)}: before the id")
    # What cannot be seen, such as a blank of width zero that was copied along, would keep it from meaning
    # anything. In names of people joiners are letters.
    seen = re.sub("[\u200c\u200d\u00a0]", "", value) if kind == "identity" else value
    if not value or len(value) > LONGEST or not seen.isprintable():
        what = "control characters, or what cannot be seen"
        raise ValueError(f"the id is empty, too long or holds {what}; mend or remove the line")
    if kind in ("", "video", "url") and ("://" in value or _YOUTUBE.match(value)):
        return _normal_address(value)
    if kind == "url":
        raise ValueError(f"{value[:80]!r} is no http address; write it in full, or video: before an id")
    if kind == "video":
        value = value.removeprefix("youtube:")
    if kind != "identity" and re.search(r"\s", value):
        raise ValueError(f"{value[:80]!r} holds a blank; write identity: before a name, one entry per line")
    return f"{kind or 'any'}:{value}"


def _normal_address(value: str) -> str:
    address = _address(value if "://" in value else f"https://{value}")
    if not address:
        raise ValueError(f"{value[:80]!r} is no http address that can be followed; mend or remove the line")
    if address.startswith("youtube:"):
        return f"video:{address.removeprefix('youtube:')}"
    if _YOUTUBE.match(address):
        raise ValueError(f"{value[:80]!r} is the address of no video; write that of each video")
    return f"url:{address}"
