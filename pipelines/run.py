"""`pv3d run`: the data stages, then train, evaluate, register and the report."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.lease import hold
from infra.storage import Storage
from infra.tracking import shown
from infra.words import many
from pipelines.document import did_you_mean
from pipelines.live import Live
from pipelines.plan import describe_plan
from pipelines.rates import duration
from pipelines.stage_keys import keys_asked
from pipelines.status import workflow_status
from pipelines.workflow import Workflow
from stages.versions import figures_of, latest_version

if TYPE_CHECKING:
    from pipelines.runner import Prepared
    from stages.dataset import Dataset

__all__ = ["check_until", "describe_plan", "run_workflow"]

Answer = tuple[dict[str, Any], str]

log = logging.getLogger(__name__)

AFTER_DATA = ("train", "evaluate", "register")


def check_until(workflow: Workflow, until: str | None) -> str | None:
    """The last data stage to run, None for all. Raises ValueError for a name that is none."""
    names = [step.name for step in workflow.steps]
    if until is None or until in AFTER_DATA:
        return None
    if until not in names:
        known = [*names, *AFTER_DATA]
        raise ValueError(f"--until {until}: no such stage{did_you_mean(until, known, in_order=True)}")
    return until


def run_workflow(
    workflow: Workflow, *, until: str | None = None, ray_address: str | None = None, in_process: bool = False,
    wait: bool = False,
) -> Answer:  # fmt: skip
    """Do what is not done yet, in order, and say where the results are.

    Raises LeaseError while another run has the store, unless it is to `wait` for its end.
    """
    last_stage = check_until(workflow, until)
    from infra import cluster
    from infra.tracking import check_tracking
    from pipelines.evaluate import check_evaluation
    from pipelines.runner import prepare

    if ray_address and not in_process:
        cluster.check_address(ray_address)  # at once, even when little is left to do
    if last_stage is None:                   # not after hours of data
        check_tracking(workflow.storage.tracking)
        if until != "train":
            check_evaluation(workflow.evaluate)
            _tell_out_of_reach(workflow, until)
    store = workflow.store()
    store.check_writable()
    held = hold(store, "pv3d run", expires_s=workflow.storage.lease_s, wait=wait)
    asked = time.monotonic()
    with held as lease, Live(store, lease.number, keys_asked(workflow)) as live:
        begun = time.monotonic()
        try:
            prepared = prepare(
                workflow, until=last_stage, in_process=in_process, ray_address=ray_address, live=live
            )
            answer: dict[str, Any] = {"kept": prepared.kept, "redone": prepared.redone}
            if not prepared.kept:
                answer["fault"] = _nothing_kept(workflow, last_stage)
            elif last_stage in (None, workflow.steps[-1].name):
                answer.update(_dataset(store))
            if last_stage is None and prepared.kept:
                answer.update(_after_data(workflow, until, ray_address, live))
            if prepared.kept and "report" not in answer and _wants_report(store, prepared, until):
                live.phase = "report"
                answer.update(_report(workflow))
        finally:
            cluster.stop()
    answer["seconds"] = round(time.monotonic() - begun, 1)
    answer["waited_s"] = round(begun - asked, 1) if wait else 0.0
    answer["tracking"] = shown(workflow.storage.tracking)
    return answer, _closing(workflow, answer)


def _tell_out_of_reach(workflow: Workflow, until: str | None, dataset: Dataset | None = None) -> None:
    """Warn of rules of the gate that no version can keep: the training may be for nothing. With the `dataset`
    of those that it adds."""
    from pipelines.gate import out_of_reach

    if until not in (None, "register"):
        return
    told = () if dataset is None else out_of_reach(workflow)
    for text in out_of_reach(workflow, dataset):
        if text not in told:
            log.warning("%s; no version of this run becomes champion", text)


def _nothing_kept(workflow: Workflow, last_stage: str | None) -> str:
    """Why a run cannot go on: no clip came out of its last data stage."""
    from pipelines.report import report

    what = f"no clip came out of {last_stage}" if last_stage else "no clip is left to train on"
    return f"{what}: {_why_not(workflow)}; the report shows them: {report(workflow)}"


def _wants_report(store: Storage, prepared: Prepared, until: str | None) -> bool:
    """Whether the one of the store, if there is one, does not show what this run did."""
    from pipelines.report import KEY

    return any(prepared.redone.values()) or until in AFTER_DATA or not store.exists(KEY)


def _report(workflow: Workflow) -> dict[str, Any]:
    """Of a run that ends before the registration. What it made stands, also where no page can be made of it:
    a data worker may lack what that needs, and a stage of one's own may give what cannot be drawn."""
    from pipelines.report import report

    try:
        return {"report": report(workflow)}
    except (ImportError, ValueError) as error:
        log.warning("no report: %s", error)
        return {}


