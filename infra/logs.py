"""The log of a command: a line per message on stderr."""

from __future__ import annotations

import logging
import os
import sys

from infra.words import printable

VARIABLE = "PV3D_LOG"
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
LONGEST = 4000                               # characters of a line that is told


def start() -> None:
    """Raises ValueError where PV3D_LOG is no level."""
    level = os.environ.get(VARIABLE) or "INFO"
    if level.upper() not in LEVELS:
        raise ValueError(f"{VARIABLE}: {printable(level)!r} is no level; give {', '.join(LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])


class _OneLine(logging.Formatter):
    """Names and reasons in a message may be of others; tracebacks stay as they are."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(super().formatMessage(record), LONGEST)


def shown(text: str) -> str:
    """Text of several lines, each without what a terminal would act on."""
    return "\n".join(printable(line, LONGEST) for line in text.split("\n"))
