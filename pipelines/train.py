"""Training: `work` is the loop that every worker runs, and reads top to bottom; `train` starts it on Ray.

An update is G-main, [G-reg], D-main, [D-reg], EMA (paper A.1). All randomness is a function of (seed, step,
video), so a run is the same on any number of workers and after any interruption.

In the store, below `train/<run>`: `checkpoints/<step>/` (see infra/checkpoints.py), `samples/<step>.mp4`,
`mlflow.json` (the id of the MLflow run), `progress.json`. <run> names the variant and a hash of everything
that shapes the trajectory: other settings start another run, more steps continue the same.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from infra import checkpoints
from infra.json_values import read_object, read_text
from infra.storage import StorageError, fault_of_place
from pipelines.checkpoints import run_id
from pipelines.policy import Policy
from pipelines.progress import Progress
from pipelines.sampling import check_dataset
from pipelines.train_init import prepare_init
from pipelines.train_job import Job, check_batch

if TYPE_CHECKING:
    from pipelines.settings import EvaluateSettings
    from pipelines.workflow import Workflow

__all__ = ["plan", "run_id", "train", "work"]

log = logging.getLogger(__name__)


def work(job: Job) -> None:
    """Train on this worker until `steps` updates are done, from the newest checkpoint on."""
    import torch

    from infra.allocator import tune_allocator
    from infra.engine import NonFiniteError, from_first_worker, init_deepspeed
    from infra.workers import rank_and_size
    from model import losses, steps
    from pipelines.loader import Loader
    from pipelines.train_log import Recorder
    from pipelines.train_networks import Networks
    from stages.shards import open_dataset

    # --- set up: the same data and the same initial weights on every worker
    tune_allocator()
    rank, workers = rank_and_size()
    device = torch.device("cuda", torch.cuda.current_device()) if job.gpu else torch.device("cpu")
    init_deepspeed(device.type)
    settings, store, config, recipe = job.settings, job.store, job.variant.model, job.variant.recipe
    dataset = open_dataset(store, job.dataset)
    loader = Loader(
        dataset, job.variant, seed=settings.seed, rank=rank, workers=workers,
        threads=settings.loader_threads, damaged_limit=settings.damaged_limit, damaged=job.tell_damaged,
    )  # fmt: skip
    torch.manual_seed(settings.seed)
    nets = Networks(job.variant, device, bfloat16=settings.precision == "bfloat16")

    # --- resume: worker 0 chooses the checkpoint, all load it
    newest = checkpoints.latest(store, job.checkpoints) if rank == 0 and not job.replay else None
    start = from_first_worker(newest.step if newest else 0, device)
    found = checkpoints.open_checkpoint(store, f"{job.checkpoints}/{start:08d}") if start else None
    origin = job.replay or job.init
    first = found or (checkpoints.open_checkpoint(store, origin.key) if origin else None)
    nets.start(first, videos=len(loader.videos), zero=settings.zero_stage, parts=settings.accumulate)
    g, d_img, d_vid = nets.g, nets.d_img, nets.d_vid
    record = Recorder(job, dataset, rank, found)

    def inputs(phase: steps.Phase) -> losses.GeneratorInputs:
        """This worker's videos of what the phase draws for the global batch."""
        cameras, times = batch.generated[steps.PHASES.index(phase)]
        random = steps.step_generator(settings.seed, step, phase)
        drawn = steps.draw_inputs(
            cameras, config, recipe, samples=samples, generator=random, matched_times=times
        )
        mine = steps.rows(drawn, rank, workers)
        mine.random = steps.video_generators(settings.seed, step, phase, loader.videos)
        return nets.to_device(mine)

    step = start = job.replay.step if job.replay else start
    try:
        for step, batch in enumerate(record.waiting(loader.ahead(start, settings.steps)), start):
            # --- schedules and real frames
            samples, phases = job.seen(step), job.phases(step)
            blur = steps.blur_sigma(samples, recipe)
            resolution = steps.rendering_resolution(samples, recipe, config.rendering.resolution)
            record.add({"blur_sigma": blur, "rendering_resolution": resolution})
            images, times, cameras = batch.to(device)
            real = losses.real_sample(images, times, cameras, resolution)

            # --- G-main; the discriminators are frozen, as every network is outside of its own update
            if "generator_main" in phases:
                with record.phase("generator_main"):
                    drawn = inputs("generator_main")
                    terms = g.update(losses.generator_main_loss, d_img, d_vid, drawn, recipe, blur_sigma=blur)
                    record.add(terms)

            # --- G-reg, lazily: density
            if "generator_reg" in phases:
                with record.phase("generator_reg"):
                    drawn = inputs("generator_reg")
                    record.add(g.update(losses.density_regularization, drawn, recipe, label="G_reg"))

            # --- D-main
            if "discriminator_main" in phases:
                with record.phase("discriminator_main"):
                    fake = nets.fakes(inputs("discriminator_main"))
                    for d in nets.discriminators:
                        with record.logits(d.network, d.name):
                            loss = losses.discriminator_main_loss
                            record.add(d.update(loss, fake, real, recipe, blur_sigma=blur))

            # --- D-reg, lazily: R1, whose double backward stays inside the engine's forward
            if "discriminator_reg" in phases:
                with record.phase("discriminator_reg"):
                    for d in nets.discriminators:
                        label = f"{d.name}_reg"
                        record.add(d.update(losses.r1_loss, real, recipe, blur_sigma=blur, label=label))

            # --- EMA
            steps.ema_update(nets.ema, nets.generator, steps.ema_beta(samples, recipe))

            # --- log, sample, checkpoint
            record.add({"damaged_clips": len(loader.damage.reasons)})
            done = step + 1
            record.step(done)
            if done == settings.steps or done % settings.sample_every == 0:
                with record.phase("sample"):
                    record.sample(done, nets.ema, dataset.fps)
            if done == settings.steps or done % settings.checkpoint_every == 0:
                with record.phase("checkpoint"):
                    record.checkpoint(done, nets.state())
        record.close()
    except NonFiniteError as error:
        if job.replay:
            raise
        record.stopped(step, error, nets.state())
    finally:
        loader.close()
        nets.close()


