import pytest

from pipelines.limits import LEAST, RECENT, Limits, TooManyFailedError


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
