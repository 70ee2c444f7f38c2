"""Which frames cannot be used: arrays alone."""

import numpy as np
import pytest

from stages.faults import Run, accompanied, label, low, missing, runs

FPS = 25.0


def frames(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask).tolist()


def test_runs_are_the_pieces_of_equal_values() -> None:
    assert runs(["", "", "x", ""]) == [Run(0, 2), Run(2, 3), Run(3, 4)]
    assert runs([]) == []


def test_only_gaps_that_are_too_long_are_missing() -> None:
    seen = np.ones(40, bool)
    seen[3:8] = seen[20:26] = False
    assert frames(missing(seen, 5)) == list(range(20, 26))
    assert not missing(seen, 6).any()


def test_a_second_face_has_to_last() -> None:
    others = np.zeros(200, bool)
    others[[20, 25, 30]] = True
    assert not accompanied(others, 5, FPS, 0.6).any(), "0.6 s are no longer than 0.6 s"
    others[35] = True
    assert frames(accompanied(others, 5, FPS, 0.6)) == list(range(16, 40)), "it may have come after 15"


def test_a_second_face_that_is_seen_now_and_then_stays() -> None:
    others = np.zeros(400, bool)
    others[[0, 20, 40, 60]] = True
    assert frames(accompanied(others, 5, FPS, 0.6)) == list(range(65))
    others[:] = False
    others[[0, 100, 200, 300]] = True
    assert not accompanied(others, 5, FPS, 0.6).any(), "four passers-by"


def test_low_needs_a_second() -> None:
    values = np.full(200, 1.0)
    values[50:60] = 0.0
    assert not low(values, 0.5, FPS).any()
    values[50:100] = 0.0
    assert frames(low(values, 0.5, FPS)) == list(range(50, 100))
    values[:] = 1.0
    values[:18] = 0.0
    assert not low(values, 0.5, FPS).any(), "nor at an end"


def test_low_is_lenient_so_that_a_clip_near_the_limit_stays_whole() -> None:
    assert not low(np.full(100, 0.95), 1.0, FPS).any()
    assert low(np.full(100, 0.85), 1.0, FPS).all()


def test_what_was_measured_now_and_then_holds_between() -> None:
    values = np.full(100, np.nan)
    values[::5] = np.where(np.arange(0, 100, 5) < 50, 1.0, 0.0)
    mask = low(values, 0.5, FPS)
    assert abs(frames(mask)[0] - 48) <= 2
    assert mask[60:].all()
    assert not low(np.full(100, np.nan), 0.5, FPS).any()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_clips_of_a_few_frames_are_judged_too(count: int) -> None:
    assert low(np.zeros(count), 0.5, FPS).all()


def test_the_first_reason_counts() -> None:
    a, b = np.array([True, True, False, False]), np.array([False, True, True, False])
    assert label({"a": a, "b": b}) == ["a", "a", "b", ""]
