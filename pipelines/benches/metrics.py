"""`pv3d bench metrics`: what FVD adds to its feature network, and whether its memory grows with the videos.

No weights are needed: the network has I3D's layers (Carreira and Zisserman 2017) and random numbers in them,
so distances mean nothing here and none is told. Videos are mp4 files of moving noise.

`over_feature_network`  videos per second of the metric's pass (file, decoder, 224 px, network, sums) over
                        those of the network alone on one video in memory; median of the rounds, which take
                        turns
`videos_per_s`, `network_videos_per_s`     of the best round
`finish_s`              distance and jackknife after the pass, once per evaluation
`peak_growth_pct`       growth of the peak resident memory of a whole FVD from `few` to `many` videos, in
                        processes of their own, with a network of an eighth of the width: it hides less;
                        of the medians of the rounds, since equal runs differ by some percent
`peak_gb`               of that with `many`
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from stages.metrics import Video

T = TypeVar("T")
FRAMES, FEATURES = 16, 400
NARROW = 0.125
DIFFERENT = 10
"""Videos on disk; more are these again."""


def run(
    videos: int = 8, rounds: int = 3, few: int = 50, many: int = 200, size: int = 512,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """The figures of the module's text, of videos of `size` px; `videos` of them in a round."""
    if min(videos, rounds) < 1 or few < 2 or many <= few or size < 32 or size % 2:
        raise ValueError(
            "bench metrics: give --videos and --rounds from 1 on, --few from 2, --many above it, --size even"
        )
    with tempfile.TemporaryDirectory(prefix="pv3d-bench-metrics-") as folder:
        place = Path(folder)
        for number in range(DIFFERENT):
            write(place / f"{number}.mp4", number, size)
        _child("make", place, 0, 0)
        found = _child("rate", place, videos, rounds)
        progress(f"rate: {found}")
        found_peaks: dict[int, list[float]] = {few: [], many: []}
        for _ in range(rounds):
            for count, seen in found_peaks.items():
                seen.append(_child("peak", place, count, 1)["peak_gb"])
                progress(f"{count} videos: {seen[-1]:.3f} GB")
        peaks = {count: statistics.median(seen) for count, seen in found_peaks.items()}
    growth = {"peak_growth_pct": 100 * (peaks[many] / peaks[few] - 1), "peak_gb": peaks[many]}
    return {"figures": {**found, **growth}}


def write(path: Path, seed: int, size: int) -> None:
    """A video of coarse noise that moves."""
    from stages.video import write_video

    cells = size // 16 + 1
    coarse = np.random.default_rng(seed).integers(0, 256, (cells, cells, 3)).astype(np.uint8)
    picture = coarse.repeat(16, axis=0).repeat(16, axis=1)
    write_video(path, (np.roll(picture, 3 * t, axis=1)[:size, :size] for t in range(FRAMES)), 25.0, 25)


@dataclass(frozen=True)
class Files:
    """Videos in files (`stages.metrics.Samples`), the same ones again when they are more."""

    folder: Path
    count: int

    def __len__(self) -> int:
        return self.count

    def map(self, function: Callable[[Video], T]) -> Iterator[T]:
        from pipelines.evaluate_samples import measured
        from stages.video import read_all

        for number in range(self.count):
            file = self.folder / f"{number % DIFFERENT}.mp4"
            yield measured(function, np.stack([frame for _, frame in read_all(file)]))


