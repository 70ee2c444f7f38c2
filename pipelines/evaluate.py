"""Measure the last checkpoint: generated videos from two sides at two times, and the metrics that the
workflow names.

    evaluate/<step>-<key>.json     every figure with unit, direction and sample count, or why there is none

`key` is a hash of the generator and its settings, those of the evaluation, the code that measures and which
weights of other people's networks are here: what was measured is not measured again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.json_values import is_number, parsed_object, read_text
from infra.storage import FolderStorage, Storage
from infra.weights import digest, find
from pipelines.evaluate_samples import Crew, Here, Kind, Studio, There, held_out, real_key
from pipelines.evaluate_samples import code as samples_code
from stages import metrics
from stages.metrics import Evaluation, Samples, Value
from stages.versions import latest_version

if TYPE_CHECKING:
    from infra.checkpoints import Checkpoint
    from model.config import ModelConfig
    from pipelines.models import OpenModel
    from pipelines.settings import EvaluateSettings
    from pipelines.train_job import Job
    from pipelines.workflow import Workflow
    from stages.dataset import Dataset

log = logging.getLogger(__name__)

SCHEMA = 1
PREFIX = "evaluate"
NEUTRAL = ("every", "samples", "workers", "analyses")
"""Settings that change no figure."""


def evaluate(workflow: Workflow, checkpoint: str | None = None) -> dict[str, Any]:
    """Evaluate the newest sound checkpoint, or one by its key in the store, unless that is done; returns what
    the json holds.

    Raises ValueError when there is no checkpoint, or a metric or backend cannot be imported.
    """
    return _evaluated(workflow, checkpoint)[0]


def evaluate_and_point(workflow: Workflow, checkpoint: str | None = None) -> dict[str, Any]:
    """The same, and as `page` where its page is."""
    store, (result, name) = workflow.store(), _evaluated(workflow, checkpoint)
    page = name.replace(".json", ".html")
    place = str(store.path(page)) if isinstance(store, FolderStorage) else f"{store.root}/{page}"
    return {**result, "page": place}


def _evaluated(workflow: Workflow, checkpoint: str | None) -> tuple[dict[str, Any], str]:
    from infra.checkpoints import open_checkpoint
    from pipelines.evaluate_log import publish

    store, settings = workflow.store(), workflow.evaluate
    subject = of(newest_checkpoint(workflow) if checkpoint is None else open_checkpoint(store, checkpoint))
    name, run = result_name(subject, settings, store), _run_of(workflow, subject.checkpoint)
    result = figures(store, settings, subject, name)
    publish(store, name, result, subject, workflow.storage.tracking, run)
    return result, name


def _run_of(workflow: Workflow, checkpoint: str) -> str | None:
    """The MLflow run of the training that made a checkpoint."""
    key = f"{checkpoint.partition('/checkpoints')[0]}/mlflow.json"
    store = workflow.store()
    return read_text(store, key, "run_id") if store.exists(key) else None


def evaluate_now(workflow: Workflow, checkpoint: str | None) -> tuple[dict[str, Any], str]:
    """The same as an answer of the command line: figures, why there is none or what to know, and the page."""
    from infra import cluster
    from infra.tracking import check_tracking
    from pipelines.evaluate_log import rows

    check_tracking(workflow.storage.tracking)
    begun = time.monotonic()
    try:
        result = evaluate_and_point(workflow, checkpoint)
    finally:
        if workflow.evaluate.workers > 1:
            cluster.stop()
    wide = max((len(name) for name in result["metrics"]), default=0)
    told = [
        f"{name:<{wide}} {value:>12} {unit:<20} {interval}".rstrip()
        for name, value, interval, unit, *_ in rows(result)
    ]
    notes = [f"{name}: {note}" for name, *_, note in rows(result) if note]
    seconds = round(time.monotonic() - begun, 1)
    head = f"update {result['step']} of {result['checkpoint']}, {seconds} s"
    return {**result, "seconds": seconds}, "\n".join([head, *told, *notes, result["page"]])


@dataclass(frozen=True)
class Subject:
    """What is measured: a checkpoint's generator, or a registered version's."""

    weights: str  # sha256 (hex) of the file of the averaged generator
    model: str  # `model_key`: equal weights may be used otherwise (Table 2c: Non and MapT train alike)
    step: int
    checkpoint: str  # key of the store
    open: Callable[[], OpenModel]  # also in a worker


def of(checkpoint: Checkpoint) -> Subject:
    """Raises ValueError for one without an averaged generator, or whose settings are damaged."""
    from pipelines.checkpoints import EMA, checkpoint_variant

    place, options, key = checkpoint.store.root, dict(checkpoint.store.s3), checkpoint.key

    def opened() -> OpenModel:               # in this process, or in a worker's
        from infra.storage import open_storage
        from pipelines.models import of_checkpoint

        return of_checkpoint(open_storage(place, **options), key)

    if EMA not in checkpoint:
        raise ValueError(f"{checkpoint.key}: has no {EMA}, which is measured; name another checkpoint")
    weights, model = checkpoint.card["files"][EMA]["sha256"], model_key(checkpoint_variant(checkpoint).model)
    return Subject(weights, model, checkpoint.step, checkpoint.key, opened)


def model_key(config: ModelConfig) -> str:
    """A hash of the networks' settings."""
    from model.plain import to_dict

    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:12]


