"""A run on a real Ray of three nodes on this machine: who works where, and what a lost node costs."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

from pipelines.ledger import Ledger
from pipelines.workflow import load

pytestmark = pytest.mark.slow

WORKFLOW = """\
storage:
  root: {root}
source:
  use: tiny_stages:Numbers
  count: 60
stages:
  - use: sited:Fetched
    log: {root}.log
    seconds: 0.3
    resources: {{cpus: 0.25, custom: {{egress: 1}}}}
  - use: sited:Held
    log: {root}.log
    seconds: 0.15
    resources: {{cpus: 0.5}}
    workers: {{min: 3, max: 5}}
  - use: sited:Seen
    log: {root}.log
    seconds: 0.01
    resources: {{cpus: 0.25, gpus: 0.5}}
train:
  variant: model.config:tiny
"""
RUN = """
import sys
from infra import cluster
from pipelines.runner import prepare
from pipelines.workflow import load
prepare(load(sys.argv[1]), ray_address=sys.argv[2])
cluster.stop()
"""


@pytest.fixture(scope="module")
def three_nodes():
    """(cluster, {name: node}): a head with a GPU, and two more; all but `last` may fetch."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with (
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", folder)       # not the place where "auto" looks for other tests
        common = {"object_store_memory": 80 << 20, "num_cpus": 2}
        cluster = Cluster(True, head_node_args={**common, "num_gpus": 1, "resources": {"egress": 2}})
        nodes = {"head": cluster.head_node}
        nodes["lost"] = cluster.add_node(**common, resources={"egress": 1})
        nodes["last"] = cluster.add_node(**common)
        yield cluster, nodes
        cluster.shutdown()


def lines(folder: Path) -> list[dict]:
    log = folder / "store.log"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def most_at_once(begun_and_ended: list[dict]) -> int:
    now = most = 0
    for line in sorted(begun_and_ended, key=lambda line: line["at"]):
        now += 1 if line["what"] == "began" else -1
        most = max(most, now)
    return most


@pytest.mark.timeout(240)
def test_a_lost_node_and_a_drained_one_cost_no_unit_and_all_work_where_they_may(three_nodes, tmp_path):
    cluster, nodes = three_nodes
    ids = {node.node_id: name for name, node in nodes.items()}
    path = tmp_path / "workflow.yaml"
    path.write_text(WORKFLOW.format(root=tmp_path / "store"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.Popen([sys.executable, "-c", RUN, str(path), cluster.address], env=environment)
    try:
        wait_for(lambda: {"Fetched", "Held"} <= {line["stage"] for line in on("lost", tmp_path, ids)}, run)
        wait_for(lambda: len(lines(tmp_path)) > 40 and on("last", tmp_path, ids), run)
        lost_at = time.time()
        kill(nodes["lost"])
        drain(cluster, nodes["last"].node_id)
        drained_at = time.time()
        assert run.wait(200) == 0
    finally:
        run.kill()
    noted = lines(tmp_path)
    records = [r for step in load(path).steps for r in Ledger(load(path).store()).records(step.name)]
    assert Counter((r.state, r.attempts) for r in records) == {("ok", 1): 3 * 60}
    where = {stage: {ids[line["node"]] for line in noted if line["stage"] == stage}
             for stage in ("Fetched", "Held", "Seen")}  # fmt: skip
    assert where == {"Fetched": {"head", "lost"}, "Held": {"head", "lost", "last"}, "Seen": {"head"}}
    before = [line for line in noted if line["at"] < lost_at]
    for name, most in (("head", 2), ("lost", 1)):
        fetched = [line for line in before if line["stage"] == "Fetched" and ids[line["node"]] == name]
        assert most_at_once(fetched) <= most
    assert most_at_once([line for line in before if line["stage"] == "Held"]) <= 5
    late = [line for line in on("last", tmp_path, ids) if line["began"] > drained_at + 7]
    assert not late


def on(name: str, folder: Path, ids: dict[str, str]) -> list[dict]:
    return [line for line in lines(folder) if ids[line["node"]] == name]


def wait_for(happened, run) -> None:
    deadline = time.monotonic() + 90
    while not happened():
        assert time.monotonic() < deadline
        assert run.poll() is None
        time.sleep(0.05)


def kill(node) -> None:
    """As a power cut does: all at once."""
    (raylet,) = (process.process.pid for process in node.all_processes["raylet"])
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(raylet)], capture_output=True, check=True)
    for pid in [raylet, *map(int, found.stdout.split())]:
        os.kill(pid, signal.SIGKILL)


def drain(cluster, node_id: str) -> None:
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = GcsClient(address=cluster.address).drain_node(
        node_id, reason, "a test", int((time.time() + 3600) * 1000)
    )
    assert accepted, why
