"""A store for who must change nothing: what is written is passed over in silence."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from infra.storage import Storage

S = TypeVar("S", bound=Storage)


class _ReadOnly:
    """Put before a kind of storage. Sources that make their videos, and a ledger that drops what is damaged,
    need not know."""

    def write(self, key: str, data: bytes) -> None:
        """Nothing."""

    def create(self, key: str, data: bytes) -> bool:
        return True

    def upload(self, key: str, path: Path) -> None:
        """Nothing."""

    def delete(self, key: str) -> None:
        """Nothing."""

    def delete_all(self, keys: Sequence[str]) -> None:
        """Nothing."""


def read_only(store: S) -> S:
    """The same store, of the same kind, that takes nothing and keeps everything."""
    other = copy.copy(store)
    kind = type(store)
    other.__class__ = type(f"ReadOnly{kind.__name__}", (_ReadOnly, kind), {})
    return other


def is_read_only(store: Storage) -> bool:
    """Whether it is for who must change nothing."""
    return isinstance(store, _ReadOnly)