def _child(what: str, folder: Path, count: int, rounds: int) -> dict[str, float]:
    task = json.dumps({"what": what, "folder": str(folder), "count": count, "rounds": rounds})
    code = "from pipelines.benches.metrics import main; main()"
    done = subprocess.run([sys.executable, "-c", code, task], check=True, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Entry of a child."""
    import torch

    from infra.allocator import one_heap

    one_heap()                               # as an evaluation does
    task = json.loads(sys.argv[1])
    torch.manual_seed(0)
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)             # as a worker of an evaluation has
    measure = {"make": _make, "rate": _rate, "peak": _peak}[task["what"]]
    sys.stdout.write(json.dumps(measure(Path(task["folder"]), task["count"], task["rounds"])))


def _make(folder: Path, count: int, rounds: int) -> dict[str, float]:
    """Write the networks: tracing one takes more memory than running it."""
    for width in (1.0, NARROW):
        _network(folder, width)
    return {}


def _rate(folder: Path, count: int, rounds: int) -> dict[str, float]:
    import functools

    import torch

    from stages.metrics.frechet import distance_to, frechet_distance, jackknife, whole
    from stages.metrics.fvd import RESOLUTION, video_features
    from stages.metrics.reference import collect
    from stages.metrics.statistics import Moments

    network = _network(folder, 1.0)
    bare = torch.jit.load(str(network.path)).eval()  # type: ignore[no-untyped-call]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    one = torch.rand(1, 3, FRAMES, RESOLUTION, RESOLUTION, device=device) * 2 - 1
    bare = bare.to(device)
    function = functools.partial(video_features, network=network, frames=FRAMES, size=0)

    def alone() -> None:
        with torch.inference_mode():
            for _ in range(count):
                bare(one).cpu()

    groups: list[Moments] = []

    def metric() -> None:
        groups[:] = collect(Files(folder, count), function).groups

    for once in (alone, metric):             # what is built on the first call does not count
        once()
    seconds = [(_timed(alone), _timed(metric)) for _ in range(rounds)]
    real = np.zeros(FEATURES), np.eye(FEATURES)
    begun = time.perf_counter()
    made = whole(groups)
    value = frechet_distance(*real, made.mean, made.covariance) if made.count > 1 else 0.0
    jackknife(value, groups, distance_to(*real))
    return {
        "over_feature_network": statistics.median(bare_s / metric_s for bare_s, metric_s in seconds),
        "videos_per_s": count / min(metric_s for _, metric_s in seconds),
        "network_videos_per_s": count / min(bare_s for bare_s, _ in seconds),
        "finish_s": time.perf_counter() - begun,
    }


def _timed(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _peak(folder: Path, count: int, rounds: int) -> dict[str, float]:
    """Of a whole FVD against kept statistics."""
    from pipelines.bench import peak_gb
    from stages.metrics import Evaluation, fvd
    from stages.metrics.statistics import Statistics

    network = _network(folder, NARROW)
    real = folder / "real.npz"
    identity = Statistics(np.zeros(FEATURES), np.eye(FEATURES), 5000, network.sha256)
    real.write_bytes(identity.to_bytes())
    (value,) = fvd.compute(
        Evaluation(videos=Files(folder, count), networks={"i3d": str(network.path)}, statistics=real)
    ).values()
    assert value.samples == count, "every video counts"
    return {"peak_gb": peak_gb()}


def _network(folder: Path, width: float) -> Any:
    """A file of I3D's layers with random weights, as a user would name one."""
    import torch

    from stages.metrics.fvd import I3D, RESOLUTION
    from stages.metrics.networks import find_network

    path = folder / f"random_{width:g}.pt"
    if not path.exists():
        example = torch.zeros(1, 3, FRAMES, RESOLUTION, RESOLUTION)
        with torch.inference_mode():
            traced = torch.jit.trace(i3d(width).eval(), example)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, str(path))
    return find_network(I3D, {I3D: str(path)}, None)


INCEPTIONS: tuple[tuple[int, ...] | str, ...] = (
    (64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), "pool",
    (192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128), "pool small",
    (256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128),
)  # fmt: skip
"""Widths of an inception's branches: 1x1x1; 1x1x1 then 3x3x3; the same, smaller; a pool then 1x1x1."""


def i3d(width: float) -> Any:
    """I3D's layers, random: [B, 3, T, 224, 224] -> [B, 400]. `width` scales every layer's channels."""
    import torch
    from torch import nn

    def unit(inside: int, outside: int, kernel: int, stride: int = 1) -> Any:
        return nn.Sequential(
            nn.Conv3d(inside, outside, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm3d(outside),
            nn.ReLU(),
        )

    class Inception(nn.Module):
        def __init__(self, inside: int, a: int, b0: int, b1: int, c0: int, c1: int, d: int) -> None:
            super().__init__()
            self.branches = nn.ModuleList([
                unit(inside, a, 1),
                nn.Sequential(unit(inside, b0, 1), unit(b0, b1, 3)),
                nn.Sequential(unit(inside, c0, 1), unit(c0, c1, 3)),
                nn.Sequential(nn.MaxPool3d(3, 1, 1), unit(inside, d, 1)),
            ])

        def forward(self, x: Any) -> Any:
            return torch.cat([branch(x) for branch in self.branches], dim=1)

    def scaled(channels: int) -> int:
        return max(1, round(channels * width))

    def space() -> Any:
        return nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))

    first, third = scaled(64), scaled(192)
    layers = [unit(3, first, 7, 2), space(), unit(first, first, 1), unit(first, third, 3), space()]
    channels = third
    for widths in INCEPTIONS:
        if isinstance(widths, str):
            layers.append(nn.MaxPool3d(2, 2) if "small" in widths else nn.MaxPool3d(3, 2, 1))
        else:
            a, b0, b1, c0, c1, d = map(scaled, widths)
            layers.append(Inception(channels, a, b0, b1, c0, c1, d))
            channels = a + b1 + c1 + d
    layers += [nn.AvgPool3d((2, 7, 7), 1), nn.Conv3d(channels, FEATURES, 1), nn.Flatten(2)]

    class Mean(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.mean(dim=2)

    return nn.Sequential(*layers, Mean())
