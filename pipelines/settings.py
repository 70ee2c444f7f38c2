"""The settings of `workflow.yaml` that belong to no stage. Closed and typed; defaults live here only."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from infra.cluster import OBJECTS_MB
from infra.storage import check_root

T = TypeVar("T")


class Closed(BaseModel):
    """No unknown key, no silent conversion, no change after reading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class S3Settings(Closed):
    """What `s3://` needs beyond the usual AWS variables and files, which hold the credentials."""

    endpoint: str | None = None
    region: str | None = None
    addressing: Literal["auto", "path", "virtual"] = "auto"
    profile: str | None = None
    encryption: Literal["AES256", "aws:kms"] | None = None
    """At rest, by the server: with keys of its own (AES256) or of a KMS. None: as the bucket says."""
    kms_key: str | None = None
    """Which key of the KMS. None: the bucket's."""
    patience_s: float = Field(default=300.0, ge=0)
    """How long a server that has stopped answering is waited for before the run gives up."""
    cache_gb: float = Field(default=10.0, ge=0)
    """Disk of each machine, below TMPDIR, for copies of videos and shards: each is fetched once per machine.
    0: none."""

    @field_validator("endpoint")
    @classmethod
    def _endpoint(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^/@\s]+/?", value):
            raise ValueError("should be http://host:port or https://host, without a password")
        return value

    @model_validator(mode="after")
    def _kms(self) -> S3Settings:
        if self.kms_key is not None and self.encryption != "aws:kms":
            raise ValueError("kms_key needs encryption aws:kms")
        return self


class StorageSettings(Closed):
    root: str
    """A folder, or s3://bucket/prefix. Relative folders count from the folder the command runs in."""
    tracking: str = "sqlite:///runs/mlflow.db"
    """MLflow's tracking URI."""
    s3: S3Settings = S3Settings()
    lease_s: float = Field(default=45.0, ge=1, le=86_400)
    """A run that shows no sign of life for so long is taken over: see docs/durability.md."""

    @field_validator("root")
    @classmethod
    def _root(cls, value: str) -> str:
        if not value.strip() or not value.isprintable():
            raise ValueError("should be the path of a folder or s3://bucket/prefix")
        return value if "://" in value else check_root(value)


