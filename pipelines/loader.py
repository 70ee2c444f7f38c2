"""Batches for the trainer: real frames from the shards, and the cameras that generated frames take from them.

Everything in a batch is a function of (seed, step, index of the video in the global batch), so that any
number of workers sees the same batch, and a resumed run the batches that it would have seen.

Shapes: B videos of this worker, n frames of each (those that D_vid compares), H the side of a frame.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import camera, times
from model.config import Variant
from pipelines.train_job import check_dataset
from stages.shards import Dataset, Sample

AHEAD = 2  # batches read before they are asked for


class Stream(IntEnum):
    """Independent random numbers for each purpose. Values are part of what a seed means; do not renumber."""

    ORDER = 100
    REAL = 101
    CAMERAS = 102


@dataclass(frozen=True)
class Batch:
    """Real frames of one update, for one worker."""

    images: Tensor
    """[B, n, 3, H, H] in [-1, 1]"""
    times: Tensor
    """[B, n] in [0, 1], increasing: frame index / (span - 1)"""
    cameras: Tensor
    """[B, n, 25]"""


class Loader:
    """Reads batches by range from the shards. Every person is seen equally often, whatever the number of
    clips."""

    def __init__(
        self, dataset: Dataset, variant: Variant, *, seed: int, rank: int = 0, workers: int = 1
    ) -> None:
        self.dataset, self.seed, self.batch = dataset, seed, variant.recipe.batch
        self.span, self.frames = variant.model.frames_span, variant.model.discriminator_frames
        self.flip_cameras = variant.recipe.flip_fake_cameras
        self.videos = range(rank, self.batch, workers)
        """This worker's, of the global batch."""
        people: dict[str, list[Sample]] = {}
        for sample in check_dataset(dataset, variant):
            people.setdefault(sample.identity or sample.clip_id, []).append(sample)
        self.people = [people[name] for name in sorted(people)]

    def real(self, step: int) -> Batch:
        """Update `step`'s real frames for this worker."""
        videos = [self._video(step, video) for video in self.videos]
        images, t, cameras = (np.stack(part) for part in zip(*videos, strict=True))
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 1, 4, 2, 3)))
        return Batch(pixels.float() / 127.5 - 1, torch.from_numpy(t), torch.from_numpy(cameras))

    def cameras(self, step: int, phase: int) -> tuple[Tensor, Tensor]:
        """Cameras [B, n, 25] for the generated frames of a phase, and their times [B, n]: of the *global*
        batch, since videos swap cameras with each other. Drawn afresh from the clips, as official."""
        drawn = [self._cameras(step, phase, video) for video in range(self.batch)]
        cameras, t = (np.stack(part) for part in zip(*drawn, strict=True))
        return torch.from_numpy(cameras), torch.from_numpy(t)

    def ahead(self, start: int, stop: int) -> Iterator[Batch]:
        """`real` of updates start ... stop - 1 in order, read in the background."""
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as pool:
            closing = threading.Event()

            def read(step: int) -> Batch | None:
                return None if closing.is_set() else self.real(step)

            try:
                waiting = [pool.submit(read, step) for step in range(start, min(start + AHEAD, stop))]
                for step in range(start, stop):
                    batch = waiting.pop(0).result()
                    assert batch is not None
                    if step + AHEAD < stop:
                        waiting.append(pool.submit(read, step + AHEAD))
                    yield batch
            finally:
                closing.set()

    def _video(
        self, step: int, video: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
        random = self._random(Stream.REAL, step, video)
        sample, frames, t = self._window(random, self._person(step * self.batch + video))
        images, cameras = self.dataset.frames(sample, frames.tolist()), self.dataset.cameras(sample)[frames]
        if random.random() < 0.5:
            images, cameras = images[:, :, ::-1], camera.hflip(cameras)
        return images, t, cameras

    def _cameras(self, step: int, phase: int, video: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        random = self._random(Stream.CAMERAS, step, phase, video)
        sample, frames, t = self._window(random, self.people[random.integers(len(self.people))])
        cameras = self.dataset.cameras(sample)[frames]
        if self.flip_cameras and random.random() < 0.5:
            cameras = camera.hflip(cameras)
        return cameras, t

    def _window(
        self, random: np.random.Generator, clips: list[Sample]
    ) -> tuple[Sample, NDArray[np.int64], NDArray[np.float32]]:
        """A clip of one person, and the indices and times of n of its frames in a random window (model facts
        8)."""
        sample = clips[random.integers(len(clips))]
        start = random.integers(sample.frame_count - self.span + 1)
        indices = times.frame_indices(random.random(self.frames), self.span)
        return sample, start + indices, times.index_times(indices, self.span)

    def _person(self, count: int) -> list[Sample]:
        """The `count`-th video's person: a new shuffle of all people whenever each has been seen."""
        turn, at = divmod(count, len(self.people))
        return self.people[self._random(Stream.ORDER, turn).permutation(len(self.people))[at]]

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.seed, *key]))
