"""Aligned frames that are gone or cut are made again by the stage that made them, when they are needed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("cv2")

from people_store import PeopleStore, contents

from infra.storage import StorageError
from pipelines.runner import prepare

MADE = ("aligned", "shards", "manifest", "dataset")


@pytest.mark.parametrize("how", ["one", "all", "cut"])
def test_aligned_frames_that_are_gone_are_made_again(tmp_path: Path, how: str) -> None:
    people = PeopleStore(tmp_path / "people")
    first = prepare(people.load(), in_process=True)
    before = contents(people.store, *MADE)
    keys = list(people.store.list("aligned"))
    for key in keys if how == "all" else keys[:1]:
        people.store.delete(key)
        if how == "cut":
            people.store.write(key, before[key][:1000])
    assert sum(prepare(people.load(), in_process=True).redone.values()) == 0    # nobody needs them
    for folder in ("shards", "manifest", "dataset", "ledger/WriteShards"):
        shutil.rmtree(people.root / folder)
    again = prepare(people.load(), in_process=True)
    assert contents(people.store, *MADE) == before
    assert again.redone["Frames"] == (first.redone["Frames"] if how == "all" else 1)
    assert sum(prepare(people.load(), in_process=True).redone.values()) == 0


def test_frames_that_do_not_come_again_stop_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiny_people

    people = PeopleStore(tmp_path / "people")
    prepare(people.load("stages.Two.use=tiny_people:Two"), in_process=True)
    for folder in ("aligned", "manifest", "ledger/WriteShards"):
        shutil.rmtree(people.root / folder)
    monkeypatch.setattr(tiny_people, "tar_of", lambda name, count: b"none")
    with pytest.raises(StorageError, match=r"aligned/.* of the clip .* is not made again") as refused:
        prepare(people.load(), in_process=True)
    assert "\n" not in str(refused.value)
