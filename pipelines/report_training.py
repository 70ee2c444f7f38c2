"""Training, evaluation and registry, as the report shows them."""

from __future__ import annotations

import logging
import shlex
from typing import TYPE_CHECKING, Any

from infra.storage import Storage
from infra.tracking import shown

if TYPE_CHECKING:
    from pipelines.workflow import Workflow

log = logging.getLogger(__name__)

VIDEO_BYTES = 4 << 20  # a larger sample video stays out of the page
CURVES_SHOWN = 9
CURVES_MORE = 120
NOT_LOSSES = ("time/", "memory/", "blur_sigma", "rendering_resolution", "/grad_norm", "/logit_")
"""Parts of the names of curves that are folded away."""


def training_section(workflow: Workflow, store: Storage) -> dict[str, Any] | None:
    """Curves from MLflow and the last sample; None before the first checkpoint."""
    from infra.checkpoints import checkpoints
    from pipelines.evaluate import run_id, training

    if not store.exists("dataset/latest.json"):
        return None
    job = training(workflow)
    found = next(checkpoints(store, job.checkpoints), None)
    run = run_id(workflow)
    if found is None:
        return None
    curves = _curves(workflow.storage.tracking, run) if run and _answers(workflow.storage.tracking) else []
    losses = [curve for curve in curves if not any(part in curve["title"] for part in NOT_LOSSES)]
    first = (losses or curves)[:CURVES_SHOWN]
    return {
        "step": found.step,
        "text": f"{job.variant.name}, {found.step:,} of {workflow.train.steps:,} updates, batch "
        f"{job.variant.recipe.batch}, {workflow.train.workers} worker(s); MLflow run {run or 'none'}",
        "video": _video(store, job.run),
        "curves": first,
        "more": [curve for curve in curves if curve not in first][:CURVES_MORE],
    }


def _video(store: Storage, run: str) -> str:
    """The newest sample video as a data URI; "" when there is none of a size for a page."""
    from pipelines.contact import inline

    keys = [key for key in store.list(f"{run}/samples") if key.endswith(".mp4")]
    if not keys or store.size(max(keys)) > VIDEO_BYTES:
        return ""
    return inline(store.read(max(keys)), "video/mp4")


def _curves(tracking: str, run: str) -> list[dict[str, Any]]:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from pipelines import svg

    client = MlflowClient(tracking)
    try:
        names = sorted(client.get_run(run).data.metrics)
        histories = {name: client.get_metric_history(run, name) for name in names}
    except MlflowException as error:
        log.warning("no curves: MLflow run %s is not at %s (%s)", run, shown(tracking), error.error_code)
        return []
    made = []
    for name, history in histories.items():
        points = sorted({m.step: m.value for m in history}.items())
        if not name.startswith(("eval/", "system/")) and len(points) > 1:
            caption = f"last {points[-1][1]:.4g}"
            label = f"{name} over updates: {caption}"
            drawn = svg.line(points, name="update", label=label)
            made.append({"title": name, "svg": drawn, "caption": caption})
    return made


def evaluation_section(workflow: Workflow, store: Storage) -> dict[str, Any] | None:
    """The result of the newest checkpoint under the settings of now, else the newest of any."""
    from infra.checkpoints import checkpoints
    from pipelines.evaluate import PREFIX, doubts, of, read_result, result_name, training

    keys = [key for key in store.list(PREFIX) if key.endswith(".json")]
    if not keys:
        return None
    key = max(keys)
    if store.exists("dataset/latest.json"):
        newest = next(checkpoints(store, training(workflow).checkpoints), None)
        wanted = result_name(of(newest), workflow.evaluate, store) if newest else ""
        key = wanted if wanted in keys else key
    result = read_result(store, key)
    rows, doubt = [], doubts(result["metrics"])
    for name, value in result["metrics"].items():
        interval = value["interval"]
        rows.append(
            {
                "name": name,
                "reason": value["reason"],
                "unit": value["unit"],
                "direction": value["direction"],
                "samples": value["samples"],
                "note": value["note"],
                "doubt": doubt.get(name, ""),
                "value": "" if value["value"] is None else f"{value['value']:.4g}",
                "interval": f"{interval[0]:.4g} to {interval[1]:.4g}" if interval else "",
            }
        )
    settings = result["settings"]
    videos = f"{settings['clips']} generated videos of update {result['step']:,}"
    text = f"{videos}, mode {settings['mode']}, seed {settings['seed']}"
    checkpoint = str(result["checkpoint"])
    other = _other(workflow, store, checkpoint, _dataset_of(store, checkpoint))
    return {"metrics": rows, "text": text, "of": other}


def _dataset_of(store: Storage, checkpoint: str) -> str:
    """The version that the training of a checkpoint read, by its card, or those that are left beside it."""
    from infra.checkpoints import checkpoints

    folder = checkpoint.rpartition("/")[0]
    found = list(checkpoints(store, folder)) if folder else []
    found.sort(key=lambda one: one.key != checkpoint)
    return str(found[0].card.get("dataset", "")) if found else ""


def _other(workflow: Workflow, store: Storage, checkpoint: str, dataset: str) -> str:
    """Which training a checkpoint is of, where it is not the one of these settings and the latest dataset."""
    from pipelines.after_data import training_of
    from pipelines.report_tables import dataset as latest

    made, run = latest(store), training_of(workflow, store)
    if made is None or run is None:
        return ""
    if dataset and dataset != made["version"]:
        return f"of dataset {dataset}, not the one above"
    if checkpoint and not checkpoint.startswith(f"{run}/"):
        return f"of {checkpoint.partition('/checkpoints')[0]}, another training than the one above"
    return ""


def model_section(workflow: Workflow, store: Storage) -> dict[str, Any] | None:
    """The version that the alias points to; None when there is none."""
    from pipelines.register import find_version

    if not _answers(workflow.storage.tracking):
        return None
    version = find_version(workflow.storage.tracking, workflow.register.name, workflow.register.alias)
    if version is None:
        return None
    tags = [{"name": name, "value": value} for name, value in sorted(version.tags.items())]
    return {
        "name": workflow.register.name,
        "alias": workflow.register.alias,
        "version": int(version.version),
        "tags": tags,
        "of": _other(workflow, store, version.tags.get("checkpoint", ""), version.tags.get("data", "")),
        "command": shlex.join(_command(workflow)),
    }


def _answers(tracking: str) -> bool:
    """Whether MLflow can be asked; it would itself try for minutes."""
    from infra.tracking import check_tracking

    try:
        check_tracking(tracking)
    except ValueError as error:
        log.warning("the report shows nothing of MLflow: %s", error)
        return False
    return True


def _command(workflow: Workflow) -> list[str]:
    """How to make videos with it, from this folder."""
    from pipelines.report_tables import public
    from pipelines.settings import StorageSettings
    from pipelines.workflow import absolute_uri

    name, alias = workflow.register.name, workflow.register.alias
    words = ["pv3d", "generate", f"models:/{name}@{alias}", "--seeds", "0-3", "--out", "samples"]
    tracking = workflow.storage.tracking
    plain = absolute_uri(StorageSettings.model_fields["tracking"].default)
    return words if tracking == plain else [*words, "--tracking", public(tracking)]
