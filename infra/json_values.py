"""JSON that others may have written or damaged: whatever is wrong with it is a ValueError of one line."""

from __future__ import annotations

import json
from typing import Any

from infra.storage import Storage


def parsed(data: bytes | str) -> Any:
    """As `json.loads`. Raises ValueError, also where it is nested deeper than can be read."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None


def parsed_object(data: bytes | str) -> dict[str, Any]:
    """As `parsed`. Raises ValueError where it is no object."""
    value = parsed(data)
    if not isinstance(value, dict):
        raise ValueError(f"an object was expected, not {type(value).__name__}")
    return value


def is_number(value: object) -> bool:
    """Whether it is a finite number that a float can hold; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300                # not so for NaN


def read_object(store: Storage, key: str) -> dict[str, Any]:
    """What is kept as a JSON object. Raises FileNotFoundError, and ValueError that names it."""
    try:
        return parsed_object(store.read(key))
    except ValueError:
        raise damaged(store, key) from None


def read_text(store: Storage, key: str, name: str) -> str:
    """A field of `read_object` that is text."""
    value = read_object(store, key).get(name)
    if not isinstance(value, str):
        raise damaged(store, key)
    return value


def damaged(store: Storage, key: str) -> ValueError:
    return ValueError(f"{key} in {store.root} is damaged; bring it back, or choose another storage.root")
