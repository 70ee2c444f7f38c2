"""What a run costs besides its stages, for as many units as `--units` says: time per unit, and memory.

The real source, runner and ledger, with stages that do next to nothing: two per clip and one per group. In
processes of their own, so that each has its own peak of memory: a run to the end and then the plan of runs
that find everything done, once of a tenth of the units and once of all.

    plan_s, plan_gb      to list all units and find them, all groups and the whole done
    ms_per_unit          of the whole run; memory_growth_pct compares the peaks with those of a tenth
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from infra.storage import open_storage

WORKFLOW = """\
storage:
  root: {root}
{s3}source:
  use: stages.sources.urls:Urls
  location: {listed}
stages:
  - use: pipelines.benches.trivial:Cut
  - use: pipelines.benches.trivial:Mark
  - use: pipelines.benches.trivial:Bundle
    buckets: {buckets}
train:
  variant: model.config:tiny
"""
IN_A_GROUP = 1000                            # clips


def run(
    units: int = 20_000, store: str = "", endpoint: str = "", progress: Callable[..., object] | None = None
) -> dict[str, Any]:
    """Figures of `units` units in a folder, or in `store` (s3://bucket/prefix, at `endpoint`)."""
    if units < 100:
        raise ValueError(f"bench ledger: --units {units}: too few to tell; give 100 or more")
    say = progress or (lambda *words: None)
    figures: dict[str, float] = {"units": units}
    with tempfile.TemporaryDirectory(prefix="pv3d-bench-") as folder:
        for name, count in (("tenth_", units // 10), ("", units)):
            with _place(store, endpoint, folder, count) as (root, s3):
                path = _workflow(Path(folder), root, s3, count)
                for what, most in (("run", 3 * count), ("plan", 0)):
                    say("%s of %d units", what, count)
                    told = _child(what, path)
                    if told["kept"] != count or told["redone"] != most:
                        raise RuntimeError(f"bench ledger: {what} of {count} units came to {told}")
                    say("%s of %d units: %.1f s, %.3f GB", what, count, told["seconds"], told["gb"])
                    figures[f"{name}{what}_s"], figures[f"{name}{what}_gb"] = told["seconds"], told["gb"]
    figures["ms_per_unit"] = 1000 * figures["run_s"] / units
    figures["memory_growth_pct"] = 100 * max(
        figures[f"{what}_gb"] / figures[f"tenth_{what}_gb"] - 1 for what in ("run", "plan")
    )
    return {"figures": {**figures, **_two_workers(say)}}


def _two_workers(say: Callable[..., object]) -> dict[str, float]:
    """Last, and alone: it wants the whole machine."""
    from pipelines.benches import two_workers

    def tell(line: str) -> None:
        say("%s", line)

    found: dict[str, float] = two_workers.run(progress=tell)["figures"]
    return found


@contextlib.contextmanager
def _place(store: str, endpoint: str, folder: str, count: int) -> Iterator[tuple[str, str]]:
    """(root, S3 settings) of an empty store, which is emptied afterwards."""
    if not store:
        with tempfile.TemporaryDirectory(prefix=f"store-{count}-", dir=folder) as root:
            yield root, ""
        return
    root = f"{store.rstrip('/')}/pv3d-bench-{count}-{os.urandom(4).hex()}"
    options = {"endpoint": endpoint} if endpoint else {}
    try:
        yield root, f"  s3:\n    endpoint: {endpoint}\n" if endpoint else ""
    finally:
        made = open_storage(root, **options)
        made.delete_all(list(made.list()))


def _workflow(folder: Path, root: str, s3: str, count: int) -> Path:
    listed = folder / "list.csv"
    with listed.open("w") as file:
        file.write("url,identity,licence\n")
        for n in range(count):
            # As ids are: in no order.
            name = hashlib.sha256(str(n).encode()).hexdigest()[:11]
            file.write(f"https://www.youtube.com/watch?v={name},person {n // 16},CC-BY 4.0\n")
    path = folder / "workflow.yaml"
    buckets = max(1, count // IN_A_GROUP)
    path.write_text(WORKFLOW.format(root=root, s3=s3, listed=listed, buckets=buckets))
    return path


def _child(what: str, path: Path) -> dict[str, Any]:
    code = "import sys; from pipelines.benches.ledger import child; child(*sys.argv[1:])"
    command = [sys.executable, "-c", code, what, str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def child(what: str, path: str) -> None:
    """One run, or plan, in this process: prints what it came to as a line of JSON."""
    import logging

    from pipelines.bench import peak_gb
    from pipelines.runner import prepare
    from pipelines.workflow import load

    logging.basicConfig(level=logging.INFO, format=f"{what}: %(message)s", stream=sys.stderr)
    begun = time.perf_counter()
    done = prepare(load(path), in_process=True)
    told = {
        "seconds": time.perf_counter() - begun, "gb": peak_gb(), "kept": done.kept,
        "redone": sum(done.redone.values()),
    }  # fmt: skip
    sys.stdout.write(json.dumps(told) + "\n")
