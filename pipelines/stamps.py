"""Names of segments: <stamp>-<number>-<random>, by when they were written; later ones win.

A clock may be behind, or once have been ahead: a new stamp is later than all that are there.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_FORMAT = "%Y%m%dT%H%M%S.%fZ"
_NAME = re.compile(r"([0-9]{8}T[0-9]{6}\.[0-9]{6}Z)-[0-9a-zA-Z-]+\.jsonl")
_END = datetime(9999, 1, 1, tzinfo=UTC)      # nothing could come after it

NEVER = datetime.min.replace(tzinfo=UTC)


def stamp_of(segment: str) -> datetime | None:
    """When a segment says that it was written; None when it does not."""
    match = _NAME.fullmatch(segment.rpartition("/")[2])
    try:
        stamp = datetime.strptime(match[1], _FORMAT).replace(tzinfo=UTC) if match else _END
    except ValueError:
        return None
    return stamp if stamp < _END else None


def after(latest: datetime, now: datetime) -> datetime:
    """The stamp of a segment that is written now, later than `latest`."""
    return max(now, latest + timedelta(microseconds=1))


def as_name(stamp: datetime) -> str:
    """As names begin."""
    return stamp.strftime(_FORMAT)