def figures(
    store: Storage, settings: EvaluateSettings, subject: Subject, name: str | None = None,
    makers: Makers | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What the json of `subject` holds: read when it is in the store, else measured and written. `name`: its
    key, by whoever needs it too: weights that come meanwhile make another. `makers`: those of the subject,
    for evaluations that differ in `mode` alone and share their videos."""
    computes = {path: metrics.load(path) for path in settings.metrics}
    name = name or result_name(subject, settings, store)
    if store.exists(name):
        log.info("evaluation of %s is done", subject.checkpoint)
        return read_result(store, name)
    check_evaluation(settings)
    if makers is not None:
        values = measure(makers, settings, computes)
    else:
        with Makers(store, subject, settings) as own:
            values = measure(own, settings, computes)
    for key, value in values.items():
        if not _is_figure(value.to_json()):
            raise ValueError(
                f"{key}: {value.value}, interval {value.interval}: not finite; look at what the networks "
                "and evaluate.statistics hold"
            )
    result = {
        "schema": SCHEMA,
        "checkpoint": subject.checkpoint,
        "step": subject.step,
        "settings": settings.model_dump(mode="json"),
        "metrics": {key: value.to_json() for key, value in values.items()},
    }
    store.write(name, json.dumps(result, indent=1, allow_nan=False).encode())
    return result


def check_evaluation(settings: EvaluateSettings) -> None:
    """Raise ValueError for backends, networks and statistics that are misspelt, not installed, damaged or
    missing although they were named."""
    _check_backends(settings)
    _check_files(settings)


def _check_backends(settings: EvaluateSettings) -> None:
    """A backend that is misspelt or not installed is found before the first video is made."""
    from stages import backends

    needs = {"identity_backend": backends.IDENTITY, "face_backend": ("detect",)}
    for field in {field for path in settings.metrics for field in metrics.backends_of(path)}:
        try:
            backends.load(getattr(settings, field), needs=needs[field])
        except ValueError as error:
            raise ValueError(f"evaluate.{field}: {error}") from None


def _check_files(settings: EvaluateSettings) -> None:
    """A named file that is missing or of no use, and a listed one with other bytes, are found before the
    first video is made."""
    from stages.metrics.networks import check_form, find_network
    from stages.metrics.statistics import read_statistics

    for name in sorted({name for path in settings.metrics for name in metrics.weights_of(path)}):
        network = find_network(name, settings.networks, find(name))
        if network is not None and name in settings.networks:
            check_form(network.path)
    if settings.statistics:
        read_statistics(Path(settings.statistics).expanduser())


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


def result_name(subject: Subject, settings: EvaluateSettings, store: Storage) -> str:
    """The key of a result: another for other weights, settings or metric versions, when weights came, and for
    other real videos where a metric sees them."""
    code = hashlib.sha256(samples_code().encode())
    for file in sorted(Path(str(metrics.__file__)).parent.glob("*.py")):
        code.update(file.read_bytes())
    names = {name for path in settings.metrics for name in metrics.weights_of(path)}
    files = [*settings.networks.values(), *([settings.statistics] if settings.statistics else [])]
    parts = [
        subject.weights,
        subject.model,
        settings.model_dump(mode="json", exclude=set(NEUTRAL)),
        code.hexdigest(),
        {name: find(name) is not None for name in names},
        {file: _digest(file) for file in files},
        latest_version(store) if _sees_real(settings) else "",
    ]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
    return f"{PREFIX}/{subject.step:08d}-{key}.json"


def _sees_real(settings: EvaluateSettings) -> bool:
    """Whether a metric compares with real videos, and has its network."""
    seeing = [path for path in settings.metrics if metrics.sees_real(path)]
    names = {name for path in seeing for name in metrics.weights_of(path)}
    return any(name in settings.networks or find(name) is not None for name in names)


def _digest(file: str) -> str:
    """sha256 of a file that the settings name; "" when it is not there."""
    path = Path(file).expanduser()
    return digest(path) if path.is_file() else ""


def read_result(store: Storage, key: str) -> dict[str, Any]:
    """Raises ValueError, naming the key, for what is not as it was written."""
    try:
        result = parsed_object(store.read(key))
    except ValueError:
        raise ValueError(f"{key} in {store.root}: is damaged; delete it to evaluate again") from None
    if result.get("schema") != SCHEMA:
        raise ValueError(f"{key}: not of schema {SCHEMA}; delete it to evaluate again")
    settings, found = result.get("settings"), result.get("metrics")
    whole = isinstance(result.get("checkpoint"), str) and type(result.get("step")) is int
    whole = whole and isinstance(settings, dict) and {"clips", "mode", "seed"} <= settings.keys()
    if not whole or not isinstance(found, dict) or not all(map(_is_figure, found.values())):
        raise ValueError(f"{key} in {store.root}: is damaged; delete it to evaluate again")
    return result


def _is_figure(value: Any) -> bool:
    """Whether it is what `Value.to_json` gives."""
    if not isinstance(value, dict) or value.get("direction") not in ("lower", "higher"):
        return False
    texts, between = (value.get(name) for name in ("unit", "reason", "note")), value.get("interval", "")
    sound = all(isinstance(text, str) for text in texts) and type(value.get("samples")) is int
    sound = sound and (value.get("value", "") is None or is_number(value.get("value")))
    pair = isinstance(between, list) and len(between) == 2 and all(map(is_number, between))
    return sound and (between is None or pair)


def measure(
    makers: Makers, settings: EvaluateSettings, computes: dict[str, metrics.Compute]
) -> dict[str, Value]:
    """Run every metric on the samples that they share."""
    values: dict[str, Value] = {}
    evaluation = _evaluation(makers, settings)
    for path, compute in computes.items():
        found = compute(evaluation)
        doubt = doubts({key: value.to_json() for key, value in found.items()})
        texts = (f"{key} {_text(value, doubt.get(key, ''))}" for key, value in found.items())
        log.info("%s: %s", path, ", ".join(texts))
        values.update(found)
    return values


def _evaluation(makers: Makers, settings: EvaluateSettings) -> Evaluation:
    """What the metrics get. Nothing is made before a metric asks for it."""
    config, dataset = makers.opened.generator.config, makers.dataset
    if any(map(metrics.sees_real, settings.metrics)):
        makers.opened.clips.window_times(config, settings.frames)        # more than the model's are refused
    near, far = config.rendering.ray_start, config.rendering.ray_end
    length = far - near if near is not None and far is not None else config.rendering.box_warp
    kept, left_out = held_out(dataset, settings.frames, settings.videos)
    real_missing = "the dataset has no clip of held-out people; set stages.WriteShards.held_out=0.1, say"
    if left_out and not kept and sum(left_out.values()) > left_out["to train on"]:
        real_missing = f"no clip of held-out people has {settings.frames} frames; lower evaluate.frames"
    return Evaluation(
        views=makers.samples("views/paper" if settings.mode == "paper" else "views/official", settings.clips),
        videos=makers.samples("videos", settings.videos), real=makers.samples("real", len(kept)),
        bin_size=length / (config.rendering.samples_coarse - 1), frames=settings.frames,
        size=config.img_resolution, real_key=real_key(dataset, settings), real_missing=real_missing,
        statistics=Path(settings.statistics).expanduser() if settings.statistics else None,
        cache=makers.store, mode=settings.mode, identity_backend=settings.identity_backend,
        face_backend=settings.face_backend, networks=settings.networks, weights=find,
    )  # fmt: skip


class Makers(contextlib.ExitStack):
    """Who makes the samples of a subject, in a temporary folder while the context lasts: this process, or
    workers. Nothing is opened before it is wanted."""

    def __init__(self, store: Storage, subject: Subject, settings: EvaluateSettings) -> None:
        super().__init__()
        self.store, self._subject, self._settings = store, subject, settings

    @functools.cached_property
    def opened(self) -> OpenModel:
        return self._subject.open()

    @functools.cached_property
    def dataset(self) -> Dataset | None:
        return dataset_of(self.store, latest_version(self.store)) if _sees_real(self._settings) else None

    def samples(self, kind: Kind, count: int) -> Samples[Any]:
        if self._settings.workers == 1:
            return Here(self._studio, kind, count)
        return There(self._crew, kind, count)

    @functools.cached_property
    def _studio(self) -> Studio:
        from infra.allocator import one_heap

        one_heap()
        folder = self.enter_context(tempfile.TemporaryDirectory(prefix="pv3d-evaluate-"))
        return Studio(self.opened, self._settings, Path(folder), self.dataset)

    @functools.cached_property
    def _crew(self) -> Crew:
        place, options = self.store.root, dict(self.store.s3)
        version = self.dataset.version if self.dataset else None

        def of_worker() -> Dataset | None:
            from infra.storage import open_storage

            return dataset_of(open_storage(place, **options), version)

        crew = Crew(self._settings.workers, self._subject.open, self._settings, of_worker)
        self.callback(crew.close)
        return crew


def dataset_of(store: Storage, version: str | None) -> Dataset | None:
    """That version of the dataset; None without one."""
    from stages.shards import open_dataset

    return None if version is None else open_dataset(store, version)


def _text(value: Value, doubt: str) -> str:
    if value.value is None:
        return f"not computed ({value.reason})"
    return f"{value.value:.4g} {value.unit}" + (f" ({doubt})" if doubt else "")


def called(figure: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """The name that a figure has among those `found`: its own, or `id/ir_se50` for `id` by a file that was
    named in place of the listed network."""
    own = (name for name, value in found.items() if name.startswith(f"{figure}/") and value.get("network"))
    return figure if figure in found else next(own, figure)


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
