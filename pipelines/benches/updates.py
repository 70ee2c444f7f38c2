"""What an update of a training takes: memory and seconds, in processes of its own.

The networks, DeepSpeed engines and losses are the product's, as `pipelines.train.work` uses them, with Adam's
moments from the start; the batch is synthetic and lies in memory, so that no loader and no MLflow is measured
with them. Every update has all four phases; `update_s` counts the lazy ones by their intervals.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from model.config import Variant
from model.config import variant as named_variant
from pipelines.bench import peak_gb

PHASES = ("G-main", "G-reg", "D-main", "D-reg")


@dataclass(frozen=True)
class Setting:
    """One row: what is trained, on what, with what."""

    variant: str
    batch: int
    """Videos per update over all workers."""
    precision: str = "float32"
    zero: int = 0
    workers: int = 1
    accumulate: int = 1
    checkpointing: bool = False
    model: dict[str, Any] = field(default_factory=dict)
    """As `train.model`: `rendering.chunk_rays`, `discriminator.frames` ..."""
    device: str = "cpu"

    @cached_property
    def made(self) -> Variant:
        """The variant. Raises ValueError for what does not go together."""
        from pipelines.settings import TrainSettings
        from pipelines.train_job import changed, check_batch

        settings = TrainSettings(
            variant=f"model.config:{self.variant}", batch=self.batch, model=self.model,
            recipe={"checkpointing": self.checkpointing},
        )  # fmt: skip
        variant = changed(named_variant(self.variant), settings)
        check_batch(variant, self.workers, self.accumulate)
        return variant

    @property
    def extras(self) -> str:
        """What it has beyond variant, batch, precision, ZeRO and workers, in words."""
        words = ["checkpointing"] * self.checkpointing
        words += [f"accumulate {self.accumulate}"] * (self.accumulate > 1)
        return ", ".join(words + [f"{name.rpartition('.')[2]} {value}" for name, value in self.model.items()])

    @property
    def key(self) -> str:
        """Its name among the figures."""
        parts = [self.variant, f"batch_{self.batch}", self.precision, f"zero_{self.zero}"]
        parts += [f"workers_{self.workers}"] if self.workers > 1 else []
        return "/".join([*parts, *(self.extras.replace(" ", "_").split(",_") if self.extras else [])])


def check_device(bench: str, device: str) -> None:
    """Raise ValueError unless `device` is cpu, or cuda and there is one."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f"bench {bench}: --device {device}: is neither cpu nor cuda")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError(f"bench {bench}: --device cuda: there is no CUDA device; use cpu")


