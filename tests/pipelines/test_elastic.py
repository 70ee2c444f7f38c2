"""Whatever is killed while a training runs on Ray: it goes on from the last checkpoint, and nothing shows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_training
from tiny_training import (
    TOLERANCE,
    copy,
    difference,
    history,
    make_data,
    python_path,
    run,
    settings,
    workflow,
)

UPDATES = 44
SHAPE = {
    "steps": UPDATES, "checkpoint_every": 2, "sample_every": UPDATES, "log_every": 1, "keep_checkpoints": 22,
}  # fmt: skip
SAME = 1e-6  # on as many workers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = make_data(tmp_path_factory.mktemp("data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(made)
        patch.setenv("PYTHONPATH", python_path(made))
        yield made


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = copy(data, tmp_path_factory.mktemp("undisturbed") / "run")
    run(data, 2, (root, settings(**SHAPE)))
    return root


@pytest.fixture(scope="module")
def two_nodes(data: Path) -> Iterator[Any]:
    """A cluster on this machine, and its two nodes that can be lost: of two cores each, the head has none."""
    from ray.cluster_utils import Cluster

    from infra import cluster as joined

    joined.stop()                       # the one of an earlier test
    with (
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", folder)  # not the place where "auto" looks for other tests
        common = {"object_store_memory": 80 << 20}
        cluster = Cluster(True, head_node_args={**common, "num_cpus": 0})
        yield cluster, [cluster.add_node(**common, num_cpus=2) for _ in range(2)]
        cluster.shutdown()


def processes() -> dict[int, tuple[int, str]]:
    """Parent and command of every process."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    rows = (line.split(None, 2) for line in table.stdout.splitlines())
    return {int(pid): (int(parent), "".join(args)) for pid, parent, *args in rows}


def train_workers(ancestor: int) -> list[int]:
    """Process ids of Ray Train's workers that descend from a process."""
    found = processes()

    def descends(pid: int) -> bool:
        while pid > 1 and pid != ancestor:
            pid = found.get(pid, (0, ""))[0]
        return pid == ancestor

    return [pid for pid, (_, args) in found.items() if "RayTrainWorker" in args and descends(pid)]


def cards(root: Path) -> dict[int, int]:
    """When the checkpoint of each step was written."""
    found = root.glob("store/train/*/checkpoints/*/checkpoint.json")
    return {int(card.parent.name): card.stat().st_mtime_ns for card in found}


def wait_for(happened: Callable[[], object], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def check_nothing_was_lost(
    root: Path, undisturbed: Path, before: dict[int, int], tolerance: float, steps: int = UPDATES
) -> None:
    """`before`: the checkpoints that were there at a kill; none of their updates is done again."""
    assert before
    assert before.items() <= cards(root).items()
    assert difference(undisturbed, root, step=steps) < tolerance
    for metric in ("G/img", "D_vid/r1"):
        told = history(root, metric)
        expected = [(step, value) for step, value in history(undisturbed, metric) if step <= steps]
        assert [step for step, _ in told] == [step for step, _ in expected]  # each once, in order
        assert dict(told) == pytest.approx(dict(expected), rel=1e-3, abs=1e-5)


@pytest.mark.timeout(1500)
def test_a_killed_worker_and_a_lost_node_change_nothing(
    data: Path, undisturbed: Path, two_nodes: Any, tmp_path: Path
) -> None:
    from infra import cluster
    from pipelines.train import train

    (cluster_of_two, nodes), root = two_nodes, copy(data, tmp_path / "killed")
    seen: dict[str, dict[int, int]] = {}

    def disasters() -> None:
        wait_for(lambda: 2 in cards(root))
        seen["worker"] = cards(root)
        first = train_workers(os.getpid())
        os.kill(first[-1], signal.SIGKILL)
        raylets = [process.process.pid for node in nodes for process in node.all_processes["raylet"]]
        again: list[int] = []

        def begun_anew() -> list[int]:
            again.extend(pid for pid in raylets if set(train_workers(pid)) - set(first))
            return again

        wait_for(begun_anew)                # found early: the updates that are left take a second
        raylet = again[0]
        wait_for(lambda: max(cards(root)) >= max(seen["worker"]) + 2)
        children = [pid for pid, (parent, _) in processes().items() if parent == raylet]
        seen["node"] = cards(root)
        for pid in (raylet, *children):  # all at once, as a power cut does
            os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=disasters, daemon=True)
    thread.start()
    try:
        train(workflow(root, placement="SPREAD", **SHAPE), ray_address=cluster_of_two.address)
    finally:
        cluster.stop()
    thread.join(1)
    assert seen.keys() == {"worker", "node"}
    assert max(seen["node"]) < UPDATES
    for before in seen.values():
        check_nothing_was_lost(root, undisturbed, before, SAME)


@pytest.mark.timeout(1500)
def test_a_killed_driver_costs_nothing_and_others_go_on_with_one_worker_then_two(
    data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    root = copy(data, tmp_path / "driver")

    def driver(*changes: dict[str, Any]) -> subprocess.Popen[bytes]:
        words = [json.dumps({**SHAPE, **change}) for change in changes]
        return subprocess.Popen([sys.executable, tiny_training.__file__, "train", str(root), *words])

    killed = driver({"workers": 2})
    wait_for(lambda: 2 in cards(root) or killed.poll() is not None)
    before, orphans = cards(root), train_workers(killed.pid)
    killed.kill()
    killed.wait()
    assert len(orphans) == 2
    wait_for(lambda: not set(orphans) & processes().keys())
    then = max(cards(root)) + 4
    last = then + 4                  # not UPDATES: rounding grows by a factor of ten in ten updates
    others = driver({"workers": 1, "steps": then}, {"workers": 2, "zero_stage": 2, "steps": last})
    assert others.wait(900) == 0
    check_nothing_was_lost(root, undisturbed, before, TOLERANCE, last)
