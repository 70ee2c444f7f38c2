"""A list that may be long: lines of JSON in a file beyond the first megabytes, never all in memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from itertools import islice
from typing import IO, Any

_IN_MEMORY = 8 << 20                         # bytes


class Lines:
    """JSON objects in the order they came. Read as often as wanted, one reader at a time."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY, mode="w+", encoding="utf-8", prefix="pv3d-")  # noqa: SIM115
        self._count = 0

    def __del__(self) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (json.loads(line) for line in self.texts())

    def append(self, value: dict[str, Any]) -> None:
        self._file.write(json.dumps(value) + "\n")
        self._count += 1

    def first(self, count: int) -> list[dict[str, Any]]:
        return list(islice(self, count))

    def texts(self) -> Iterator[str]:
        """The objects as they are written."""
        self._file.seek(0)
        for line in self._file:
            yield line.rstrip("\n")
        self._file.seek(0, 2)


def write_json(value: dict[str, Any], file: IO[str]) -> None:
    """One object on one line; `Lines` among its values are written one by one."""
    between = "{"
    for name, part in value.items():
        file.write(f"{between}{json.dumps(name)}: ")
        between = ", "
        if not isinstance(part, Lines):
            file.write(json.dumps(part))
            continue
        file.write("[")
        for number, line in enumerate(part.texts()):
            file.write(f", {line}" if number else line)
        file.write("]")
    file.write("}\n" if value else "{}\n")
