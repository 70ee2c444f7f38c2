"""Shards: plain WebDataset, byte-identical, committed once, read by range."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.storage import FolderStorage, StorageError
from stages.base import LostInputError
from stages.clip import Clip
from stages.shards import LATEST, WriteShards, decode_jpeg, open_dataset, without

pytest.importorskip("cv2")

from tiny_clips import SIZE, clip_in, picture


def write(store: FolderStorage, clips: list[Clip], stage: WriteShards | None = None) -> list[Clip]:
    """What a runner does: group, write every group, finish."""
    stage = stage or WriteShards(buckets=4)
    stage.setup(store)
    groups: dict[str, list[Clip]] = {}
    for clip in clips:
        groups.setdefault(stage.group(clip), []).append(clip)
    done = [out for name, members in groups.items() for out in stage.process_group(name, members)]
    kept = sorted((c for c in done if isinstance(c, Clip)), key=lambda c: c.id)
    stage.finish(store, iter(kept))
    return kept


def contents(store: FolderStorage, *folders: str) -> dict[str, bytes]:
    return {key: store.read(key) for folder in folders for key in store.list(folder)}


IDS = ["a", "a-1", "b_0000040", "c", "d", "e"]


def test_loads_with_plain_webdataset(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    store = FolderStorage(tmp_path)
    clips = write(store, [clip_in(store, i) for i in IDS])
    found = {}
    for key in store.list("shards"):
        if key.endswith(".tar"):
            for sample in webdataset.WebDataset(str(store.path(key)), shardshuffle=False):
                found[sample["__key__"]] = sample
    assert sorted(found) == sorted(IDS)
    for clip in clips:
        sample = found[clip.id]
        np.testing.assert_array_equal(np.load(io.BytesIO(sample["cameras.npy"])), clip.cameras)
        np.testing.assert_array_equal(np.load(io.BytesIO(sample["landmarks.npy"])), clip.landmarks)
        assert sum(name.endswith(".jpg") for name in sample) == clip.frame_count
        assert json.loads(sample["json"])["clip_id"] == clip.id


def test_same_bytes_in_any_order_and_when_written_again(tmp_path: Path) -> None:
    one, two = FolderStorage(tmp_path / "1"), FolderStorage(tmp_path / "2")
    write(one, [clip_in(one, i) for i in IDS])
    write(two, [clip_in(two, i) for i in reversed(IDS)])
    before = contents(one, "shards", "manifest", "dataset")
    assert before == contents(two, "shards", "manifest", "dataset")
    write(one, [clip_in(one, i) for i in IDS])
    assert before == contents(one, "shards", "manifest", "dataset")


def test_one_more_clip_rewrites_only_its_bucket(tmp_path: Path) -> None:
    store = FolderStorage(tmp_path)
    stage = WriteShards(buckets=4)
    before = {c.id: c.shard for c in write(store, [clip_in(store, i) for i in IDS])}
    after = {c.id: c.shard for c in write(store, [clip_in(store, i) for i in [*IDS, "new"]])}
    bucket = stage.group(Clip(id="new", source="", video=""))
    for clip_id in IDS:
        same_bucket = stage.group(Clip(id=clip_id, source="", video="")) == bucket
        assert (before[clip_id] == after[clip_id]) != same_bucket
    assert len(open_dataset(store).samples) == len(IDS) + 1


def test_reads_back_frames_cameras_and_provenance(tmp_path: Path) -> None:
    store = FolderStorage(tmp_path)
    clips = {c.id: c for c in write(store, [clip_in(store, i) for i in IDS])}
    dataset = open_dataset(store)
    assert (dataset.size, dataset.fps) == (SIZE, 25.0)
    assert sorted(s.clip_id for s in dataset.samples) == sorted(IDS)
    for sample in dataset.samples:
        frames = dataset.frames(sample, [3, 0])
        assert frames.shape == (2, SIZE, SIZE, 3)
        assert frames.dtype == np.uint8
        for frame, index in zip(frames, [3, 0], strict=True):
            assert np.abs(frame.astype(int) - picture(sample.clip_id, index)).mean() < 3
        np.testing.assert_array_equal(dataset.cameras(sample), clips[sample.clip_id].cameras)
        record = dataset.record(sample)
        assert record["licence"] == "CC0"
        assert "/private" not in json.dumps(record)
    with pytest.raises(IndexError, match="frame 5 of 5"):
        dataset.frames(dataset.samples[0], [5])


def test_an_older_version_stays_readable(tmp_path: Path) -> None:
    store = FolderStorage(tmp_path)
    write(store, [clip_in(store, i) for i in IDS])
    old = open_dataset(store).version
    write(store, [clip_in(store, i) for i in [*IDS, "new"]])
    assert open_dataset(store).version != old
    assert len(open_dataset(store, old).samples) == len(IDS)


def test_people_are_held_out_by_hash_alone(tmp_path: Path) -> None:
    store = FolderStorage(tmp_path)
    clips = [clip_in(store, f"c{i}", 2, identity=f"p{i // 2}") for i in range(40)]
    write(store, clips, WriteShards(buckets=2, held_out=0.5))
    splits: dict[str, set[str]] = {}
    for sample in open_dataset(store).samples:
        splits.setdefault(sample.identity, set()).add(sample.split)
    assert all(len(s) == 1 for s in splits.values())
    assert 5 <= sum(s == {"test"} for s in splits.values()) <= 15


def test_nothing_half_written_is_seen(tmp_path: Path) -> None:
    """A stage that dies before the manifest leaves no shard, and the next run completes it."""
    store = FolderStorage(tmp_path)
    stage = WriteShards(buckets=1)
    stage.setup(store)
    broken = clip_in(store, "b", aligned="aligned/missing.tar")
    with pytest.raises(LostInputError, match=r"aligned/missing\.tar of the clip b"):
        list(stage.process_group("00000", [clip_in(store, "a"), broken]))
    assert list(store.list("manifest")) == list(store.list("shards")) == []
    with pytest.raises(ValueError, match="pv3d run --until WriteShards"):
        open_dataset(store)


def test_refuses_a_manifest_that_says_something_else(tmp_path: Path) -> None:
    store = FolderStorage(tmp_path)
    (clip,) = write(store, [clip_in(store, "a")])
    manifest = json.loads(store.read(clip.shard))
    manifest["samples"][0]["identity"] = "somebody else"
    store.write(clip.shard, json.dumps(manifest).encode())
    with pytest.raises(StorageError, match="holds something else"):
        write(store, [clip_in(store, "a")])


def test_a_cut_off_jpeg_is_named(tmp_path: Path) -> None:
    store = FolderStorage(tmp_path)
    (clip,) = write(store, [clip_in(store, "a")])
    manifest = json.loads(store.read(clip.shard))
    data = bytearray(store.read(manifest["tar"]))
    rows = {row[1]: row for row in json.loads(store.read(manifest["index"]))["members"]}
    start, size = rows["0002.jpg"][2:]
    data[start:start + size] = bytes(size)
    store.write(manifest["tar"], bytes(data))
    dataset = open_dataset(store)
    with pytest.raises(ValueError, match="a frame 2: not a whole JPEG"):
        dataset.frames(dataset.samples[0], [2])


def test_the_latest_pointer_names_a_committed_version(tmp_path: Path) -> None:
    store = FolderStorage(tmp_path)
    write(store, [clip_in(store, i) for i in IDS])
    version = json.loads(store.read(LATEST))["version"]
    content = json.loads(store.read(f"dataset/{version}.json"))
    assert content["samples"] == len(IDS)
    assert content["manifests"] == sorted(store.list("manifest"))


def test_refuses_clips_of_two_sizes(tmp_path: Path) -> None:
    store = FolderStorage(tmp_path)
    with pytest.raises(ValueError, match="different size and rate"):
        write(store, [clip_in(store, "a"), clip_in(store, "b", crop_size=64)])


@pytest.mark.parametrize("kind", ["dataset/latest", "dataset/", "manifest/", ".index.json", ".tar"])
@pytest.mark.parametrize("damage", [b"\xff\xfe", b"", b"null", b"[]", b"{}", None])
def test_a_damaged_file_of_the_dataset_is_named_in_one_line(
    kind: str, damage: bytes | None, tmp_path: Path
) -> None:
    store = FolderStorage(tmp_path)
    write(store, [clip_in(store, "a")])
    keys = [key for key in store.list() if not key.startswith("aligned/") and kind in key]
    key = next(key for key in keys if kind != "dataset/" or "latest" not in key)
    if damage is None:
        store.delete(key)
    else:
        store.write(key, damage)

    def read() -> None:
        dataset = open_dataset(store)
        dataset.frames(dataset.samples[0], [0])

    with pytest.raises(ValueError, match=r"run --until WriteShards|is damaged|is missing") as refused:
        read()
    assert "\n" not in str(refused.value)
    assert any(name in str(refused.value) for name in (key, "no version", "no shards"))


def test_a_shard_without_a_clip_is_what_the_stage_writes_of_the_others(tmp_path: Path) -> None:
    one, two = FolderStorage(tmp_path / "1"), FolderStorage(tmp_path / "2")
    stage = WriteShards(buckets=1)
    stage.follow([{"stage": "x", "settings": {}}])
    (old,) = {c.shard for c in write(one, [clip_in(one, i) for i in IDS], stage)}
    (wanted,) = {c.shard for c in write(two, [clip_in(two, i) for i in IDS if i != "c"], stage)}
    assert without(one, old, {"c"}) == wanted
    stem = wanted.removeprefix("manifest/").removesuffix(".json")
    for key in (wanted, f"shards/{stem}.tar", f"shards/{stem}.index.json"):
        assert one.read(key) == two.read(key)
    assert without(one, wanted, set(IDS)) is None


def test_what_was_taken_down_says_so_to_whoever_still_names_it(tmp_path: Path) -> None:
    store = FolderStorage(tmp_path)
    clips = [clip_in(store, "a")]
    (clip,) = write(store, clips)
    opened = open_dataset(store)
    store.delete(opened.samples[0].tar)
    for key in (clip.shard, f"dataset/{opened.version}.json"):
        store.write(key, b'{"taken_down": "takedown/x.json"}')
    with pytest.raises(ValueError, match=r"a.tar|shards/.* was taken down \(see takedown/x.json\)"):
        opened.frames(opened.samples[0], [0])
    with pytest.raises(ValueError, match=rf"version {opened.version} .* was taken down"):
        open_dataset(store, opened.version)
    with pytest.raises(StorageError, match=r"was taken down .* not written again"):
        write(store, clips)


@pytest.mark.parametrize("row", [[-1, 10], [0, 10**15], [0, -5], ["0", 10], [10**15, 10], [0]])
def test_an_index_that_lies_is_damaged(tmp_path: Path, row: list[object]) -> None:
    store = FolderStorage(tmp_path)
    write(store, [clip_in(store, "a")])
    dataset = open_dataset(store)
    (sample,) = dataset.samples
    store.write(sample.index, json.dumps({"members": [["a", "0000.jpg", *row]]}).encode())
    with pytest.raises(ValueError, match="is damaged"):
        dataset.frames(sample, [0])


def test_a_picture_that_promises_a_gigapixel_is_damaged() -> None:
    import cv2

    data = bytearray(cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].tobytes())
    at = data.index(b"\xff\xc0") + 5
    data[at:at + 4] = b"\xff\xdc" * 2
    for broken in (bytes(data), b"", b"\xff\xd8"):
        with pytest.raises(ValueError, match="not a whole JPEG"):
            decode_jpeg(broken, "a frame")


@pytest.mark.parametrize(
    ("name", "value"),
    [("frame_count", "x"), ("frame_count", 10**12), ("frame_count", 0), ("size", -1), ("clip_id", "../x"),
     ("source", None), ("fps", "25"), ("fps", 0)],
)
def test_a_manifest_that_no_stage_writes_is_damaged(tmp_path: Path, name: str, value: object) -> None:
    store = FolderStorage(tmp_path)
    write(store, [clip_in(store, "a")])
    (key,) = store.list("manifest")
    manifest = json.loads(store.read(key))
    manifest["samples"][0][name] = value
    store.write(key, json.dumps(manifest).encode())
    with pytest.raises(ValueError, match=f"{key} in .* is damaged"):
        open_dataset(store)


def cameras_of_the_first(store: FolderStorage) -> np.ndarray:
    dataset = open_dataset(store)
    return dataset.cameras(dataset.samples[0])


@pytest.mark.parametrize("folder", ["manifest", "dataset", "shards"])
def test_endless_nesting_is_damage(tmp_path: Path, folder: str) -> None:
    store = FolderStorage(tmp_path)
    write(store, [clip_in(store, "a")])
    (key,) = (key for key in store.list(folder) if key.endswith(".json") and key != LATEST)
    store.write(key, b"[" * 100_000)
    with pytest.raises(ValueError, match=f"{key} in .* is damaged"):
        cameras_of_the_first(store)


def test_a_shard_with_other_bytes_is_named(tmp_path: Path) -> None:
    store = FolderStorage(tmp_path)
    write(store, [clip_in(store, "a")])
    dataset = open_dataset(store)
    (sample,) = dataset.samples
    store.write(sample.tar, bytes(byte ^ 1 for byte in store.read(sample.tar)))
    with pytest.raises(ValueError, match=f"{sample.tar} in .* is damaged"):
        dataset.cameras(sample)


def test_a_picture_of_another_size_is_damage(tmp_path: Path) -> None:
    store = FolderStorage(tmp_path)
    write(store, [clip_in(store, "a")])
    dataset = open_dataset(store)
    (sample,) = dataset.samples
    with pytest.raises(ValueError, match=r"a frame 0: .* px; the shard is damaged"):
        dataset.frames(replace(sample, size=SIZE // 2), [0])
