"""The section `schedule` of a workflow: when it runs on a Kubernetes cluster, and on what.

Nothing here acts: `pv3d deploy` turns it into objects of Kubernetes. Sizes and names are checked when the
workflow is read, so that a mistake shows before the cluster sees it.
"""

from __future__ import annotations

import re
import zoneinfo
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from pipelines.settings import Closed

_LONGEST_NAME = 32       # a CronJob adds 9 and we add 4; KubeRay takes names of at most 47 characters
_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?")
_IMAGE = re.compile(r"[A-Za-z0-9][\w.-]*(:[0-9]+)?(/[\w.-]+)*(:[\w.-]+)?(@sha256:[0-9a-f]{64})?")
_SECRET = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|_KEY(_ID)?$", re.IGNORECASE)
_MACROS = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_FIELDS: tuple[tuple[str, int, int, list[str]], ...] = (
    ("minute", 0, 59, []), ("hour", 0, 23, []), ("day of the month", 1, 31, []),
    ("month", 1, 12, _MONTHS), ("day of the week", 0, 6, _DAYS),
)  # fmt: skip


def check_cron(text: str) -> str:
    """A schedule as Kubernetes reads it: five fields or a macro such as @daily. Raises ValueError."""
    if text in _MACROS:
        return text
    parts = text.split()
    if len(parts) != len(_FIELDS):
        raise ValueError(
            f"{text!r} has {len(parts)} fields; write minute, hour, day, month and weekday, as in '0 2 * * *'"
        )
    for part, (name, low, high, names) in zip(parts, _FIELDS, strict=True):
        for item in part.split(","):
            _check_item(item, name, low, high, names)
    return text


def _check_item(item: str, name: str, low: int, high: int, names: list[str]) -> None:
    """One of the items between commas: *, 5, 1-5, */15, 10-50/5, mon."""
    span, slash, step = item.partition("/")
    first, dash, last = span.partition("-")
    ends = [first, last] if dash else [first]
    known = {word: low + number for number, word in enumerate(names)}
    numbers = [known.get(e.lower(), int(e) if re.fullmatch("[0-9]{1,4}", e) else -1) for e in ends]
    inside = all(low <= n <= high for n in numbers) and numbers == sorted(numbers)
    good_step = not slash or (re.fullmatch("[0-9]{1,4}", step) and int(step) > 0)
    if not good_step or not (span in ("*", "?") or inside):
        raise ValueError(f"{item!r} is no {name}; use {low} to {high}, as in '{low}-{high}' or '*/2'")


def _name(value: str) -> str:
    if len(value) > 63 or not _LABEL.fullmatch(value):
        raise ValueError(f"{value!r} is no name; use a-z, 0-9 and -, a letter first, as in 'pv3d-nightly'")
    return value


def _object_name(value: str) -> str:
    if len(value) > 253 or not _SUBDOMAIN.fullmatch(value):
        raise ValueError(f"{value!r} is no name of an object; use a-z, 0-9, - and ., as in 'pv3d-s3'")
    return value


def _quantity(value: str) -> str:
    if not _QUANTITY.fullmatch(value) or float(re.sub("[A-Za-z]+$", "", value)) == 0:
        raise ValueError(f"{value!r} is no size; write a number and a unit, as in 16Gi or 512Mi")
    if not value[-1].isalpha():
        raise ValueError(f"{value!r} would be bytes; add the unit, as in {value}Gi")
    return value


def bytes_of(quantity: str) -> float:
    """16Gi, 512M and the like as a number."""
    number, unit = re.fullmatch("([0-9.]+)([A-Za-z]*)", quantity).groups()  # type: ignore[union-attr]
    power = "kMGT".index(unit[0].replace("K", "k")) + 1 if unit else 0
    return float(number) * (1024.0 if unit.endswith("i") else 1000.0) ** power


def check_image(value: str) -> str:
    """A name of an image. Raises ValueError."""
    if not _IMAGE.fullmatch(value):
        raise ValueError(f"{value!r} is no image; write registry/name:tag or registry/name@sha256:...")
    return value


def _path(value: str) -> str:
    if not re.fullmatch(r"(/[\w.-]+)+", value) or ".." in value.split("/"):
        raise ValueError(f"{value!r} should be an absolute path, as in /data")
    return value


def _beside(value: str) -> str:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", value) or {".", ".."} & set(value.split("/")):
        raise ValueError(f"{value!r} should be the relative path of a file, in the folder you deploy from")
    return value


Name = Annotated[str, AfterValidator(_name)]
ObjectName = Annotated[str, AfterValidator(_object_name)]
Quantity = Annotated[str, AfterValidator(_quantity)]
Image = Annotated[str, AfterValidator(check_image)]
MountPath = Annotated[str, AfterValidator(_path)]
FilePath = Annotated[str, AfterValidator(_beside)]


