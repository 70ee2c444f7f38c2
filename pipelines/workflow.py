"""Read `workflow.yaml`: build the source and the stages, and refuse every mistake before any work.

A mistake is a `WorkflowError` of one line: place, dotted name, what is wrong, what would be right.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import hashlib
import importlib.util
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from infra.paths import expanded
from infra.storage import Storage, open_storage
from pipelines.construct import T, check_paths, construct, import_path, output_settings, settings_of, validate
from pipelines.document import SECTIONS, Value, WorkflowError, did_you_mean, parse
from pipelines.overlay import Overlay, override_change, profile_changes
from pipelines.schedule import ScheduleSettings
from pipelines.settings import (
    EvaluateSettings,
    PolicySettings,
    RaySettings,
    RegisterSettings,
    StepSettings,
    StorageSettings,
    TrainSettings,
    Workers,
)
from pipelines.train_job import changed, check_batch
from stages.base import GroupStage, Resources, Source, Stage
from stages.clip import Clip
from stages.sources.several import Several
from stages.takedown import Takedown, read_takedown

__all__ = ["Step", "Workflow", "WorkflowError", "load"]

MOST_BYTES = 1 << 20
LISTED = ("id", "source", "video", "fingerprint", "dataset", "licence", "listed")  # what every source writes


@dataclass(frozen=True)
class Step:
    """One entry under `stages`: the built stage and how it is run."""

    name: str
    use: str
    stage: Stage | GroupStage
    resources: Resources
    workers: Workers
    timeout_s: float
    max_failed_fraction: float = 0.5

    @property
    def settings(self) -> dict[str, Any]:
        """The stage's own settings, JSON values."""
        return settings_of(self.stage)

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the output of the stage, as samples tell it."""
        settings = output_settings(self.stage)
        return {"stage": self.name, "use": self.use, "version": self.stage.version, "settings": settings}

    @cached_property
    def key(self) -> str:
        """sha256 (hex) of what decides the output of the stage: class, version and settings."""
        return self._hash(output_settings(self.stage))

    @cached_property
    def barred_key(self) -> str:
        """The key of what was rejected for who asked (`Barred`): as `key`, with the settings of access."""
        return self._hash(output_settings(self.stage, access=True))

    def _hash(self, settings: dict[str, Any]) -> str:
        cls = type(self.stage)
        text = json.dumps([f"{cls.__module__}:{cls.__qualname__}", cls.version, settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Workflow:
    """A whole run, as read: everything is built and checked, nothing has been done."""

    path: str
    profile: str | None
    overrides: tuple[str, ...]
    storage: StorageSettings
    source: Source
    steps: tuple[Step, ...]
    train: TrainSettings
    evaluate: EvaluateSettings
    register: RegisterSettings
    source_use: str = ""
    policy: PolicySettings = field(default_factory=PolicySettings)
    takedown: Takedown = field(default_factory=Takedown)
    schedule: ScheduleSettings | None = None
    ray: RaySettings = field(default_factory=RaySettings)

    @property
    def stages(self) -> list[Stage | GroupStage]:
        return [step.stage for step in self.steps]

    def store(self) -> Storage:
        """Open the storage. Raises StorageError."""
        return open_storage(self.storage.root, **self.storage.s3.model_dump())


def load(path: str | Path, profile: str | None = None, overrides: Sequence[str] = ()) -> Workflow:
    """Read, overlay and check a workflow. Raises WorkflowError, one line with the place."""
    name = str(path)
    root = parse(_read(Path(path), name), name)
    if not isinstance(root.data, dict):
        raise root.error(f"a workflow is a mapping with the keys {', '.join(SECTIONS)}")
    for key, value in root.data.items():
        if key not in SECTIONS:
            raise value.key_error(f"{key}: unknown key{did_you_mean(key, SECTIONS)}")
    for key in ("storage", "source", "stages", "train"):
        if key not in root.data:
            raise WorkflowError(f"{name}: {key}: missing; add the section")
    overlay = Overlay(root)
    if profile is not None:
        overlay.apply(profile_changes(root, profile, name))
    overlay.apply([override_change(text) for text in overrides])
    return _Builder(root, name).build(profile, tuple(overrides))


def _read(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise WorkflowError(f"{name}: more than {MOST_BYTES:,} bytes; this is no workflow")
        return data.decode()
    except FileNotFoundError:
        raise WorkflowError(f"{name}: no such file; give the path of a workflow") from None
    except UnicodeDecodeError:
        raise WorkflowError(f"{name}: not UTF-8 text; give the path of a workflow") from None
    except OSError as error:
        raise WorkflowError(f"{name}: cannot be read ({error.strerror})") from None


class _Builder:
    """Turns the tree into a `Workflow`."""

    def __init__(self, root: Value, name: str) -> None:
        self.root = root
        self.name = name

    def build(self, profile: str | None, overrides: tuple[str, ...]) -> Workflow:
        storage = self._section("storage", StorageSettings)
        source_use, source = self._source()
        steps = self._steps()
        self._check_chain(source, steps)
        policy = self._section("policy", PolicySettings)
        takedown = self._takedown(policy)
        train = self._section("train", TrainSettings)
        evaluate = self._section("evaluate", EvaluateSettings)
        self._check_train(train, steps)
        self._check_metrics(evaluate)
        check_paths(evaluate.model_dump(), self.root.data.get("evaluate", self.root), "evaluate")
        register = self._section("register", RegisterSettings)
        self._check_gate(register, evaluate)
        return Workflow(
            path=self.name,
            profile=profile,
            overrides=overrides,
            storage=storage.model_copy(
                update={"root": _absolute(storage.root), "tracking": absolute_uri(storage.tracking)}
            ),
            source=source,
            source_use=source_use,
            policy=policy,
            ray=self._section("ray", RaySettings),
            takedown=takedown,
            steps=tuple(steps),
            train=train,
            evaluate=evaluate,
            register=register,
            schedule=self._section("schedule", ScheduleSettings) if "schedule" in self.root.data else None,
        )

    def _section(self, key: str, model: type[T]) -> T:
        value = self.root.data.get(key, Value({}, self.name, self.name))
        if value.data is None:
            value = Value({}, value.place, value.key_place)
        return validate(model, value, key)

    def _takedown(self, policy: PolicySettings) -> Takedown:
        if policy.takedown is None:
            return Takedown()
        try:
            return read_takedown(policy.takedown)
        except ValueError as error:
            raise WorkflowError(str(error)) from None

    def _source(self) -> tuple[str, Source]:
        entry = self.root.data["source"]
        if not isinstance(entry.data, list):
            return self._one_source(entry, "source")
        if not entry.data:
            raise entry.error("source: the list is empty; name a source")
        found = [self._one_source(one, f"source[{number}]") for number, one in enumerate(entry.data)]
        return "stages.sources.several:Several", Several([source for _, source in found])

    def _one_source(self, entry: Value, dotted: str) -> tuple[str, Source]:
        cls = self._class(entry, dotted, (Source,), "a source")
        own = {key: value for key, value in entry.data.items() if key != "use"}
        return entry.data["use"].data, construct(cls, Value(own, entry.place, entry.key_place), dotted)

    def _class(self, entry: Value, dotted: str, bases: tuple[type, ...], what: str) -> type:
        if not isinstance(entry.data, dict) or "use" not in entry.data:
            raise entry.error(f"{dotted}: name {what} with 'use: package.module:Name'")
        use = entry.data["use"]
        cls = import_path(use, f"{dotted}.use")
        if not (isinstance(cls, type) and issubclass(cls, bases) and dataclasses.is_dataclass(cls)):
            names = " or ".join(base.__name__ for base in bases)
            raise use.error(f"{dotted}.use: {use.data} is not {what} (a dataclass and a {names})")
        return cls

    def _steps(self) -> list[Step]:
        stages = self.root.data["stages"]
        if not isinstance(stages.data, list) or not stages.data:
            raise stages.error("stages: must be a list of '- use: package.module:Name' entries")
        steps: list[Step] = []
        for number, entry in enumerate(stages.data):
            cls = self._class(entry, f"stages[{number}]", (Stage, GroupStage), "a stage")
            step = self._step(entry, cls)
            if any(step.name == other.name for other in steps):
                raise entry.error(
                    f"stages.{step.name}: a second stage of this name; give one of them a 'name:'"
                )
            steps.append(step)
            if isinstance(step.stage, GroupStage):
                step.stage.follow([other.facts for other in steps])
        return steps

    def _step(self, entry: Value, cls: type) -> Step:
        common = set(StepSettings.model_fields)
        mine = {key: value for key, value in entry.data.items() if key in common}
        own = {key: value for key, value in entry.data.items() if key not in common}
        name = entry.data["name"].data if "name" in entry.data else getattr(cls, "name", "")
        dotted = f"stages.{name}"
        chosen = validate(StepSettings, Value(mine, entry.place, entry.key_place), dotted)
        if not name:
            raise entry.error(f"{chosen.use} has no name; set the class variable 'name'")
        stage = construct(cls, Value(own, entry.place, entry.key_place), dotted, known_elsewhere=common)
        check_paths(settings_of(stage), entry, dotted)
        changed = {key: value for key, value in chosen.resources.model_dump().items() if value is not None}
        resources = dataclasses.replace(stage.resources, **changed)
        most, least = chosen.workers.max, chosen.workers.min
        if most is not None and most < least:
            place = entry.at(["workers", "max"]).place
            raise WorkflowError(f"{place}: {dotted}.workers: max {most} is below min {least}; raise max")
        timeout_s = chosen.timeout_s or stage.timeout_s
        return Step(
            name, chosen.use, stage, resources, chosen.workers, timeout_s, chosen.max_failed_fraction
        )  # fmt: skip

    def _check_chain(self, source: Source, steps: list[Step]) -> None:
        clip_fields = {f.name for f in dataclasses.fields(Clip)}
        written = {*LISTED, *getattr(source, "writes", ())}
        for number, step in enumerate(steps):
            entry = self.root.data["stages"].data[number]
            for name in (*step.stage.reads, *step.stage.writes):
                if name not in clip_fields and not name.startswith("extra."):
                    hint = did_you_mean(name, clip_fields)
                    raise entry.error(f"stages.{step.name}: a clip has no field {name!r}{hint}")
            for name in step.stage.reads:
                if name not in written:
                    cure = _missing_field(name, step, steps)
                    raise entry.error(
                        f"stages.{step.name}: reads {name!r}, which nothing before it writes; {cure}"
                    )
            if "frame_times_s" in step.stage.writes and "aligned" in written:
                first = next(other.name for other in steps if "aligned" in other.stage.writes)
                raise entry.error(
                    f"stages.{step.name}: divides clips, but {first!r} has written their frames by then; "
                    f"put it before {first!r}"
                )
            written.update(step.stage.writes)

    def _check_train(self, train: TrainSettings, steps: list[Step]) -> None:
        place = self.root.data["train"].at(["variant"])
        make = import_path(Value(train.variant, place.place), "train.variant")
        variant: Any = make() if callable(make) and _needs_nothing(make) else None
        if getattr(getattr(variant, "model", None), "img_resolution", None) is None:
            raise place.error(f"train.variant: {train.variant} does not return a model.config.Variant")
        try:
            variant = changed(variant, train)
            check_batch(variant, train.workers, train.accumulate)
        except ValueError as error:
            section = self.root.data["train"]
            named = str(error).partition(":")[0].removeprefix("train.")
            raise section.at([named if named in section.data else "workers"]).error(str(error)) from None
        for number, step in enumerate(steps):
            size = getattr(step.stage, "size", None)
            resolution = variant.model.img_resolution
            if "crop_size" in step.stage.writes and size is not None and size != resolution:
                at = self.root.data["stages"].data[number].at(["size"]).place
                raise WorkflowError(
                    f"{at}: stages.{step.name}.size: {size} px, but {train.variant} makes {resolution} px; "
                    f"set stages.{step.name}.size={resolution} or another train.variant"
                )

    def _check_metrics(self, evaluate: EvaluateSettings) -> None:
        section = self.root.data.get("evaluate", self.root)
        for number, path in enumerate(evaluate.metrics):
            at = section.at(["metrics", number])
            try:
                found = importlib.util.find_spec(path)
            except (ImportError, ValueError):
                found = None
            if found is None:
                raise at.error(f"evaluate.metrics: no module {path!r}; check the spelling")

    def _check_gate(self, register: RegisterSettings, evaluate: EvaluateSettings) -> None:
        """Rules are for figures that the metrics give, as far as these say which."""
        if not register.gate:
            return
        from stages.metrics import names_of

        given = [names_of(path) for path in evaluate.metrics]
        known = [name for names in given if names is not None for name in names]
        for name in register.gate:
            if None in given or any(fnmatch.fnmatchcase(name, pattern) for pattern in known):
                continue
            hint = did_you_mean(name, known) if known else "; evaluate.metrics is empty"
            at = self.root.data["register"].at(["gate", name])
            raise at.key_error(f"register.gate.{name}: no figure of evaluate.metrics{hint}")


def _missing_field(name: str, step: Step, steps: list[Step]) -> str:
    for other in steps:
        if name in other.stage.writes:
            return f"{other.name!r} does: put it before {step.name!r}"
    close = difflib.get_close_matches(name, [w for other in steps for w in other.stage.writes], n=1)
    return f"did it mean {close[0]!r}?" if close else "add a stage that writes it"


def _needs_nothing(function: Any) -> bool:
    """Whether it can be called without an argument."""
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):
        return False
    return True


def _absolute(root: str) -> str:
    return root if "://" in root else str(expanded(root).absolute())


def absolute_uri(uri: str) -> str:
    """Workers run in other folders, so a relative SQLite file is made absolute."""
    scheme, slashes, path = uri.partition(":///")
    if scheme == "sqlite" and slashes and not path.startswith("/") and path:
        return f"sqlite:///{Path(path).absolute()}"
    return uri
