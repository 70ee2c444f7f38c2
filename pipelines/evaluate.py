"""Measure the last checkpoint: generated videos from two sides at two times, and the metrics that the
workflow names.

    evaluate/<step>-<key>.json     every figure with unit, direction and sample count, or why there is none

`key` is a hash of the generator, the settings, the code that measures and which weights of other people's
networks are here: what was measured is not measured again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from infra.json_values import read_object, read_text
from infra.storage import Storage
from stages import metrics
from stages.metrics import Evaluation, Mode, MultiView, Value

if TYPE_CHECKING:
    from infra.checkpoints import Checkpoint
    from pipelines.models import OpenModel
    from pipelines.settings import EvaluateSettings
    from pipelines.train_job import Job
    from pipelines.workflow import Workflow

log = logging.getLogger(__name__)

SCHEMA = 1
PREFIX = "evaluate"
NEUTRAL = ("every", "workers")
"""Settings that change no figure."""
YAW_DEG = 30.0
SEED_STRIDE = 1_000_000
"""Videos of evaluation seed s are the seeds from s times this on, so that two evaluations share no video."""


def evaluate(workflow: Workflow) -> dict[str, Any]:
    """Evaluate the newest sound checkpoint unless that is done; returns what the json holds.

    Raises ValueError when there is no checkpoint, or a metric or backend cannot be imported.
    """
    subject = of(newest_checkpoint(workflow))
    result = figures(workflow.store(), workflow.evaluate, subject)
    artifact = result_name(subject, workflow.evaluate).rpartition("/")[2]
    _log_to_run(workflow, artifact, result)
    return result


@dataclass(frozen=True)
class Subject:
    """Weights that are measured: a checkpoint's, or a registered version's."""

    weights: str  # sha256 (hex) of the file of the averaged generator
    step: int
    checkpoint: str  # key of the store
    open: Callable[[], OpenModel]


def of(checkpoint: Checkpoint) -> Subject:
    from pipelines.checkpoints import EMA

    def opened() -> OpenModel:
        from pipelines.models import of_checkpoint

        return of_checkpoint(checkpoint.store, checkpoint.key)

    return Subject(checkpoint.card["files"][EMA]["sha256"], checkpoint.step, checkpoint.key, opened)


def figures(store: Storage, settings: EvaluateSettings, subject: Subject) -> dict[str, Any]:
    """What the json of `subject` holds: read when it is in the store, else measured and written."""
    computes = {path: metrics.load(path) for path in settings.metrics}
    _check_backends(settings)
    name = result_name(subject, settings)
    if store.exists(name):
        log.info("evaluation of %s is done", subject.checkpoint)
        return read_result(store, name)
    values = measure(subject.open(), settings, computes)
    result = {
        "schema": SCHEMA,
        "checkpoint": subject.checkpoint,
        "step": subject.step,
        "settings": settings.model_dump(mode="json"),
        "metrics": {key: value.to_json() for key, value in values.items()},
    }
    store.write(name, json.dumps(result, indent=1, allow_nan=False).encode())
    return result


def _check_backends(settings: EvaluateSettings) -> None:
    """A backend that is misspelt or not installed is found before the first video is made."""
    from stages import backends

    needs = {"identity_backend": backends.IDENTITY, "face_backend": ("detect",)}
    for field in {field for path in settings.metrics for field in metrics.backends_of(path)}:
        try:
            backends.load(getattr(settings, field), needs=needs[field])
        except ValueError as error:
            raise ValueError(f"evaluate.{field}: {error}") from None


def training(workflow: Workflow) -> Job:
    """The training that the settings and the latest dataset make. Raises ValueError when there is no
    dataset."""
    from pipelines.train_init import prepare_init
    from pipelines.train_job import Job
    from stages.shards import open_dataset

    dataset = open_dataset(workflow.store())
    return Job(workflow.storage, workflow.train, dataset.version, init=prepare_init(workflow))


def newest_checkpoint(workflow: Workflow) -> Checkpoint:
    """Raises ValueError when training has left none."""
    from infra.checkpoints import latest

    store, job = workflow.store(), training(workflow)
    found = latest(store, job.checkpoints)
    if found is None:
        raise ValueError(f"no checkpoint below {job.run} in {store.root}; run `pv3d run --until train` first")
    return found


def run_id(workflow: Workflow) -> str | None:
    """The MLflow run of the training, None when it has none."""
    store, job = workflow.store(), training(workflow)
    if not store.exists(job.tracking_key):
        return None
    return read_text(store, job.tracking_key, "run_id")


def result_name(subject: Subject, settings: EvaluateSettings) -> str:
    """The key of a result: another for other weights, settings or metric versions, and when weights came."""
    from infra.weights import find

    code = hashlib.sha256()
    for file in sorted(Path(str(metrics.__file__)).parent.glob("*.py")):
        code.update(file.read_bytes())
    here = {name: find(name) is not None for path in settings.metrics for name in metrics.weights_of(path)}
    parts = [
        subject.weights,
        settings.model_dump(mode="json", exclude=set(NEUTRAL)),
        code.hexdigest(),
        here,
    ]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
    return f"{PREFIX}/{subject.step:08d}-{key}.json"


def read_result(store: Storage, key: str) -> dict[str, Any]:
    result = read_object(store, key)
    if result.get("schema") != SCHEMA:
        raise ValueError(f"{key}: not of schema {SCHEMA}; delete it to evaluate again")
    return result


def measure(
    opened: OpenModel, settings: EvaluateSettings, computes: dict[str, metrics.Compute]
) -> dict[str, Value]:
    """Generate the multi-view samples once, in a temporary folder, and run every metric on them."""
    from infra.weights import find

    rendering = opened.generator.config.rendering
    near, far = rendering.ray_start, rendering.ray_end
    length = far - near if near is not None and far is not None else rendering.box_warp
    values: dict[str, Value] = {}
    with tempfile.TemporaryDirectory(prefix="pv3d-evaluate-") as folder:
        views = generate_views(opened, settings, Path(folder))
        evaluation = Evaluation(
            views=views,
            bin_size=length / (rendering.samples_coarse - 1),
            mode=settings.mode,
            identity_backend=settings.identity_backend,
            face_backend=settings.face_backend,
            weights=find,
        )
        for path, compute in computes.items():
            found = compute(evaluation)
            doubt = doubts({key: value.to_json() for key, value in found.items()})
            texts = (f"{key} {_text(value, doubt.get(key, ''))}" for key, value in found.items())
            log.info("%s: %s", path, ", ".join(texts))
            values.update(found)
    return values


def _text(value: Value, doubt: str) -> str:
    if value.value is None:
        return f"not computed ({value.reason})"
    return f"{value.value:.4g} {value.unit}" + (f" ({doubt})" if doubt else "")


def doubts(values: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Of figures as their `to_json`: the identities (id/...) of videos in which hardly a face was found, each
    with how much it says. A video has four frames."""
    found = [value for name, value in values.items() if name.startswith("faces_found/")]
    if not found or found[0]["value"] is None or found[0]["value"] >= 0.5:
        return {}
    share, frames = found[0]["value"], 4 * found[0]["samples"]
    says = "little" if share else "nothing"
    text = f"faces found in {round(share * frames)} of {frames} frames: says {says}"
    given = (name for name, value in values.items() if value["value"] is not None)
    return {name: text for name in given if name.startswith("id/")}


