"""Copies of objects that processes of one machine share."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from infra.object_cache import FORGET_S, ObjectCache


class Server:
    """Objects by name, and a note of every fetch."""

    def __init__(self, log: Path, pause_s: float = 0.0) -> None:
        self.log = log
        self.pause_s = pause_s

    def __call__(self, name: str, size: int = 100):
        def fetch(path: Path) -> None:
            with self.log.open("a") as file:
                file.write(f"{name}\n")
            half = Path(f"{path}.1f2e3d4c")  # as boto3 does
            half.write_bytes(name.encode() * (size // 2 // len(name)))
            time.sleep(self.pause_s)
            half.write_bytes((name.encode() * size)[:size])
            half.rename(path)

        return name, size, ".mp4", fetch

    @property
    def fetched(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def server(tmp_path):
    return Server(tmp_path / "fetched.log")


@pytest.fixture
def cache(tmp_path):
    return ObjectCache(tmp_path / "cache", 1000)


def copies(cache):
    return [path for path in cache.folder.iterdir() if path.suffix == ".mp4"]


def used(cache):
    return sum(path.stat().st_size for path in cache.folder.iterdir())


def test_what_was_fetched_once_is_not_fetched_again(cache, server):
    for _ in range(3):
        with cache.copy(*server("a")) as path:
            assert path.read_bytes() == b"a" * 100
            assert path.suffix == ".mp4"
    assert server.fetched == ["a"]
    assert cache.folder.stat().st_mode & 0o777 == 0o700


def test_what_was_not_used_for_the_longest_time_goes_first(cache, server):
    for number, name in enumerate("abcdefghij"):
        with cache.copy(*server(name)) as path:
            os.utime(path, (time.time() - 100 + number,) * 2)
    with cache.copy(*server("a")):
        pass
    with cache.copy(*server("k")), cache.copy(*server("l")):
        pass
    assert used(cache) <= 1000
    before = list(server.fetched)
    for name in "akldefghij":
        with cache.copy(*server(name)):
            pass
    assert server.fetched == before
    with cache.copy(*server("b")):
        pass
    assert server.fetched == [*before, "b"]


def test_a_copy_in_use_stays_whatever_is_fetched(cache, server):
    with cache.copy(*server("a", 900)) as first, cache.copy(*server("b", 900)) as second:
        assert first.read_bytes() == b"a" * 900
        assert second.read_bytes() == b"b" * 900
    with cache.copy(*server("c", 900)):
        assert used(cache) == 900


def test_a_copy_that_nobody_used_for_a_day_goes(cache, server):
    with cache.copy(*server("a")) as path:
        pass
    os.utime(path, (time.time() - FORGET_S - 1,) * 2)
    with cache.copy(*server("b")):
        assert not path.exists()


def test_many_threads_fetch_it_once(cache, tmp_path):
    server, seen = Server(tmp_path / "log", pause_s=0.2), []

    def one():
        with cache.copy(*server("a")) as path:
            seen.append(path.read_bytes())

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [b"a" * 100] * 8
    assert server.fetched == ["a"]


def read_all_the_time(folder, log, seconds):
    """Copies of six objects, of which three fit, for a while; exit status 1 for a wrong byte."""
    cache, server = ObjectCache(folder, 350), Server(log)
    until = time.monotonic() + seconds
    number = os.getpid()
    while time.monotonic() < until:
        number = (number * 7 + 3) % 1_000_003
        name = "abcdef"[number % 6]
        with cache.copy(*server(name)) as path:
            if path.read_bytes() != name.encode() * 100:
                os._exit(1)


def test_processes_that_share_it_never_see_a_part_or_another_object(cache, server):
    """Also while one of them is killed again and again."""
    context = multiprocessing.get_context("fork")
    arguments = (cache.folder, server.log, 1.5)
    workers = [context.Process(target=read_all_the_time, args=arguments) for _ in range(4)]
    for worker in workers:
        worker.start()
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        victim = context.Process(target=read_all_the_time, args=arguments)
        victim.start()
        time.sleep(0.02)
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    small = ObjectCache(cache.folder, 350)
    with small.copy(*server("z")):
        assert used(small) <= 350
    assert len(server.fetched) > 20          # it was full all the time


def test_what_a_killed_process_left_of_a_copy_goes(cache, tmp_path, server):
    slow = Server(tmp_path / "log", pause_s=60)
    context = multiprocessing.get_context("fork")
    child = context.Process(target=lambda: cache.copy(*slow("a", 900)).__enter__())
    child.start()
    until = time.monotonic() + 20
    while not slow.fetched and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.05)
    child.kill()
    child.join()
    assert any(path.name.startswith("part-") for path in cache.folder.iterdir())
    with cache.copy(*server("b", 900)):
        assert used(cache) == 900


def test_a_fetch_that_fails_leaves_nothing(cache, server):
    def fails(path: Path) -> None:
        path.write_bytes(b"half")
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError), cache.copy("a", 100, ".mp4", fails):
        pass
    assert used(cache) == 0
    with cache.copy(*server("a")) as path:
        assert path.read_bytes() == b"a" * 100


def test_a_disk_that_is_smaller_than_the_limit_is_used_as_far_as_it_goes(cache, server):
    with cache.copy(*server("a")) as old:
        pass
    name, size, suffix, fetch = server("b")

    def on_a_small_disk(path: Path) -> None:
        if copies(cache):
            raise OSError(errno.ENOSPC, "No space left on device")
        fetch(path)

    with cache.copy(name, size, suffix, on_a_small_disk) as path:
        assert path.read_bytes() == b"b" * 100
    assert not old.exists()


def test_a_folder_of_somebody_else_is_not_trusted(cache, server, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    cache.folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="somebody else"), cache.copy(*server("a")):
        pass
    assert list((tmp_path / "elsewhere").iterdir()) == []