def _dataset(store: Storage) -> dict[str, Any]:
    """The version that the data stages made; nothing where no stage makes one."""
    version = latest_version(store)
    found = None if version is None else figures_of(store, version)
    if found is None:
        return {}
    counts = {name: getattr(found, name) for name in ("shards", "bytes", "samples", "frames", "identities")}
    return {"dataset": {"version": version, **counts}}


def _after_data(
    workflow: Workflow, until: str | None, ray_address: str | None, live: Live
) -> dict[str, Any]:
    from pipelines.analyses import analyse_all
    from pipelines.evaluate import evaluate_and_point
    from pipelines.register import register
    from pipelines.report import report
    from pipelines.train import train

    if until != "train" and workflow.register.gate:
        from stages.shards import open_dataset

        _tell_out_of_reach(workflow, until, open_dataset(workflow.store()))
    live.phase = "train"
    found: dict[str, Any] = {"training": train(workflow, ray_address=ray_address)}
    if until == "train":
        return found
    live.phase = "evaluate"
    found["evaluation"] = evaluate_and_point(workflow)
    if workflow.evaluate.analyses:
        live.phase = "analyse"
        found["analyses"] = analyse_all(workflow, ray_address)
    if until == "evaluate":
        return found
    live.phase = "register"
    version = register(workflow)
    found["model"] = {"name": version.name, "version": version.version, "alias": version.alias}
    if workflow.register.gate:
        from pipelines.gate import decide

        decision = decide(workflow, version=version.version)
        found["gate"] = {**decision.to_json(), "text": decision.text}
    live.phase = "report"
    found["report"] = str(report(workflow))
    return found


def _why_not(workflow: Workflow) -> str:
    """"no face (3), truncated (1)": the reasons of what was rejected or failed, most frequent first."""
    answer, _ = workflow_status(workflow, units="0")
    if not answer["units_total"]:
        return "nothing was listed"
    reasons: Counter[str] = Counter()
    for one in answer["reasons"]:
        reasons[one["reason"]] += one["count"]
    return ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(5))


def _closing(workflow: Workflow, answer: dict[str, Any]) -> str:
    """What a person wants to open next."""
    _, table = workflow_status(workflow, units="0")
    lines = [table, ""]
    root = workflow.storage.root
    if made := answer.get("dataset"):
        size = f"{many(made['samples'], 'clip')} in {many(made['shards'], 'shard')}, {made['bytes']:,} bytes"
        lines.append(f"dataset     {made['version']}: {size}")
        lines.append(f"shards      {Path(root, 'shards') if '://' not in root else f'{root}/shards'}")
    if page := answer.get("evaluation", {}).get("page"):
        lines.append(f"evaluation  {page}")
    if "report" in answer:
        lines.append(f"report      {answer['report']}")
    sample = answer.get("training", {}).get("sample")
    if sample:
        lines.append(f"sample      {Path(root, sample) if '://' not in root else f'{root}/{sample}'}")
    for name, found in answer.get("analyses", {}).items():
        lines.append(f"analysis    {name}: {found.get('page') or found['fault']}")
    if "model" in answer:
        name, version, alias = (answer["model"][key] for key in ("name", "version", "alias"))
        lines.append(f"model       {name} version {version} (models:/{name}@{alias})")
    if "gate" in answer:
        lines.append(f"gate        {answer['gate']['text']}")
        lines.append(f"champion    {_champion(answer['gate'])}")
    if "training" in answer:
        mlflow = Path(sys.executable).with_name("mlflow")  # of this environment, which need not be active
        command = [str(mlflow), "ui", "--backend-store-uri", shown(workflow.storage.tracking)]
        lines.append(f"MLflow      {shlex.join(command)}")
    minutes, seconds = divmod(round(answer["seconds"]), 60)
    took = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    if answer["waited_s"] >= 1:
        took += f", after {duration(answer['waited_s'])} of waiting for the store"
    lines.append(f"took        {took}")
    return "\n".join(lines)


def _champion(gate: dict[str, Any]) -> str:
    if gate["champion"] is None:
        return "none yet"
    return f"{gate['name']} version {gate['champion']} (models:/{gate['name']}@champion)"
