"""Batches: a function of (seed, step) alone, of real shards in a folder and on S3, whatever goes wrong."""

from __future__ import annotations

import functools
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_dataset
import torch
from fault_proxy import FAULTS, FaultProxy

from infra.storage import FolderStorage, Storage, open_storage
from model import camera
from model.config import tiny
from pipelines.loader import AHEAD, Batch, Loader
from pipelines.sampling import Sampler, check_dataset
from pipelines.settings import StorageSettings, TrainSettings
from pipelines.train_job import Job
from stages.dataset import DamagedError, Dataset, Sample, TakenDownError, open_dataset

SIDE, PEOPLE = 64, (5, 1, 2)  # px; clips of each person


@dataclass
class Ramps(Dataset):
    """A dataset in memory whose pixels tell clip, frame and column, so that a batch can be traced back."""

    read: list[str] = field(default_factory=list)

    def read_frames(self, sample: Sample, indices, into, mirrored=False):  # type: ignore[no-untyped-def]
        self.read.append(sample.identity)
        into[..., 0] = int(sample.clip_id)
        into[..., 1] = np.asarray(indices)[:, None, None]
        into[..., 2] = np.arange(SIDE)[::-1] if mirrored else np.arange(SIDE)

    def cameras(self, sample: Sample):  # type: ignore[no-untyped-def]
        return orbits(int(sample.clip_id), sample.frame_count)


@functools.cache
def orbits(clip: int, frames: int) -> np.ndarray:
    return np.stack([camera.orbit(yaw + clip).encode() for yaw in np.linspace(-20, 20, frames)])


@pytest.fixture
def dataset(tmp_path: Path) -> Ramps:
    people = [person for person, clips in enumerate(PEOPLE) for _ in range(clips)]
    shared: dict[str, Any] = dict.fromkeys([f.name for f in fields(Sample)], "")
    shared |= {"split": "train", "fps": 25.0, "size": SIDE}
    samples = [
        Sample(**{**shared, "clip_id": str(i), "identity": f"p{person}", "frame_count": 48 + i})
        for i, person in enumerate(people)
    ]
    return Ramps(FolderStorage(tmp_path), "v", SIDE, 25.0, samples, [])


