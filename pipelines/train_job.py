"""What a training is, before any network exists: its settings, its place in the store, and the checks of
both."""

from __future__ import annotations

import hashlib
import importlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from infra.storage import Storage, open_storage
from model.config import Variant, to_dict
from pipelines.settings import StorageSettings, TrainSettings
from stages.shards import Dataset, Sample

NEUTRAL = ("updates", "checkpointing")
"""Of the recipe: what changes a run's length or cost, not its course."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to know. Small: it travels to every one of them."""

    storage: StorageSettings
    settings: TrainSettings
    dataset: str  # version
    gpu: bool = False

    @property
    def store(self) -> Storage:
        remote = self.storage.s3.model_dump() if "://" in self.storage.root else {}
        return open_storage(self.storage.root, **remote)

    @cached_property
    def variant(self) -> Variant:
        """The variant, with the batch of the settings."""
        module, _, name = self.settings.variant.partition(":")
        variant: Variant = getattr(importlib.import_module(module), name)()
        batch = self.settings.batch or variant.recipe.batch
        return replace(variant, recipe=replace(variant.recipe, batch=batch))

    @cached_property
    def name(self) -> str:
        """The variant, and a hash of everything that shapes the trajectory but its length."""
        variant: dict[str, Any] = to_dict(self.variant)
        for neutral in NEUTRAL:
            del variant["recipe"][neutral]
        shape = {
            "variant": variant,
            "seed": self.settings.seed,
            "precision": self.settings.precision,
            "dataset": self.dataset,
        }
        text = json.dumps(shape, sort_keys=True)
        return f"{self.variant.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def run(self) -> str:
        return f"train/{self.name}"

    @property
    def checkpoints(self) -> str:
        return f"{self.run}/checkpoints"

    @property
    def tracking_key(self) -> str:
        return f"{self.run}/mlflow.json"

    @property
    def progress(self) -> str:
        return f"{self.run}/progress.json"

    @property
    def stopped(self) -> str:
        return f"{self.run}/stopped.json"

    def sample(self, done: int) -> str:
        return f"{self.run}/samples/{done:08d}.mp4"


def check_dataset(dataset: Dataset, variant: Variant) -> list[Sample]:
    """The clips to train on. Raises ValueError when the dataset does not fit the variant or cannot fill a
    batch."""
    size, span = variant.model.img_resolution, variant.model.frames_span
    if not dataset.samples:
        raise ValueError(
            f"the dataset {dataset.version} holds no clip; see `pv3d status` for why each was rejected"
        )
    if dataset.size != size:
        raise ValueError(
            f"the shards hold frames of {dataset.size} px, {variant.name} makes {size} px; "
            f"set stages.AlignCrop.size={size} or choose another train.variant"
        )
    clips = [s for s in dataset.samples if s.split == "train" and s.frame_count >= span]
    if not clips:
        raise ValueError(
            f"no training clip has the {span} frames that {variant.name} looks at; "
            f"the longest of {len(dataset.samples)} has {max(s.frame_count for s in dataset.samples)}"
        )
    return sorted(clips, key=lambda s: s.clip_id)


def check_batch(variant: Variant, workers: int, batch: int | None = None) -> None:
    """Raise ValueError unless `workers` can share a batch (None: the variant's) without changing its
    minibatch-std groups."""
    batch, d = batch or variant.recipe.batch, variant.model.discriminator
    if batch % workers:
        raise ValueError(
            f"train.batch: {batch} videos cannot be shared by {workers} workers; use a multiple of {workers}"
        )
    for items, group in ((batch * d.frames, d.minibatch_group_image), (batch, d.minibatch_group_video)):
        size = min(group, items)
        if items % size:
            raise ValueError(
                f"train.batch: {batch} videos make {items} items, which minibatch-std groups of {size} do "
                f"not divide; use a multiple of {size}"
            )
        if items // size % workers:
            need = -(-workers * size * batch // items)
            raise ValueError(
                f"train.workers: {workers} workers would split the minibatch-std groups of {size} in a batch "
                f"of {batch} videos; use {items // size} workers at most, or train.batch {need}"
            )