class TolerationSettings(Closed):
    """A taint that pods of this group may live with."""

    key: str
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class NodeSettings(Closed):
    """How large a pod is, and where it may run."""

    cpus: int = Field(default=4, ge=1)
    memory: Quantity = "16Gi"
    gpus: int = Field(default=0, ge=0)
    """NVIDIA GPUs of each pod."""
    disk: Quantity | None = None
    """Room for videos and temporary files, set aside on the node."""
    node_selector: dict[str, str] = Field(default={})
    tolerations: tuple[TolerationSettings, ...] = ()


class GroupSettings(NodeSettings):
    """Workers of one kind: the autoscaler adds and removes them within the bounds."""

    group: Name
    min: int = Field(default=0, ge=0)
    max: int = Field(default=1, ge=1)
    custom: dict[str, int] = Field(default={})
    """Custom resources of Ray that each pod has, such as {egress: 1}: whole numbers."""
    image: Image | None = None
    """None: that of the schedule."""

    @field_validator("custom")
    @classmethod
    def _custom(cls, value: dict[str, int]) -> dict[str, int]:
        for name, amount in value.items():
            if not re.fullmatch(r"[A-Za-z][\w-]*", name) or name in ("CPU", "GPU", "memory") or amount <= 0:
                raise ValueError(f"{name!r}: {amount} is no custom resource; write such as egress: 1")
        return value

    @model_validator(mode="after")
    def _bounds(self) -> GroupSettings:
        if self.max < self.min:
            raise ValueError(f"max {self.max} is below min {self.min}; raise max")
        return self


class VolumeSettings(Closed):
    """A folder in every pod: a claim (a shared disk), or the files of a Secret."""

    path: MountPath
    claim: ObjectName | None = None
    secret: ObjectName | None = None
    read_only: bool = False

    @model_validator(mode="after")
    def _one(self) -> VolumeSettings:
        if (self.claim is None) == (self.secret is None):
            raise ValueError("name a claim or a secret, one of them")
        return self


class ScheduleSettings(Closed):
    cron: Annotated[str, AfterValidator(check_cron)] | None = None
    """When a run starts. None: only when someone starts it."""
    timezone: str = "Etc/UTC"
    overlap: Literal["forbid"] = "forbid"
    """A run that is due while another is under way is skipped. The next one continues anyway."""
    start_within_s: int = Field(default=3600, ge=60)
    """A run that cannot start by then, or gets no nodes, is given up."""
    deadline_s: int | None = Field(default=None, ge=60)
    """A run is stopped after this time; the next one continues."""
    retries: int = Field(default=1, ge=0)
    """New clusters for a run whose cluster was lost, such as by preemption of its head."""
    keep_s: int = Field(default=300, ge=0)
    """How long a cluster is kept after its run, to look at it."""
    idle_s: int = Field(default=120, ge=10)
    """A worker that is idle for this long is given back."""
    name: Name = "pv3d"
    namespace: Name = "default"
    image: Image | None = None
    pull_secrets: tuple[ObjectName, ...] = ()
    secrets: tuple[ObjectName, ...] = ()
    """Secrets whose keys become variables, such as AWS_ACCESS_KEY_ID. Their values are never here."""
    env: dict[str, str] = Field(default={})
    """Other variables, which everybody may see."""
    files: tuple[FilePath, ...] = ()
    """Small text files that the workflow names, such as lists and stages of your own: they travel with it."""
    volumes: tuple[VolumeSettings, ...] = ()
    service_account: ObjectName | None = None
    """Of the Ray pods: an existing one, where the cloud gives it the right to the bucket."""
    head: NodeSettings = NodeSettings()
    workers: tuple[GroupSettings, ...] = (GroupSettings(group="cpu", max=4, cpus=8, memory="32Gi"),)

    @field_validator("timezone")
    @classmethod
    def _timezone(cls, value: str) -> str:
        known = zoneinfo.available_timezones()  # empty where no database is installed, as in slim images
        form = re.fullmatch(r"[A-Za-z][\w+-]*(/[\w+-]+)*", value) and value != "Local"
        if not form or (known and value not in known):
            raise ValueError(f"{value!r} is no time zone; use a name such as Europe/Berlin or Etc/UTC")
        return value

    @field_validator("name")
    @classmethod
    def _short(cls, value: str) -> str:
        if len(value) > _LONGEST_NAME:
            raise ValueError(f"{value!r} has {len(value)} characters; use {_LONGEST_NAME} at most")
        return value

    @field_validator("env")
    @classmethod
    def _env(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                raise ValueError(f"{name!r} is no name of a variable")
            if _SECRET.search(name):
                raise ValueError(f"the name {name} sounds like a secret; list its Secret in secrets")
        return value

    @field_validator("workers")
    @classmethod
    def _workers(cls, value: tuple[GroupSettings, ...]) -> tuple[GroupSettings, ...]:
        names = [group.group for group in value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if not value or twice:
            raise ValueError(f"two groups {twice!r}; rename one" if twice else "name a group of workers")
        return value
