"""What metrics are computed on, made one at a time: views and videos of a model, videos of held-out people.

Every sample is a function of the settings and its number alone, and one thread computes it, so that figures
do not depend on workers, batches or order. What was made stays in a temporary folder of its worker; generated
and real videos are written as H.264 and read back, as the paper's were, unless `evaluate.h264` is off.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import json
import logging
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from stages.metrics import Mode, MultiView, Video

if TYPE_CHECKING:
    from pipelines.models import OpenModel
    from pipelines.settings import EvaluateSettings
    from stages.dataset import Dataset, Sample

log = logging.getLogger(__name__)

T = TypeVar("T")
Kind = Literal["views/paper", "views/official", "videos", "real"]
"""What is made. The definitions of the figures differ in the views' times, and share the videos."""

YAW_DEG = 30.0
SEED_STRIDE = 1_000_000
"""Videos of evaluation seed s are the seeds from s times this on, so that two evaluations share no video."""
FPS = 25.0
CRF = 25
"""x264's rate factor that the authors' writer takes when it is told nothing."""
WINDOW = 2
"""Samples that a worker is asked for at once."""
CLOSE_SECONDS = 60.0
TRIM_EVERY = 8
"""Samples after which a process gives free memory back."""


@dataclass
class Studio:
    """Makes samples of a model and a dataset in this process."""

    opened: OpenModel
    settings: EvaluateSettings
    folder: Path
    dataset: Dataset | None = None

    @functools.cached_property
    def held_out(self) -> tuple[list[Sample], Counter[str]]:
        """Clips of people that are not trained on, at most `settings.videos`; others by why they are not."""
        return held_out(self.dataset, self.settings.frames, self.settings.videos)

    @functools.cached_property
    def tracks(self) -> list[Sample]:
        """Clips whose cameras generated videos take: those to train on. Raises ValueError for none."""
        from pipelines.sampling import eligible

        found = eligible(self.dataset, self.settings.frames)[0] if self.dataset else []
        if not found:
            raise ValueError(
                f"evaluate.frames: no training clip has {self.settings.frames} frames whose cameras a "
                "generated video could take; lower it, or cut longer clips"
            )
        return found

    def get(self, kind: Kind, number: int) -> MultiView | Video:
        """A sample; made when it is wanted first."""
        if kind == "views/paper" or kind == "views/official":
            return self._view(number, "paper" if kind == "views/paper" else "official")
        name = self.folder / f"{kind}-{number:06d}"
        make = self._real if kind == "real" else self._generated
        read = self._through_h264 if self.settings.h264 else self._as_is
        return read(name, make, number)

    def _view(self, number: int, mode: Mode) -> MultiView:
        file = self.folder / f"{mode}-{number:06d}.npz"
        if not file.exists():
            with one_thread():
                view = multi_view(self.opened, self.settings.seed, number, mode)
            np.savez(file, allow_pickle=False, **{f.name: getattr(view, f.name) for f in fields(MultiView)})
        with np.load(file, allow_pickle=False) as arrays:
            return MultiView(**{f.name: arrays[f.name] for f in fields(MultiView)})

    def _through_h264(self, name: Path, make: Callable[[int], Video], number: int) -> Video:
        from stages.video import read_all, write_video

        file = name.with_suffix(".mp4")
        if not file.exists():
            write_video(file, make(number), FPS, CRF)
        return np.stack([frame for _, frame in read_all(file)])

    def _as_is(self, name: Path, make: Callable[[int], Video], number: int) -> Video:
        file = name.with_suffix(".npy")
        if not file.exists():
            buffer = io.BytesIO()            # numpy's own error of a full disk does not say so
            np.save(buffer, make(number), allow_pickle=False)
            file.write_bytes(buffer.getbuffer())
        found: Video = np.load(file, allow_pickle=False)
        return found

    def _real(self, number: int) -> Video:
        """A window of a clip, from a frame on that its id and the seed decide."""
        sample = self.held_out[0][number]
        assert self.dataset is not None, "only a dataset has held-out clips"
        first = _start(sample, self.settings)
        return self.dataset.frames(sample, range(first, first + self.settings.frames))

    def _generated(self, number: int) -> Video:
        """A video with the cameras of a training clip's window; the mapping network sees the first one."""
        random = np.random.default_rng([self.settings.seed, number, 1])
        sample = self.tracks[int(random.integers(len(self.tracks)))]
        first = int(random.integers(sample.frame_count - self.settings.frames + 1))
        assert self.dataset is not None, "only a dataset has clips"
        cameras = self.dataset.cameras(sample)[first : first + self.settings.frames]
        times = self.opened.clips.window_times(self.opened.generator.config, self.settings.frames)
        how = self.opened.generator.config.camera_conditioning
        with one_thread():
            parts = self.opened.clips.render_clip(
                self.opened.generator, self.settings.seed * SEED_STRIDE + number, cameras, times,
                mapping_camera=None if how == "non" else cameras[0],
            )  # fmt: skip
            return np.concatenate([self.opened.clips.to_uint8(part.image[0]) for part in parts])


