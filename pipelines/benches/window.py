"""`pv3d bench window`: memory of the driver and of Ray's object store, for few and for many units.

Small units that carry an array of 256 KB each go through a stage of tasks and one of actors, by the real
runner; between them they wait in bounded windows. What is under way at a time must not depend on how many
there are.

    objects_mb_few, objects_mb_many     most that was in the object store
    driver_mb_few, driver_mb_many       most resident memory of the driver; the ledger collects up to 64 MB
    units_few, units_many
    ms_per_unit                         of the many
"""

from __future__ import annotations

import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from infra.storage import Storage
from pipelines.runner import prepare
from pipelines.workflow import load
from stages import Clip, Stage

FRAMES, POINTS = 470, 68                     # float64 pairs: 256 KB per unit
SAMPLE_S = 0.2

WORKFLOW = """\
storage: {{root: {root}}}
source: {{use: pipelines.benches.two_workers:Units, count: {count}}}
stages:
  - {{use: pipelines.benches.window:Grow, resources: {{cpus: 1}}}}
  - {{use: pipelines.benches.window:Carry, resources: {{cpus: 0.5}}}}
train: {{variant: model.config:tiny}}
"""


@dataclass
class Grow(Stage):
    """Adds an array; holds nothing, so it runs as tasks."""

    name: ClassVar[str] = "Grow"
    writes: ClassVar[tuple[str, ...]] = ("landmarks",)

    def process(self, clip: Clip) -> Iterator[Clip]:
        """As `Stage.process`."""
        clip.landmarks = np.full((FRAMES, POINTS, 2), hash(clip.id) % 97, np.float32)
        yield clip


@dataclass
class Carry(Stage):
    """Takes the array and hands it on; its workers are actors."""

    name: ClassVar[str] = "Carry"
    reads: ClassVar[tuple[str, ...]] = ("landmarks",)
    writes: ClassVar[tuple[str, ...]] = ("extra.sum",)

    def setup(self, store: Storage) -> None:
        """As `Stage.setup`."""
        self.store = store

    def process(self, clip: Clip) -> Iterator[Clip]:
        """As `Stage.process`."""
        clip.extra["sum"] = float(clip.need("landmarks").sum())
        yield clip


class Watch(threading.Thread):
    """Samples what Ray's object stores hold, and this process."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.objects_mb = self.driver_mb = 0.0
        self._over = threading.Event()

    def run(self) -> None:
        """Until `stop`."""
        while not self._over.wait(SAMPLE_S):
            self.objects_mb = max(self.objects_mb, objects_mb())
            self.driver_mb = max(self.driver_mb, resident_mb())

    def stop(self) -> None:
        """`objects_mb` and `driver_mb` are then the most that was seen."""
        self._over.set()
        self.join()


def objects_mb() -> float:
    """What Ray's object stores hold now."""
    import ray

    name = "object_store_memory"
    used: float = ray.cluster_resources()[name] - ray.available_resources().get(name, 0.0)
    return used / 1e6


def resident_mb() -> float:
    """Resident memory of this process."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found.group(1)) / 1024 if found else 0.0


def run(
    few: int = 1000, many: int = 4000, progress: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """The figures."""
    from infra import cluster

    started = not cluster.joined()
    cluster.start("local", log_to_driver=False)
    figures: dict[str, float] = {}
    try:
        _once(few)                               # what is loaded once is loaded now
        for name, units in (("few", few), ("many", many)):
            begun = time.monotonic()
            objects, driver = _once(units)
            figures |= {f"objects_mb_{name}": objects, f"driver_mb_{name}": driver, f"units_{name}": units}
            figures["ms_per_unit"] = 1000 * (time.monotonic() - begun) / units
            progress(f"{units} units: at most {objects:.0f} MB of objects, driver {driver:.0f} MB")
    finally:
        if started:
            cluster.stop()
    return {"figures": figures}


def _once(units: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(prefix="pv3d-bench-") as folder:
        path = Path(folder, "workflow.yaml")
        path.write_text(WORKFLOW.format(root=f"{folder}/store", count=units))
        watch = Watch()
        watch.start()
        try:
            prepare(load(path))
        finally:
            watch.stop()
    return watch.objects_mb, watch.driver_mb
