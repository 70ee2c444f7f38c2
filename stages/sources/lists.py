"""What the lists of videos have in common: text, ids, the units they become, and rows that cannot be used.

A list becomes one `Clip` per video, however many parts of it are wanted, so that each video is downloaded and
opened once. Until the download `Clip.video` is the URL. `Clip.listed` holds JSON values:

    source_id   the video, whatever list names it: "youtube:<id>", else the URL without its fragment
    error       the row cannot be used: the first stage rejects the unit with this reason, and with `detail`
    spans       the wanted parts; without it the whole video is wanted. Each is a dictionary of

        key             unique in the unit, [A-Za-z0-9_-]+: the ids of its clips start with "<unit id>-<key>"
        start_s, end_s  seconds of the source, the end excluded; absent where the source begins or ends
        frames          [first, end) frame numbers at fps_ref, or of the chunk, as listed
        fps_ref, chunk  what they count; a part with a chunk and no start_s has to be located first
        boxes           [[t, left, top, right, bottom], ...]: seconds after start_s, and fractions of the
                        upright frame; a few per part, a single one holds throughout
        box_unit        "frame": fractions of width and height; "height": both of the height
        box_kind        face, head, tube or unknown
        identity, licence, split
        error, detail   this part is rejected with this reason, the others live on
        row_sha1        of the list's own row
        row             the row's other columns

    span        in place of `spans`, the one part that a clip was cut from
    unit        the first id of a unit that the download divided into several files

Rows that cannot be used thus end in the report like any other unit. A file that cannot be read as a list at
all is the user's mistake: ValueError, naming file, line and cure.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from stages.base import Drop, Rejected
from stages.clip import Clip

Span = dict[str, Any]
Box = tuple[float, float, float, float]

YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
_WATCH = re.compile(r"https://www\.youtube\.com/watch\?v=([A-Za-z0-9_-]{11})")
_NAME = re.compile(r"[A-Za-z0-9_-]+")
MOST_DEPTH = 20                  # of the values of a row


def text_of(path: Path) -> str:
    """A text file: UTF-8 with or without a byte order mark, line ends as "\\n". Raises ValueError."""
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        raise ValueError(f"location: cannot read {path} ({error.strerror}); name an existing file") from None


def decode(data: bytes, name: str) -> str:
    """As `text_of`, of bytes that were read."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[:error.start].count(b"\n") + 1
        raise ValueError(f"{name}:{line}: is not UTF-8 text; save the list as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def text_lines(path: Path) -> Iterator[str]:
    """As `text_of`, a line with its end at a time, of files that are too large to hold."""
    try:
        with path.open(encoding="utf-8-sig") as file:    # any line end becomes "\n"
            yield from file
    except UnicodeDecodeError:
        text_of(path)                                    # says where
        raise
    except OSError:
        text_of(path)
        raise


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, stripped line) of the lines of a text file that hold something."""
    for number, line in enumerate(text_of(path).split("\n"), 1):
        if line.strip():
            yield number, line.strip()


def safe_name(raw: str) -> str:
    """`raw` with nothing but [A-Za-z0-9_-]; one that needed changes keeps a hash, so that none collide."""
    if _NAME.fullmatch(raw) and len(raw) <= 64:
        return raw
    kept = re.sub(r"[^A-Za-z0-9_-]+", "-", raw)[:40].strip("-")
    return f"{kept}-{hashlib.sha256(raw.encode(errors='surrogatepass')).hexdigest()[:8]}".lstrip("-")


def check_kept(value: Any) -> None:
    """Raise ValueError for a JSON value that no record can hold: not finite, not Unicode, nested deeply."""
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level, depth = [value], 0
    while level := [item for held in level for item in _items(held)]:
        depth += 1
        if depth > MOST_DEPTH:
            raise ValueError("nested too deeply")


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def row_sha1(row: str) -> str:
    return hashlib.sha1(row.strip().encode(), usedforsecurity=False).hexdigest()


def is_here(video: str) -> bool:
    """Whether `Clip.video` can be opened as it is: a file, a key of the store, or an object on S3."""
    return "://" not in video or video.startswith("s3://")


def youtube_url(video_id: str) -> str:
    """The address of a video. The id goes where a leading "-" is no option. Raises Drop for a broken id."""
    if not YOUTUBE_ID.fullmatch(video_id):
        raise Drop("bad row", f"{video_id[:40]!r} is no YouTube id (11 letters, digits, - or _)")
    return f"https://www.youtube.com/watch?v={video_id}"


@functools.lru_cache(maxsize=1024)
def source_id(url: str) -> str:
    """What is equal for all addresses of one video. Raises Drop for an address that is never downloaded from.

    Only http and https are: a list must not be able to name files of the machine that reads it.
    """
    if common := _WATCH.fullmatch(url):
        return f"youtube:{common[1]}"
    if re.search(r"[\x00-\x20\x7f]", url.strip()):
        raise Drop("bad row", "the url holds a blank or a control character")
    try:
        parts = urlsplit(url.strip())
        host = (parts.hostname or "").lower()
        port = parts.port
    except ValueError as error:
        raise Drop("bad row", f"the url is malformed: {error}") from None
    if parts.scheme.lower() not in ("http", "https") or not host:
        raise Drop("refused url", f"{parts.scheme[:20] or 'no'} scheme; only http and https are downloaded")
    if parts.username or parts.password:
        raise Drop("refused url", "it holds a name or password; use cookies, or a proxy named by env:")
    if video_id := _youtube_id(host, parts.path, parts.query):
        return f"youtube:{video_id}"
    where = host if port is None else f"{host}:{port}"
    return f"{parts.scheme.lower()}://{where}{parts.path}" + (f"?{parts.query}" if parts.query else "")


def _youtube_id(host: str, path: str, query: str) -> str:
    pieces = [piece for piece in path.split("/") if piece]
    found = ""
    if host == "youtu.be" and pieces:
        found = pieces[0]
    elif re.sub(r"^(www|m|music)\.", "", host) in ("youtube.com", "youtube-nocookie.com"):
        if pieces[:1] == ["watch"]:
            found = parse_qs(query).get("v", [""])[0]
        elif len(pieces) > 1 and pieces[0] in ("shorts", "embed", "v", "live"):
            found = pieces[1]
    return found if YOUTUBE_ID.fullmatch(found) else ""


def unit(
    dataset: str, name: str, url: str, spans: Sequence[Span], licence: str = "unknown", identity: str = "",
    known: str = "",
) -> Clip:  # fmt: skip
    """One listed video. `name` distinguishes it in its data set, raw. A url we refuse gives an error unit.
    `known`: its `source_id`, where that was asked for already."""
    try:
        listed = {"source_id": known or source_id(url), **({"spans": _own_keys(spans)} if spans else {})}
    except Drop as drop:
        return error_unit(dataset, name, url, drop.reason, drop.detail)
    return Clip(
        id=safe_name(f"{dataset}-{name}"), source=_public(url), video=url, dataset=dataset, licence=licence,
        identity=identity, listed=listed,
    )


def _public(url: str) -> str:
    """The address without what signs it: reports and records of many kinds name a video by it."""
    if "?" not in url or _WATCH.fullmatch(url):
        return url
    # Imported here, for it imports this module.
    from stages.provenance import clean

    return str(clean(url))


def _own_keys(spans: Sequence[Span]) -> list[Span]:
    """Parts that a list names twice get a number: each must be accounted for."""
    if len(spans) == 1:
        return list(spans)
    taken: set[str] = set()
    own: list[Span] = []
    for span in spans:
        key, number = span["key"], 1
        while key in taken:
            number += 1
            key = f"{span['key']}-{number}"
        taken.add(key)
        own.append(span if key == span["key"] else {**span, "key": key})
    return own


def error_unit(dataset: str, name: str, source: str, reason: str, detail: str) -> Clip:
    """A row that cannot be used, as a unit that the first stage rejects."""
    told = (source or name).encode(errors="backslashreplace").decode()       # it may be no Unicode
    return Clip(
        id=safe_name(f"{dataset}-{name}"), source=told, video="", dataset=dataset,
        listed={"error": reason, "detail": detail},
    )


def refuse(clip: Clip) -> Iterator[Rejected]:
    """Reject what the list marked: Drop for a unit, a Rejected for a part, which is taken out of `clip`.

    The first stage calls it, and goes on only when `clip.listed["spans"]` still holds something.
    """
    if "error" in clip.listed:
        raise Drop(str(clip.listed["error"]), str(clip.listed.get("detail", "")))
    spans = clip.listed.get("spans")
    if not spans:
        return
    for span in spans:
        if "error" in span:
            yield Rejected(span_clip(clip, span), str(span["error"]), str(span.get("detail", "")))
    clip.listed = {**clip.listed, "spans": [span for span in spans if "error" not in span]}


class Part(NamedTuple):
    """One wanted part of a video, seconds of the source; infinite where the source begins or ends."""

    clip: Clip
    start_s: float
    end_s: float


def parts(clip: Clip) -> list[Part]:
    """Every wanted part, with a record of its own, for the stage that cuts; the whole video is one part.

    Raises Drop for parts whose place is not known yet.
    """
    spans = clip.listed.get("spans")
    if not spans:
        return [Part(clip, -math.inf, math.inf)]
    if any("chunk" in span and "start_s" not in span for span in spans):
        raise Drop("not located", "put stages.sources.talkinghead:LocateChunks before this stage")
    return [Part(span_clip(clip, s), s.get("start_s", -math.inf), s.get("end_s", math.inf)) for s in spans]


def span_clip(clip: Clip, span: Span) -> Clip:
    """The part of a listed video as a record of its own: `listed["span"]` is the part's own row."""
    listed = {k: v for k, v in clip.listed.items() if k not in ("spans", "unit")}
    # A unit that the download divided has its first id there, so that ids do not depend on how it did.
    unit_id = clip.listed.get("unit", clip.id)
    return clip.copy(
        id=f"{unit_id}-{span['key']}", identity=str(span.get("identity", clip.identity)),
        licence=str(span.get("licence", clip.licence)), listed={**listed, "span": span},
    )


