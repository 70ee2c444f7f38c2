"""What Python's collector of garbage need not look at."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """Leave what is there already alone meanwhile: to look through all that was imported, again and again, is
    a good part of what it takes to plan a million units."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
