"""`pv3d describe`: what a workflow will do, in words."""

from __future__ import annotations

import json
from typing import Any

from pipelines.construct import settings_of
from pipelines.workflow import Step, Workflow
from stages.base import GroupStage


def describe_workflow(workflow: Workflow) -> tuple[dict[str, Any], str]:
    """Stages with reads, writes, resources and settings, then the other sections."""
    sections: dict[str, dict[str, Any]] = {
        name: getattr(workflow, name).model_dump(mode="json")
        for name in ("storage", "policy", "ray", "train", "evaluate", "register")
    }
    if workflow.schedule is not None:
        sections["schedule"] = workflow.schedule.model_dump(mode="json")
    sections["policy"]["entries"] = len(workflow.takedown.entries)
    source: dict[str, Any] = {"use": workflow.source_use, "settings": settings_of(workflow.source)}
    stages = [_stage(step) for step in workflow.steps]
    lines = [f"{workflow.path}" + (f", profile {workflow.profile}" if workflow.profile else "")]
    lines += ["", f"source    {source['use']}", *_settings(source["settings"])]
    for stage in stages:
        kind = "all clips of a group" if stage["group"] else "one clip"
        lines += [
            "",
            f"{stage['name']}    {stage['use']}    ({kind})",
            f"    {stage['what']}",
            f"    reads   {', '.join(stage['reads']) or '-'}",
            f"    writes  {', '.join(stage['writes']) or '-'}",
            f"    needs   {_needs(stage['resources'])}",
            f"    limits  {_limits(stage)}",
            *_settings(stage["settings"]),
        ]
    for name, values in sections.items():
        lines += ["", name, *_settings(values)]
    return {"source": source, "stages": stages, **sections}, "\n".join(lines)


def _stage(step: Step) -> dict[str, Any]:
    need = step.resources
    return {
        "name": step.name,
        "use": step.use,
        "what": (type(step.stage).__doc__ or "").strip().split("\n")[0],
        "group": isinstance(step.stage, GroupStage),
        "reads": list(step.stage.reads),
        "writes": list(step.stage.writes),
        "resources": {"cpus": need.cpus, "gpus": need.gpus, "custom": need.custom},
        "workers": step.workers.model_dump(),
        "timeout_s": step.timeout_s,
        "max_failed_fraction": step.max_failed_fraction,
        "settings": step.settings,
    }


def _settings(values: dict[str, Any]) -> list[str]:
    return [f"    {name}: {json.dumps(value)}" for name, value in values.items()]


def _limits(stage: dict[str, Any]) -> str:
    least, most = stage["workers"]["min"], stage["workers"]["max"]
    workers = f"{least} to {most} workers" if most else f"workers from {least}, as many as there is room for"
    return f"{workers}; {stage['timeout_s']:g} s per unit; at most {stage['max_failed_fraction']:.0%} failed"


def _needs(resources: dict[str, Any]) -> str:
    parts = [f"{resources['cpus']:g} CPU"]
    parts += [f"{resources['gpus']:g} GPU"] if resources["gpus"] else []
    parts += [f"{value:g} {name}" for name, value in resources["custom"].items()]
    return ", ".join(parts)
