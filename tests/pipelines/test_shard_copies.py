"""Which shards are copied to this machine, and when that is worth while."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from infra.storage import FolderStorage
from pipelines.shard_copies import fitting, worth_copying
from stages.dataset import Dataset, Sample, Shard

SIZES = {"a": 50, "b": 30, "c": 40, "d": 10}


def dataset(request_bytes: int = 0) -> Dataset:
    blank: dict[str, Any] = dict.fromkeys([f.name for f in fields(Sample)], "")
    store = FolderStorage(".")
    store.request_bytes = request_bytes
    samples = [Sample(**{**blank, "frame_count": 13})]
    return Dataset(store, "v", 64, 25.0, samples, [], {tar: Shard("", size) for tar, size in SIZES.items()})


def test_the_first_shards_that_fit_together_whoever_asks() -> None:
    assert fitting(dataset(), list("dcbaa"), 95) == ["a", "b", "d"]
    assert fitting(dataset(), list("abcd"), 0) == []
    assert fitting(dataset(), list("dcba"), 130) == list("abcd")


def test_shards_are_copied_once_ranges_would_cost_as_much() -> None:
    assert not worth_copying(dataset(), 12)       # a frame is 10 bytes, the shards are 130
    assert worth_copying(dataset(), 13)
    assert worth_copying(dataset(request_bytes=16), 5)
    assert not worth_copying(dataset(request_bytes=16), 4)
