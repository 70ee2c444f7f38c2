"""`pv3d bench train`: what the training loop adds to the bare updates, and how long it waits for frames.

The loop is the product's: DeepSpeed engines, loader, schedules, metrics to MLflow, on shards of public-domain
portraits, with one worker and without Ray. The bare updates are the same phases in the same order by plain
torch, on one batch that is in memory. Both run in processes of their own that take turns; the first update of
each does not count.

`loop_overhead_pct`   what an update of the loop takes beyond a bare one; median of the rounds
`data_wait_pct`       share of the loop's time in which no batch was ready
`update_s`, `bare_update_s`
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.config import VARIANTS
from model.config import variant as named_variant
from pipelines.document import did_you_mean

SHAPE = {"blur_sigma": 0.0, "resolution_fade_kvideos": 0.0}
"""Schedules at their end: the bare updates have none."""


def run(
    variant: str = "mid_128",
    batch: int = 2,
    updates: int = 8,
    rounds: int = 3,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The figures of the module's text."""
    if variant not in VARIANTS:
        raise ValueError(f"bench train: --variant {variant}: unknown{did_you_mean(variant, VARIANTS)}")
    if min(batch, updates, rounds) < 1:
        raise ValueError("bench train: --batch, --updates and --rounds are 1 or more")
    from infra.storage import FolderStorage
    from pipelines.benches.loader import make_dataset
    from pipelines.train_job import check_batch

    check_batch(_variant(variant, batch), 1)
    rows = []
    with tempfile.TemporaryDirectory(prefix="pv3d-bench-train-") as folder:
        of = named_variant(variant).model
        store = FolderStorage(Path(folder, "store"))
        make_dataset(store, 8, side=of.img_resolution, frames=of.frames_span + 4)
        for number in range(rounds):
            sides = ("loop", "bare") if number % 2 else ("bare", "loop")
            rows.append({side: _child(side, Path(folder), variant, batch, updates, number) for side in sides})
            loop, bare = rows[-1]["loop"], rows[-1]["bare"]
            seconds = f"loop {loop['update_s']:.3f} s, bare {bare['update_s']:.3f} s"
            progress(f"round {number + 1} of {rounds}: {seconds}")
    over = [row["loop"]["update_s"] / row["bare"]["update_s"] for row in rows]
    return {"figures": {
        "loop_overhead_pct": 100 * (statistics.median(over) - 1),
        "data_wait_pct": statistics.median(100 * r["loop"]["wait_s"] / r["loop"]["update_s"] for r in rows),
        "update_s": min(row["loop"]["update_s"] for row in rows),
        "bare_update_s": min(row["bare"]["update_s"] for row in rows),
    }}  # fmt: skip


def _variant(name: str, batch: int) -> Any:
    from pipelines.settings import TrainSettings
    from pipelines.train_job import changed

    settings = TrainSettings(variant=f"model.config:{name}", batch=batch, recipe=SHAPE)
    return changed(named_variant(name), settings)


# --- in a process of its own --------------------------------------------------------------------------------


def _child(side: str, folder: Path, variant: str, batch: int, updates: int, number: int) -> dict[str, float]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    out = folder / f"{side}-{number}.json"
    task = {"side": side, "folder": str(folder), "variant": variant, "batch": batch, "updates": updates,
            "number": number, "out": str(out)}  # fmt: skip
    subprocess.run(
        [sys.executable, "-c", "from pipelines.benches.train import main; main()", json.dumps(task)],
        env={**os.environ, **alone, "MASTER_PORT": str(port)}, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    found: dict[str, float] = json.loads(out.read_text())
    return found


def main() -> None:
    """Entry of a child."""
    task = json.loads(sys.argv[1])
    marks = (_loop if task["side"] == "loop" else _bare)(task)
    ends, waits = zip(*marks, strict=True)
    took = ends[-1] - ends[0]
    count = len(marks) - 1
    answer = {"update_s": took / count, "wait_s": sum(waits[1:]) / count}
    Path(task["out"]).write_text(json.dumps(answer))


def _loop(task: dict[str, Any]) -> list[tuple[float, float]]:
    """When each update of the product's loop ended, and how long it had waited for frames."""
    from infra.engine import end_deepspeed
    from infra.storage import FolderStorage
    from pipelines import train_log
    from pipelines.settings import StorageSettings, TrainSettings
    from pipelines.train import work
    from pipelines.train_job import Job
    from stages.shards import open_dataset

    marks: list[tuple[float, float]] = []

    class Marking(train_log.Recorder):
        def step(self, done: int) -> None:
            marks.append((time.perf_counter(), self._sums["time/data_wait"][-1]))
            super().step(done)

    train_log.Recorder = Marking  # type: ignore[misc]  # `work` imports it when it starts
    root = Path(task["folder"], "store")
    settings = TrainSettings(
        variant=f"model.config:{task['variant']}", batch=task["batch"], recipe=SHAPE, workers=1,
        steps=task["updates"] + 1, name=f"round-{task['number']}",
    )  # fmt: skip
    place = StorageSettings(root=str(root), tracking=f"sqlite:///{task['folder']}/mlflow.db")
    work(Job(place, settings, open_dataset(FolderStorage(root)).version))
    end_deepspeed()
    return marks


def _bare(task: dict[str, Any]) -> list[tuple[float, float]]:
    """When each bare update ended."""
    import torch

    from infra.allocator import tune_allocator
    from model import bench, steps

    tune_allocator()
    work = bench.workload(_variant(task["variant"], task["batch"]), "cpu", task["batch"])
    torch.set_grad_enabled(True)
    marks = []
    for step in range(task["updates"] + 1):
        for phase in steps.phases(step, work.recipe):
            work.phase(phase)()
        steps.ema_update(work.nets.generator_ema, work.nets.generator, steps.ema_beta(0, work.recipe))
        marks.append((time.perf_counter(), 0.0))
    return marks
