"""The report of a run: one HTML file without external assets, of what the store and the tracking server hold
now."""

from __future__ import annotations

import json
import logging
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.storage import FolderStorage, Storage

if TYPE_CHECKING:
    from pipelines.report_clips import Walk
    from pipelines.workflow import Workflow

log = logging.getLogger(__name__)

KEY = "report/index.html"
STATES = ("ok", "rejected", "failed", "todo")
UNITS_SHOWN = 500
LOSSES_SHOWN = 200  # videos of each kind
VIDEO_BYTES = 8 << 20  # a larger sample video stays out of the page
CURVES_SHOWN = 9
NOT_LOSSES = ("time/", "memory/", "blur_sigma", "rendering_resolution", "/grad_norm", "/logit_")
"""Parts of the names of curves that are folded away."""


def report(workflow: Workflow) -> Path | str:
    """Write `report/index.html` into the store; returns its path, or its key where the store is no folder."""
    store = workflow.store()
    # A file name need not be text: what of it cannot be written is a question mark.
    store.write(KEY, render(collect(workflow, store)).encode(errors="replace"))
    return store.path(KEY) if isinstance(store, FolderStorage) else f"{store.root}/{KEY}"


def render(data: dict[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipelines", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html.j2").render(states=STATES, **data)


def collect(workflow: Workflow, store: Storage) -> dict[str, Any]:
    """Everything that the template shows."""
    from pipelines.contact import strip
    from pipelines.report_clips import (
        FIGURE_CLIPS,
        KEPT_SHOWN,
        clips_of,
        figures,
        kept_rows,
        pose_rows,
        rejected_sheets,
        sampled,
        walk,
    )
    from pipelines.status import workflow_status

    status, _ = workflow_status(workflow)
    found, ledger = walk(workflow, store)
    kept = clips_of(ledger, sampled(found.kept, FIGURE_CLIPS))
    shown = {ref.id for ref in sampled(found.kept, KEPT_SHOWN)}
    units = [{"clip": "", "reason": "", "identity": "", **unit} for unit in status["units"]]
    trained, evaluated, version = _training(workflow, store), _evaluation(workflow, store), _model(workflow)
    return {
        "run": _run(workflow),
        "tiles": _tiles(store, found, trained, version),
        "stages": _stages(workflow, status),
        "units": units[:UNITS_SHOWN],
        "units_total": len(units),
        "losses": list(status["losses"].values()),
        "losses_shown": LOSSES_SHOWN,
        "figures": figures(kept),
        "figures_note": f"{len(kept)} of {len(found.kept)} clips; the outer bars hold what lies beyond.",
        "kept": kept_rows(store, [clip for clip in kept if clip.id in shown], strip),
        "sheets": rejected_sheets(store, found.sheets, strip),
        "poses": pose_rows(store, clips_of(ledger, sampled(found.posed, KEPT_SHOWN))),
        "training": trained,
        "evaluation": evaluated,
        "model": version,
        "notes": [],
    }


def _run(workflow: Workflow) -> dict[str, str]:
    source = getattr(workflow.source, "location", workflow.source_use)
    profile = f", profile {workflow.profile}" if workflow.profile else ""
    return {
        "name": f"pv3d: {Path(workflow.storage.root).name}",
        "workflow": f"{workflow.path}{profile}",
        "source": str(source),
        "root": workflow.storage.root,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _tiles(
    store: Storage, found: Walk, trained: dict[str, Any] | None, version: dict[str, Any] | None
) -> list[dict[str, str]]:
    tiles = [("clips kept", f"{len(found.kept):,}")]
    if store.exists("dataset/latest.json"):
        latest = json.loads(store.read("dataset/latest.json"))["version"]
        content = json.loads(store.read(f"dataset/{latest}.json"))
        tiles += [
            ("people", f"{content['identities']:,}"),
            ("training frames", f"{content['frames']:,}"),
            ("in shards", f"{content['bytes'] / 1e6:,.1f} MB"),
        ]
    tiles.append(("updates trained", f"{trained['step']:,}" if trained else "0"))
    tiles.append(("registered", f"version {version['version']}" if version else "no"))
    return [{"label": label, "value": value} for label, value in tiles]


def _stages(workflow: Workflow, status: dict[str, Any]) -> list[dict[str, Any]]:
    reasons: dict[str, Counter[str]] = {}
    for unit in status["units"]:
        if unit.get("reason") and unit["state"] in ("rejected", "failed"):
            reasons.setdefault(unit["stage"], Counter())[unit["reason"]] += 1
    rows = []
    for step in workflow.steps:
        counts = status["stages"].get(step.name, {})
        what = (type(step.stage).__doc__ or "").strip().split("\n")[0]
        listed = [{"text": text, "count": n} for text, n in reasons.get(step.name, Counter()).most_common()]
        rows.append(
            {"name": step.name, "what": what, "reasons": listed, **{s: counts.get(s, 0) for s in STATES}}
        )
    return rows


# --- training, evaluation, registry ------------------------------------------------------------------------


def _training(workflow: Workflow, store: Storage) -> dict[str, Any] | None:
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
        "more": [curve for curve in curves if curve not in first],
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
            made.append({"title": name, "svg": svg.line(points), "caption": f"last {points[-1][1]:.4g}"})
    return made


def _evaluation(workflow: Workflow, store: Storage) -> dict[str, Any] | None:
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


def _model(workflow: Workflow) -> dict[str, Any] | None:
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