def traced(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clip [B], frame [B, n] and whether mirrored [B], read from the pixels."""
    pixels = batch.images.int()
    return pixels[:, 0, 0, 0, 0], pixels[:, :, 1, 0, 0], pixels[:, 0, 2, 0, 0] > 0


def equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("images", "times", "cameras"))


@pytest.mark.parametrize("threads", [0, 1, 2])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_together_read_the_batch_of_one_with_any_threads(
    dataset: Ramps, workers: int, threads: int
) -> None:
    six = replace(tiny(), recipe=replace(tiny().recipe, batch=6))
    wanted = [Loader(dataset, six, seed=3, threads=0).real(step) for step in range(5, 9)]
    cameras = [Loader(dataset, six, seed=3, threads=0).cameras(step, 0) for step in range(5, 9)]
    for rank in range(workers):
        with Loader(dataset, six, seed=3, rank=rank, workers=workers, threads=threads) as loader:
            parts = list(loader.ahead(5, 9))
        for part, whole, (drawn, t) in zip(parts, wanted, cameras, strict=True):
            assert equal(
                part, Batch(*(x[rank::workers] for x in (whole.images, whole.times, whole.cameras)))
            )
            assert torch.equal(part.generated[0][0], drawn)
            assert torch.equal(part.generated[0][1], t)


def test_no_more_is_read_ahead_than_some_batches(dataset: Ramps) -> None:
    with Loader(dataset, tiny(), seed=3, threads=2) as loader:
        ahead = loader.ahead(0, 100)
        next(ahead)
    assert len(dataset.read) <= (AHEAD + 1) * tiny().recipe.batch


def test_reading_ahead_gives_the_batches_of_each_step_from_anywhere(dataset: Ramps) -> None:
    loader = Loader(dataset, tiny(), seed=0)
    ahead = list(loader.ahead(3, 8))
    assert len(ahead) == 5
    assert all(equal(batch, loader.real(step)) for step, batch in enumerate(ahead, 3))


def test_seeds_and_steps_differ(dataset: Ramps) -> None:
    loader = Loader(dataset, tiny(), seed=0)
    assert not equal(loader.real(0), loader.real(1))
    assert not equal(loader.real(0), Loader(dataset, tiny(), seed=1).real(0))


def test_times_and_cameras_are_those_of_the_frames_and_mirrored_with_them(dataset: Ramps) -> None:
    loader = Loader(dataset, tiny(), seed=0)
    span = tiny().model.frames_span
    mirrored_share = []
    for step in range(25):
        batch = loader.real(step)
        assert batch.images.shape == (4, 2, 3, SIDE, SIDE)
        clips, frames, mirrored = traced(batch)
        mirrored_share += mirrored.tolist()
        assert torch.allclose(batch.times.diff() * (span - 1), frames.diff().float(), atol=1e-4)
        for b, clip in enumerate(clips.tolist()):
            expected = dataset.cameras(dataset.samples[clip])[frames[b]]
            expected = camera.hflip(expected) if mirrored[b] else expected
            assert np.array_equal(batch.cameras[b].numpy(), expected)
            camera.check_cameras(expected, radius=camera.RADIUS)
    assert 0.4 < np.mean(mirrored_share) < 0.6


def test_cameras_of_generated_frames_are_of_the_global_batch_and_fresh_in_every_phase(dataset: Ramps) -> None:
    ranks = [Loader(dataset, tiny(), seed=5, rank=r, workers=2) for r in range(2)]
    first, second = (loader.cameras(2, 0) for loader in ranks)
    assert first[0].shape == (4, 2, 25)
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[0], ranks[0].cameras(2, 1)[0])


def test_an_unexpected_error_reaches_the_trainer_with_the_clip_named(
    dataset: Ramps, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(sample: Sample, *arguments: object, **more: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(dataset, "read_frames", broken)
    with Loader(dataset, tiny(), seed=0) as loader, pytest.raises(ZeroDivisionError) as error:
        next(loader.ahead(0, 4))
    first = loader.sampler.real(0, 0)
    assert error.value.__notes__ == [f"clip {first.sample.clip_id}, frames {first.frames.tolist()}"]


def test_a_mirrored_picture_shows_a_point_where_the_mirrored_camera_sees_it(
    dataset: Ramps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A point is drawn where each camera sees it; its mirror image is where a mirrored camera sees that."""
    point = np.array([0.2, 0.1, -0.05])

    def drawn(sample: Sample, indices: Any, into: Any, mirrored: bool = False) -> None:
        into[...] = 0
        for frame, encoded in zip(into, dataset.cameras(sample)[np.asarray(indices)], strict=True):
            u, v = (project(encoded, point) * SIDE).astype(int)
            frame[v, u] = 255
        if mirrored:
            into[...] = into[:, :, ::-1].copy()

    monkeypatch.setattr(dataset, "read_frames", drawn)
    loader, mirrored = Loader(dataset, tiny(), seed=0, threads=0), 0
    for step in range(6):
        batch = loader.real(step)
        for video in range(4):
            flip = loader.sampler.real(step, video).flip
            mirrored += flip
            for image, encoded in zip(batch.images[video], batch.cameras[video].numpy(), strict=True):
                seen = project(encoded, point * (-1, 1, 1) if flip else point) * SIDE
                v, u = (int(i) for i in image[0].nonzero()[0])
                assert np.abs(seen - (u + 0.5, v + 0.5)).max() <= 0.6
    assert 0 < mirrored < 24


def project(encoded: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Where a camera [25] sees a point of the world: shares of the width and height from the top left."""
    pose, intrinsics = encoded[:16].reshape(4, 4).astype(float), encoded[16:].reshape(3, 3).astype(float)
    seen = intrinsics @ (pose[:3, :3].T @ (point - pose[:3, 3]))
    return np.asarray(seen[:2] / seen[2])


# --- on real shards ----------------------------------------------------------------------------------------


def shards(store: Storage, clips: int = 6, **settings: Any) -> Dataset:
    """`clips` clips of as many people."""
    made = [tiny_dataset.clip_in(store, f"{chr(97 + i)}1") for i in range(clips)]
    tiny_dataset.write(store, made, **settings)
    return open_dataset(store)


def batches(dataset: Dataset, steps: int = 6, **settings: Any) -> list[Batch]:
    with Loader(dataset, tiny(), **{"seed": 1, "threads": 2, **settings}) as loader:
        return list(loader.ahead(0, steps))


def damage(store: FolderStorage, dataset: Dataset, clip_id: str, name: str) -> None:
    """Zeros in the place of a member."""
    sample = next(s for s in dataset.samples if s.clip_id == clip_id)
    rows = json.loads(store.read(sample.index))["members"]
    at, size = next(row[2:4] for row in rows if row[:2] == [clip_id, name])
    data = bytearray(store.read(sample.tar))
    data[at : at + size] = bytes(size)
    store.write(sample.tar, bytes(data))


def test_frames_are_those_that_were_drawn_mirrored_or_not(store: FolderStorage) -> None:
    with Loader(shards(store), tiny(), seed=1) as loader:
        for step in range(4):
            batch = loader.real(step)
            for video, image in enumerate(batch.images):
                draw = loader.sampler.real(step, video)
                for index, pixels in zip(draw.frames, image, strict=True):
                    seen = tiny_dataset.picture(draw.sample.clip_id, int(index)).transpose(2, 0, 1)
                    seen = seen[..., ::-1] if draw.flip else seen
                    assert np.abs(pixels.numpy().astype(int) - seen).mean() < 3


def test_images_become_numbers_between_minus_one_and_one(store: FolderStorage) -> None:
    (batch,) = batches(shards(store), 1)
    images, _, _ = batch.to("cpu")
    assert images.is_contiguous()
    assert torch.equal(images, batch.images.float() / 127.5 - 1)


def test_a_damaged_frame_is_replaced_by_the_same_other_one_everywhere_and_told(store: FolderStorage) -> None:
    dataset = shards(store)
    whole = batches(dataset)
    for index in range(20):
        damage(store, dataset, "b1", f"{index:04d}.jpg")
    told: list[tuple[str, str]] = []

    def tell(clip: Sample, reason: str) -> None:
        told.append((clip.clip_id, reason))

    settings = {"damaged_limit": 0.2, "damaged": tell}
    found = batches(open_dataset(store), **settings)
    assert [clip for clip, _ in told] == ["b1"]
    assert "not a whole JPEG" in told[0][1]
    sampler = Sampler(check_dataset(dataset, tiny()), tiny(), 1)
    for step, (before, after) in enumerate(zip(whole, found, strict=True)):
        for video in range(4):
            same = sampler.real(step, video).sample.clip_id != "b1"
            assert torch.equal(before.images[video], after.images[video]) == same
    for rank in range(2):
        parts = batches(open_dataset(store), rank=rank, workers=2, threads=rank, **settings)
        for part, after in zip(parts, found, strict=True):
            assert torch.equal(part.images, after.images[rank::2])


def test_a_training_keeps_which_clips_are_damaged_and_why(store: FolderStorage) -> None:
    dataset = shards(store)
    damage(store, dataset, "b1", "cameras.npy")
    job = Job(StorageSettings(root=store.root), TrainSettings(variant="model.config:tiny"), dataset.version)
    batches(open_dataset(store), damaged_limit=0.2, damaged=job.tell_damaged)
    told = json.loads(store.read(f"{job.run}/damaged/b1.json"))
    tar = next(sample.tar for sample in dataset.samples if sample.clip_id == "b1")
    assert (told["clip"], told["shard"]) == ("b1", tar)
    assert "is damaged" in told["reason"]


@pytest.mark.parametrize("kind", ["frame", "cameras", "tar", "index"])
def test_more_damage_than_allowed_ends_in_one_line(store: FolderStorage, kind: str) -> None:
    dataset = shards(store, buckets=1)
    sample = dataset.samples[0]
    if kind == "frame":
        for index in range(20):
            damage(store, dataset, sample.clip_id, f"{index:04d}.jpg")
    elif kind == "cameras":
        damage(store, dataset, sample.clip_id, "cameras.npy")
    else:
        store.delete(getattr(sample, kind))
    with pytest.raises(ValueError, match=r"of 6 clips are damaged, .* 0.1 that train.damaged_limit") as error:
        batches(open_dataset(store), 20)
    assert "\n" not in str(error.value)


def test_cameras_that_are_no_numbers_are_damage(store: FolderStorage) -> None:
    clip = tiny_dataset.clip_in(store, "a1")
    cameras = clip.need("cameras").copy()
    cameras[3, 7] = np.nan
    tiny_dataset.write(store, [clip.copy(cameras=cameras)])
    dataset = open_dataset(store)
    with pytest.raises(DamagedError, match=r"a1.cameras.npy of shards/.* is damaged: not 20 x 25 finite"):
        dataset.cameras(dataset.samples[0])


def test_a_takedown_ends_the_training(store: FolderStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.loader.CHECK_S", -1.0)
    dataset = shards(store)
    with Loader(dataset, tiny(), seed=1) as loader:
        ahead = loader.ahead(0, 100)
        next(ahead)
        store.write(f"dataset/{dataset.version}.json", b'{"taken_down": "takedown/x.json"}')
        with pytest.raises(TakenDownError, match=r"was taken down \(see takedown/x.json\)"):
            list(ahead)


def test_shards_of_another_schema_are_refused(store: FolderStorage) -> None:
    key = f"dataset/{shards(store).version}.json"
    store.write(key, store.read(key).replace(b'"schema":1', b'"schema":7'))
    with pytest.raises(ValueError, match=f"{key} in .* is of schema 7, this pv3d reads 1"):
        open_dataset(store)


def test_nothing_is_left_behind(store: FolderStorage) -> None:
    dataset = shards(store)

    def left() -> set[str]:
        files = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]  # noqa: PTH208
        return {t.name for t in threading.enumerate()} | {
            f"{file} {Path(file).readlink()}" for file in files if os.path.lexists(file)
        }

    before = left()
    loader = Loader(dataset, tiny(), seed=1)
    next(loader.ahead(0, 100))
    assert left() - before
    loader.close()
    assert not left() - before


# --- from S3 -----------------------------------------------------------------------------------------------


@pytest.fixture
def remote(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FaultProxy, Any]]:
    """Shards on a server behind a proxy: the proxy, and a function that opens the dataset."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    root = f"s3://pv3d-test/{tmp_path.name}"
    shards(open_storage(root, endpoint=s3.endpoint))
    with FaultProxy(s3.endpoint) as proxy:
        yield proxy, lambda gb=0.0: open_dataset(open_storage(root, endpoint=proxy.endpoint, cache_gb=gb))


def test_s3_gives_the_same_batches_through_every_fault(
    remote: tuple[FaultProxy, Any], store: FolderStorage
) -> None:
    proxy, opened = remote
    dataset = opened()
    proxy.script.extend(fault for pair in zip(FAULTS, [""] * len(FAULTS), strict=True) for fault in pair)
    found = batches(dataset, 10)
    assert all(proxy.faults[fault] for fault in FAULTS)
    assert all(equal(a, b) for a, b in zip(found, batches(shards(store), 10), strict=True))


def test_one_request_brings_all_frames_of_a_video(remote: tuple[FaultProxy, Any]) -> None:
    proxy, opened = remote
    dataset = opened()
    first = dataset.samples[0]
    for _ in range(2):
        before = proxy.requests
        dataset.frames(first, [0, 19, 7])
    assert proxy.requests == before + 1


def test_whole_shards_are_copied_once_and_nothing_is_asked_for_then(
    remote: tuple[FaultProxy, Any], store: FolderStorage
) -> None:
    proxy, opened = remote
    wanted = batches(shards(store), 4)
    for there in (False, True):
        dataset = opened(1.0)
        before = proxy.requests
        with Loader(dataset, tiny(), seed=1, threads=2) as loader:
            loader.copies.start(100)
            loader.copies.wait()
            assert (proxy.requests == before) == there
            before = proxy.requests
            found = list(loader.ahead(0, 4))
            assert proxy.requests == before + len(dataset.shards)  # their indices
        assert all(equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_shard_that_is_not_what_its_manifest_says_is_told_and_read_by_range(
    remote: tuple[FaultProxy, Any], store: FolderStorage
) -> None:
    _, opened = remote
    dataset = opened(1.0)
    wrong, right = sorted(dataset.shards)
    dataset.shards[wrong] = replace(dataset.shards[wrong], sha256="0" * 64)
    with Loader(dataset, tiny(), seed=1) as loader:
        loader.copies.start(100)
        loader.copies.wait()
        assert list(loader.copies.damaged) == [wrong]
        assert [dataset.members.has_copy(tar) for tar in (wrong, right)] == [False, True]
        found = list(loader.ahead(0, 4))
    assert all(equal(a, b) for a, b in zip(found, batches(shards(store), 4), strict=True))


def test_workers_of_a_machine_fetch_a_shard_once(remote: tuple[FaultProxy, Any]) -> None:
    proxy, opened = remote
    datasets = [opened(1.0) for _ in range(2)]
    before = proxy.requests
    loaders = [Loader(data, tiny(), seed=1, rank=i, workers=2) for i, data in enumerate(datasets)]
    for loader in loaders:
        loader.copies.start(100)
    for loader in loaders:
        loader.copies.wait()
        assert all(loader.dataset.members.has_copy(tar) for tar in loader.dataset.shards)
    assert proxy.requests == before + len(datasets[0].shards)
    for loader in loaders:
        loader.close()
