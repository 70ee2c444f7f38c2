"""What of training, evaluation and registration is done, without starting any of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from infra.json_values import is_number, read_object, read_text
from infra.storage import Storage
from pipelines.checkpoints import LATEST
from pipelines.rates import duration
from pipelines.train_job import Job
from pipelines.workflow import Workflow
from stages.dataset import LATEST as DATASET

if TYPE_CHECKING:
    from infra.checkpoints import Checkpoint


@dataclass
class Later:
    """A step after the data stages: units are updates for the training, else there is one."""

    name: str
    done: int
    todo: int
    seconds: float | None = None             # that what is to do takes; None for unknown
    note: str = ""

    @property
    def text(self) -> str:
        left = f"{self.seconds and duration(self.seconds)} left" if self.todo and self.seconds else ""
        return f"{self.done:>8}{'':>8}{self.todo:>8}  " + "; ".join(t for t in (left, self.note) if t)

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "name"}


def later(workflow: Workflow, store: Storage, until: str | None, *, dataset_changes: bool) -> list[Later]:
    """train, evaluate and register, up to and including `until`."""
    found = _all(workflow, store, dataset_changes)
    names = [one.name for one in found]
    return found[: names.index(until) + 1] if until in names else found


def _all(workflow: Workflow, store: Storage, dataset_changes: bool) -> list[Later]:
    steps, run = workflow.train.steps, training_of(workflow, store)
    if dataset_changes or run is None:
        note = "anew when the dataset changes" if run else "there is no dataset yet"
        return [Later("train", 0, steps, note=note), Later("evaluate", 0, 1), Later("register", 0, 1)]
    newest = _newest(store, run)
    step = newest.step if newest else 0
    done, left = min(step, steps), max(0, steps - step)
    rate = (told(store, run) or {}).get("steps_per_second")
    train = Later("train", done, left, left / rate if rate else None)
    if newest is None or left:
        return [train, Later("evaluate", 0, 1), Later("register", 0, 1)]
    from pipelines.evaluate import of, result_name

    evaluated = int(store.exists(result_name(of(newest), workflow.evaluate, store)))
    registered = int(_is_registered(workflow, newest))
    return [
        train, Later("evaluate", evaluated, 1 - evaluated), Later("register", registered, 1 - registered)
    ]  # fmt: skip


def training_of(workflow: Workflow, store: Storage) -> str | None:
    """Where the training of the latest dataset lies; None while there is no dataset. With `train.init` it is
    the one that was run last: only a training itself looks at the weights that it starts from."""
    version = _named(store, DATASET, "version")
    if version is None:
        return None
    if workflow.train.init and not workflow.train.name:
        return _named(store, LATEST, "run") or "train/none"
    return Job(workflow.storage, workflow.train, version).run


def _named(store: Storage, key: str, name: str) -> str | None:
    try:
        return read_text(store, key, name)
    except (FileNotFoundError, ValueError):
        return None


def told(store: Storage, run: str) -> dict[str, Any] | None:
    """What a training last said of itself: step, steps, steps_per_second, eta_s, time."""
    try:
        found = read_object(store, f"{run}/progress.json")
    except (FileNotFoundError, ValueError):
        return None
    counts = (found.get(name) for name in ("step", "steps"))
    figures = (found.get(name) for name in ("steps_per_second", "eta_s", "time"))
    sound = all(type(value) is int and 0 <= value < 1 << 63 for value in counts)
    sound = sound and all(value is None or (is_number(value) and 0 <= value < 1e15) for value in figures)
    sound = sound and found.get("time") is not None and isinstance(found.get("dataset", ""), str)
    sound = sound and (found.get("eta_s") is not None or not found.get("steps_per_second"))
    return found if sound else None


def trainings(
    workflow: Workflow, store: Storage
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """How far two trainings are, as their first workers last told, None for none: that of these settings and
    the latest dataset; and another one that told later, with its `dataset`, "" for the latest."""
    version, run = _named(store, DATASET, "version"), training_of(workflow, store)
    if run is None:
        return None, None
    mine = told(store, run)
    if mine and mine.get("dataset", version) != version:     # of a `train.name` that was used before
        mine, named_before = None, mine
    else:
        named_before = None
    runs = (key.rpartition("/")[0] for key in store.list("train") if key.endswith("/progress.json"))
    others = [one for one in (told(store, other) for other in runs if other != run) if one]
    others += [named_before] if named_before else []
    other = max(others, key=lambda one: float(one["time"]), default=None)
    if other and mine and float(other["time"]) < float(mine["time"]):
        other = None
    if mine is None and other is not None:
        mine = {"step": 0, "steps": workflow.train.steps, "steps_per_second": 0.0, "eta_s": None, "time": 0.0}
    if mine and mine["step"] >= mine["steps"]:               # more updates may be asked for by now
        mine["steps"] = max(mine["step"], workflow.train.steps)
    if other:
        of = other.get("dataset", version)
        other["dataset"] = "" if of == version else str(of)
    return mine, other


def _newest(store: Storage, run: str) -> Checkpoint | None:
    """The newest checkpoint; its files are not read."""
    from infra.checkpoints import checkpoints

    return next(checkpoints(store, f"{run}/checkpoints"), None)


def _is_registered(workflow: Workflow, checkpoint: Checkpoint) -> bool:
    """Whether the version that the alias names is of this checkpoint."""
    from pipelines.register import find_version

    version = find_version(workflow.storage.tracking, workflow.register.name, workflow.register.alias)
    return version is not None and version.tags.get("checkpoint") == checkpoint.key
