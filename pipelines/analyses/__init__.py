"""The paper's analyses of a trained model: `pv3d analyse order|mixing|long`, `evaluate.analyses` of a run.

    analyse/<name>/<step>-<key>.json, .html     numbers and plots; `key`: weights, dataset, options, code

What was analysed is not analysed again. Each is also a run in MLflow, below that of the training.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.json_values import is_number, parsed_object, read_text
from infra.lease import hold
from infra.storage import FolderStorage, Storage
from pipelines.page import Section, render

if TYPE_CHECKING:
    from infra.checkpoints import Checkpoint
    from pipelines.workflow import Workflow

log = logging.getLogger(__name__)

FOLDER = "analyse"
OF = "pv3d.analysis"  # tag of a run
ANALYSES = {
    "order": "pipelines.analyses.order:order",
    "mixing": "pipelines.analyses.mixing:mixing",
    "long": "pipelines.analyses.long_videos:long_videos",
}
DEFAULT_COUNT = {"order": 3000, "mixing": 32, "long": 16}
"""Camera pairs (Fig. 8), pairs of people, people."""


@dataclass(frozen=True)
class Subject:
    """What is analysed: a checkpoint, with how many samples, drawn from which seed."""

    workflow: Workflow
    checkpoint: Checkpoint
    count: int
    seed: int


@dataclass(frozen=True)
class Findings:
    """Numbers by name (their sentence in `says`), and the sections of the page."""

    title: str
    numbers: dict[str, float]
    says: str
    sections: list[Section]
    files: dict[str, bytes] = field(default_factory=dict)
    """Beside the page, by their ending: ".png"."""


Analysis = Callable[[Subject], Findings]


def analyse(
    workflow: Workflow, name: str, *, count: int | None, checkpoint: str | None, ray_address: str | None,
    held: bool = False,
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """Do one unless it is done. `checkpoint`: a key of the store or a folder; the training's newest unless
    given. `long` trains the model of 48-frame windows first; the store may be `held` for it already.

    Raises ValueError when there is no checkpoint, or it lacks what the analysis needs.
    """
    from pipelines.checkpoints import D_VID, EMA, find_checkpoint
    from pipelines.evaluate import newest_checkpoint

    if name == "long":
        if checkpoint is not None:
            raise ValueError("--checkpoint: `long` trains its own; leave it out")
        from pipelines.analyses.long_videos import trained

        store = workflow.store()
        with contextlib.ExitStack() as stack:
            if not held:
                stack.enter_context(hold(store, "pv3d analyse long", expires_s=workflow.storage.lease_s))
            workflow = trained(workflow, ray_address)
    store = workflow.store()
    found = newest_checkpoint(workflow) if checkpoint is None else find_checkpoint(store, checkpoint)
    subject = Subject(workflow, found, count or DEFAULT_COUNT[name], workflow.evaluate.seed)
    module, _, function = ANALYSES[name].partition(":")
    analysis: Analysis = getattr(importlib.import_module(module), function)
    code = Path(str(importlib.import_module(module).__file__)).read_text(encoding="utf-8")
    weights = {name: file["sha256"] for name, file in found.card["files"].items() if name in (EMA, D_VID)}
    variant = found.card.get("variant")
    parts = [weights, variant, _dataset(store), subject.count, subject.seed, code]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    place = f"{FOLDER}/{name}/{found.step:08d}-{key}"
    if not (store.exists(f"{place}.json") and store.exists(f"{place}.html")):
        _write(store, place, found, analysis(subject))
    result = _read(store, f"{place}.json")
    run = _run_of(store, found)
    if run is not None:
        _log(workflow, place, result, run)
    page = store.path(f"{place}.html") if isinstance(store, FolderStorage) else f"{store.root}/{place}.html"
    text = "\n".join([result["says"], *(f"{k:<28} {v:.4g}" for k, v in result["numbers"].items()), str(page)])
    return {**result, "page": str(page)}, text


def analyse_all(workflow: Workflow, ray_address: str | None) -> dict[str, dict[str, Any]]:
    """Those that `evaluate.analyses` asks for, in a run that holds the store. One for which the model or the
    clips lack something has a `fault`, and stops nothing."""
    found: dict[str, dict[str, Any]] = {}
    for name, count in workflow.evaluate.analyses.items():
        try:
            found[name], _ = analyse(
                workflow, name, count=count, checkpoint=None, ray_address=ray_address, held=True
            )
        except ValueError as error:
            log.warning("evaluate.analyses.%s: %s", name, error)
            found[name] = {"fault": str(error)}
    return found


def _dataset(store: Storage) -> str:
    from stages.versions import latest_version

    return latest_version(store) or ""


def _run_of(store: Storage, checkpoint: Checkpoint) -> str | None:
    """The MLflow run of the training that made it, None when it is not of this store."""
    key = f"{checkpoint.key.partition('/checkpoints')[0]}/mlflow.json"
    return read_text(store, key, "run_id") if store.exists(key) else None


def _write(store: Storage, place: str, checkpoint: Checkpoint, found: Findings) -> None:
    """The json comes last: it says that all is there."""
    facts = [("checkpoint", checkpoint.key), ("update", f"{checkpoint.step:,}"), ("result", found.says)]
    for ending, data in found.files.items():
        store.write(place + ending, data)
    store.write(f"{place}.html", render(found.title, facts, found.sections).encode())
    told = {
        "checkpoint": checkpoint.key, "step": checkpoint.step, "title": found.title, "says": found.says,
        "numbers": found.numbers,
    }  # fmt: skip
    store.write(f"{place}.json", json.dumps(told, indent=1, allow_nan=False).encode())


def _read(store: Storage, key: str) -> dict[str, Any]:
    """Raises ValueError, naming the key, for what is not as `_write` left it."""
    try:
        result = parsed_object(store.read(key))
    except ValueError:
        result = {}
    numbers = result.get("numbers")
    whole = isinstance(result.get("says"), str) and type(result.get("step")) is int
    if not whole or not isinstance(numbers, dict) or not all(map(is_number, numbers.values())):
        raise ValueError(f"{key} in {store.root}: is damaged; delete it to analyse again")
    return result


def _log(workflow: Workflow, place: str, result: dict[str, Any], run: str) -> None:
    from mlflow import MlflowClient

    from infra.tracking import check_tracking
    from pipelines.evaluate_log import child_of
    from pipelines.models import answering

    tracking, store = workflow.storage.tracking, workflow.store()
    check_tracking(tracking)
    name = place.partition("/")[2]
    client = MlflowClient(tracking)
    with answering(tracking):
        child = child_of(client, run, OF, name, f"analyse {name.partition('/')[0]}")
        if client.get_run(child).info.status == "FINISHED":
            return
        for key, value in result["numbers"].items():
            client.log_metric(child, key, value, step=result["step"])
        client.log_text(child, store.read(f"{place}.html").decode(), "analysis.html")
        client.log_dict(child, result, "analysis.json")
        client.set_terminated(child)