def measure(setting: Setting, updates: int = 1) -> dict[str, float] | None:
    """What the worker takes that takes most, in GB: `tensors_gb` and, of each phase, `<phase>_gb`, the most
    that tensors held at once; `start_gb`, before the first update; `peak_gb`, the process (on CUDA: PyTorch's
    allocator), with the program and what the allocator could not use again. Seconds: `update_s` and
    `<phase>_s`, the best of so many updates, after one that does not count; with 0 that one counts, which
    memory is measured in. None when the memory does not suffice."""
    assert setting.made, "checked before a process is started"
    with socket.socket() as free, tempfile.TemporaryDirectory(prefix="pv3d-bench-updates-") as folder:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        task = json.dumps({"setting": asdict(setting), "updates": updates, "out": folder})
        threads = max((os.cpu_count() or 1) // setting.workers, 1)       # as Ray shares them out
        world = {
            "WORLD_SIZE": str(setting.workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            "OMP_NUM_THREADS": str(threads),
        }  # fmt: skip
        command = [sys.executable, "-c", "from pipelines.benches.updates import main; main()", task]
        started = [
            subprocess.Popen(
                command, env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
            for rank in range(setting.workers)
        ]  # fmt: skip
        errors = [process.communicate()[1] for process in started]
        found = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
    if any(row.get("out_of_memory") for row in found) or any(p.returncode == -9 for p in started):
        return None
    if len(found) < setting.workers:
        raise RuntimeError(f"the worker of {setting.key} failed:\n{''.join(errors)[-2000:]}")
    return {name: max(row[name] for row in found) for name in found[0]}


# --- in a process of its own --------------------------------------------------------------------------------


def main() -> None:
    """Entry of a worker."""
    from infra.allocator import tune_allocator
    from infra.engine import end_deepspeed

    task = json.loads(sys.argv[1])
    tune_allocator()
    setting = Setting(**task["setting"])
    _stay_within_memory(setting)
    import torch

    try:
        found: dict[str, Any] = _measured(setting, task["updates"])
    except (MemoryError, torch.OutOfMemoryError):
        found = {"out_of_memory": True}
    except RuntimeError as error:
        if "memory" not in str(error):  # of the CPU's allocator there is no exception of its own
            raise
        found = {"out_of_memory": True}
    Path(task["out"], f"{os.environ['RANK']}.json").write_text(json.dumps(found))
    if not found.get("out_of_memory"):
        end_deepspeed()
    elif setting.workers > 1:
        os._exit(1)  # the others wait for it in vain: their group breaks


def _stay_within_memory(setting: Setting) -> None:
    """Let an allocation fail before the kernel ends some process of this machine for lack of memory."""
    meminfo = Path("/proc/meminfo")
    if setting.device == "cpu" and meminfo.exists():
        line = next(row for row in meminfo.read_text().splitlines() if row.startswith("MemAvailable"))
        limit = int(int(line.split()[1]) * 1024 * 0.95 / setting.workers)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))


def _measured(setting: Setting, updates: int) -> dict[str, float]:
    import torch

    from infra.engine import init_deepspeed
    from pipelines.train_networks import Networks

    rank, gpu = int(os.environ["RANK"]), setting.device == "cuda"
    device = torch.device("cuda", rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    init_deepspeed(device.type)
    torch.manual_seed(0)
    nets = Networks(setting.made, device, bfloat16=setting.precision == "bfloat16")
    nets.start(None, videos=setting.batch // setting.workers, zero=setting.zero, parts=setting.accumulate)
    for engine in (nets.g, *nets.discriminators):  # as after an update, which makes them
        moments = {name: torch.zeros_like(p) for name, p in _moments(engine.network)}
        engine.load_moments({**moments, "step": torch.ones(1)})
    phases = _phases(setting, nets, rank)
    seconds: dict[str, list[float]] = {name: [] for name in phases}
    held = {"start_gb": _held_gb(gpu)}
    for number in range(updates + 1):
        for name, phase in phases.items():
            before = time.perf_counter()
            if number == 0:
                held[f"{name}_gb"] = _most_held_gb(phase, gpu)
            else:
                phase()
            if gpu:
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - before)
    recipe = setting.made.recipe
    every = {"G-reg": recipe.generator_reg_interval, "D-reg": recipe.discriminator_reg_interval}
    best = {name: min(taken[1:] or taken) for name, taken in seconds.items()}
    found = {f"{name}_s": best[name] for name in PHASES} | held
    found["update_s"] = math.fsum(best[name] / every.get(name, 1) for name in phases)
    found["tensors_gb"] = max(held.values())
    found["peak_gb"] = torch.cuda.max_memory_reserved() / 1e9 if gpu else peak_gb()
    return found


def _held_gb(gpu: bool) -> float:
    """What tensors hold now."""
    import torch

    if gpu:
        return torch.cuda.memory_allocated() / 1e9
    gc.collect()
    held = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
    return float(sum(held.values())) / 1e9


def _most_held_gb(phase: Callable[[], object], gpu: bool) -> float:
    """The most that tensors hold at once in a phase."""
    import torch
    from torch.autograd.profiler import profile

    if gpu:
        torch.cuda.reset_peak_memory_stats()
        phase()
        return torch.cuda.max_memory_allocated() / 1e9
    before = _held_gb(gpu)
    with profile(profile_memory=True) as recorded:
        phase()
    assert recorded.kineto_results is not None
    taken = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    taken.sort(key=lambda event: event.start_ns())
    changes: list[int] = [event.nbytes() for event in taken]
    return before + max(itertools.accumulate(changes, initial=0)) / 1e9


def _moments(network: Any) -> Iterator[tuple[str, Any]]:
    from infra.engine import MOMENTS

    for name, parameter in network.named_parameters():
        for moment in MOMENTS:
            yield f"{name}.{moment}", parameter


def _phases(setting: Setting, nets: Any, rank: int) -> dict[str, Callable[[], object]]:
    """The parts of an update in their order, as the loop of pipelines/train.py has them."""
    from model import bench, losses, steps
    from model.losses import Sample

    variant, workers = setting.made, setting.workers
    recipe, device = variant.recipe, nets.device
    drawn, frames = bench.synthetic_batch(variant, setting.batch)
    mine = steps.rows(drawn, rank, workers)
    real = Sample(*(x.to(device) for x in frames.part(rank, workers)))
    videos = range(rank, setting.batch, workers)

    def inputs(phase: steps.Phase) -> losses.GeneratorInputs:
        return nets.to_device(replace(mine, random=steps.video_generators(0, 0, phase, videos)))  # type: ignore[no-any-return]

    def g_main() -> None:
        nets.g.update(losses.generator_main_loss, nets.d_img, nets.d_vid, inputs("generator_main"), recipe)

    def g_reg() -> None:
        nets.g.update(losses.density_regularization, inputs("generator_reg"), recipe)

    def d_main() -> None:
        fake = nets.fakes(inputs("discriminator_main"))
        for d in nets.discriminators:
            d.update(losses.discriminator_main_loss, fake, real, recipe)

    def d_reg() -> None:
        for d in nets.discriminators:
            d.update(losses.r1_loss, real, recipe)

    def average() -> None:
        steps.ema_update(nets.ema, nets.generator, steps.ema_beta(10**9, recipe))

    return {"G-main": g_main, "G-reg": g_reg, "D-main": d_main, "D-reg": d_reg, "EMA": average}
