"""Profiles and `--set`: values written over the values of a workflow."""

from __future__ import annotations

from collections.abc import Iterable

from pipelines.construct import import_path
from pipelines.document import SECTIONS, Value, WorkflowError, did_you_mean, parse_inline


def profile_changes(root: Value, profile: str, name: str) -> list[tuple[list[str], Value]]:
    profiles = root.data.get("profiles")
    known = profiles.data if profiles is not None and isinstance(profiles.data, dict) else {}
    if profile not in known:
        hint = did_you_mean(profile, known) if known else "; the workflow has no profiles"
        raise WorkflowError(f"{name}: --profile {profile}: unknown{hint}")
    chosen = known[profile]
    if not isinstance(chosen.data, dict):
        raise chosen.error(f"profiles.{profile}: must be a mapping such as 'train.steps: 24'")
    return list(_leaves(chosen, []))


def _leaves(value: Value, path: list[str]) -> Iterable[tuple[list[str], Value]]:
    if isinstance(value.data, dict) and value.data:
        for key, item in value.data.items():
            yield from _leaves(item, [*path, *key.split(".")])
    else:
        yield path, value


def override_change(text: str) -> tuple[list[str], Value]:
    key, equals, value = text.partition("=")
    place = f"--set {text}"
    if not equals or not key.strip():
        raise WorkflowError(f"{place}: write key=value, such as train.steps=24")
    return key.strip().split("."), parse_inline(value, place)


class Overlay:
    """Writes values of profiles and `--set` into the tree. Values change, the list of stages does not."""

    def __init__(self, root: Value) -> None:
        self.root = root
        self.entries: dict[str, Value] = {}
        stages = root.data["stages"]
        for number, entry in enumerate(stages.data if isinstance(stages.data, list) else []):
            if isinstance(entry.data, dict):
                self.entries.setdefault(_entry_name(entry, number), entry)

    def apply(self, changes: list[tuple[list[str], Value]]) -> None:
        for path, value in sorted(changes, key=lambda change: change[0][-1] != "use"):  # stable; `use` first
            dotted = ".".join(path)
            if path[0] == "profiles" or path[0] not in SECTIONS:
                known = [s for s in SECTIONS if s != "profiles"]
                raise value.key_error(f"{dotted}: unknown key{did_you_mean(path[0], known)}")
            if path[0] == "stages":
                self._assign(self._entry(path, dotted, value), path[2:], value, dotted)
            else:
                self._assign(self.root, path, value, dotted)

    def _entry(self, path: list[str], dotted: str, value: Value) -> Value:
        if len(path) < 3:
            raise value.key_error(f"{dotted}: name a stage and a setting, as in stages.AlignCrop.size")
        if path[1] not in self.entries:
            hint = did_you_mean(path[1], self.entries)
            raise value.key_error(f"{dotted}: no stage is called {path[1]!r}{hint}")
        return self.entries[path[1]]

    def _assign(self, parent: Value, path: list[str], value: Value, dotted: str) -> None:
        for key in path[:-1]:
            if key not in parent.data or parent.data[key].data is None:
                parent.data[key] = Value({}, value.place, value.of_key)
            parent = parent.data[key]
            if not isinstance(parent.data, dict):
                raise value.key_error(f"{dotted}: {key} holds one value, nothing below it can be set")
        if path[-1] == "use":  # another class has other settings
            kept = {key: item for key, item in parent.data.items() if key in ("name", "workers")}
            parent.data.clear()
            parent.data.update(kept)
        parent.data[path[-1]] = Value(value.data, value.place, value.of_key)


def _entry_name(entry: Value, number: int) -> str:
    """The address of a stage in profiles and `--set`: its `name`, or that of its class."""
    named = entry.data.get("name")
    if named is not None and isinstance(named.data, str):
        return named.data
    use = entry.data.get("use")
    if use is None:
        return ""
    return str(getattr(import_path(use, f"stages[{number}].use"), "name", ""))
