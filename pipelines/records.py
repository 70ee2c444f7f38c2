"""What the ledger says of a unit, as values and as a line of a segment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from infra.json_text import encoder
from pipelines.record_types import check
from stages.clip import Clip

_encode = encoder(compact=True)

At = tuple[int, int, int, int]               # of a clip in the .npz of its segment: see `pipelines.segments`


@dataclass(slots=True)
class Output:
    """One clip that came out of a unit."""

    id: str
    digest: str
    state: str = "ok"                        # ok or rejected
    reason: str = ""
    detail: str = ""
    identity: str = ""
    at: At | None = None                     # once it is written
    clip: Clip | None = None                 # until then


@dataclass(slots=True)
class Record:
    """What a stage did to one unit."""

    unit: str
    source: str
    key: str                                 # of the stage
    input: str                               # digest of the clip that went in
    state: str                               # ok, rejected or failed
    reason: str = ""
    detail: str = ""
    attempts: int = 1
    seconds: float = 0.0
    outputs: list[Output] = field(default_factory=list)
    group: str = ""                          # group stages: the group and the digest of all its members
    members: str = ""
    again: bool = False                      # failed, and the next run tries it again
    segment: str = ""                        # where it was read from; not written


@dataclass(slots=True)
class Ref:
    """A clip that may still be in the store."""

    id: str
    digest: str
    source: str
    identity: str = ""
    segment: str = ""
    at: At | None = None
    clip: Clip | None = None


def to_line(record: Record) -> str:
    """A line of a segment, without its end. The unit comes first; what is as usual is left out."""
    values: dict[str, Any] = {
        "unit": record.unit, "source": record.source, "key": record.key, "input": record.input,
        "state": record.state, "seconds": round(record.seconds, 4),
    }  # fmt: skip
    for name in ("reason", "detail", "group", "members", "again"):
        if value := getattr(record, name):
            values[name] = value
    if record.attempts != 1:
        values["attempts"] = record.attempts
    if record.outputs:
        values["outputs"] = [_output(out) for out in record.outputs]
    return _encode(values)


def _output(out: Output) -> dict[str, Any]:
    values: dict[str, Any] = {"id": out.id, "digest": out.digest}
    if out.state != "ok":
        values["state"] = out.state
    for name in ("reason", "detail", "identity"):
        if value := getattr(out, name):
            values[name] = value
    return {**values, "at": out.at}


def unit_of(line: str) -> str:
    """The unit of a line, without reading the rest of it. Raises ValueError."""
    if not line.startswith('{"unit":"'):
        raise ValueError("a line without a unit")
    unit = line[9:line.index('"', 9)]
    return str(json.loads(line)["unit"]) if "\\" in unit else unit


def from_lines(lines: Sequence[str], segments: Iterable[str]) -> list[Record]:
    """The records of lines, each with its segment. Raises what `pipelines.segments.DAMAGED` names."""
    parsed = json.loads(text := f"[{','.join(lines)}]")
    if "\\ud" in text or "\\uD" in text:    # half a character, that no page and no terminal could show
        parsed = json.loads(json.dumps(parsed, ensure_ascii=False).encode(errors="replace"))
    try:
        check(parsed, [out for values in parsed for out in values.get("outputs", ())])
    except (AttributeError, TypeError):
        raise ValueError("no records") from None
    records = []
    for values, segment in zip(parsed, segments, strict=True):
        values["outputs"] = [Output(**out) for out in values.get("outputs", ())]
        records.append(Record(**values, segment=segment))
    return records


def members_digest(refs: Iterable[Ref]) -> str:
    """sha256 (hex) of ids and digests, whatever their order."""
    return pairs_digest(sorted((ref.id, ref.digest) for ref in refs))


def pairs_digest(pairs: Iterable[tuple[str, str]]) -> str:
    """As `members_digest`, of (id, digest) that come sorted: a million need no memory."""
    sha = hashlib.sha256()
    for unit, digest in pairs:
        sha.update(f"{unit} {digest}\n".encode())
    return sha.hexdigest()
