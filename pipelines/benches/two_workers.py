"""`pv3d bench workers`: a compute-bound stage on two Ray workers, against two bare processes.

Both do the same units: a fixed number of SHA-256 rounds each. The bare processes take every second unit and
write nothing down; Ray's two actors get theirs from the real runner, which plans, records and writes the
ledger meanwhile, on the same cores. The clock of either side starts when both its workers are set up, so that
neither the start of Python nor that of Ray counts; it stops when all is done, for Ray when `prepare` returns.

    two_workers_over_two_processes   units per second on Ray over those of the processes: median of the rounds
    bare_units_per_s, ray_units_per_s
    driver_ms_per_unit               CPU time of the driver
"""

from __future__ import annotations

import hashlib
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

from infra.storage import Storage
from pipelines.runner import prepare
from pipelines.workflow import load
from stages import Clip, Source, Stage

WORKERS = 2
PATIENCE_S = 120.0

WORKFLOW = """\
storage: {{root: {root}}}
source: {{use: pipelines.benches.two_workers:Units, count: {count}}}
stages:
  - use: pipelines.benches.two_workers:Compute
    rounds: {rounds}
    meeting: {meeting}
    resources: {{cpus: 1}}
    workers: {{min: 2, max: 2}}
train: {{variant: model.config:tiny}}
"""


@dataclass
class Units(Source):
    """`count` units without a video."""

    count: int = 1

    def clips(self, store: Storage) -> Iterator[Clip]:
        """Nothing is behind them."""
        for number in range(self.count):
            yield Clip(f"u{number:05d}", f"u{number:05d}", "")


@dataclass
class Compute(Stage):
    """Hashes a block `rounds` times. Its workers wait for each other before they begin."""

    rounds: int = 1
    meeting: str = ""
    name: ClassVar[str] = "Compute"
    writes: ClassVar[tuple[str, ...]] = ("extra.hash",)

    def setup(self, store: Storage) -> None:
        """As `Stage.setup`; notes when both were there."""
        meet(Path(self.meeting))

    def process(self, clip: Clip) -> Iterator[Clip]:
        """As `Stage.process`."""
        clip.extra["hash"] = compute(clip.id, self.rounds)
        yield clip


def compute(name: str, rounds: int) -> str:
    """The work of a unit, nothing but computing."""
    block = name.encode() * 2048
    for _ in range(rounds):
        block = hashlib.sha256(block).digest() * 384
    return hashlib.sha256(block).hexdigest()


def meet(folder: Path) -> None:
    """Return when all workers are here, and leave the time in the folder."""
    mine = tempfile.mkdtemp(prefix="here-", dir=folder)
    deadline = time.monotonic() + PATIENCE_S
    while len(list(folder.glob("here-*"))) < WORKERS:
        if time.monotonic() > deadline:
            raise ValueError(f"bench workers: {WORKERS} workers are needed, and only one started")
        time.sleep(0.001)
    Path(mine, "since").write_text(repr(time.time()))


def _since(folder: Path) -> float:
    return max(float(path.read_text()) for path in folder.glob("here-*/since"))


def run(
    units: int = 60, unit_s: float = 0.25, rounds: int = 3,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """The figures, over so many rounds of both sides, in turns."""
    from infra import cluster

    started = not cluster.joined()
    cluster.start("local", cpus=WORKERS, log_to_driver=False)
    work = _rounds_in(unit_s)
    rates: dict[str, list[float]] = {"bare": [], "ray": []}
    driver: list[float] = []
    try:
        _on_ray(4, work, driver)             # Ray's first actors come slowly
        driver.clear()
        for number in range(rounds):
            order = ("bare", "ray") if number % 2 == 0 else ("ray", "bare")
            for side in order:
                rate = _bare(units, work) if side == "bare" else _on_ray(units, work, driver)
                rates[side].append(rate)
                progress(f"round {number + 1}: {side} {rate:.2f} units/s")
    finally:
        if started:
            cluster.stop()
    ratios = [ray / bare for ray, bare in zip(rates["ray"], rates["bare"], strict=True)]
    figures = {
        "two_workers_over_two_processes": median(ratios),
        "bare_units_per_s": median(rates["bare"]),
        "ray_units_per_s": median(rates["ray"]),
        "driver_ms_per_unit": 1000 * median(driver),
    }
    return {"figures": figures}


def _rounds_in(seconds: float) -> int:
    """How many rounds take about so long on one core."""
    begun, trial = time.perf_counter(), 2000
    compute("trial", trial)
    return max(1, round(trial * seconds / (time.perf_counter() - begun)))


def _on_ray(units: int, work: int, driver: list[float]) -> float:
    """Units per second; adds the CPU seconds of this process per unit to `driver`."""
    with tempfile.TemporaryDirectory(prefix="pv3d-bench-") as folder:
        meeting = Path(folder, "meeting")
        meeting.mkdir()
        path = Path(folder, "workflow.yaml")
        text = WORKFLOW.format(root=f"{folder}/store", count=units, rounds=work, meeting=meeting)
        path.write_text(text)
        cpu = time.process_time()
        prepare(load(path))
        driver.append((time.process_time() - cpu) / units)
        return units / (time.time() - _since(meeting))


def _bare(units: int, work: int) -> float:
    """Units per second of two processes that do nothing else."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="pv3d-bench-") as folder:
        names = [f"u{number:05d}" for number in range(units)]
        shares = [names[worker::WORKERS] for worker in range(WORKERS)]
        processes = [context.Process(target=_share, args=(share, work, folder)) for share in shares]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        ended = max(float(path.read_text()) for path in Path(folder).glob("ended-*"))
        return units / (ended - _since(Path(folder)))


def _share(names: list[str], work: int, folder: str) -> None:
    meet(Path(folder))
    for name in names:
        compute(name, work)
    Path(folder, f"ended-{names[0]}").write_text(repr(time.time()))
