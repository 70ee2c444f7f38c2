"""Local paths as people write them."""

from __future__ import annotations

from pathlib import Path


def expanded(text: str | Path) -> Path:
    """The path with "~" and "~name" replaced; one of a user whom nobody knows stays as it is."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)
