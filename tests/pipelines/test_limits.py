import pytest
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.ledger import Ledger
from pipelines.limits import LEAST, RECENT, Limits, TooManyFailedError
from pipelines.runner import prepare
from pipelines.workflow import WorkflowError


def limits_after(failed: int, ended: int, most: float = 0.5) -> Limits:
    limits = Limits({"Mark": most, "Other": most})
    for number in range(ended):
        state = "failed" if number < failed else "ok"
        limits.ended("Mark", state, "timed out" if number % 3 else "crashed: SIGSEGV")
    return limits


def test_a_stage_stops_in_one_line_that_says_what_failed_and_how_to_go_on():
    with pytest.raises(TooManyFailedError) as error:
        limits_after(16, 30).check()
    text = str(error.value)
    assert text.startswith("stage Mark: 16 of the last 30 units failed: timed out (10), crashed: SIGSEGV (6)")
    assert text.endswith("--set stages.Mark.max_failed_fraction=1")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("failed", "ended", "most"), [(15, 30, 0.5), (LEAST - 1, LEAST - 1, 0.5), (50, 50, 1.0)]
)
def test_at_the_limit_and_in_the_first_units_a_stage_goes_on(failed, ended, most):
    limits_after(failed, ended, most).check()


def test_what_is_rejected_did_not_fail():
    limits = Limits({"Mark": 0.1})
    limits.ended("Mark", "rejected", "no face", 500)
    limits.check()


def test_a_fault_that_comes_late_shows_among_the_latest():
    limits = Limits({"Mark": 0.5})
    limits.ended("Mark", "ok", "", 1)
    for _ in range(100_000):
        limits.ended("Mark", "ok", "")
    for _ in range(RECENT // 2):
        limits.ended("Mark", "failed", "disk full")
        limits.check()
    limits.ended("Mark", "failed", "disk full")
    with pytest.raises(TooManyFailedError, match=f"{RECENT // 2 + 1} of the last {RECENT} units"):
        limits.check()


def test_none_may_fail_where_nothing_is_allowed():
    with pytest.raises(TooManyFailedError, match=f"1 of the last {LEAST}"):
        limits_after(1, LEAST, 0.0).check()


def test_a_group_counts_as_its_members_however_many():
    limits = Limits({"Mark": 0.5})
    limits.ended("Mark", "failed", "out of memory", 1_000_000)
    with pytest.raises(TooManyFailedError, match=f"{RECENT} of the last {RECENT} units failed: out of"):
        limits.check()


def test_a_run_stops_with_what_it_has_done_and_goes_on_when_told(tiny):
    """30 clips, of which every other one is throttled: more than a quarter."""
    later = f"stages.Mark.later={[f'v{i:02d}-0' for i in range(30)]}"
    limits = ("source.count=30", "stages.Mark.max_failed_fraction=0.25", later)
    with pytest.raises(TooManyFailedError, match=r"stage Mark: .*: throttled \(\d+\); what is done is kept"):
        prepare(tiny.load(*limits), in_process=True)
    before = list(Ledger(tiny.store).records("Mark"))
    assert LEAST <= len(before) < 60
    assert {(r.state, r.reason) for r in before} == {("ok", ""), ("failed", "throttled")}
    done = prepare(tiny.load(*limits, "stages.Mark.max_failed_fraction=1"), in_process=True)
    tried_again = sum(r.state == "failed" for r in before)
    assert done.redone["Mark"] == 60 - len(before) + tried_again
    assert done.kept == 30


def test_a_stopped_run_is_one_line_and_exit_status_2(tiny):
    later = f"stages.Mark.later={[f'v{i:02d}-0' for i in range(30)]}"
    options = [arg for text in ("source.count=30", "stages.Mark.max_failed_fraction=0.25", later)
               for arg in ("--set", text)]  # fmt: skip
    outcome = CliRunner().invoke(main, ["run", str(tiny.path), "--until", "Mark", "--in-process", *options])
    assert outcome.exit_code == 2
    (said,) = [line for line in outcome.stderr.splitlines() if line.startswith("pv3d: ")]
    assert said.startswith("pv3d: stage Mark: ")
    assert "Traceback" not in outcome.output


def test_a_bad_limit_is_refused(tiny):
    with pytest.raises(WorkflowError, match=r"stages\.Mark\.max_failed_fraction: .*less than or equal to 1"):
        tiny.load("stages.Mark.max_failed_fraction=2")