@dataclass(frozen=True)
class StoredViews:
    """Multi-view samples in files, one per video; one is in memory at a time."""

    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[MultiView]:
        for file in self.files:
            with np.load(file, allow_pickle=False) as arrays:
                yield MultiView(**{f.name: arrays[f.name] for f in fields(MultiView)})


def generate_views(opened: OpenModel, settings: EvaluateSettings, folder: Path) -> StoredViews:
    """Write `settings.clips` samples into `folder`, about 3 MB each at 512 px."""
    from pipelines.progress import Progress

    files = []
    with Progress(["evaluate"]) as bars:
        bars.expect("evaluate", settings.clips)
        for number in range(settings.clips):
            view = multi_view(opened, settings.seed, number, settings.mode)
            files.append(folder / f"{number:06d}.npz")
            np.savez(
                files[-1], allow_pickle=False, **{f.name: getattr(view, f.name) for f in fields(MultiView)}
            )
            bars.done("evaluate")
            bars.tick()
    return StoredViews(tuple(files))


def multi_view(opened: OpenModel, seed: int, number: int, mode: Mode = "paper") -> MultiView:
    """Sample `number` of an evaluation: a function of (seed, number) alone.

    Two times of the training grid (distinct as the paper says; with replacement in `official`), seen by the
    frontal camera and by the one at 30 degrees; the mapping network sees the frontal one in all four views.
    """
    import torch

    span = opened.generator.config.frames_span
    random = np.random.default_rng([seed, number])
    t0, t1 = random.choice(span, size=2, replace=mode == "official") / (span - 1)
    front, side = opened.cameras.canonical_camera().encode(), opened.cameras.orbit(YAW_DEG).encode()
    cameras = np.stack([front, side, side, front])
    times = np.array([t0, t1, t0, t1], np.float32)
    parts = list(
        opened.clips.render_clip(
            opened.generator,
            seed * SEED_STRIDE + number,
            cameras,
            times,
            mapping_camera=front,
            return_xyz=True,
        )
    )

    def whole(name: str) -> Any:
        return torch.cat([getattr(part, name)[0] for part in parts]).float().cpu()

    arrays: dict[str, NDArray[np.float32]] = {
        "depth": whole("depth")[:, 0].numpy(),
        "opacity": whole("weight_total")[:, 0].numpy(),
        "points": whole("xyz").numpy(),
    }
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise ValueError(
            f"{opened.name}: video {number} has a {broken[0]} that is not finite; the checkpoint has diverged"
        )
    return MultiView(images=opened.clips.to_uint8(whole("image")), cameras=cameras, times=times, **arrays)


def _log_to_run(workflow: Workflow, artifact: str, result: dict[str, Any]) -> None:
    """Into the training's run: figures as `eval/<name>` at the checkpoint's step, once, and the whole as an
    artifact."""
    run = run_id(workflow)
    if run is None:
        log.warning("the training has no MLflow run; the evaluation is in the store only")
        return
    from mlflow import MlflowClient

    from pipelines.models import answering

    client = MlflowClient(workflow.storage.tracking)
    with answering(workflow.storage.tracking):
        if any(file.path.endswith(artifact) for file in client.list_artifacts(run, PREFIX)):
            return
        for name, value in result["metrics"].items():
            if value["value"] is not None:
                client.log_metric(run, f"eval/{name}", value["value"], step=result["step"])
        client.log_dict(run, result, f"{PREFIX}/{artifact}")
