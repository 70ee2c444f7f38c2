import json
import random
import sqlite3

import pytest

from infra import scratch
from infra.scratch import Seen, Shelf, put_all, temporary_database
from infra.storage import StorageError


@pytest.fixture(params=[1 << 16, 4])
def few(request, monkeypatch):
    """As many names as a test has fit into memory, or hardly any."""
    monkeypatch.setattr(scratch, "_FLUSHED", request.param)
    monkeypatch.setattr(scratch, "HELD", 2)


def test_a_name_is_seen_when_it_came_before(few):
    names = [str(number) for number in random.Random(0).choices(range(300), k=1000)]
    seen, known = Seen(), set()
    for name in names:
        assert seen.again(name) == (name in known)
        known.add(name)


def test_a_filter_that_is_full_only_costs_time(few, monkeypatch):
    monkeypatch.setattr(scratch, "_FILTER_BYTES", 1)
    monkeypatch.setattr(scratch, "_FILTER_MASK", 7)
    seen = Seen()
    assert not any(seen.again(str(number)) for number in range(100))
    assert all(seen.again(str(number)) for number in range(100))


def test_values_are_kept_as_they_were_changed(few):
    shelf = Shelf(list, json.dumps, json.loads)
    wanted: dict[str, list[int]] = {}
    random_ = random.Random(1)
    for number in range(1000):
        name = str(random_.randrange(50))
        shelf[name].append(number)
        wanted.setdefault(name, []).append(number)
    assert {name: shelf[name] for name in wanted} == wanted
    assert shelf["new"] == []


def test_a_disk_that_is_full_is_one_line_with_the_cure(monkeypatch):
    seen = Seen()
    seen._db.execute("PRAGMA max_page_count = 4")
    monkeypatch.setattr(scratch, "_FLUSHED", 1000)
    with pytest.raises(StorageError, match=r"^TMPDIR: cannot keep .* \(database or disk is full\); make"):
        any(seen.again(f"name {number}") for number in range(10_000))


def test_a_name_that_is_no_text_is_one_as_others(few):
    seen, shelf = Seen(), Shelf(list, json.dumps, json.loads)
    names = ["a\udcff.mp4", "a\ud800", "b", "a", "c", "d"]
    assert not any(map(seen.again, names))
    for name in names:
        shelf[name].append(name)
    assert all(map(seen.again, names))
    assert [shelf[name] for name in names] == [[name] for name in names]


def test_a_row_that_cannot_be_put_leaves_a_database_that_can_be_used():
    database = temporary_database()
    database.execute("CREATE TABLE names (name TEXT)")
    with pytest.raises(UnicodeEncodeError):
        put_all(database, "INSERT INTO names VALUES (?)", [("\ud800",)])
    assert put_all(database, "INSERT INTO names VALUES (?)", [("a",), ("b",)]) == 2


def test_only_a_disk_is_told_to_be_full():
    database = temporary_database()
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        database.execute("SELECT 1 FROM nowhere")
