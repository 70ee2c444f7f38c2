"""One run at a time: who holds a store, who is refused, who waits, who takes over."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import asdict
from pathlib import Path

import boto3
import pytest

from infra import lease
from infra.holder import holder
from infra.lease import Lease, LeaseError, Owner, acquire, hold
from infra.storage import FolderStorage, StorageError, open_storage

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["folder", "moto", pytest.param("ceph", marks=pytest.mark.s3)])
def any_store(request, tmp_path, monkeypatch):
    """An empty store: a folder, a prefix of what stands in for S3, a prefix of a real server of it."""
    if request.param == "folder":
        return FolderStorage(tmp_path / "store")
    request.getfixturevalue("no_aws")
    if request.param == "ceph":
        server = request.getfixturevalue("rgw")
    else:
        pytest.importorskip("moto.server")
        server = request.getfixturevalue("moto_server")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.Session().client("s3", endpoint_url=server.endpoint).create_bucket(Bucket="pv3d-test")
    return open_storage(f"s3://pv3d-test/{uuid.uuid4().hex}", endpoint=server.endpoint, addressing="path")


def elsewhere(store, expires_s=1.0):
    """The lease of a run on another machine, which says a word only when it is told to `beat`."""
    owner = Owner("pv3d run", "ab", "node7", 41, "another kernel", "5", "2026-01-01 00:00:00 UTC", expires_s)
    number = lease.last_number(store.list("lease")) + 1
    assert store.create(f"lease/{number:08d}.json", json.dumps(asdict(owner)).encode())
    return Lease(store, number, owner)


def test_a_second_run_is_refused_in_one_line_that_says_who_has_it(any_store):
    with hold(any_store, "pv3d run"), pytest.raises(LeaseError) as refused, hold(any_store, "pv3d gc"):
        pass
    me = rf"in use by pv3d run on \S+ \(pid {os.getpid()}\) since 20[-0-9]+ [0-9:]+ UTC; .*--wait"
    assert re.search(me, str(refused.value))
    assert str(refused.value).startswith(f"storage.root: {any_store.root} ")
    assert "\n" not in str(refused.value)


def test_after_its_end_the_next_one_follows_at_once(any_store):
    for number in (1, 2, 3):
        with hold(any_store, "pv3d run") as held:
            assert held.number == number
            held.check()


@pytest.mark.parametrize("how", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_it_is_given_back_after_an_error_and_after_an_interruption(store, how):
    with pytest.raises(how), hold(store, "pv3d run"):
        raise how
    with hold(store, "pv3d run") as held:
        assert held.number == 2


def test_one_of_many_who_come_at_once_gets_it(any_store):
    outcomes = []

    def come():
        try:
            outcomes.append(acquire(any_store, "pv3d run").number)
        except LeaseError:
            outcomes.append(None)

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes, key=str) == [1, *[None] * 7]


def test_a_run_elsewhere_that_is_silent_is_followed_when_its_lease_is_over(any_store):
    elsewhere(any_store).beat()
    begun = time.monotonic()
    with hold(any_store, "pv3d run") as held:
        assert held.number == 2
    assert 1.0 <= time.monotonic() - begun < 15.0


def test_a_run_elsewhere_that_beats_keeps_its_store_for_longer_than_a_lease(any_store):
    other = elsewhere(any_store, expires_s=2.0)
    over = threading.Event()

    def live():
        while not over.wait(0.2):
            other.beat()

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(LeaseError, match="node7"), hold(any_store, "pv3d run"):
            pass
        waiter = threading.Thread(target=lambda: acquire(any_store, "second", wait=True))
        waiter.start()
        waiter.join(4.0)
        assert waiter.is_alive()
    finally:
        over.set()
        thread.join()
    other.release()
    waiter.join(5.0)
    assert not waiter.is_alive()
    assert json.loads(any_store.read("lease/00000002.json"))["what"] == "second"


def test_a_beat_that_was_read_long_ago_is_no_sign_of_silence(store, monkeypatch):
    other, read, answers = elsewhere(store), store.read, []
    other.beat()

    def slow(key):
        data = read(key)
        if "beat" in key:
            answers.append(data)
            if len(answers) == 2:
                other.beat()
                time.sleep(1.2)              # longer than the lease: what was read is old by then
        return data

    monkeypatch.setattr(store, "read", slow)
    with pytest.raises(LeaseError, match="node7"), hold(store, "pv3d run"):
        pass


@pytest.mark.parametrize("years", [-3, 3])
def test_what_time_it_is_elsewhere_does_not_matter(store, monkeypatch, years):
    monkeypatch.setattr(lease, "_now", lambda: f"{2026 + years}-01-01 00:00:00 UTC")
    elsewhere(store).beat()
    monkeypatch.undo()
    with hold(store, "pv3d run") as held:
        assert held.number == 2


def test_a_run_that_was_followed_is_stopped(store):
    begun = time.monotonic()

    def work():
        with hold(store, "pv3d run", expires_s=1.2):
            elsewhere(store)
            time.sleep(30)

    with pytest.raises(LeaseError, match=r"taken over by pv3d run on node7.*what is done is kept"):
        work()
    assert time.monotonic() - begun < 10


def test_a_lease_of_another_version_counts(store):
    store.write("lease/00000007.json", b'{"schema": 9, "host": "node9", "expires_s": 0.5}')
    with hold(store, "pv3d run") as held:
        assert held.number == 8


@pytest.mark.parametrize(
    "data",
    [
        *(b'{"expires_s": %s}' % value for value in (b'"9"', b"null", b"-1", b"NaN", b"[1]", b"true")),
        b'{"run": ["a"], "pid": %d, "expires_s": 0.5}' % os.getpid(), b'{"pid": "1\\u0000", "host": [1]}',
        b'{"place": {}, "process": 5, "started": null}', b"[" * 200_000, b"[1]", b"\xff", b"",
    ],
    ids=range(13),
)  # fmt: skip
def test_a_lease_of_wrong_types_is_read(store, data):
    owner = lease.owner_of(data)
    assert 0.5 <= owner.expires_s <= 45
    assert isinstance(owner.pid, int)
    assert not owner.here
    store.write("lease/00000001.json", data)
    found = holder(store)
    assert found is not None
    assert found.owner == owner
    assert found.alive
    store.write("lease/00000001.beat.json", data)
    assert isinstance(holder(store).beat, str)


def test_no_lease_lasts_for_ever():
    assert lease.owner_of(b'{"expires_s": 1e200}').expires_s == 86400
    place, me = lease._place(), os.getpid()
    forged = {"place": place, "pid": me, "run": ["x"], "expires_s": 1.0}
    assert not lease.owner_of(json.dumps(forged).encode()).here, "its beat tells, not its process"


def test_who_has_a_store_is_told_on_one_line():
    owner = lease.owner_of(json.dumps({"what": "\x1b[31mrun\nx", "host": "h" * 10**6}).encode())
    assert str(owner).startswith("\\x1b[31mrun x on hhh")
    assert len(str(owner)) < 300


def test_a_store_out_of_reach_for_a_while_stops_nothing(store, monkeypatch, caplog):
    write, calls = store.write, []

    def flaky(key, data):
        calls.append(key)
        if len(calls) < 3:
            raise StorageError("storage.root: no answer")
        write(key, data)

    monkeypatch.setattr(store, "write", flaky)
    with hold(store, "pv3d run", expires_s=1.0) as held:
        deadline = time.monotonic() + 5
        while not store.exists("lease/00000001.beat.json") and time.monotonic() < deadline:
            time.sleep(0.05)
        held.check()
    assert store.exists("lease/00000001.beat.json")
    assert "cannot be renewed" in caplog.text


def test_a_store_that_is_gone_at_the_end_hides_no_result(store, monkeypatch, caplog):
    with hold(store, "pv3d run"):
        monkeypatch.setattr(store, "write", lambda key, data: (_ for _ in ()).throw(StorageError("gone")))
    assert "cannot be ended (gone)" in caplog.text
    monkeypatch.undo()
    with hold(store, "pv3d run") as held:    # by the same process
        assert held.number == 2


HOLDER = """\
import sys, time
from infra.lease import hold
from infra.storage import FolderStorage
with hold(FolderStorage(sys.argv[1]), "pv3d run"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_here_a_run_that_was_killed_is_followed_at_once(store, end):
    command = [sys.executable, "-c", HOLDER, store.root]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=quiet) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(LeaseError, match=f"pid {process.pid}"), hold(store, "pv3d run"):
            pass
        process.send_signal(end)
        process.wait(10)
    assert store.exists("lease/00000001.end.json") == (end == signal.SIGINT)
    begun = time.monotonic()
    with hold(store, "pv3d run"):
        assert time.monotonic() - begun < 1


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_another_process_with_the_pid_of_a_dead_run_does_not_hold_its_store(store):
    owner = Owner("pv3d run", "ab", "here", os.getppid(), lease._place(), "1", "2026", 45.0)
    store.create("lease/00000001.json", json.dumps(asdict(owner)).encode())
    with hold(store, "pv3d run") as held:
        assert held.number == 2
