"""`pv3d deploy`: a workflow as objects of Kubernetes, refused when it could not run there."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from infra import kuberay
from pipelines.construct import settings_of
from pipelines.schedule import GroupSettings, NodeSettings, ScheduleSettings, bytes_of, check_image
from pipelines.workflow import Workflow

__all__ = ["deploy"]

Answer = tuple[dict[str, Any], str]

log = logging.getLogger(__name__)

WORKFLOW_FILE = "workflow.yaml"              # its name on the cluster
MOST_BYTES = 900_000                         # of what travels in a ConfigMap, which ends at 1 MiB
_PASSWORD = re.compile(r"://[^/\s:@]*:[^/\s@]+@")


class _Dumper(yaml.SafeDumper):
    """Block text stays block text, and nothing is an alias of something above."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def deploy(
    workflow: Workflow, *, out: Path | None = None, image: str | None = None, alpha: bool = False
) -> Answer:
    """Render `workflow.schedule`; without one, a RayJob that somebody applies. Writes OUT/<name>.yaml.

    Raises ValueError, naming the setting and the cure, for what would fail on the cluster.
    """
    schedule = workflow.schedule or ScheduleSettings()
    if image is not None:
        try:
            schedule = schedule.model_copy(update={"image": check_image(image)})
        except ValueError as error:
            raise ValueError(f"--image: {error}") from None
    if alpha and schedule.cron is None:
        raise ValueError("--ray-cron-job: schedule.cron is not set; set it, as in '0 2 * * *'")
    _check_places(workflow, schedule)
    notes = _check_needs(workflow, schedule)
    objects = kuberay.render(_deployment(workflow, schedule), alpha)
    options: dict[str, Any] = {"sort_keys": False, "width": 1000, "allow_unicode": True}
    text = "---\n".join(yaml.dump(one, Dumper=_Dumper, **options) for one in objects)
    answer: dict[str, Any] = {"objects": objects, "notes": notes}
    for note in notes:
        log.warning("%s", note)
    if out is None:
        return answer, text.rstrip("\n")
    path = _write(out, f"{schedule.name}.yaml", text)
    listed = "\n".join(f"{one['kind']:<15} {one['metadata']['name']}" for one in objects)
    return {**answer, "file": str(path)}, f"{listed}\n\napply it with: kubectl apply -f {path}"


def _write(out: Path, name: str, text: str) -> Path:
    """Raises ValueError where there can be no such folder, or no such file in it."""
    path = out / name
    try:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--out {out}: {path} cannot be written ({error.strerror}); name a folder") from None
    return path


def _deployment(workflow: Workflow, schedule: ScheduleSettings) -> kuberay.Deployment:
    if schedule.image is None:
        raise ValueError("schedule.image: not set; name the image you pushed, or give --image")
    command = ["pv3d", "run", WORKFLOW_FILE]
    command += ["--profile", workflow.profile] if workflow.profile else []
    for override in workflow.overrides:
        command += ["--set", override]
    command += ["--ray-address", "auto"]
    return kuberay.Deployment(
        name=schedule.name,
        namespace=schedule.namespace,
        image=schedule.image,
        command=command,
        files=_files(workflow, schedule),
        head=_node(schedule.head),
        groups=[_group(group) for group in schedule.workers],
        cron=schedule.cron,
        timezone=schedule.timezone,
        start_within_s=schedule.start_within_s,
        deadline_s=schedule.deadline_s,
        retries=schedule.retries,
        keep_s=schedule.keep_s,
        idle_s=schedule.idle_s,
        env=schedule.env,
        secrets=schedule.secrets,
        pull_secrets=schedule.pull_secrets,
        volumes=[kuberay.Volume(**volume.model_dump()) for volume in schedule.volumes],
        service_account=schedule.service_account,
        objects_mb=workflow.ray.object_store_mb,
    )


def _node(settings: NodeSettings) -> kuberay.Node:
    return kuberay.Node(
        cpus=settings.cpus,
        memory=settings.memory,
        gpus=settings.gpus,
        disk=settings.disk,
        node_selector=settings.node_selector,
        tolerations=[one.model_dump(exclude_none=True) for one in settings.tolerations],
    )


def _group(settings: GroupSettings) -> kuberay.Group:
    return kuberay.Group(
        settings.group, _node(settings), settings.min, settings.max, settings.custom, settings.image
    )


def _files(workflow: Workflow, schedule: ScheduleSettings) -> dict[str, str]:
    """What travels: the workflow and the files that it names."""
    files = {WORKFLOW_FILE: Path(workflow.path).read_text(encoding="utf-8")}
    for name in schedule.files:
        if name in files:
            raise ValueError(f"schedule.files: {name}: the workflow travels under this name; rename the file")
        try:
            files[name] = Path(name).read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"schedule.files: {name}: cannot be read ({error.strerror})") from None
        except UnicodeDecodeError:
            raise ValueError(f"schedule.files: {name}: not UTF-8 text; put it into the bucket") from None
    size = sum(len(text.encode()) for text in files.values())
    if size > MOST_BYTES:
        raise ValueError(
            f"schedule.files: {size:,} bytes with the workflow, {MOST_BYTES:,} can travel; "
            "put large lists on a volume"
        )
    for name, text in files.items():
        for number, line in enumerate(text.splitlines(), 1):
            if name == WORKFLOW_FILE and _PASSWORD.search(line):
                raise ValueError(f"{workflow.path}:{number}: {_INSIDE}")
    if any(_PASSWORD.search(override) for override in workflow.overrides):
        raise ValueError(f"--set: {_INSIDE}")
    return files