def box_at(span: Span, time_s: float, width: int, height: int) -> Box | None:
    """The listed box at a time of the source, as left, top, right, bottom in px of the upright frame.

    Straight lines between listed times. None when nothing is listed.
    """
    boxes = span.get("boxes")
    if not boxes:
        return None
    t = time_s - span.get("start_s", 0.0)
    after = next((i for i, box in enumerate(boxes) if box[0] > t), len(boxes))
    first, second = boxes[max(after - 1, 0)], boxes[min(after, len(boxes) - 1)]
    gap = second[0] - first[0]
    share = min(max((t - first[0]) / gap, 0.0), 1.0) if gap > 0 else 0.0
    sides = zip(first[1:], second[1:], strict=True)
    left, top, right, bottom = ((1 - share) * a + share * b for a, b in sides)
    x = height if span.get("box_unit") == "height" else width
    return left * x, top * height, right * x, bottom * height


def split_of(identity: str, held_out_percent: int) -> str:
    """"train" or "held-out", by a hash of the person: additions and reruns never move anybody."""
    number = int(hashlib.sha256(identity.encode()).hexdigest()[:8], 16)
    return "held-out" if number % 100 < held_out_percent else "train"


def keep_splits(spans: Iterable[Span], wanted: Sequence[str]) -> list[Span]:
    """Mark the parts whose split is not wanted, so that they end as rejected with that reason."""
    return [
        span if "error" in span or span.get("split") in wanted
        else {**span, "error": "other split", "detail": str(span.get("split"))}
        for span in spans
    ]


def number(text: Any, what: str) -> float:
    """A finite number. Raises Drop."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        raise Drop("bad row", f"{what} {str(text)[:40]!r} is no number") from None
    if not abs(value) < 1e9:                             # also refuses nan
        raise Drop("bad row", f"{what} {text} is out of range")
    return value


def checked_box(values: Sequence[float], what: str = "box", high: float = 1.5) -> list[float]:
    """left, top, right, bottom as fractions that make a box. Raises Drop."""
    left, top, right, bottom = values
    if not (left < right and top < bottom and min(values) >= -0.5 and max(values) <= high):
        given = [round(v, 4) for v in values]
        raise Drop("bad row", f"{what} {given} is no box of fractions (left, top, right, bottom)")
    return [round(float(v), 6) for v in values]
