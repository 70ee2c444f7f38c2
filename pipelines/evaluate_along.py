"""Evaluate every N-th checkpoint while the training goes on, in tasks of the same Ray.

Only on cores that the training leaves free: as many evaluations at once as there are such cores, so that the
training, also one that starts its workers again, never waits for one. GPUs likewise. A checkpoint whose
evaluation fails is recorded, `train/<run>/evaluations/<step>.json`, and the training goes on.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infra.checkpoints import CARD
from infra.storage import StorageError

if TYPE_CHECKING:
    from pipelines.settings import EvaluateSettings
    from pipelines.train_job import Job

log = logging.getLogger(__name__)

LOOK_S = 2.0
LOOK_REMOTE_S = 20.0


def spare(total: float, workers: int, each: float) -> int:
    """Whole cores, or GPUs, that `workers` with `each` leave free."""
    return max(0, int(total - workers * each + 1e-6))


@dataclass
class Along:
    """What is to be evaluated, and what is being evaluated. The driver calls `tick` a few times per second,
    and leaves the context once the training has ended."""

    job: Job
    settings: EvaluateSettings
    cores: int
    """Free ones; beside a training on GPUs no more than free GPUs."""
    gpus: int = 0
    _next: float = 0.0
    _seen: set[int] = field(default_factory=set)
    _queue: deque[int] = field(default_factory=deque)
    _running: dict[Any, int] = field(default_factory=dict)

    def __enter__(self) -> Along:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(wait=kind is None)

    def tick(self) -> None:
        """Never raises for the store or an evaluation."""
        if not self.settings.every or time.monotonic() < self._next:
            return
        if not self.cores:
            log.warning("evaluate.every: the training leaves no core or GPU; only the last checkpoint counts")
            self._next = float("inf")
            return
        self._next = time.monotonic() + (LOOK_REMOTE_S if "://" in self.job.store.root else LOOK_S)
        try:
            self._look()
        except StorageError as error:
            log.warning("evaluate.every: looked for no checkpoints this time (%s)", error)
        self._collect(0)
        while self._queue and len(self._running) < self.cores:
            self._start(self._queue.popleft())

    def close(self, wait: bool = True) -> None:
        """Evaluate what is left; else stop, as after Ctrl-C."""
        import ray

        if not self.cores:
            return
        if not wait:
            for task in self._running:
                ray.cancel(task, force=True)
            return
        self._next = 0.0
        self.tick()
        while self._running:
            self._collect(0.5)
            self._next = 0.0
            self.tick()

    def _look(self) -> None:
        """Queue the checkpoints that are due: every N-th, but the last, which is evaluated by itself."""
        steps, each = self.job.settings.steps, self.job.settings.checkpoint_every
        folder = f"{self.job.checkpoints}/"
        cards = (key for key in self.job.store.list(self.job.checkpoints) if key.endswith(f"/{CARD}"))
        found = sorted(int(key.removeprefix(folder).partition("/")[0]) for key in cards)
        for step in found:
            due = step < steps and step % each == 0 and (step // each) % self.settings.every == 0
            if due and step not in self._seen:
                self._queue.append(step)
            self._seen.add(step)

    def _start(self, step: int) -> None:
        import ray

        # Without a GPU of its own it must not find that of the training.
        env = {} if self.gpus else {"CUDA_VISIBLE_DEVICES": ""}
        remote: Any = ray.remote(
            num_cpus=1, num_gpus=min(1, self.gpus), max_retries=0, runtime_env={"env_vars": env}
        )(_evaluate)
        job, alone = self.job, self.settings.model_copy(update={"workers": 1})
        self._running[remote.remote(job, alone, step)] = step
        log.info("evaluating update %d of %s beside the training", step, job.name)

    def _collect(self, seconds: float) -> None:
        import ray

        done, _ = ray.wait(list(self._running), timeout=seconds) if self._running else ([], [])
        for task in done:
            step = self._running.pop(task)
            try:
                fault = ray.get(task)
            except ray.exceptions.RayError as error:
                fault = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
            if fault:
                self._record(step, fault)

    def _record(self, step: int, fault: str) -> None:
        """A failure goes to the log, the store and MLflow."""
        from pipelines.evaluate_log import log_failure

        log.warning("the evaluation of update %d failed: %s", step, fault)
        try:
            told = json.dumps({"step": step, "error": fault}).encode()
            self.job.store.write(f"{self.job.run}/evaluations/{step:08d}.json", told)
            run = self.job.mlflow_run()
            if run is not None:
                log_failure(self.job.storage.tracking, run, step, fault)
        except (StorageError, ValueError) as error:
            log.warning("it is recorded nowhere else (%s)", error)


def _evaluate(job: Job, settings: EvaluateSettings, step: int) -> str:
    """In a worker: evaluate one checkpoint; returns why that was not possible, "" when it was."""
    from infra.checkpoints import open_checkpoint
    from pipelines.evaluate import figures, of, result_name
    from pipelines.evaluate_log import publish

    os.nice(10)
    store = job.store
    try:
        subject = of(open_checkpoint(store, f"{job.checkpoints}/{step:08d}"))
        name = result_name(subject, settings, store)
        result = figures(store, settings, subject, name)
        publish(store, name, result, subject, job.storage.tracking, job.mlflow_run())
    except (ValueError, StorageError, FileNotFoundError) as error:
        return str(error)
    return ""
