"""Temporary databases as `infra.scratch` makes them, but in memory, and used again by the next run.

The statements are those of the product. But the tables of a run before are still there, without their rows:
to make tables and to prepare statements takes longer than all that a small run does with them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any


class _Kept:
    """A database, and the statements that made its tables and indices."""

    def __init__(self) -> None:
        # Actors of other threads have it next, and never two at once.
        self.db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self.db.execute("PRAGMA journal_mode=OFF")
        self.made: set[str] = set()
        self.used = False                    # since it was emptied

    def empty(self) -> None:
        if self.db.in_transaction:           # of a process that died
            self.db.commit()
        for statement in self.made:
            if statement.startswith("CREATE TABLE "):
                self.db.execute(f"DELETE FROM {statement.split()[2]}")
        self.used = False


class _Lent:
    """As a connection; whoever has it is the only one."""

    def __init__(self, shelf: list[_Kept]) -> None:
        self._shelf, self._kept = shelf, shelf.pop() if shelf else _Kept()
        if self._kept.used:
            self._kept.empty()

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        if statement.startswith("CREATE "):
            if statement in self._kept.made:
                return self._kept.db.cursor()
            self._kept.made.add(statement)
        elif statement.startswith("DROP TABLE "):
            statement = f"DELETE FROM {statement.split()[2]}"
        elif not statement.startswith("SELECT "):
            self._kept.used = True
        return self._kept.db.execute(statement, *values)

    def executemany(self, *statement: Any) -> sqlite3.Cursor:
        return self._kept.db.executemany(*statement)

    @property
    def total_changes(self) -> int:
        return self._kept.db.total_changes

    def close(self) -> None:
        if "_kept" in vars(self):
            self._shelf.append(self._kept)
            del self._kept

    def __del__(self) -> None:               # most are never closed: they go with their process
        self.close()


def lender() -> Callable[..., Any]:
    """What stands in for `temporary_database` where always the same tables are made."""
    shelf: list[_Kept] = []
    return lambda *_: _Lent(shelf)
