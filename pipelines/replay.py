"""`pv3d replay`: do the update again at which a training stopped for a number that was not finite."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from infra import checkpoints
from pipelines.settings import TrainSettings
from pipelines.train_init import prepare_init
from pipelines.train_job import Init, Job, Replay

if TYPE_CHECKING:
    from pipelines.workflow import Workflow

Answer = tuple[dict[str, Any], str]


def replay(workflow: Workflow, run: str | None = None) -> Answer:
    """Load the dump, in this process alone, and run the phase that stopped with the same videos and draws.

    `run`: the name of a training, when it is not that of the workflow's settings. Raises ValueError when
    there is no dump.
    """
    job = find(workflow, run)
    assert job.replay is not None
    told = {"step": job.replay.step + 1, "phase": job.replay.phase, "dump": job.replay.key}
    error = _again(job)
    text = f"update {told['step']}, {told['phase']}: "
    text += f"again, {error}" if error else "this time every number is finite"
    return {**told, "error": error}, text


def find(workflow: Workflow, run: str | None = None) -> Job:
    """The job as it was when it stopped, on one worker."""
    from stages.shards import open_dataset

    store = workflow.store()
    if run is None:
        version, init = open_dataset(store).version, prepare_init(workflow)
        run = Job(workflow.storage, workflow.train, version, init=init).name
    found = checkpoints.latest(store, f"train/{run}/stopped")
    if found is None:
        raise ValueError(f"train/{run} in {store.root} did not stop for a number that is not finite; "
                         "name another training with --run")  # fmt: skip
    card, step = found.card, found.step
    settings = TrainSettings(**{**card["settings"], "workers": 1, "steps": step + 1})
    return Job(
        workflow.storage, settings, card["dataset"], gpu=_gpu(settings.device),
        init=Init(**card["init"]) if card["init"] else None, replay=Replay(found.key, step, card["phase"]),
    )  # fmt: skip


def _gpu(device: str) -> bool:
    import torch

    return device != "cpu" and torch.cuda.is_available()


def _again(job: Job) -> str:
    """What was not finite this time, or ""."""
    from infra.engine import NonFiniteError, end_deepspeed
    from pipelines.train import work

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({**alone, "MASTER_PORT": str(port)})
    try:
        work(job)
    except NonFiniteError as error:
        return str(error)
    finally:
        end_deepspeed()
    return ""
