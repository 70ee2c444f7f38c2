"""Bugs of the kind that the simulation is there for are found by it, and soon."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from simulated_modules import simulated
from simulated_plans import by_chance, crash_points, right, starts
from simulated_runs import Execution, Setting

import infra.lease
import pipelines.ledger
import stages.shards
from infra.s3 import S3Storage
from infra.s3_errors import ERRORS, code_of
from infra.storage import Storage

SEEDS = 600                                  # within so many a bug is found; without one they are sound


class Wrapped:
    """A store one of whose calls is another."""

    def __init__(self, store: Storage) -> None:
        self.store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


class LoserDeletes(Wrapped):
    def create(self, key: str, data: bytes) -> bool:
        won = self.store.create(key, data)
        if not won:
            self.store.delete(json.loads(data)["tar"])
        return won


class ManifestFirst(Wrapped):
    def upload(self, key: str, path: Path) -> None:
        self.late = key, path.read_bytes()

    def create(self, key: str, data: bytes) -> bool:
        won = self.store.create(key, data)
        self.store.write(*self.late)
        return won


class ArraysLast(Wrapped):
    def write(self, key: str, data: bytes) -> None:
        if key.endswith(".npz"):
            self.late = key, data
            return
        self.store.write(key, data)
        self.store.write(*self.late)


class Replaces(Wrapped):
    def create(self, key: str, data: bytes) -> bool:
        self.store.write(key, data)
        return True


class LatestFirst(Wrapped):
    def create(self, key: str, data: bytes) -> bool:
        if key.startswith("dataset/"):
            version = key.removeprefix("dataset/").removesuffix(".json")
            self.store.write("dataset/latest.json", json.dumps({"version": version}).encode())
        return self.store.create(key, data)


def on(wrapper: type[Wrapped], function: Callable[..., Any]) -> Callable[..., Any]:
    """The real function, on a store that is wrapped."""
    return lambda store, *rest, **named: function(wrapper(store), *rest, **named)


def trusted(store: S3Storage, key: str, data: bytes) -> bool:
    """A create that takes no answer for a success."""
    with store._plain_errors(f"create {key}"):
        try:
            store._put(key, data, IfNoneMatch="*")
        except ERRORS as error:
            return code_of(error) not in ("PreconditionFailed", "412")
        return True


commit, write_segment = stages.shards._commit, pipelines.ledger.write_segment
commit_dataset = stages.shards.commit_dataset

BUGS: dict[str, tuple[Any, str, Any, str]] = {
    "the loser of a create deletes the shard":
        (stages.shards, "_commit", on(LoserDeletes, commit), "deleted"),
    "a create without an answer is trusted to have been done":
        (S3Storage, "create", trusted, ""),
    "a create without an answer is trusted to have been another's":
        (S3Storage, "_holds", lambda *_: False, "its own way"),
    "the manifest comes before the tar":
        (stages.shards, "_commit", on(ManifestFirst, commit), "created before"),
    "records come before their arrays":
        (pipelines.ledger, "write_segment", on(ArraysLast, write_segment), "before its arrays"),
    "a manifest is written over another":
        (stages.shards, "_commit", on(Replaces, commit), "written, not created"),
    "the pointer comes before the version":
        (stages.shards, "commit_dataset", on(LatestFirst, commit_dataset), "latest"),
    "a lease is taken over without waiting":
        (infra.lease, "_over", lambda *_: True, "silent"),
}  # fmt: skip
ALONE = [bug for bug in BUGS if "loser" not in bug and "taken over" not in bug]      # no second run is needed


def found(where: Iterable[Execution]) -> tuple[int, list[str]]:
    """(the number of the first execution that violates something, what)."""
    for number, execution in enumerate(where):
        if execution.violations:
            return number, execution.violations
    return -1, []


@pytest.fixture(autouse=True)
def _simulated():
    with simulated():
        right(), starts(False), starts(True)     # before anything is broken
        yield


@pytest.mark.parametrize("bug", BUGS)
def test_a_seeded_bug_is_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name, broken, what = BUGS[bug]
    monkeypatch.setattr(module, name, broken)
    seed, violations = found(by_chance(seed) for seed in range(SEEDS))
    assert violations, f"not found in {SEEDS} executions"
    assert what in " ".join(violations)
    assert by_chance(seed).violations == violations      # by its seed alone


@pytest.mark.parametrize("bug", ALONE)
def test_what_needs_no_second_run_is_found_by_crash_points_alone(
    bug: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name, broken, what = BUGS[bug]
    monkeypatch.setattr(module, name, broken)
    _, violations = found(crash_points(Setting(s3=True, leases=True)))
    assert what in " ".join(violations)