class PolicySettings(Closed):
    takedown: str | None = None
    """A list of videos, addresses, people and clips that must not be used: see docs/takedown.md."""
    licences_allowed: tuple[str, ...] | None = None
    """Clips of other licences are rejected. None: all are allowed."""

    @field_validator("takedown")
    @classmethod
    def _takedown(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("should be the path of a list")
        return value

    @field_validator("licences_allowed")
    @classmethod
    def _licences_allowed(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and not any(name.strip() for name in value):
            raise ValueError("should name a licence; null allows all")
        return value


class Workers(Closed):
    """Bounds of a stage's pool. A pool grows on demand and shrinks when idle."""

    min: int = Field(default=0, ge=0, le=10_000)
    max: int | None = Field(default=None, ge=1)
    """None: as many as the cluster has room for."""


class ResourceSettings(Closed):
    """What differs from the stage's own `resources`."""

    cpus: float | None = Field(default=None, ge=0)
    gpus: float | None = Field(default=None, ge=0)
    custom: dict[str, float] | None = None

    @field_validator("gpus")
    @classmethod
    def _gpus(cls, value: float | None) -> float | None:
        if value is not None and not _shared(value):
            raise ValueError("should be a part of one, such as 0.5, or a whole number")
        return value

    @field_validator("custom")
    @classmethod
    def _custom(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for name, amount in (value or {}).items():
            if name in _RAYS_OWN or not name.strip() or not name.isprintable():
                own = ", ".join(sorted(_RAYS_OWN))
                raise ValueError(f"{name[:40]!r} is no name for a resource; take another than {own}")
            if amount < 0 or not _shared(amount):
                raise ValueError(f"{name[:40]!r} should be a part of one, such as 0.5, or a whole number")
        return value


_RAYS_OWN = {"CPU", "GPU", "memory", "object_store_memory"}


def _shared(amount: float) -> bool:
    """Whether Ray takes it."""
    return amount <= 1 or amount == int(amount)


class StepSettings(Closed):
    """The keys of an entry under `stages` that are not the stage's own settings."""

    use: str
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]+$")
    resources: ResourceSettings = ResourceSettings()
    workers: Workers = Workers()
    timeout_s: float | None = Field(default=None, ge=1)
    """A unit that takes longer is retried once alone and then failed as timed out. None: the stage's own."""
    max_failed_fraction: float = Field(default=0.5, ge=0, le=1)
    """A run stops when more of a stage's latest 1,000 units fail, 20 or more having ended. 1: never."""


class RaySettings(Closed):
    object_store_mb: int = Field(default=OBJECTS_MB, ge=80)
    """Of the Ray that a run starts here, and of every pod that `pv3d deploy` renders. Only clips travel."""


class TrainSettings(Closed):
    variant: str
    """Import path of a function that returns a `model.config.Variant`."""
    model: dict[str, Any] = {}
    """Changes of the variant's networks, nested or dotted, as in `{rendering.resolution: 32}`."""
    recipe: dict[str, Any] = {}
    """Changes of its losses, optimisers and schedules, as in `{r1_gamma: 4, checkpointing: true}`."""
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]+$")
    """Of the training, in the store. A named one goes on from its last checkpoint whatever has changed, and
    records the changes. Null: the variant and a hash of all that shapes the trajectory: other settings start
    another training."""
    init: str | None = None
    """Weights to start from: a checkpoint's folder, `train/<run>` of the store, or models:/NAME@ALIAS."""
    workers: int = Field(default=2, ge=1)
    steps: int = Field(default=300_000, ge=1)
    """Updates in all; a second run goes on to this count."""
    batch: int | None = Field(default=None, ge=1)
    """Videos per update over all workers; null takes the variant's."""
    accumulate: int = Field(default=1, ge=1)
    """Parts that a worker goes over one after the other in an update: less memory, the same result."""
    zero_stage: int = 0
    """DeepSpeed ZeRO: 0, 1 or 2."""
    precision: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes GPUs when the cluster has one per worker."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """How Ray spreads the workers over nodes."""
    env: dict[str, str] = {}
    """Environment of the workers, such as NCCL_SOCKET_IFNAME: eth0."""
    restarts: int = Field(default=3, ge=0)
    """How often the workers are started again after one has died."""
    loader_threads: int = Field(default=4, ge=0)
    """Of each worker, that read and decode frames while it trains. 0: it reads them when it needs them."""
    damaged_limit: float = Field(default=0.1, ge=0, le=1)
    """Share of the clips that may turn out damaged, and are replaced by others, before training stops."""
    checkpoint_every: int = Field(default=1000, ge=1)
    sample_every: int = Field(default=1000, ge=1)
    log_every: int = Field(default=10, ge=1)
    keep_checkpoints: int = Field(default=3, ge=1)
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    experiment: str = "pv3d"
    """Name of the MLflow experiment."""

    @field_validator("env")
    @classmethod
    def _env(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"{name[:40]!r} is no name of a variable; use letters, digits and _")
            if "\0" in text:
                raise ValueError(f"the value of {name} holds a NUL; leave it out")
        return value

    @field_validator("zero_stage")
    @classmethod
    def _zero_stage(cls, value: int) -> int:
        if value == 3:
            raise ValueError(
                "3 splits the weights themselves, and R1 differentiates twice through them; use 0, 1 or 2"
            )
        if value not in (0, 1, 2):
            raise ValueError("should be 0, 1 or 2")
        return value


ANALYSES = ("order", "mixing", "long")
"""Keys of `pipelines.analyses.ANALYSES`."""
METRIC_NETWORKS = ("i3d", "inception", "arcface", "lpips")
"""Names in the table of weights."""


def _known(value: dict[str, T], names: tuple[str, ...], what: str) -> dict[str, T]:
    """The value. Raises ValueError for a key that is none of the names."""
    for name in value:
        if name not in names:
            raise ValueError(f"{name!r} is no {what}; known: {', '.join(names)}")
    return value


class EvaluateSettings(Closed):
    metrics: tuple[str, ...] = ()
    """Import paths of metric modules."""
    clips: int = Field(default=1000, ge=1)
    """Generated videos that are seen from two sides: for id, chamfer, warping_error."""
    videos: int = Field(default=5000, ge=2)
    """Generated videos, and at most so many real ones, for fvd, fid, kid; made if their network is here."""
    mode: Literal["paper", "official"] = "paper"
    """Definitions of appendix A.4 of the paper, or those that the authors' scripts compute."""
    identity_backend: str = "stages.backends.dlib:DlibIdentity"
    """Import path of the network behind `id/<its name>`."""
    face_backend: str = "stages.backends.dlib:DlibFaces"
    """Import path of the detector behind `faces_found/<its name>`."""
    frames: int = Field(default=16, ge=2)
    """Of a video for fvd, fid, kid."""
    h264: bool = True
    """Write these videos as H.264 and read them back, as the paper's were."""
    networks: dict[str, str] = {}
    """Files in place of the listed ones, TorchScript (which is code) or ONNX: see docs/evaluation.md."""
    statistics: str = ""
    """A file of I3D statistics for fvd in place of held-out people, such as the authors' pickle."""
    workers: int = Field(default=1, ge=1, le=1024)
    """Processes that make and measure videos, on Ray when they are more than one. No figure depends on it."""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    samples: int = Field(default=4, ge=0, le=16)
    """People in the sample video beside the figures, from three sides. 0: no video."""
    every: int = Field(default=0, ge=0)
    """Evaluate every N-th checkpoint while training goes on, on cores that it leaves free. 0: the last."""
    analyses: dict[str, Annotated[int, Field(ge=2)]] = {}
    """The paper's figures 8 and 7 and its 48-frame experiment, after the evaluation, each of so many samples:
    {order: 3000, mixing: 32, long: 16}. `long` trains another model."""

    @field_validator("networks")
    @classmethod
    def _networks(cls, value: dict[str, str]) -> dict[str, str]:
        return _known(value, METRIC_NETWORKS, "network of a metric")

    @field_validator("analyses")
    @classmethod
    def _analyses(cls, value: dict[str, int]) -> dict[str, int]:
        return _known(value, ANALYSES, "analysis")


def _usable(alias: str) -> str:
    """Raises ValueError for a name that MLflow refuses: the training would be done by then."""
    if re.fullmatch("latest|v[0-9]+", alias.lower()):
        raise ValueError(f"{alias} means a version by itself to MLflow; name another, such as candidate")
    return alias


Alias = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,255}$"), AfterValidator(_usable)]


