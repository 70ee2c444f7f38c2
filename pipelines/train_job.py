"""What a training is, before any network exists: its settings, its place in the store, and the checks of
both."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from infra.json_values import read_text
from infra.storage import Storage, open_storage
from model.config import DiscriminatorConfig, Variant, to_dict, with_changes
from pipelines.checkpoints import LATEST
from pipelines.settings import StorageSettings, TrainSettings
from stages.dataset import Sample

NEUTRAL = (("recipe", "updates"), ("recipe", "checkpointing"), ("model", "rendering", "chunk_rays"))
"""Of the variant: what changes a run's length or cost, not its course."""


@dataclass(frozen=True)
class Init:
    """A checkpoint whose weights a training starts from."""

    key: str  # in the store
    digest: str  # of its files
    samples: int  # videos that it has seen: the schedules go on from there


@dataclass(frozen=True)
class Replay:
    """An update that stopped for a number that was not finite, to be done again from there."""

    key: str  # of the dump in the store: the state in which the phase began
    step: int
    phase: str


@dataclass(frozen=True)
class Job:
    """What a worker needs to know. Small: it travels to every one of them."""

    storage: StorageSettings
    settings: TrainSettings
    dataset: str  # version
    gpu: bool = False
    init: Init | None = None
    replay: Replay | None = None
    beside: bool = False  # the store's own training: of an analysis, or a row of the ablations

    @property
    def store(self) -> Storage:
        remote = self.storage.s3.model_dump() if "://" in self.storage.root else {}
        return open_storage(self.storage.root, **remote)

    @cached_property
    def variant(self) -> Variant:
        """The variant, as the settings change it."""
        module, _, name = self.settings.variant.partition(":")
        return changed(getattr(importlib.import_module(module), name)(), self.settings)

    @cached_property
    def name(self) -> str:
        """As set; else the variant, and a hash of everything that shapes the trajectory but its length."""
        if self.settings.name:
            return self.settings.name
        variant: dict[str, Any] = to_dict(self.variant)
        for *path, neutral in NEUTRAL:
            holder = variant
            for part in path:
                holder = holder[part]
            del holder[neutral]
        shape = {
            "variant": variant,
            "seed": self.settings.seed,
            "precision": self.settings.precision,
            "dataset": self.dataset,
            **({"init": self.init.digest} if self.init else {}),
        }
        text = json.dumps(shape, sort_keys=True)
        return f"{self.variant.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def seen(self, step: int) -> int:
        """Videos seen before update `step`, those of the weights that it started from included."""
        return (self.init.samples if self.init else 0) + step * self.variant.recipe.batch

    def phases(self, step: int) -> list[str]:
        """Those of update `step`; in a replay those from the one that stopped."""
        from model.steps import PHASES, phases

        found: list[str] = list(phases(step, self.variant.recipe))
        order: list[str] = list(PHASES)
        first = order.index(self.replay.phase) if self.replay else 0
        return [phase for phase in found if order.index(phase) >= first]

    @property
    def run(self) -> str:
        return f"train/{self.name}"

    def make_latest(self, run_id: str | None) -> None:
        """Name this training, with its MLflow run, as the one that commands open when they are given the
        store. One `beside` the store's own leaves the name that is there."""
        store = self.store
        if not (self.beside and store.exists(LATEST)):
            store.write(LATEST, json.dumps({"run": self.run, "run_id": run_id}).encode())

    @property
    def checkpoints(self) -> str:
        return f"{self.run}/checkpoints"

    @property
    def tracking_key(self) -> str:
        return f"{self.run}/mlflow.json"

    @property
    def unsent(self) -> str:
        """What MLflow is still to be told."""
        return f"{self.run}/unsent.json"

    def mlflow_run(self) -> str | None:
        """The id of its MLflow run, None before there is one."""
        try:
            return read_text(self.store, self.tracking_key, "run_id")
        except FileNotFoundError:
            return None

    @property
    def progress(self) -> str:
        return f"{self.run}/progress.json"

    @property
    def dumps(self) -> str:
        """Where the state of an update that was not finite is kept."""
        return f"{self.run}/stopped"

    def tell_damaged(self, clip: Sample, reason: str) -> None:
        """Note in the store that a clip cannot be read."""
        told = {"clip": clip.clip_id, "shard": clip.tar, "reason": reason}
        self.store.write(f"{self.run}/damaged/{clip.clip_id}.json", json.dumps(told).encode())

    @property
    def stopped(self) -> str:
        return f"{self.run}/stopped.json"

    def sample(self, done: int) -> str:
        return f"{self.run}/samples/{done:08d}.mp4"


def changed(variant: Variant, settings: TrainSettings) -> Variant:
    """The variant with the settings' `model`, `recipe` and `batch`. Raises ValueError naming the setting."""
    parts = {}
    for part in ("model", "recipe"):
        try:
            parts[part] = with_changes(getattr(variant, part), getattr(settings, part))
        except ValueError as error:
            raise ValueError(f"train.{part}: {error}") from None
    batch = settings.batch or parts["recipe"].batch
    return replace(variant, model=parts["model"], recipe=replace(parts["recipe"], batch=batch))


def check_batch(variant: Variant, workers: int, accumulate: int = 1) -> None:
    """Raise ValueError unless `workers` can share the variant's batch, each in `accumulate` parts, without
    changing its minibatch-std groups."""
    batch, d, shares = variant.recipe.batch, variant.model.discriminator, workers * accumulate
    who = f"{workers} workers" + (f" in {accumulate} parts each" if accumulate > 1 else "")
    if batch % shares:
        raise ValueError(
            f"train.batch: {batch} videos cannot be shared by {who}; use a multiple of {shares}"
        )
    for items, group in ((batch * d.frames, d.minibatch_group_image), (batch, d.minibatch_group_video)):
        size = min(group, items)
        if items % size:
            raise ValueError(
                f"train.batch: {batch} videos make {items} items, which minibatch-std groups of {size} do "
                f"not divide; use a multiple of {size}"
            )
        if items // size % shares:
            need = next(more for more in itertools.count(batch) if _shared(more, d, shares))
            fewer = max((less for less in range(1, shares) if _shared(batch, d, less)), default=1)
            most = f"{fewer} workers at most"
            if accumulate > 1:
                most = f"train.workers x train.accumulate of {fewer} at most"
            raise ValueError(
                f"train.workers: {who} would split the minibatch-std groups of {size} in a batch "
                f"of {batch} videos; use {most}, or train.batch {need}"
            )


def _shared(batch: int, d: DiscriminatorConfig, shares: int) -> bool:
    """Whether shares of a batch have equally many whole minibatch-std groups."""
    for items, group in ((batch * d.frames, d.minibatch_group_image), (batch, d.minibatch_group_video)):
        size = min(group, items)
        if batch % shares or items % size or items // size % shares:
            return False
    return True
