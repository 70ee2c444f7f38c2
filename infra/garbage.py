"""What Python's collector of garbage need not look at."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

SELDOM = 20_000                              # new objects, as many as some pages of records are


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """Leave what is there already alone meanwhile: to look through all that was imported, again and again, is
    a good part of what it takes to plan a million units."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(SELDOM, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
