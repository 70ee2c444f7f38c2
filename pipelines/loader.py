"""Batches for the trainer: real frames from the shards, and the cameras that generated frames take from them.

What is in a batch is a function of (seed, step, index of the video in the global batch): see
`pipelines.sampling`. So any number of workers and threads sees the same batch, and a resumed run the batches
that it would have seen. A worker's part is always as large, so none waits for another.

Frames are read by range, or from copies of whole shards: see `pipelines.shard_copies`. A clip that turns out
damaged is told to `damaged` and replaced by another draw, a function of the same and the number of the
attempt; too many damaged clips end the training. A store that does not answer is waited for, and then ends
it too.

Shapes: B videos of this worker, n frames of each (those that D_vid compares), H the side of a frame.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import camera, steps
from model.config import Variant
from pipelines.sampling import Draw, Sampler, check_dataset
from pipelines.shard_copies import ShardCopies
from stages.dataset import DamagedError, Dataset, Sample

T = TypeVar("T")
Cameras = tuple[Tensor, Tensor]
Seen = tuple[NDArray[np.float32], Draw]      # cameras [n, 25] as they are in the shard, and what was drawn

log = logging.getLogger(__name__)

AHEAD = 2                                    # batches that are read before they are asked for
THREADS = 4                                  # that read and decode; both let go of the interpreter
GENERATING = ("generator_main", "generator_reg", "discriminator_main")
CHECK_S = 60.0                               # between looks whether the dataset was taken down
ATTEMPTS = 8                                 # draws for one video


@dataclass(frozen=True)
class Batch:
    """Real frames of one update, for one worker, and the cameras of its generated ones."""

    images: Tensor
    """uint8 [B, n, 3, H, H]"""
    times: Tensor
    """[B, n] in [0, 1], increasing: frame index / (span - 1)"""
    cameras: Tensor
    """[B, n, 25]"""
    generated: dict[int, Cameras] = field(default_factory=dict)
    """`Loader.cameras` of the phases of the update, by the number of the phase."""

    def to(self, device: torch.device | str) -> tuple[Tensor, Tensor, Tensor]:
        """Images as float32 in [-1, 1], times and cameras."""
        images = self.images.to(device).contiguous().float().div_(127.5).sub_(1)
        return images, self.times.to(device), self.cameras.to(device)


def _stacked(seen: Sequence[Seen]) -> Cameras:
    """Cameras [B, n, 25], mirrored where the pictures are, and times [B, n]."""
    cameras = np.stack([cameras for cameras, _ in seen])
    flips = np.array([draw.flip for _, draw in seen])
    cameras[flips] = camera.hflip(cameras[flips])
    return torch.from_numpy(cameras), torch.from_numpy(np.stack([draw.times for _, draw in seen]))


class Damage:
    """The clips that could not be read. More than a share of `limit` is an error."""

    def __init__(self, clips: int, limit: float, tell: Callable[[Sample, str], None] | None) -> None:
        self.reasons: dict[str, str] = {}
        """By clip."""
        self.replaced = 0
        """Draws, of this worker."""
        self._clips, self._limit, self._tell = clips, limit, tell
        self._lock = threading.Lock()

    def add(self, sample: Sample, error: DamagedError) -> None:
        """Raises ValueError when it is too much."""
        with self._lock:
            self.replaced += 1
            new = sample.clip_id not in self.reasons
            self.reasons.setdefault(sample.clip_id, str(error))
            count = len(self.reasons)
        if new:
            log.warning("clip %s: %s; other clips take its place", sample.clip_id, error)
            if self._tell is not None:
                self._tell(sample, str(error))
        if count > self._limit * self._clips:
            raise ValueError(
                f"{count} of {self._clips} clips are damaged, more than the share of {self._limit:g} that "
                f"train.damaged_limit allows; the last: clip {sample.clip_id}: {error}"
            )


class Loader:
    """Reads the batches of one worker, the `rank`-th of `workers`; with 0 `threads` in the caller's own."""

    def __init__(
        self,
        dataset: Dataset,
        variant: Variant,
        *,
        seed: int,
        rank: int = 0,
        workers: int = 1,
        threads: int = THREADS,
        damaged_limit: float = 0.1,
        damaged: Callable[[Sample, str], None] | None = None,
    ) -> None:
        clips = check_dataset(dataset, variant)
        self.dataset, self.recipe, self.batch = dataset, variant.recipe, variant.recipe.batch
        self.sampler = Sampler(clips, variant, seed)
        self.videos = range(rank, self.batch, workers)
        """This worker's, of the global batch."""
        self.damage = Damage(len(clips), damaged_limit, damaged)
        self.copies = ShardCopies(dataset, [clip.tar for clip in clips], rank=rank)
        self._check_at = time.monotonic() + CHECK_S
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="loader") if threads else None

    def ahead(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of updates start ... stop - 1 in order, with the cameras of their phases, read in the
        background. What goes wrong there is raised here."""
        self.copies.start((stop - start) * len(self.videos) * self.sampler.n)
        waiting: deque[Callable[[], Batch]] = deque()
        begun = start
        for step in range(start, stop):
            while begun < min(step + AHEAD + 1, stop):
                waiting.append(self._begin(begun, generated=True))
                begun += 1
            yield waiting.popleft()()

    def real(self, step: int) -> Batch:
        """Update `step`'s real frames for this worker."""
        return self._begin(step)()

    def cameras(self, step: int, phase: int) -> Cameras:
        """Cameras [B, n, 25] for the generated frames of a phase, and their times [B, n]: of the *global*
        batch, since videos swap cameras with each other."""
        drawn = [
            self._attempt(functools.partial(self.sampler.camera, step, phase, video), self._cameras)
            for video in range(self.batch)
        ]
        return _stacked(drawn)

    def close(self) -> None:
        """Stop reading; nothing goes on in the background then."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self.copies.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _begin(self, step: int, generated: bool = False) -> Callable[[], Batch]:
        """Start to read a batch; the call waits for it."""
        n, side = self.sampler.n, self.dataset.size
        pixels = np.empty((len(self.videos), n, side, side, 3), np.uint8)
        videos = [
            self._submit(self._video, step, video, into)
            for video, into in zip(self.videos, pixels, strict=True)
        ]
        phases = [steps.PHASES.index(name) for name in steps.phases(step, self.recipe) if name in GENERATING]
        others = self._submit(self._cameras_of, step, phases if generated else [])

        def finish() -> Batch:
            cameras, times = _stacked([ready() for ready in videos])
            images = torch.from_numpy(pixels).permute(0, 1, 4, 2, 3)
            return Batch(images, times, cameras, others())

        return finish

    def _cameras_of(self, step: int, phases: list[int]) -> dict[int, Cameras]:
        if time.monotonic() > self._check_at:
            self._check_at = time.monotonic() + CHECK_S
            self.dataset.check_not_taken_down()
        return {phase: self.cameras(step, phase) for phase in phases}

    def _submit(self, call: Callable[..., T], *arguments: Any) -> Callable[[], T]:
        if self._pool is None:
            return functools.partial(call, *arguments)
        return self._pool.submit(call, *arguments).result

    def _video(self, step: int, video: int, into: NDArray[np.uint8]) -> Seen:
        """One video; its frames go `into` [n, H, H, 3]."""

        def read(draw: Draw) -> Seen:
            self.dataset.read_frames(draw.sample, draw.frames.tolist(), into, mirrored=draw.flip)
            return self._cameras(draw)

        return self._attempt(functools.partial(self.sampler.real, step, video), read)

    def _cameras(self, draw: Draw) -> Seen:
        return self.dataset.cameras(draw.sample)[draw.frames], draw

    def _attempt(self, draw: Callable[..., Draw], read: Callable[[Draw], T]) -> T:
        """Read what is drawn, or, when it is damaged, what is drawn in its place."""
        for attempt in range(ATTEMPTS):
            drawn = draw(attempt=attempt)
            try:
                return read(drawn)
            except DamagedError as error:
                self.damage.add(drawn.sample, error)
                last = error
            except Exception as error:
                error.add_note(f"clip {drawn.sample.clip_id}, frames {drawn.frames.tolist()}")
                raise
        raise ValueError(f"{ATTEMPTS} draws in a row are damaged, the last: {last}")
