"""Which frames and cameras a training sees: pure functions of (seed, update, index of the video in a batch).

Real frames: people take turns, in a new order whenever each has been seen, so that everybody is seen equally
often; one of the person's clips, a window of `frames_span` frames anywhere in it, n frames in the window by
the law of `model.times` (model facts 8), mirrored half of the time. Cameras of generated frames: a person at
random, and on as above.

The official reader leaves the last frame of a clip out; here every window can come.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from model import times
from model.config import Variant
from stages.dataset import Dataset, Sample

T = TypeVar("T")

log = logging.getLogger(__name__)


class Stream(IntEnum):
    """Independent random numbers for each purpose. Values are part of what a seed means; do not renumber."""

    ORDER = 100
    REAL = 101
    CAMERAS = 102


@dataclass(frozen=True)
class Draw:
    """n frames of a clip."""

    sample: Sample
    frames: NDArray[np.int64]
    """[n], increasing; they may coincide"""
    times: NDArray[np.float32]
    """[n] in [0, 1]: index in the window / (span - 1)"""
    flip: bool
    """Pictures and cameras are mirrored."""


class Sampler:
    """The sampling law over the clips to train on."""

    def __init__(self, clips: list[Sample], variant: Variant, seed: int) -> None:
        self.seed, self.batch = seed, variant.recipe.batch
        self.span, self.n = variant.model.frames_span, variant.model.discriminator_frames
        self.flips = {Stream.REAL: 0.5, Stream.CAMERAS: 0.5 if variant.recipe.flip_fake_cameras else 0.0}
        people: dict[str, list[Sample]] = {}
        for sample in sorted(clips, key=lambda s: s.clip_id):
            people.setdefault(sample.identity or sample.clip_id, []).append(sample)
        self.people = [people[name] for name in sorted(people)]
        self._order = functools.lru_cache(4)(self._shuffled)
        self._batch = functools.lru_cache(64)(self._drawn)

    def real(self, step: int, video: int, attempt: int = 0) -> Draw:
        """Frames of one video of the global batch. From attempt 1 on what replaces a damaged one: of a person
        at random."""
        return self._batch(Stream.REAL, step, 0, attempt)[video]

    def camera(self, step: int, phase: int, video: int, attempt: int = 0) -> Draw:
        """Frames whose cameras a generated video takes; drawn afresh in every phase, as official."""
        return self._batch(Stream.CAMERAS, step, phase, attempt)[video]

    def _drawn(self, stream: Stream, step: int, phase: int, attempt: int) -> list[Draw]:
        """For every video of the global batch; row i of the random numbers is the i-th video's."""
        uniforms = self._random(stream, step, phase, attempt).random((self.batch, 4 + self.n))
        person, clip, start, coin = uniforms[:, :4].T
        indices = times.frame_indices(uniforms[:, 4:], self.span)
        t = times.index_times(indices, self.span)
        flips = coin < self.flips[stream]
        drawn = []
        for video in range(self.batch):
            turns = stream == Stream.REAL and not attempt
            clips = self._turn(step * self.batch + video) if turns else _pick(self.people, person[video])
            sample = _pick(clips, clip[video])
            first = int(start[video] * (sample.frame_count - self.span + 1))
            drawn.append(Draw(sample, first + indices[video], t[video], bool(flips[video])))
        return drawn

    def _turn(self, count: int) -> list[Sample]:
        """Whose turn the `count`-th video is."""
        turn, at = divmod(count, len(self.people))
        return self.people[self._order(turn)[at]]

    def _shuffled(self, turn: int) -> NDArray[np.int64]:
        return self._random(Stream.ORDER, turn).permutation(len(self.people))

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.seed, *key]))


def _pick(items: Sequence[T], uniform: float) -> T:
    return items[int(uniform * len(items))]


def check_dataset(dataset: Dataset, variant: Variant) -> list[Sample]:
    """The clips to train on, by id. Raises ValueError when the dataset does not fit the variant or cannot
    fill a batch."""
    size, span, batch = variant.model.img_resolution, variant.model.frames_span, variant.recipe.batch
    if not dataset.samples:
        raise ValueError(
            f"the dataset {dataset.version} holds no clip; see `pv3d status` for why each was rejected"
        )
    if dataset.size != size:
        raise ValueError(
            f"the shards hold frames of {dataset.size} px, {variant.name} makes {size} px; "
            f"set stages.AlignCrop.size={size} or choose another train.variant"
        )
    clips, why = eligible(dataset, span)
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(why.items()))
    if not clips:
        raise ValueError(
            f"no training clip has the {span} frames that {variant.name} looks at (model.frames_span); the "
            f"longest of {len(dataset.samples)} has {max(s.frame_count for s in dataset.samples)} "
            f"({left_out}); set train.model.frames_span, or cut longer clips"
        )
    if len(clips) < batch:
        raise ValueError(
            f"train.batch: {batch} videos, but the dataset {dataset.version} has {len(clips)} clips to train "
            f"on{f' ({left_out})' if left_out else ''}; set train.batch={len(clips)} or less, or prepare more"
        )
    if left_out:
        log.info("training on %d of %d clips; left out: %s", len(clips), len(dataset.samples), left_out)
    return clips


def eligible(dataset: Dataset, span: int) -> tuple[list[Sample], Counter[str]]:
    """The clips to train on, by id, and for the others how many are left out for what reason.

    Whoever is in another split with any clip is not trained on at all.
    """
    held_out = {s.identity for s in dataset.samples if s.split != "train" and s.identity}
    clips, why = [], Counter[str]()
    for sample in sorted(dataset.samples, key=lambda s: s.clip_id):
        if sample.split != "train":
            why[f"of split {sample.split}"] += 1
        elif sample.identity in held_out:
            why["of people of another split"] += 1
        elif sample.frame_count < span:
            why[f"shorter than {span} frames"] += 1
        else:
            clips.append(sample)
    return clips, why
