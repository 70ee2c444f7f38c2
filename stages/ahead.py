"""Take items from an iterator a little ahead of their use, in a thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], count: int) -> Iterator[T]:
    """The same items in the same order, taken `count` at a time. What `items` raises comes in its place.

    For work that holds no lock of Python's, such as decoding while a model computes: in bursts, because two
    threads that take turns at every item cost more than they hide.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(_take, iterator, count)
        try:
            while True:
                taken, error = waiting.result()
                if len(taken) == count:
                    waiting = thread.submit(_take, iterator, count)
                yield from taken
                if error is not None:
                    raise error
                if len(taken) < count:
                    return
        finally:
            waiting.cancel()


def _take(items: Iterator[T], count: int) -> tuple[list[T], Exception | None]:
    """Up to `count` items, and what stopped it from taking more, unless it was their end."""
    taken: list[T] = []
    try:
        taken.extend(islice(items, count))
    except Exception as error:  # handed to the thread that uses the items, which raises it
        return taken, error
    return taken, None
