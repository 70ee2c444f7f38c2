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
        taken: list[T] = []
        waiting = thread.submit(taken.extend, islice(iterator, count))
        while True:
            error = waiting.exception()          # what came before it is in `taken`
            used, taken = taken, []
            if len(used) == count and error is None:
                waiting = thread.submit(taken.extend, islice(iterator, count))
            yield from used
            if error is not None:
                raise error
            if len(used) < count:
                return
