"""Take items from an iterator a little ahead of their use, in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], count: int) -> Iterator[T]:
    """The same items in the same order; up to `count` are waiting. What `items` raises comes in its place.

    For work that holds no lock of Python's, such as decoding while a model computes.
    """
    iterator = iter(items)
    end = object()
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, iterator, end) for _ in range(count))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(next, iterator, end))
                yield item  # type: ignore[misc]
        finally:
            for future in waiting:
                future.cancel()
