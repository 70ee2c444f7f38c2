"""Training, evaluation and registry, as the report shows them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from infra.storage import Storage

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
    curves = _curves(workflow.storage.tracking, run) if run else []
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
        log.warning("no curves: MLflow run %s is not at %s (%s)", run, tracking, error.error_code)
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
    from pipelines.evaluate import PREFIX, read_result, result_name, training

    keys = [key for key in store.list(PREFIX) if key.endswith(".json")]
    if not keys:
        return None
    key = max(keys)
    if store.exists("dataset/latest.json"):
        newest = next(checkpoints(store, training(workflow).checkpoints), None)
        wanted = result_name(newest, workflow.evaluate) if newest else ""
        key = wanted if wanted in keys else key
    result = read_result(store, key)
    rows = []
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
                "value": "" if value["value"] is None else f"{value['value']:.4g}",
                "interval": f"{interval[0]:.4g} to {interval[1]:.4g}" if interval else "",
            }
        )
    settings = result["settings"]
    videos = f"{settings['clips']} generated videos of update {result['step']:,}"
    text = f"{videos}, mode {settings['mode']}, seed {settings['seed']}"
    return {"metrics": rows, "text": text}


def model_section(workflow: Workflow) -> dict[str, Any] | None:
    """The version that the alias points to; None when there is none."""
    from pipelines.register import find_version

    version = find_version(workflow.storage.tracking, workflow.register.name, workflow.register.alias)
    if version is None:
        return None
    tags = [{"name": name, "value": value} for name, value in sorted(version.tags.items())]
    return {
        "name": workflow.register.name,
        "alias": workflow.register.alias,
        "version": int(version.version),
        "tags": tags,
    }
