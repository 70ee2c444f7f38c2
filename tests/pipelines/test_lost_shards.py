"""A shard of which a part is gone from the store is made again: the same bytes, and nothing else redone."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("cv2")

from people_store import PeopleStore, contents

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
