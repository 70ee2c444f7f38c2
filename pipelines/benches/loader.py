"""`pv3d bench loader`: pairs of frames that the loader brings in a second, by bare decoding of the same ones.

Clips of 512 x 512, a public-domain portrait that drifts under a sensor's noise, are written by the project's
own stage and read as a training of `voxceleb_512` reads them. Bare decoding takes the same JPEG files from
memory, by the same decoder on as many threads. The two take turns; the median of the rounds counts.

`disk_over_bare_decode`      from shards in a folder
`s3_over_bare_decode`        with --store s3://bucket/prefix (and --endpoint): with the default cache, once
                             the shards are on this machine; `s3_copy_s` is the time until then
`s3_range_over_bare_decode`  without a cache: every frame by range
`pairs_per_second`           of bare decoding
"""

from __future__ import annotations

import contextlib
import functools
import io
import statistics
import tarfile
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from infra.allocator import tune_allocator
from infra.storage import FolderStorage, Storage, open_storage
from model.camera import orbit
from model.config import Variant, voxceleb_512
from pipelines.loader import Loader
from stages.clip import Clip
from stages.dataset import Dataset, open_dataset
from stages.shards import WriteShards
from stages.sources.portraits import SCENES, Portrait, load
from stages.sources.relief import Expression, View

SIDE, FPS = 512, 25.0
FRAMES = 20                                  # of a clip
STEPS = 24                                   # updates of a round
CACHE_GB = 10.0                              # as storage.s3.cache_gb
JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]


def run(
    clips: int = 16,
    rounds: int = 9,
    threads: int = 2,
    store: str = "",
    endpoint: str = "",
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The figures of the module's text."""
    variant = voxceleb_512()
    if clips < variant.recipe.batch or rounds < 1 or threads < 1:
        least = f"--clips {variant.recipe.batch}, --rounds 1, --threads 1"
        raise ValueError(f"bench loader: too little to measure; give at least {least}")
    tune_allocator()                         # as a training does
    with tempfile.TemporaryDirectory(prefix="pv3d-bench-") as folder:
        here = FolderStorage(Path(folder, "store"))
        make_dataset(here, clips)
        progress(f"{clips} clips of {FRAMES} frames written")
        measure = functools.partial(compare, variant, threads, rounds)
        ratios = {"disk": measure(open_dataset(here))}
        figures = {"disk_over_bare_decode": ratios["disk"][0]}
        progress(f"disk: {ratios['disk'][0]:.3f}")
        if store:
            with _elsewhere(here, store, endpoint or None, Path(folder)) as there:
                figures["s3_range_over_bare_decode"] = measure(open_dataset(there(0.0)))[0]
                progress(f"S3 by range: {figures['s3_range_over_bare_decode']:.3f}")
                kept = there(CACHE_GB)
                ratio, figures["s3_copy_s"] = measure(open_dataset(kept), copied=True)[::2]
                figures["s3_over_bare_decode"] = ratio
        figures["pairs_per_second"] = ratios["disk"][1]
    return {"figures": figures}


def compare(
    variant: Variant, threads: int, rounds: int, dataset: Dataset, copied: bool = False
) -> tuple[float, float, float]:
    """Rate of the loader by that of decoding alone, pairs per second of the latter, and seconds until the
    copies of the shards were there, if these are waited for."""
    ratios, rates = [], []
    with Loader(dataset, variant, seed=0, threads=threads) as loader, ThreadPoolExecutor(threads) as pool:
        begun = time.perf_counter()
        if copied:
            loader.copies.start(10**9)
            loader.copies.wait()
        copy_s = time.perf_counter() - begun
        for number in range(rounds + 1):     # the first one warms up
            steps = range(number * STEPS, (number + 1) * STEPS)
            pairs = jpegs(loader, steps)
            seconds = {}
            for what in ("loader", "bare") if number % 2 else ("bare", "loader"):
                begun = time.perf_counter()
                if what == "loader":
                    deque(loader.ahead(steps.start, steps.stop), maxlen=0)
                else:
                    deque(pool.map(decode, pairs), maxlen=0)
                seconds[what] = time.perf_counter() - begun
            if number:
                ratios.append(seconds["bare"] / seconds["loader"])
                rates.append(len(pairs) / seconds["bare"])
    return statistics.median(ratios), statistics.median(rates), copy_s


def jpegs(loader: Loader, steps: range) -> list[list[bytes]]:
    """The files that the loader decodes for each video of these updates."""
    found = []
    for step in steps:
        for video in loader.videos:
            draw = loader.sampler.real(step, video)
            names = [f"{index:04d}.jpg" for index in sorted(set(draw.frames.tolist()))]
            sample = draw.sample
            found.append(loader.dataset.members.read(sample.tar, sample.index, sample.clip_id, names))
    return found


def decode(files: list[bytes]) -> list[Any]:
    return [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) for data in files]


