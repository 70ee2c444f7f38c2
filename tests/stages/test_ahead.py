import threading
import time
from collections.abc import Iterator

import pytest

from stages.ahead import ahead


@pytest.mark.parametrize("count", [1, 4])
def test_the_same_items_in_the_same_order(count: int) -> None:
    assert list(ahead(range(20), count)) == list(range(20))
    assert list(ahead([], count)) == []


def test_a_fault_comes_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    taken = ahead(items(), 4)
    assert next(taken) == 1
    with pytest.raises(ValueError, match="broken"):
        next(taken)


def test_a_few_items_wait_and_the_thread_ends_with_the_iterator() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for n in range(100):
            made.append(n)
            yield n

    before = threading.active_count()
    taken = ahead(items(), 3)
    assert next(taken) == 0
    time.sleep(0.2)
    assert len(made) == 6                    # a burst in use, and the next one
    taken.close()
    assert threading.active_count() == before
    assert len(made) == 6
