"""Rates and times left, against what a clock of our own says."""

import pytest

from pipelines.rates import Ahead, Rate, duration, per_second, times_left, units_ahead


def test_the_rate_is_that_of_the_last_minute_and_not_since_the_start():
    rate = Rate(0.0)
    for second in range(600):                # ten minutes at one a second, then two at ten
        rate.add(1, second + 1.0)
    for second in range(120):
        rate.add(10, 601.0 + second)
    assert rate.now(720.0) == pytest.approx(10, rel=0.05)
    assert rate.mean(720.0) == pytest.approx((600 + 1200) / 720)


def test_a_stage_that_stands_still_is_slower_every_second():
    rate = Rate(0.0)
    for second in range(100):
        rate.add(1, second + 1.0)
    late = [rate.now(100.0 + wait) for wait in (0, 30, 300, 3000)]
    assert late[0] == pytest.approx(1, rel=0.05)
    assert late == sorted(late, reverse=True)
    assert late[-1] < 0.01


def test_units_that_take_minutes_have_a_rate_of_the_last_few():
    rate = Rate(0.0)
    for number in range(20):
        rate.add(1, 100.0 * (number + 1))
    assert rate.now(2000.0) == pytest.approx(0.01, rel=0.05)


def test_a_thousand_a_second_leave_few_marks():
    rate = Rate(0.0)
    for number in range(100_000):
        rate.add(1, number / 1000)
    assert len(rate._marks) < 200
    assert rate.now(100.0) == pytest.approx(1000, rel=0.02)


def test_what_earlier_stages_will_send_counts_for_later_ones():
    cut = Ahead(left=10, passes=4, per_s=1)
    mark = Ahead(left=2, passes=0.5, per_s=2)
    keep = Ahead(left=0, per_s=21, group=True)
    assert units_ahead([cut, mark, keep]) == [10, 42, 21]
    each, together = times_left([cut, mark, keep])
    assert each == [10, 21, 22]              # the group stage begins when 21 s are over
    assert together == 22


def test_a_stage_ends_no_earlier_than_the_one_that_feeds_it():
    each, _ = times_left([Ahead(10, per_s=0.1), Ahead(0, per_s=1000)])
    assert each == [100, 100]


def test_an_unknown_rate_leaves_all_behind_it_unknown():
    assert times_left([Ahead(5, per_s=1), Ahead(3), Ahead(0, per_s=9)]) == ([5, None, None], 5)
    assert times_left([Ahead(5), Ahead(3)]) == ([None, None], None)
    assert times_left([Ahead(0), Ahead(0)]) == ([0, 0], 0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (90000, "1 d 1 h")],
)
def test_times_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("rate", "text"), [(12.0, "12/s"), (0.5, "30/min"), (0.01, "36/h"), (0.0, "0/s")])
def test_slow_rates_are_told_per_minute_or_hour(rate, text):
    assert per_second(rate) == text