# --- clips -------------------------------------------------------------------------------------------------


def make_dataset(store: Storage, clips: int, *, side: int = SIDE, frames: int = FRAMES) -> None:
    """A committed dataset of two people, each in half of the clips: `frames` of `side` px each."""
    stage = WriteShards(buckets=4)
    stage.setup(store)
    groups: dict[str, list[Clip]] = {}
    for clip in (_clip(store, number, side, frames) for number in range(clips)):
        groups.setdefault(stage.group(clip), []).append(clip)
    written = [out for name, some in groups.items() for out in stage.process_group(name, some)]
    stage.finish(store, (clip for clip in written if isinstance(clip, Clip)))


def _clip(store: Storage, number: int, side: int, frames: int) -> Clip:
    scenes = {scene.portrait.identity: scene for scene in SCENES.values()}
    portrait = scenes[sorted(scenes)[number % len(scenes)]].portrait
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for index, frame in enumerate(film(portrait, number, side, frames)):
            done, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), JPEG)
            assert done, "a picture in memory can be encoded"
            info = tarfile.TarInfo(f"{index:04d}.jpg")
            info.size = data.size
            tar.addfile(info, io.BytesIO(data.tobytes()))
    name = f"clip-{number:03d}"
    store.write(f"aligned/{name}.tar", buffer.getvalue())
    return Clip(
        id=name, source=name, video=name, dataset="bench", licence=portrait.licence, fps=FPS,
        identity=portrait.identity, frame_times_s=np.arange(frames) / FPS, crop_size=side,
        aligned=f"aligned/{name}.tar", crop_transforms=np.tile(np.eye(3)[:2], (frames, 1, 1)),
        face_boxes=np.zeros((frames, 4), np.float32), landmarks=np.zeros((frames, 68, 2), np.float32),
        cameras=np.stack([orbit(number + index / 4).encode() for index in range(frames)]),
    )  # fmt: skip


def film(
    portrait: Portrait, seed: int, side: int = SIDE, frames: int = FRAMES
) -> Iterator[NDArray[np.uint8]]:
    """Frames uint8 [H, H, 3] of a turned head that drifts by parts of a pixel, under a sensor's noise."""
    random = np.random.default_rng(seed)
    view = View(random.uniform(-25, 25), random.uniform(-10, 10), 0.0, 2.3, (side / 2, 0.45 * side))
    still = _relief(portrait).frame(view, Expression(), side, side)
    noise = random.normal(0, 2, (side + frames, side, 3)).astype(np.float32)
    for index in range(frames):
        x, y = random.normal(0, 0.3, 2)
        place = np.array([[1.0, 0.0, x + 0.4 * index], [0.0, 1.0, y + 0.2 * index]])
        frame = cv2.warpAffine(
            still, place, (side, side), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
        )
        yield np.clip(frame + noise[index : index + side], 0, 255).astype(np.uint8)


_relief = functools.lru_cache(load)


@contextlib.contextmanager
def _elsewhere(
    here: Storage, root: str, endpoint: str | None, folder: Path
) -> Iterator[Callable[[float], Storage]]:
    """The same dataset below `root`, as stores by their cache in GB; gone afterwards, with the copies."""
    root = f"{root.rstrip('/')}/bench-loader-{folder.name}"

    def there(cache_gb: float) -> Storage:
        return open_storage(root, endpoint=endpoint, cache_gb=cache_gb)

    keys = [key for key in here.list() if not key.startswith("aligned/")]
    store, usual = there(0.0), tempfile.tempdir
    try:
        for key in keys:
            with here.local(key) as path:
                store.upload(key, path)
        tempfile.tempdir = str(folder)       # where copies go
        yield there
    finally:
        tempfile.tempdir = usual
        store.delete_all(keys)
