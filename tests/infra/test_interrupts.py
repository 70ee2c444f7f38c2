"""SIGTERM and SIGHUP end what runs as Ctrl-C does, and leave everything else as it was."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from infra import interrupts

ENDS = [signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def _handlers():
    before = {number: signal.getsignal(number) for number in ENDS}
    yield
    assert {number: signal.getsignal(number) for number in ENDS} == before


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.2)                          # a handler runs between two instructions, at the latest here


@pytest.mark.parametrize("number", ENDS)
def test_each_of_them_interrupts_and_is_named(number):
    with pytest.raises(KeyboardInterrupt), interrupts.caught():
        send(number)
    assert interrupts.last() == number


def test_ctrl_c_is_told_from_them():
    with pytest.raises(KeyboardInterrupt), interrupts.caught():
        send(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interrupts.caught():
        raise KeyboardInterrupt
    assert interrupts.last() == signal.SIGINT


def test_a_second_one_does_not_disturb_what_is_being_put_away():
    done = []
    with interrupts.caught():
        try:
            with interrupts.caught():
                send(signal.SIGTERM)
        except KeyboardInterrupt:
            send(signal.SIGTERM)
            send(signal.SIGHUP)
            done.append("put away")
    assert done == ["put away"]
    assert interrupts.last() == signal.SIGTERM


def test_one_that_comes_much_later_counts_again(monkeypatch):
    with interrupts.caught():
        with pytest.raises(KeyboardInterrupt), interrupts.caught():
            send(signal.SIGTERM)
        monkeypatch.setattr(interrupts, "AGAIN_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)


def test_a_sighup_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts.caught():
            send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_may_end_the_main_one():
    timer = threading.Timer(0.2, interrupts.stop_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt), interrupts.caught():
        time.sleep(10)
    timer.join()


def test_where_nothing_is_caught_another_thread_ends_nothing():
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))  # as Ray leaves it
    try:
        interrupts.stop_main()
        time.sleep(0.2)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_use_it_without_effect():
    before = signal.getsignal(signal.SIGTERM)

    def work():
        with interrupts.caught(), interrupts.kept():
            assert signal.getsignal(signal.SIGTERM) == before

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_library_that_sets_a_handler_of_its_own_changes_nothing():
    def start_and_work():
        with interrupts.kept():
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        send(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt), interrupts.caught():
        start_and_work()
    assert interrupts.last() == signal.SIGTERM


def test_its_exit_while_it_starts_is_an_interruption():
    def start():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
        send(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt), interrupts.caught(), interrupts.kept():
        start()
    assert interrupts.last() == signal.SIGTERM


LOST = """\
import signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)              # as a shell does with what runs in the background
from dataclasses import asdict
from infra.lease import LeaseError, Owner, hold
from infra.storage import FolderStorage
import json
store = FolderStorage(sys.argv[1])
try:
    with hold(store, "pv3d run", expires_s=0.6):
        store.create("lease/00000002.json", json.dumps(asdict(Owner(host="node7"))).encode())
        time.sleep(20)
except LeaseError as error:
    print(error)
"""


def test_a_run_in_the_background_that_was_followed_is_stopped(tmp_path):
    begun = time.monotonic()
    command = [sys.executable, "-c", LOST, str(tmp_path / "store")]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert "was taken over by a run on node7" in answer.stdout
    assert time.monotonic() - begun < 10
