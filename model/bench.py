"""`pv3d bench model`: how fast the networks are and what they keep.

Every phase is timed in processes of its own that take turns: ours with the allocator that the product sets
up, the reference formulation (`model/reference.py`) as a user would start plain PyTorch, and the reference
under our allocator. The convolutions of our phase are then run alone, which bounds what any formulation could
reach."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model import camera, losses, reference, steps
from model.config import Recipe, Variant
from model.config import variant as named_variant
from model.losses import GeneratorInputs, Sample

Side = Literal["ours", "reference", "reference_same_allocator", "ours_bf16"]
BENCH_PHASES = ("generator_forward", *steps.PHASES)
AMORTISED = {
    "generator_main": 1.0,
    "generator_reg": 1 / 4,
    "discriminator_main": 1.0,
    "discriminator_reg": 1 / 16,
}
ENOUGH_S = 5.0  # of calls in one process: the 512 variants take a quarter of an hour so, not half
PHASE_NAMES = {"G-forward": "generator_forward", "G-main": "generator_main", "G-reg": "generator_reg",
               "D-main": "discriminator_main", "D-reg": "discriminator_reg"}  # fmt: skip


@dataclass
class Workload:
    """Networks and one batch, on one device."""

    nets: steps.Networks
    inputs: GeneratorInputs
    real: Sample
    recipe: Recipe

    def phase(self, name: str) -> Callable[[], object]:
        nets, recipe = self.nets, self.recipe

        def forward() -> object:
            with torch.no_grad():
                return losses.generate(nets.generator, self.inputs)

        return {
            "generator_forward": forward,
            "generator_main": lambda: steps.generator_step(nets, self.inputs, recipe, step=0),
            "generator_reg": lambda: steps.generator_step(nets, self.inputs, recipe, step=0, density=True),
            "discriminator_main": lambda: steps.discriminator_step(
                nets, self.inputs, self.real, recipe, step=0
            ),
            "discriminator_reg": lambda: steps.r1_step(nets, self.real, recipe, step=0),
        }[name]


def workload(of: Variant, device: str, videos: int, *, bf16: bool = False, seed: int = 0) -> Workload:
    """The variant's networks at their start, with synthetic frames and frontal cameras, after all
    schedules."""
    torch.manual_seed(seed)
    config = of.model
    recipe = replace(of.recipe, batch=videos)
    nets = steps.build(config, recipe)
    for network in (nets.generator, nets.generator_ema, nets.d_img, nets.d_vid):
        if network is not None:
            network.to(device)
            if bf16:
                network.use_bf16()
    inputs, real = synthetic_batch(replace(of, recipe=recipe), videos, seed)
    moved: Any = {k: v.to(device) for k, v in vars(inputs).items() if isinstance(v, Tensor)}
    return Workload(nets, replace(inputs, **moved), Sample(*(x.to(device) for x in real)), recipe)


def synthetic_batch(of: Variant, videos: int, seed: int = 0) -> tuple[GeneratorInputs, Sample]:
    """What an update sees, on the CPU: frames of noise, frontal cameras, times by the law, no schedule."""
    config, frames = of.model, of.model.discriminator_frames
    yaws = np.linspace(-20, 20, videos * frames)
    cameras = torch.from_numpy(np.stack([camera.orbit(yaw).encode() for yaw in yaws])).view(
        videos, frames, -1
    )
    generator = torch.Generator().manual_seed(seed)
    times = steps.sample_times(videos, config, of.recipe, generator)
    inputs = steps.draw_inputs(
        cameras, config, of.recipe, samples=10**9, generator=generator, matched_times=times
    )
    side = config.img_resolution
    image = torch.rand(videos, frames, 3, side, side, generator=generator) * 2 - 1
    return inputs, losses.real_sample(image, times, cameras, config.rendering.resolution)


class ConvolutionRecorder(TorchDispatchMode):
    """Counts the dense convolutions, forward and backward, by shape."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        forward = func is torch.ops.aten.convolution.default
        if forward or func is torch.ops.aten.convolution_backward.default:
            groups = args[8] if forward else args[9]
            if groups == 1:
                key = tuple(_signature(a) for a in args)
                self.calls[("forward" if forward else "backward", key)] += 1
        return func(*args, **(kwargs or {}))


def _signature(value: Any) -> Any:
    if isinstance(value, Tensor):
        last = (
            value.ndim == 4
            and value.is_contiguous(memory_format=torch.channels_last)
            and not value.is_contiguous()
        )
        return ("tensor", tuple(value.shape), value.dtype, last)
    return tuple(value) if isinstance(value, list) else value


def convolution_seconds(work: Workload, phase: str, device: str, repeats: int = 3) -> float:
    """Time of the phase's convolutions alone: each distinct one on its own, best of `repeats`, times its
    count."""
    with ConvolutionRecorder() as recorder:
        work.phase(phase)()
    total = 0.0
    for (direction, key), count in recorder.calls.items():
        args = [_example(a, device) for a in key]
        call = torch.ops.aten.convolution if direction == "forward" else torch.ops.aten.convolution_backward
        call(*args)
        total += count * min(_timed(lambda c=call, a=args: c(*a), device) for _ in range(repeats))  # type: ignore[misc]
    return total


def _example(value: Any, device: str) -> Any:
    if isinstance(value, tuple) and value and value[0] == "tensor":
        _, shape, dtype, channels_last = value
        made = torch.randn(shape, device=device).to(dtype)
        return made.contiguous(memory_format=torch.channels_last) if channels_last else made
    return list(value) if isinstance(value, tuple) else value


