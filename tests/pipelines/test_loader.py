"""Batches: a function of (seed, step) alone, fair to people, as sampled by the paper."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.storage import FolderStorage
from model import camera, times
from model.config import Variant, tiny, with_changes
from pipelines.loader import Batch, Loader
from stages.shards import Dataset, Sample

SIDE, PEOPLE = 64, (5, 1, 2)  # clips of each person


@dataclass
class Ramps(Dataset):
    """A dataset in memory whose pixels tell clip, frame and column, so that a batch can be traced back."""

    read: list[str] = field(default_factory=list)

    def read_frames(self, sample: Sample, indices, into, mirrored=False):  # type: ignore[no-untyped-def]
        self.read.append(sample.identity)
        into[..., 0] = int(sample.clip_id)
        into[..., 1] = np.asarray(indices)[:, None, None]
        into[..., 2] = np.arange(SIDE)[::-1] if mirrored else np.arange(SIDE)

    def cameras(self, sample: Sample):  # type: ignore[no-untyped-def]
        yaws = np.linspace(-20, 20, sample.frame_count) + int(sample.clip_id)
        return np.stack([camera.orbit(yaw).encode() for yaw in yaws])


@pytest.fixture
def dataset(tmp_path: Path) -> Ramps:
    people = [person for person, clips in enumerate(PEOPLE) for _ in range(clips)]
    shared: dict[str, Any] = dict.fromkeys([f.name for f in fields(Sample)], "")
    shared |= {"split": "train", "fps": 25.0, "size": SIDE}
    samples = [
        Sample(**{**shared, "clip_id": str(i), "identity": f"p{person}", "frame_count": 48 + i})
        for i, person in enumerate(people)
    ]
    return Ramps(FolderStorage(tmp_path), "v", SIDE, 25.0, samples, [])


def traced(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clip [B], frame [B, n] and whether mirrored [B], read from the pixels."""
    pixels = batch.images.int()
    return pixels[:, 0, 0, 0, 0], pixels[:, :, 1, 0, 0], pixels[:, 0, 2, 0, 0] > 0


def equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("images", "times", "cameras"))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_together_read_the_batch_of_one(dataset: Ramps, workers: int) -> None:
    whole = Loader(dataset, tiny(), seed=3).real(11)
    for rank in range(workers):
        part = Loader(dataset, tiny(), seed=3, rank=rank, workers=workers).real(11)
        assert equal(part, Batch(*(x[rank::workers] for x in (whole.images, whole.times, whole.cameras))))


def test_reading_ahead_gives_the_batches_of_each_step_from_anywhere(dataset: Ramps) -> None:
    loader = Loader(dataset, tiny(), seed=0)
    ahead = list(loader.ahead(3, 8))
    assert len(ahead) == 5
    assert all(equal(batch, loader.real(step)) for step, batch in enumerate(ahead, 3))


def test_seeds_and_steps_differ(dataset: Ramps) -> None:
    loader = Loader(dataset, tiny(), seed=0)
    assert not equal(loader.real(0), loader.real(1))
    assert not equal(loader.real(0), Loader(dataset, tiny(), seed=1).real(0))


def test_every_person_is_seen_equally_often_and_every_clip_is_seen(dataset: Ramps) -> None:
    loader = Loader(dataset, tiny(), seed=0)
    clips: Counter[int] = Counter()
    for step in range(90):
        clips.update(traced(loader.real(step))[0].tolist())
    people = Counter(dataset.read)
    assert set(people.values()) == {90 * 4 // len(PEOPLE)}
    assert set(clips) == set(range(sum(PEOPLE)))


def test_times_and_cameras_are_those_of_the_frames_and_mirrored_with_them(dataset: Ramps) -> None:
    loader = Loader(dataset, tiny(), seed=0)
    span = tiny().model.frames_span
    mirrored_share = []
    for step in range(40):
        batch = loader.real(step)
        assert batch.images.shape == (4, 2, 3, SIDE, SIDE)
        clips, frames, mirrored = traced(batch)
        mirrored_share += mirrored.tolist()
        assert torch.allclose(batch.times.diff() * (span - 1), frames.diff().float(), atol=1e-4)
        for b, clip in enumerate(clips.tolist()):
            expected = dataset.cameras(dataset.samples[clip])[frames[b]]
            expected = camera.hflip(expected) if mirrored[b] else expected
            assert np.array_equal(batch.cameras[b].numpy(), expected)
            camera.check_cameras(expected, radius=camera.RADIUS)
    assert 0.4 < np.mean(mirrored_share) < 0.6


def test_frame_pairs_follow_the_law_of_the_paper(dataset: Ramps) -> None:
    loader = Loader(dataset, tiny(), seed=0)
    span = tiny().model.frames_span
    drawn = torch.cat([loader.cameras(step, 0)[1] for step in range(500)])
    law = times.index_pair_probability(span)
    t = np.arange(span) / (span - 1)
    expected = np.array([(law.sum(1) * t).sum(), (law.sum(0) * t).sum()])
    assert np.abs(drawn.mean(0).numpy() - expected).max() < 0.02


def test_cameras_of_generated_frames_are_of_the_global_batch_and_fresh_in_every_phase(dataset: Ramps) -> None:
    ranks = [Loader(dataset, tiny(), seed=5, rank=r, workers=2) for r in range(2)]
    first, second = (loader.cameras(2, 0) for loader in ranks)
    assert first[0].shape == (4, 2, 25)
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[0], ranks[0].cameras(2, 1)[0])


@pytest.mark.parametrize("span", [16, 48])
def test_windows_reach_from_the_first_to_the_last_frame(dataset: Ramps, span: int) -> None:
    base = tiny()
    variant = Variant(name="x", model=with_changes(base.model, {"frames_span": span}), recipe=base.recipe)
    loader = Loader(dataset, variant, seed=0)
    seen: dict[int, list[int]] = {}
    for step in range(200):
        clips, frames, _ = traced(loader.real(step))
        for clip, row in zip(clips.tolist(), frames.tolist(), strict=True):
            seen.setdefault(clip, []).extend(row)
    for clip, frames in seen.items():
        last = dataset.samples[clip].frame_count - 1
        assert 0 <= min(frames) <= 8
        assert last - 8 <= max(frames) <= last


def test_an_error_of_the_reader_reaches_the_trainer(dataset: Ramps, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(sample: Sample, *arguments: object, **more: object) -> None:
        raise ValueError(f"{sample.clip_id} frame 0: not a whole JPEG; the shard is damaged")

    monkeypatch.setattr(dataset, "read_frames", damaged)
    with pytest.raises(ValueError, match="the shard is damaged"):
        next(Loader(dataset, tiny(), seed=0).ahead(0, 4))
