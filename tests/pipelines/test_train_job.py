"""What a batch can be shared by, and that the advice for one that cannot holds."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from infra.json_values import read_text
from infra.storage import FolderStorage
from model.config import Variant, voxceleb_512, with_changes
from pipelines.checkpoints import LATEST
from pipelines.settings import StorageSettings, TrainSettings
from pipelines.train_job import Job, check_batch


def batched(batch: int, frames: int = 2) -> Variant:
    of = voxceleb_512()
    model = with_changes(of.model, {"discriminator.frames": frames})
    return replace(of, model=model, recipe=replace(of.recipe, batch=batch))


@pytest.mark.parametrize(
    ("batch", "frames", "workers"), [(16, 3, 8), (16, 2, 16), (8, 3, 4), (8, 2, 8), (16, 5, 8)]
)
def test_what_is_advised_for_groups_that_would_be_split_is_accepted(
    batch: int, frames: int, workers: int
) -> None:
    with pytest.raises(ValueError, match="would split") as caught:
        check_batch(batched(batch, frames), workers)
    found = re.search(r"use (\d+) workers at most, or train.batch (\d+)", str(caught.value))
    assert found is not None
    fewer, more = (int(number) for number in found.groups())
    check_batch(batched(batch, frames), fewer)
    check_batch(batched(more, frames), workers)
    assert fewer < workers
    assert more > batch


def test_a_training_beside_the_stores_own_is_not_the_one_that_commands_open(tmp_path: Path) -> None:
    store, place = FolderStorage(tmp_path), StorageSettings(root=str(tmp_path))

    def latest(name: str, *, beside: bool) -> str:
        Job(place, TrainSettings(variant="model.config:tiny", name=name), "d", beside=beside).make_latest("r")
        return read_text(store, LATEST, "run")

    assert latest("row", beside=True) == "train/row"         # there is no other
    assert latest("own", beside=False) == "train/own"
    assert latest("long", beside=True) == "train/own"
    assert latest("next", beside=False) == "train/next"
