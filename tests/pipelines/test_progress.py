"""What a run says of itself on stderr: counts, rates and times left that are so."""

import io
import logging
import re

import pytest
from rich.console import Console

from pipelines import progress as module
from pipelines.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes when it is told to."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def worked(progress, clock, seconds):
    """One second after the other, each with two videos cut in three, and three clips marked."""
    for _ in range(seconds):
        clock[0] += 1
        progress.done("Cut", 2)
        progress.sends("Cut", 6)
        progress.expect("Mark", 6)
        progress.done("Mark", 3, "ok")
        progress.tick()


def test_time_left_counts_what_the_cut_will_still_send(clock):
    progress = Progress(["Cut", "Mark"], Console(file=io.StringIO()))
    progress.expect("Cut", 100)
    progress.expect("Mark", 0)
    worked(progress, clock, 20)
    cut, mark = progress.figures().values()
    assert cut.per_s_now == cut.per_s == pytest.approx(2)
    assert cut.eta_s == pytest.approx(60 / 2)
    assert mark.to_come == 60 + 60 * 3       # those that wait, and three of each video
    assert mark.eta_s == pytest.approx(240 / 3)
    assert mark.states == {"ok": 60}


def test_while_videos_are_still_being_listed_no_time_is_told(clock, caplog):
    caplog.set_level(logging.INFO)
    progress = Progress(["Cut", "Mark"], Console(file=io.StringIO()), listing=True)
    progress.expect("Cut", 100)
    worked(progress, clock, 11)
    assert [record.message for record in caplog.records] == [
        "Cut: 20 done, 80 to come so far, 2/s", "Mark: 30 done, 270 to come so far, 3.33/s",
    ]  # fmt: skip
    caplog.clear()
    progress.all_listed()
    worked(progress, clock, 10)
    assert re.fullmatch(r"Cut: 40 done, 60 to come, 2/s, 30 s left", caplog.records[0].message)


def test_a_plan_that_begins_anew_expects_no_unit_twice(clock):
    progress = Progress(["Cut"], Console(file=io.StringIO()))
    progress.expect("Cut", 10)
    progress.done("Cut", 4)
    progress.again()
    progress.expect("Cut", 6)
    found = progress.figures()["Cut"]
    assert (found.known, found.done) == (10, 4)


def test_on_a_terminal_there_are_bars_with_rate_and_time_left(clock):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    with Progress(["Cut", "Mark"], console) as progress:
        progress.expect("Cut", 100)
        worked(progress, clock, 20)
    text = screen.getvalue()
    assert "40 done, 60 to come, 2/s, 30 s left" in text
    assert "60 done, 240 to come, 3.16/s, 1 min 16 s left" in text


def test_where_the_terminal_is_narrow_a_stage_still_is_one_line(clock):
    screen = io.StringIO()
    with Progress(["BalanceIdentities"], Console(file=screen, force_terminal=True, width=50)) as progress:
        progress.expect("BalanceIdentities", 100_000)
        for _ in range(20):
            clock[0] += 1
            progress.done("BalanceIdentities", 1)
            progress.tick()
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split("[\r\n]", screen.getvalue())]
    assert all(line.startswith("BalanceIden") for line in lines if line.strip())


def test_units_under_way_in_the_stages_before_are_to_come(clock, caplog):
    caplog.set_level(logging.INFO)
    progress = Progress(["Cut", "Mark"], Console(file=io.StringIO()))
    progress.expect("Cut", 6)
    clock[0] += 11
    progress.done("Cut")
    progress.sends("Cut", 1)
    progress.expect("Mark")
    progress.done("Mark", 1, "ok")
    progress.tick()
    said = [record.message.rsplit(", ", 2)[0] for record in caplog.records]
    assert said == ["Cut: 1 done, 5 to come", "Mark: 1 done, 5 to come"]


def test_only_the_last_failures_are_kept():
    progress = Progress(["Cut"], Console(file=io.StringIO()))
    for number in range(20):
        progress.failed("Cut", f"v{number}", "crashed: SIGSEGV")
    assert [one["unit"] for one in progress.last_failures()] == ["v15", "v16", "v17", "v18", "v19"]
