"""Listed parts through the stages: one file, the wanted seconds, each part with its own fate."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from infra.storage import FolderStorage, Storage
from stages import Clip, Rejected
from stages.shots import SplitShots
from stages.sources.lists import Span, unit
from stages.video import write_video


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    return FolderStorage(tmp_path / "store")


def moving(seed: int, count: int) -> Iterator[np.ndarray]:
    """A texture that glides, so that its frames differ and none is a cut."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(30, 220, (24, 60, 3)).astype(np.uint8)
    picture = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    for n in range(count):
        yield np.ascontiguousarray(picture[:144, n % 200:n % 200 + 192])


def split(store: Storage, path: Path, *spans: Span) -> list[Clip | Rejected]:
    clip = unit("t", "v", "https://example.org/v.mp4", [{"key": str(n), **s} for n, s in enumerate(spans)])
    clip.video = str(path)
    stage = SplitShots()
    stage.setup(store)
    return list(stage.process(clip))


def test_every_part_becomes_clips_of_its_own_seconds(tmp_path: Path, store: Storage) -> None:
    path = tmp_path / "v.mp4"
    write_video(path, [*moving(1, 150), *moving(2, 150)], 25)
    outputs = split(
        store, path, {"start_s": 0.4, "end_s": 3.0, "identity": "p"}, {"start_s": 3.0, "end_s": 9.0},
        {"start_s": 11.0, "end_s": 14.0}, {"start_s": 2.0, "end_s": 2.4}, {"error": "bad row"},
        {"start_s": 9.0},
    )
    clips = {c.id: c for c in outputs if isinstance(c, Clip)}
    assert sorted(clips) == ["t-v-0_0000400", "t-v-1_0003000", "t-v-1_0006000", "t-v-5_0009000"]  # cut at 6
    first = clips["t-v-0_0000400"].need("frame_times_s")
    assert first == pytest.approx(0.4 + np.arange(65) / 25)
    assert clips["t-v-0_0000400"].identity == "p"
    rejected = {o.clip.id: o.reason for o in outputs if isinstance(o, Rejected)}
    assert rejected == {"t-v-2": "truncated", "t-v-3_0002000": "too short", "t-v-4": "bad row"}
