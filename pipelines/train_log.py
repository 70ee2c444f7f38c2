"""What a training tells while it runs: metrics, sample videos, checkpoints and progress, all from worker 0.

MLflow is talked to in a thread of its own, so that a slow server does not slow the updates.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from infra import checkpoints
from infra.checkpoints import Checkpoint
from infra.engine import mean_over_workers
from infra.outbox import Outbox
from infra.tracking import Run, open_run
from model.config import to_dict
from model.generator import Generator
from pipelines.grid import grid_frames
from pipelines.publish import PLAIN, publish
from pipelines.train_job import Job
from stages.shards import Dataset
from stages.video import write_video

SHAPING = ("variant", "workers", "accumulate", "zero_stage", "precision", "seed")
"""Settings whose change on the way is recorded, beside all of model and recipe."""
SETTLE_S, CLOSE_S = 20.0, 60.0  # how long MLflow is waited for, at a checkpoint and at the end
PROGRESS_EVERY_S = 1.0
PROGRESS_EVERY_REMOTE_S = 10.0

T = TypeVar("T")


class Recorder:
    """Collects values between two log entries and passes their means on. All workers call every method."""

    def __init__(self, job: Job, dataset: Dataset, rank: int, found: Checkpoint | None) -> None:
        """`found`: the checkpoint that the training goes on from."""
        self.job, self.settings, self.store = job, job.settings, job.store
        self.writes = rank == 0 and job.replay is None
        self.now = ""  # the phase under way, or the last one
        start = self.start = found.step if found else 0
        self.begun = time.monotonic()
        self.changes = changes(found, job) if found else []
        self._sums: dict[str, list[float]] = defaultdict(list)
        self._since, self._since_step, self._told = time.monotonic(), start, 0.0
        if self.writes:
            self._mlflow = Outbox(job.store, job.unsent, lambda: open_training(job, dataset))

    # --- while updating ------------------------------------------------------------------------------------

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """Pass `batches` on and measure how long each was waited for."""
        iterator = iter(batches)
        while True:
            before = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._sums["time/data_wait"].append(time.perf_counter() - before)
            yield batch

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a phase of the update, in seconds."""
        self.now = name
        before = time.perf_counter()
        yield
        if self.job.gpu:
            torch.cuda.synchronize()
        self._sums[f"time/{name}"].append(time.perf_counter() - before)

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._sums[name].append(float(value))

    @contextlib.contextmanager
    def logits(self, network: nn.Module, name: str) -> Iterator[None]:
        """Add the mean logits of the fake and the real frames that `network` judges inside, in turns."""
        seen: list[Tensor] = []
        hook = network.register_forward_hook(lambda _m, _i, output: seen.append(output.detach().mean()))
        try:
            yield
        finally:
            hook.remove()
        fake, real = (torch.stack(part).mean() for part in (seen[0::2], seen[1::2]))
        gap = {f"{name}/logit_fake": fake, f"{name}/logit_real": real, f"{name}/logit_gap": real - fake}
        self.add(mean_over_workers(gap))

    # --- after an update -----------------------------------------------------------------------------------

    def step(self, done: int) -> None:
        """`done` updates are done: log when it is time to, and tell how far it is."""
        if not self.writes:
            self._sums.clear()
            return
        last = done == self.settings.steps
        if last or done % self.settings.log_every == 0:
            self._log(done)
        if last or time.monotonic() - self._told >= self._progress_every:
            self._tell(done)

    def _log(self, done: int) -> None:
        now = time.monotonic()
        values = {name: sum(v) / len(v) for name, v in self._sums.items()}
        videos = (done - self._since_step) * self.job.variant.recipe.batch
        rate = videos / (now - self._since)
        values["videos_per_second"] = rate
        values["frames_per_second"] = rate * self.job.variant.model.discriminator_frames
        values["memory/peak_gb"] = _peak_gb(self.job.gpu)
        self._sums.clear()
        self._since, self._since_step = now, done
        self._mlflow.metrics(done, values)

    @property
    def _progress_every(self) -> float:
        return PROGRESS_EVERY_REMOTE_S if "://" in self.store.root else PROGRESS_EVERY_S

    def _tell(self, done: int) -> None:
        self._told = time.monotonic()
        rate = (done - self.start) / (self._told - self.begun)
        left = (self.settings.steps - done) / rate if rate else None
        state = {
            "step": done,
            "steps": self.settings.steps,
            "steps_per_second": rate,
            "eta_s": left,
            "time": time.time(),
            "dataset": self.job.dataset,
        }
        self.store.write(self.job.progress, json.dumps(state).encode())

    def sample(self, done: int, ema: Generator, fps: float) -> None:
        """The sample video, to the store and to MLflow."""
        if not self.writes:
            return
        with tempfile.TemporaryDirectory(prefix="pv3d-sample-") as folder:
            path = Path(folder, f"{done:08d}.mp4")
            write_video(path, grid_frames(ema), fps)
            publish(path, {"update": done}, PLAIN)
            self.store.upload(self.job.sample(done), path)
        self._mlflow.file(self.job.sample(done), "samples")

    def checkpoint(self, done: int, files: Mapping[str, Mapping[str, Tensor]]) -> None:
        """A checkpoint to the store; MLflow gets its card, which names every file with its sha256."""
        if not self.writes:
            return
        # What is before a checkpoint is never trained again: it is told by now, or kept.
        self._mlflow.settle(SETTLE_S)
        job = self.job
        card = {
            "variant": to_dict(job.variant), "samples": job.seen(done), "dataset": job.dataset,
            "run": job.run, "settings": job.settings.model_dump(mode="json"), "torch": torch.__version__,
            "init": job.init.digest if job.init else None, "changes": self.changes,
            "code": importlib.metadata.version("pv3d-pipeline"),
        }  # fmt: skip
        saved = checkpoints.save(
            self.store, job.checkpoints, done, files, card, keep=self.settings.keep_checkpoints
        )
        text = json.dumps(saved.card, indent=1, sort_keys=True)
        self._mlflow.text(text, f"checkpoints/{done:08d}.json")
        self._mlflow.tags({"pv3d.checkpoint": f"{self.store.root}/{saved.key}"})
        job.make_latest(job.mlflow_run())

    # --- the end -------------------------------------------------------------------------------------------

    def close(self, status: str = "FINISHED") -> None:
        if self.writes:
            self._mlflow.status(status)
            self._mlflow.close(CLOSE_S)

    def stopped(self, step: int, error: Exception, files: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Keep the state in which update `step` (from 0) stopped, and leave word for the driver that going on
        makes no sense."""
        if self.writes:
            job = self.job
            card = {
                "variant": to_dict(job.variant), "settings": job.settings.model_dump(mode="json"),
                "dataset": job.dataset, "phase": self.now, "error": str(error),
                "init": asdict(job.init) if job.init else None,
            }  # fmt: skip
            dump = checkpoints.save(self.store, job.dumps, step, files, card, keep=1)
            reason = (
                f"training stopped before update {step + 1}: {error}; the last checkpoint is kept: go on "
                f"from it with train.name={job.name} and, under train.recipe, a lower learning rate or a "
                f"higher r1_gamma; `pv3d replay` does the update again, from {dump.key}"
            )
            self.store.write(self.job.stopped, json.dumps({"reason": reason}).encode())
        self.close("FAILED")


def open_training(job: Job, dataset: Dataset) -> Run:
    """The MLflow run of a training, with its settings and its data."""
    settings, root = job.settings, job.storage.root
    uri, experiment = job.storage.tracking, settings.experiment
    run = open_run(job.store, job.tracking_key, uri=uri, experiment=experiment, name=job.name)
    params = {"model": to_dict(job.variant.model), "recipe": to_dict(job.variant.recipe)}
    run.params(_flat("", {**params, "train": settings.model_dump(mode="json"), "storage": {"root": root}}))
    run.tags({"pv3d.run": job.run})
    profile = {
        "clips": len(dataset.samples), "people": len({s.identity for s in dataset.samples}),
        "frames": sum(s.frame_count for s in dataset.samples), "size": dataset.size, "fps": dataset.fps,
    }  # fmt: skip
    key = f"dataset/{dataset.version}.json"
    run.dataset(name="shards", digest=dataset.version, source=f"{root}/{key}", profile=profile)
    run.text(
        json.dumps({"version": dataset.version, "manifests": dataset.manifests, **profile}, indent=1), key
    )
    return run


def changes(found: Checkpoint, job: Job) -> list[dict[str, Any]]:
    """What has changed on the way to `found`, and since: {"step", "changed": {name: [before, now]}}, oldest
    first. A training with a name, or on other workers, goes on all the same."""

    def state(variant: Mapping[str, Any], settings: Mapping[str, Any], dataset: str) -> dict[str, Any]:
        told = {name: value for name, value in settings.items() if name in SHAPING}
        return _flat("", {**variant, "train": told, "dataset": dataset})

    card, now = found.card, job.settings.model_dump(mode="json")
    before = state(card["variant"], card["settings"], card["dataset"])
    after = state(to_dict(job.variant), now, job.dataset)
    changed = {
        name: [before.get(name), after.get(name)]
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }
    earlier: list[dict[str, Any]] = list(card.get("changes", []))
    return [*earlier, {"step": found.step, "changed": changed}] if changed else earlier


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        dotted = f"{prefix}{name}"
        flat.update(_flat(f"{dotted}.", value) if isinstance(value, dict) else {dotted: value})
    return flat


def _peak_gb(gpu: bool) -> float:
    if gpu:
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