# --- on the driver ------------------------------------------------------------------------------------------


def train(
    workflow: Workflow, *, ray_address: str | None = None, beside: bool = False
) -> dict[str, Any]:
    """Train as `workflow.train` says, on from where it stands; nothing when the steps are done. `beside` the
    store's own training it does not become the one that commands open.

    Returns {"run_id" of MLflow, "checkpoint" (key of the store), "steps", "seconds", "sample" (key of the
    last sample video)}. Raises ValueError when the dataset or the settings do not fit, or when a loss is not
    finite.
    """
    begun = time.monotonic()
    job = replace(plan(workflow), beside=beside)
    found = checkpoints.latest(job.store, job.checkpoints)
    if found is None or found.step < job.settings.steps:
        _train_on_ray(job, found.step if found else 0, ray_address, workflow.evaluate)
        found = checkpoints.latest(job.store, job.checkpoints)
    assert found is not None, "the workers ended without a checkpoint"
    assert found.step >= job.settings.steps, "the workers ended before their last update"
    mlflow_run = _told(job)
    job.make_latest(mlflow_run)
    return {
        "run_id": mlflow_run,
        "checkpoint": found.key,
        "steps": found.step,
        "seconds": round(time.monotonic() - begun, 1),
        "sample": job.sample(found.step),
    }


def _told(job: Job) -> str:
    """The id of the MLflow run, which now knows everything. Raises ValueError while its server is away."""
    from infra.outbox import Outbox
    from infra.tracking import shown
    from pipelines.train_log import CLOSE_S, open_training
    from stages.shards import open_dataset

    if job.store.exists(job.unsent):
        dataset = open_dataset(job.store, job.dataset)
        Outbox(job.store, job.unsent, lambda: open_training(job, dataset)).close(CLOSE_S)
    run = job.mlflow_run()
    if run is None or job.store.exists(job.unsent):
        raise ValueError(
            f"storage.tracking: {shown(job.storage.tracking)} does not answer; the training is done, its "
            "checkpoint is in the store: run again when the server is back"
        )
    return run


def plan(workflow: Workflow) -> Job:
    """The job, checked against the dataset. Raises ValueError; starts nothing. Weights to start from are
    copied into the store."""
    from stages.shards import open_dataset

    dataset = open_dataset(workflow.store())
    Policy(workflow, workflow.store()).check_dataset(dataset)
    job = Job(workflow.storage, workflow.train, dataset.version, init=prepare_init(workflow))
    check_dataset(dataset, job.variant)
    check_batch(job.variant, job.settings.workers, job.settings.accumulate)
    return job


def _train_on_ray(job: Job, start: int, ray_address: str | None, evaluation: EvaluateSettings) -> None:
    from infra import cluster
    from infra.workers import run_workers, share, use_gpus
    from pipelines.evaluate_along import Along, spare

    cluster.start(ray_address)
    settings, store = job.settings, job.store
    job = replace(job, gpu=use_gpus(settings.workers, settings.device))
    store.delete(job.stopped)
    store.delete(job.progress)
    log.info("training %s: updates %d to %d, %d workers", job.name, start, settings.steps, settings.workers)
    ticks = run_workers(
        _work, {"job": job}, workers=settings.workers, gpu=job.gpu, restarts=settings.restarts,
        placement=settings.placement, env=settings.env,
    )  # fmt: skip
    have, told = cluster.here(), 0
    cores = spare(have.get("CPU", 0.0), settings.workers, share(settings.workers))
    gpus = spare(have.get("GPU", 0.0), settings.workers if job.gpu else 0, 1.0)
    cores = min(cores, gpus) if job.gpu else cores  # beside GPUs, nodes without one may lack PyTorch
    with Along(job, evaluation, cores, gpus) as along, Progress(["train"]) as bars:
        bars.expect("train", settings.steps - start)
        for _ in ticks:
            done = _done(job)
            if done < told:
                log.warning("a worker has died; all go on from the last checkpoint")
            told = done
            if done > start:
                bars.done("train", done - start)
                start = done
            bars.tick()
            along.tick()
    if store.exists(job.stopped):
        raise ValueError(read_text(store, job.stopped, "reason"))


def _work(config: dict[str, Any]) -> None:
    """`work`, on a worker of Ray Train, which starts all again when one fails: not after a user's mistake."""
    job: Job = config["job"]
    if job.store.exists(job.stopped):
        return
    try:
        job.store.check_writable()  # no updates that could not be kept
        work(job)
    except (ValueError, StorageError) as error:
        _stop(job, str(error))
        raise
    except OSError as error:
        if not (fault := fault_of_place(error)):
            raise
        _stop(job, fault)
        raise StorageError(fault) from error


def _stop(job: Job, reason: str) -> None:
    """Leave word that going on makes no sense; on a disk that is full there may be no room for it."""
    stop = {"reason": reason, "traceback": traceback.format_exc()}
    with contextlib.suppress(StorageError):
        job.store.write(job.stopped, json.dumps(stop).encode())


def _done(job: Job) -> int:
    """Updates done, as worker 0 last told."""
    try:
        step = read_object(job.store, job.progress).get("step")
    except (FileNotFoundError, ValueError):
        return 0
    return step if isinstance(step, int) else 0