class GateRule(Closed):
    """What a figure of the evaluation must be."""

    max: float | None = None
    min: float | None = None
    not_worse_than: Alias | None = None
    """An alias of the registered model, such as champion. Holds while no version has it."""
    tolerance: float = Field(default=0.0, ge=0)
    """By how much it may be worse than the figure of that version, in the figure's unit."""

    @model_validator(mode="after")
    def _says_something(self) -> GateRule:
        if self.max is None and self.min is None and self.not_worse_than is None:
            raise ValueError("asks for nothing; write max, min or not_worse_than")
        if self.tolerance and self.not_worse_than is None:
            raise ValueError("tolerance belongs to not_worse_than; write that too, such as champion")
        if self.max is not None and self.min is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}; no figure can be both")
        return self


class RegisterSettings(Closed):
    name: str = Field(default="pv3d", pattern=r"^[^/:'\s]([^/:']*[^/:'\s])?$")
    alias: Alias = "candidate"
    gate: dict[str, GateRule] = {}
    """What a version must show to become `champion`, by the names of figures: see docs/registry.md. A rule
    that is null is none, so that a profile can take one away."""

    @field_validator("gate", mode="before")
    @classmethod
    def _gate(cls, value: Any) -> Any:
        if value is None:
            return {}
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value

    @field_validator("alias")
    @classmethod
    def _alias(cls, value: str) -> str:
        if value == "champion":
            raise ValueError("champion is given by the gate alone; name another, such as candidate")
        return value

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError("should be one line of text")
        return value