def held_out(dataset: Dataset | None, frames: int, most: int) -> tuple[list[Sample], Counter[str]]:
    """(clips of another split than "train" that are long enough, by id; how many are left out and why).

    Of more than `most`, those whose hashed ids come first: a choice that more clips change little.
    """
    why: Counter[str] = Counter()
    found = []
    for sample in dataset.samples if dataset else ():
        if sample.split == "train":
            why["to train on"] += 1
        elif sample.frame_count < frames:
            why[f"shorter than {frames} frames"] += 1
        else:
            found.append(sample)
    chosen = sorted(found, key=lambda s: hashlib.sha256(s.clip_id.encode()).digest())[:most]
    return sorted(chosen, key=lambda s: s.clip_id), why


def real_key(dataset: Dataset | None, settings: EvaluateSettings) -> str:
    """Which real videos: the version of the dataset, and a hash of how they are cut and written; "" without a
    dataset."""
    if dataset is None:
        return ""
    parts = [settings.frames, settings.videos, settings.seed, settings.h264, code()]
    return f"{dataset.version}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}"


@functools.cache
def code() -> str:
    """A hash of the files that cut, write and read samples: other code may make others."""
    from stages import video

    files = [Path(__file__), Path(str(video.__file__))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _start(sample: Sample, settings: EvaluateSettings) -> int:
    """The first frame of a clip's window: a function of its id and the seed, so that other clips do not move
    it."""
    word = int.from_bytes(hashlib.sha256(sample.clip_id.encode()).digest()[:4], "big")
    random = np.random.default_rng([settings.seed, word])
    return int(random.integers(sample.frame_count - settings.frames + 1))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sums over several threads may round differently, so a sample is computed by one; workers are many."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measured(function: Callable[[Any], T], sample: Any) -> T:
    """What a metric makes of a sample, on one thread. The heap is trimmed now and then: holes that the
    results of a network leave in it grew the peak by a tenth from 50 to 200 videos. After every video that
    would cost 7 %."""
    from infra.allocator import give_back

    with one_thread():
        answer = function(sample)
    if next(_measured) % TRIM_EVERY == 0:
        give_back()
    return answer


_measured = itertools.count(1)


@dataclass(frozen=True)
class Here:
    """Samples that this process makes (`stages.metrics.Samples`)."""

    studio: Studio
    kind: Kind
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return self.map(lambda sample: sample)

    def map(self, function: Callable[[Any], T]) -> Iterator[T]:
        def run(number: int) -> T:
            return measured(function, self.studio.get(self.kind, number))

        return watched(map(run, range(self.count)), self.count)


class Crew:
    """Studios in workers of a Ray, number i's in worker i mod W. `open_model` and `open_store` run there."""

    def __init__(
        self, workers: int, open_model: Callable[[], OpenModel], settings: EvaluateSettings,
        open_dataset: Callable[[], Dataset | None],
    ) -> None:  # fmt: skip
        import ray
        from ray import cloudpickle

        from infra import cluster

        cluster.start()
        have = cluster.total()
        count = max(1, min(workers, int(have.get("CPU", 1))))
        if count < workers:
            log.warning("evaluate.workers: %d, but there are %d cores; taking %d", workers, count, count)
        share = min(1.0, have.get("GPU", 0) / count)
        remote: Any = ray.remote(**cluster.options(1, share, {}))(_Worker)
        opening = cloudpickle.dumps((open_model, settings, open_dataset))
        self._workers = [remote.remote(tuple(sys.path), opening) for _ in range(count)]

    def map(self, kind: Kind, count: int, function: Callable[[Any], T]) -> Iterator[T]:
        """In the order of numbers, whoever is done first; some more are under way than the next."""
        import ray
        from ray import cloudpickle

        call = cloudpickle.dumps(function)
        under_way: deque[Any] = deque()
        try:
            for number in range(count):
                worker = self._workers[number % len(self._workers)]
                under_way.append(worker.apply.remote(kind, number, call))
                if len(under_way) > WINDOW * len(self._workers):
                    yield _answer(ray, under_way.popleft())
            while under_way:
                yield _answer(ray, under_way.popleft())
        finally:
            for reference in under_way:      # of an evaluation that stops here
                ray.cancel(reference)

    def close(self) -> None:
        """End the workers, whose folders go first."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            ray.get([worker.close.remote() for worker in self._workers], timeout=CLOSE_SECONDS)
        for worker in self._workers:
            ray.kill(worker)


def _answer(ray: Any, reference: Any) -> Any:
    """What a worker says; a ValueError of its own as it would be raised here."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError):
            raise error.cause from None
        raise


class _Worker:
    """An actor of Ray. It opens nothing before it is asked, so that what is wrong is its answer."""

    def __init__(self, sys_path: Sequence[str], opening: bytes) -> None:
        import tempfile

        from infra.allocator import one_heap

        one_heap()
        sys.path += [folder for folder in sys_path if folder not in sys.path]    # metrics of one's own
        self._opening = opening
        self._folder = tempfile.TemporaryDirectory(prefix="pv3d-evaluate-")

    @functools.cached_property
    def _studio(self) -> Studio:
        from ray import cloudpickle

        open_model, settings, open_dataset = cloudpickle.loads(self._opening)
        return Studio(open_model(), settings, Path(self._folder.name), open_dataset())

    def close(self) -> None:
        self._folder.cleanup()

    def apply(self, kind: Kind, number: int, function: bytes) -> Any:
        from ray import cloudpickle

        call = cloudpickle.loads(function)
        return measured(call, self._studio.get(kind, number))


@dataclass(frozen=True)
class There:
    """Samples that workers make (`stages.metrics.Samples`)."""

    crew: Crew
    kind: Kind
    count: int

    def __len__(self) -> int:
        return self.count

    def map(self, function: Callable[[Any], T]) -> Iterator[T]:
        return watched(self.crew.map(self.kind, self.count, function), self.count)


def watched(answers: Iterable[T], count: int, what: str = "evaluate") -> Iterator[T]:
    """The same, with a bar."""
    from pipelines.progress import Progress

    with Progress([what]) as bars:
        bars.expect(what, count)
        for answer in answers:
            yield answer
            bars.done(what)
            bars.tick()


def multi_view(opened: OpenModel, seed: int, number: int, mode: Mode = "paper") -> MultiView:
    """Sample `number` of an evaluation: a function of (seed, number) alone.

    Two times of the training grid (distinct as the paper says; with replacement in `official`), seen by the
    frontal camera and by the one at 30 degrees; the mapping network sees the frontal one in all four views.
    """
    import torch

    span = opened.generator.config.frames_span
    random = np.random.default_rng([seed, number])
    t0, t1 = random.choice(span, size=2, replace=mode == "official") / (span - 1)
    front, side = opened.cameras.canonical_camera().encode(), opened.cameras.orbit(YAW_DEG).encode()
    cameras = np.stack([front, side, side, front])
    times = np.array([t0, t1, t0, t1], np.float32)
    # Ablations of Table 2c: `non` has each frame's own camera everywhere, and views of `all` are clips of one
    # frame, since frames of a clip share their camera there.
    how = opened.generator.config.camera_conditioning
    clips = [[view] for view in range(4)] if how == "all" else [[0, 1, 2, 3]]
    parts = [
        part
        for clip in clips
        for part in opened.clips.render_clip(
            opened.generator, seed * SEED_STRIDE + number, cameras[clip], times[clip],
            mapping_camera=None if how == "non" else front, return_xyz=True,
        )
    ]  # fmt: skip

    def whole(name: str) -> Any:
        return torch.cat([getattr(part, name)[0] for part in parts]).float().cpu()

    arrays: dict[str, NDArray[np.float32]] = {
        "depth": whole("depth")[:, 0].numpy(),
        "opacity": whole("weight_total")[:, 0].numpy(),
        "points": whole("xyz").numpy(),
    }
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise ValueError(
            f"{opened.name}: video {number} has a {broken[0]} that is not finite; the checkpoint has diverged"
        )
    return MultiView(images=opened.clips.to_uint8(whole("image")), cameras=cameras, times=times, **arrays)
