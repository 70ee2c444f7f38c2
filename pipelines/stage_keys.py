"""What the keys of stages stand for: a record holds only a hash, and people want to know what has changed.

    ledger/<stage>/keys/<key>.json    {"use", "version", "settings"}, written before a stage first runs so

Nothing rests on it: a store that does not take it only makes `pv3d run --dry-run` say less.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from infra.json_values import parsed_object
from infra.storage import Storage, StorageError
from infra.words import printable
from pipelines.records import Record, Ref
from pipelines.workflow import Step, Workflow

log = logging.getLogger(__name__)

OF_INPUT = "its input changed"
OF_GROUP = "its group has other members"
UNCLEAR = "it is to be done again"           # as when a takedown is taken back
OF_ACCESS = "settings of access of {} changed"
UNKNOWN = "settings or version of {} changed"
_LONGEST = 60                                # characters of a value that is told


def remember(store: Storage, steps: Sequence[Step]) -> None:
    """Write down what the keys of these steps stand for; settings of access are secrets and stay out."""
    try:
        for step in steps:
            for key in {step.key, step.barred_key}:
                name = _name(step.name, key)
                if not store.exists(name):
                    facts = {name: value for name, value in step.facts.items() if name != "stage"}
                    store.create(name, json.dumps(facts, sort_keys=True).encode())
    except (StorageError, OSError) as error:
        log.warning("the settings of this run cannot be noted (%s); it goes on", error)


class Changes:
    """Says why a record holds no longer."""

    def __init__(self, store: Storage) -> None:
        self.store = store
        self._known: dict[tuple[str, str], str] = {}

    def why(self, step: Step, ref: Ref, record: Record) -> str:
        if record.key in (step.key, step.barred_key):
            return OF_INPUT if record.input != ref.digest else OF_GROUP if record.members else UNCLEAR
        place = (step.name, record.key)
        if place not in self._known:
            self._known[place] = self._of_settings(step, record.key)
        return self._known[place]

    def _of_settings(self, step: Step, key: str) -> str:
        try:
            before = parsed_object(self.store.read(_name(step.name, key)))
            return difference(step.name, before, step.facts)
        except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return UNKNOWN.format(step.name)


def difference(stage: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """"settings of AlignCrop changed: size 256 -> 512"."""
    if before["use"] != now["use"]:
        return f"{stage} is another class: {printable(before['use'])} -> {now['use']}"
    if before["version"] != now["version"]:
        return f"{stage} is another version: {printable(before['version'])} -> {now['version']}"
    old, new = _flat(before["settings"]), _flat(now["settings"])
    parts = [
        f"{printable(name)} {_short(old, name)} -> {_short(new, name)}"
        for name in [*old, *(name for name in new if name not in old)]
        if (name in old, old.get(name)) != (name in new, new.get(name))
    ]
    told = printable(", ".join(parts), 1000)
    return f"settings of {stage} changed: {told}" if parts else OF_ACCESS.format(stage)


def keys_asked(workflow: Workflow) -> dict[str, str]:
    """What a run does, by hashes: the keys of its stages, and one of its source and of its training each."""
    rest = {"source": f"{workflow.source_use} {workflow.source!r}", "train": workflow.train.model_dump_json()}
    return {
        **{f"stages.{step.name}": step.key for step in workflow.steps},
        **{
            name: hashlib.sha256(text.encode()).hexdigest()
            for name, text in rest.items() if " at 0x" not in text           # no dataclass: it cannot be told
        },
    }  # fmt: skip


def differing(store: Storage, workflow: Workflow, keys: Mapping[str, str]) -> list[str]:
    """The settings in which a workflow differs from what a run was asked for (`keys_asked`)."""
    found: list[str] = []
    steps = {f"stages.{step.name}": step for step in workflow.steps}
    for name, key in keys_asked(workflow).items() if keys else []:
        if keys.get(name) != key:
            names = _changed(store, steps[name], keys[name]) if name in steps and name in keys else []
            found += [f"{name}.{one}" for one in names] or [name]
    return found + [name for name in keys if name.startswith("stages.") and name not in steps]


def _changed(store: Storage, step: Step, key: str) -> list[str]:
    """Names of the settings that differ from those of another key; none where nobody wrote them down."""
    try:
        old = _flat(parsed_object(store.read(_name(step.name, key)))["settings"])
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []
    new = _flat(step.facts["settings"])
    return [name for name in {**old, **new} if (name in old, old.get(name)) != (name in new, new.get(name))]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found.update(_flat(value, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = json.loads(json.dumps(value))     # tuples are lists here and there
    return found


def _short(settings: Mapping[str, Any], name: str) -> str:
    if name not in settings:
        return "unset"
    text = json.dumps(settings[name])
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _name(stage: str, key: str) -> str:
    return f"ledger/{stage}/keys/{key}.json"