_INSIDE = "an address with a password, which everybody could read on the cluster; put it into a Secret"


# --- what would fail on the cluster -------------------------------------------------------------------------


def _check_places(workflow: Workflow, schedule: ScheduleSettings) -> None:
    """Everything that is written or read must be reachable from every pod."""
    root, tracking = workflow.storage.root, workflow.storage.tracking
    if "://" not in root and not _mounted(root, schedule):
        raise ValueError(
            f"storage.root: {root} is a folder of one machine; use s3://bucket/prefix, or mount a claim "
            "there with schedule.volumes"
        )
    database = tracking.partition("sqlite:///")[2]
    if tracking.startswith("sqlite:") and not _mounted(database, schedule):
        raise ValueError(
            f"storage.tracking: {tracking} is a file of one machine; give the address of an MLflow server"
        )
    if workflow.storage.s3.profile is not None:
        raise ValueError(
            "storage.s3.profile: profiles are files of one machine; leave it out, and name a Secret with the "
            "keys in schedule.secrets, or a schedule.service_account"
        )
    for setting, place in _local(workflow):
        beside = Path(place)
        travels = not beside.is_absolute() and beside.as_posix() in schedule.files
        if travels or _mounted(place, schedule):
            continue
        if beside.exists():
            what = "is a folder of this machine" if beside.is_dir() else "is a file of this machine"
        elif setting.endswith(".location"):  # other settings need not be paths
            what = "is a path of one machine, and not even on this one"
        else:
            continue
        cure = "" if beside.is_dir() else "name it in schedule.files, or "
        raise ValueError(
            f"{setting}: {place} {what}; {cure}use s3:// or a path on a volume (schedule.volumes)"
        )


def _mounted(path: str, schedule: ScheduleSettings) -> bool:
    claims = [volume.path for volume in schedule.volumes]
    return any(Path(path).is_relative_to(claim) for claim in claims)


def _local(workflow: Workflow) -> Iterator[tuple[str, str]]:
    """(setting, value) that may be a path: those of the source, and the takedown list."""
    if workflow.policy.takedown is not None:
        yield "policy.takedown", workflow.policy.takedown
    inner = getattr(workflow.source, "sources", [workflow.source])
    for number, source in enumerate(inner):
        dotted = "source" if len(inner) == 1 else f"source[{number}]"
        for name, value in settings_of(source).items():
            demo = name == "location" and str(value).startswith("demo:")  # comes with pv3d
            if isinstance(value, str) and value and not demo and "://" not in value and len(value) < 4096:
                yield f"{dotted}.{name}", value


def _check_needs(workflow: Workflow, schedule: ScheduleSettings) -> list[str]:
    """Refuse what no group can ever hold: it would wait for ever. Returns remarks."""
    groups = [_group(group) for group in schedule.workers]
    for step in workflow.steps:
        need = {"CPU": step.resources.cpus, "GPU": step.resources.gpus, **step.resources.custom}
        need = {name: amount for name, amount in need.items() if amount}
        fits = [all(group.resources.get(n, 0.0) >= a for n, a in need.items()) for group in groups]
        if not any(fits):
            asked = ", ".join(f"{amount:g} {name}" for name, amount in need.items())
            raise ValueError(
                f"schedule.workers: no group has room for stages.{step.name}, which needs {asked}; "
                "enlarge a group, or lower the stage's resources"
            )
    _check_disks(workflow, schedule)
    gpus = int(kuberay.capacity(groups).get("GPU", 0))
    train = workflow.train
    if train.device != "cpu" and gpus < train.workers and (gpus or train.device == "cuda"):
        raise ValueError(
            f"schedule.workers: {gpus} GPUs in all, train.workers asks for {train.workers}; "
            "raise max of the GPU group, lower train.workers or set train.device=cpu"
        )
    notes = []
    if train.device == "auto" and not gpus:
        notes.append("no group of schedule.workers has GPUs: training runs on CPUs")
    if gpus and not schedule.head.gpus:
        notes.append("schedule.head.gpus is 0: the evaluation, which runs in the head, uses its CPUs")
    return notes


def _check_disks(workflow: Workflow, schedule: ScheduleSettings) -> None:
    """A pod that writes more than its disk is ended by Kubernetes."""
    copies = workflow.storage.s3.cache_gb * 1e9
    for group in schedule.workers:
        if group.disk is not None and bytes_of(group.disk) <= copies:
            raise ValueError(
                f"schedule.workers: {group.group} has a disk of {group.disk}, and copies of videos may take "
                f"{workflow.storage.s3.cache_gb:g} GB of it; enlarge it, or lower storage.s3.cache_gb"
            )
