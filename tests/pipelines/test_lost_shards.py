"""A shard of which a part is gone or damaged is made again: the same bytes, and nothing else redone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("cv2")

from people_store import PeopleStore, contents

from infra.storage import StorageError
from pipelines.runner import prepare
from stages.dataset import open_dataset

MADE = ("shards", "manifest", "dataset")


@pytest.mark.parametrize("kind", ["manifest", "shards", "index"])
@pytest.mark.parametrize("pointer", [True, False])
def test_a_lost_part_of_a_shard_is_made_again(tmp_path: Path, kind: str, pointer: bool) -> None:
    people = PeopleStore(tmp_path / "people")
    first = prepare(people.load(), in_process=True)
    before = contents(people.store, *MADE)
    ending = {"manifest": "", "shards": ".tar", "index": ".index.json"}[kind]
    folder = "manifest" if kind == "manifest" else "shards"
    lost = next(key for key in sorted(before) if key.startswith(folder) and key.endswith(ending))
    people.store.delete(lost)
    if not pointer:  # as by a run that was killed before it had concluded
        people.store.delete("dataset/latest.json")
    again = prepare(people.load(), in_process=True)
    assert contents(people.store, *MADE) == before
    bucket = Path(lost).name.partition("-")[0]
    members = [s for s in open_dataset(people.store).samples if Path(s.tar).name.startswith(bucket)]
    assert again.redone == {**dict.fromkeys(first.redone, 0), "WriteShards": len(members)}
    assert sum(prepare(people.load(), in_process=True).redone.values()) == 0


def part_of(people: PeopleStore, kind: str) -> str:
    """Key of a part of some shard."""
    folder = "manifest" if kind == "manifest" else "shards"
    return next(key for key in people.store.list(folder) if kind == folder or key.endswith(kind))


def changed(data: bytes, **values: object) -> bytes:
    return json.dumps({**json.loads(data), **values}).encode()


MANIFESTS = {
    "cut": lambda data: data[:60],
    "list": lambda data: b"[1]",
    "deep": lambda data: b"[" * 100_000,
    "no text": lambda data: b"\xff\xfe",
    "other tar": lambda data: changed(data, tar="../../../../etc/passwd"),
    "other hash": lambda data: changed(data, sha256="0" * 64),
    "no samples": lambda data: changed(data, samples="abc"),
    "bytes": lambda data: changed(data, bytes="x"),
    "id": lambda data: changed(data, samples=[{**json.loads(data)["samples"][0], "clip_id": "../../x"}]),
}
DAMAGE = [
    *(("manifest", how) for how in MANIFESTS.values()),
    (".tar", lambda data: data[:1000]), (".tar", lambda data: data + b"x"),
    (".index.json", lambda data: data[:50]), (".index.json", lambda data: b""),
    ("dataset", lambda data: data[:50]),
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    prepare(PeopleStore(folder / "people").load(), in_process=True)
    return folder / "people" / "store"


@pytest.mark.parametrize("ledger", [True, False])
@pytest.mark.parametrize(("kind", "damage"), DAMAGE)
def test_a_damaged_part_of_a_shard_is_made_again(
    tmp_path: Path, made: Path, kind: str, damage: Callable[[bytes], bytes], ledger: bool
) -> None:
    people = PeopleStore(tmp_path / "people")
    shutil.copytree(made, people.root)
    before = contents(people.store, *MADE)
    key = f"dataset/{open_dataset(people.store).version}.json" if kind == "dataset" else part_of(people, kind)
    people.store.write(key, damage(before[key]))
    if not ledger:
        shutil.rmtree(people.root / "ledger" / "WriteShards")
    prepare(people.load(), in_process=True)
    assert contents(people.store, *MADE) == before
    assert sum(prepare(people.load(), in_process=True).redone.values()) == 0


def test_a_tombstone_is_not_taken_for_damage_even_cut(tmp_path: Path, made: Path) -> None:
    people = PeopleStore(tmp_path / "people")
    shutil.copytree(made, people.root)
    key = part_of(people, "manifest")
    shutil.rmtree(people.root / "ledger" / "WriteShards")
    for tombstone in (b'{"schema":1,"taken_down":"takedown/x.json"}', b'{"schema":1,"taken_down":"take'):
        people.store.write(key, tombstone)
        with pytest.raises(StorageError, match=f"{key} in .* was taken down"):
            prepare(people.load(), in_process=True)
        assert people.store.read(key) == tombstone


def test_a_run_that_keeps_no_clip_leaves_the_dataset_as_it_is(tmp_path: Path) -> None:
    people = PeopleStore(tmp_path / "people")
    prepare(people.load(), in_process=True)
    before = contents(people.store, *MADE)
    for _ in range(2):
        assert prepare(people.load("policy.licences_allowed=[none]"), in_process=True).kept == 0
        assert contents(people.store, *MADE) == before
    assert sum(prepare(people.load(), in_process=True).redone.values()) == 0


def test_without_a_clip_there_is_no_dataset(tmp_path: Path) -> None:
    people = PeopleStore(tmp_path / "people")
    prepare(people.load("policy.licences_allowed=[none]"), in_process=True)
    assert contents(people.store, *MADE) == {}