def _timed(call: Callable[[], object], device: str) -> float:
    synchronize = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def worker(
    name: str, side: Side, phase: str, device: str, videos: int, calls: int, convolutions: bool
) -> dict[str, Any]:
    """One process: build, call once unmeasured, then `calls` times, or fewer when they take long."""
    work = workload(named_variant(name), device, videos, bf16=side == "ours_bf16")
    plain = reference.installed() if side.startswith("reference") else contextlib.nullcontext()
    with plain:
        run_phase = work.phase(phase)
        run_phase()
        seconds = [_timed(run_phase, device)]
        while len(seconds) < calls and sum(seconds) < ENOUGH_S:
            seconds.append(_timed(run_phase, device))
    result: dict[str, Any] = {"seconds": seconds, "peak_gb": peak_gb(device)}
    if convolutions:
        result["convolution_seconds"] = convolution_seconds(work, phase, device)
    return result


def peak_gb(device: str) -> float:
    """High-water mark: of the process on a CPU, of the allocator on CUDA."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e9
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the process that started this one held
        found = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(found.split()[1]) * 1024 / 1e9
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


# What a worker process runs. `tune` is the product's own allocator setting, looked up at run time: model/
# imports nothing of infra/, and without it ours is timed as plain PyTorch.
_CHILD = """
import importlib.util, sys
if sys.argv.pop(1) == "tuned" and importlib.util.find_spec("infra.allocator"):
    importlib.import_module("infra.allocator").tune_allocator()
from model import bench
bench.main()
"""


def _spawn(
    name: str, side: Side, phase: str, device: str, videos: int, calls: int, convolutions: bool
) -> dict[str, Any]:
    allocator = "plain" if side == "reference" else "tuned"
    command = [
        sys.executable,
        "-c",
        _CHILD,
        allocator,
        name,
        side,
        phase,
        device,
        str(videos),
        str(calls),
        str(int(convolutions)),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"bench worker {side} {phase} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def run(
    variant: str = "mid_128", phase: str | None = None, device: str = "cpu",
    progress: Callable[[str], None] = lambda line: None, *, rounds: int = 2, calls: int = 3,
    videos: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure one variant: `{"figures": {name: number}}`. `phase` (G-main, G-reg, D-main, D-reg, G-forward)
    alone, or all of them and the amortised update. One video of two frames on a CPU, two on CUDA unless
    `videos` says more."""
    if phase is not None and phase not in PHASE_NAMES:
        raise ValueError(f"phase {phase!r} does not exist; give one of {', '.join(PHASE_NAMES)}")
    of = named_variant(variant)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r} but there is no CUDA device; give cpu")
    videos = videos or (2 if device.startswith("cuda") else 1)
    wanted = [PHASE_NAMES[phase]] if phase else list(BENCH_PHASES)
    sides: list[Side] = ["ours", "reference", "reference_same_allocator"]
    if has_bf16(device):
        sides.append("ours_bf16")
    figures: dict[str, float] = {}
    seconds: dict[tuple[str, str], list[float]] = {}
    convolution: dict[str, float] = {}
    for p in wanted:
        for r in range(rounds):
            for side in sides:
                if device.startswith("cuda") and side == "reference_same_allocator":
                    continue
                measured = _spawn(variant, side, p, device, videos, calls, side == "ours" and r == 0)
                seconds.setdefault((side, p), []).extend(measured["seconds"])
                key = f"{side}/{p}"
                figures[f"{key}/peak_gb"] = max(figures.get(f"{key}/peak_gb", 0.0), measured["peak_gb"])
                convolution[p] = measured.get("convolution_seconds", convolution.get(p, 0.0))
                progress(
                    f"{of.name} {p} {side}: {min(measured['seconds']):.3f} s, {measured['peak_gb']:.2f} GB"
                )
    for (measured_side, p), values in seconds.items():
        figures[f"{measured_side}/{p}/seconds_best"] = min(values)
        figures[f"{measured_side}/{p}/seconds_median"] = statistics.median(values)
    weights = {p: AMORTISED[p] for p in wanted if p in AMORTISED} or {wanted[0]: 1.0}
    return {"figures": figures | _ratios(figures, convolution, weights, {s for s, _ in seconds})}


def _ratios(
    figures: dict[str, float], convolution: dict[str, float], weights: dict[str, float], sides: set[str]
) -> dict[str, float]:
    update = {s: sum(w * figures[f"{s}/{p}/seconds_best"] for p, w in weights.items()) for s in sides}
    peak = {s: max(figures[f"{s}/{p}/peak_gb"] for p in weights) for s in sides}
    alone = sum(w * convolution[p] for p, w in weights.items())
    out = {f"{s}/update_seconds": t for s, t in update.items()} | {"convolution_seconds": alone}
    out["update_speedup"] = update["reference"] / update["ours"]
    out["peak_memory_ratio"] = peak["ours"] / peak["reference"]
    out["conv_bound_fraction"] = alone / update["ours"]
    if "reference_same_allocator" in update:
        out["update_speedup_same_allocator"] = update["reference_same_allocator"] / update["ours"]
    if "ours_bf16" in update:
        out["bf16_speedup"] = update["ours"] / update["ours_bf16"]
    return out


def has_bf16(device: str) -> bool:
    """Whether the processor multiplies bfloat16 itself."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def main() -> None:
    """A worker process: prints one JSON line."""
    parser = argparse.ArgumentParser()
    for field in ("variant", "side", "phase", "device"):
        parser.add_argument(field)
    for field in ("videos", "calls", "convolutions"):
        parser.add_argument(field, type=int)
    a = parser.parse_args()
    print(json.dumps(worker(a.variant, a.side, a.phase, a.device, a.videos, a.calls, bool(a.convolutions))))
