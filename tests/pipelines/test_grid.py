"""The sample video: same seeds, three sides, depth."""

from __future__ import annotations

import numpy as np
import torch

from model.config import tiny, with_changes
from model.generator import Generator
from pipelines.grid import Grid, grid_frames


def small_generator() -> Generator:
    torch.manual_seed(0)
    changes = {
        "rendering.samples_coarse": 6,
        "rendering.samples_fine": 6,
        "channel_max": 16,
        "rendering.resolution": 16,
    }
    return Generator(with_changes(tiny().model, changes)).eval()


def test_has_a_row_per_side_and_one_of_depth_and_a_column_per_seed() -> None:
    frames = list(grid_frames(small_generator(), Grid(seeds=(0, 1), frames=3)))
    assert len(frames) == 3
    assert frames[0].shape == (4 * 64, 2 * 64, 3)
    assert frames[0].dtype == np.uint8
    front, left, right, depth = np.split(frames[0].astype(int), 4)
    assert np.abs(front - left).mean() > 1
    assert np.abs(left - right).mean() > 1
    assert np.ptp(depth, axis=2).max() == 0  # grey


def test_is_the_same_every_time_and_moves() -> None:
    generator = small_generator()
    first, second = (list(grid_frames(generator, Grid(seeds=(5,), frames=4))) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0], first[-1])


def test_a_window_shorter_than_wanted_gives_all_its_frames() -> None:
    torch.manual_seed(0)
    generator = Generator(with_changes(tiny().model, {"frames_span": 4})).eval()
    assert len(list(grid_frames(generator, Grid(seeds=(0,), yaws=(0.0,), frames=16)))) == 4
