"""Ranges to read."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from stages.members import coalesced


@pytest.mark.parametrize("gap", [0, 5, 100])
def test_ranges_hold_every_place_and_never_bridge_a_larger_gap(gap: int) -> None:
    random = np.random.default_rng(gap)
    for _ in range(200):
        ends = np.cumsum(random.integers(0, 30, 12)).reshape(6, 2)
        places = [(int(at), int(end - at)) for at, end in ends][:: random.choice([-1, 1])]
        ranges = coalesced([*places, places[0]], gap)
        assert sorted(place for _, _, inside in ranges for place in inside) == sorted(set(places))
        for start, length, inside in ranges:
            assert start == min(at for at, _ in inside)
            assert start + length == max(at + size for at, size in inside)
            gaps = [b[0] - sum(a) for a, b in itertools.pairwise(sorted(inside))]
            assert all(0 <= one <= gap for one in gaps)
        for before, after in itertools.pairwise(ranges):
            assert after[0] - sum(before[:2]) > gap
