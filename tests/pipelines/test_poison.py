"""What becomes of units that end their workers, on a real Ray; the others must not be touched by it."""

import os
import time
from pathlib import Path

import pytest

from pipelines.ledger import Ledger
from pipelines.runner import prepare
from pipelines.workflow import load

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

WORKFLOW = """\
storage:
  root: {root}
source:
  use: tiny_stages:Numbers
  count: 10
stages:
  - use: poison:Plain
    folder: {root}
    timeout_s: 1
    resources: {{cpus: 0.5}}
    how: {{v01: segv, v02: native}}
  - use: poison:Hold
    folder: {root}
    timeout_s: 1
    how: {{v05: child, v06: allocate, v07: "child and crash"}}
  - use: poison:Bundle
    folder: {root}
    how: {{"8": segv}}
train:
  variant: model.config:tiny
"""
BECAME = {
    ("Plain", "v01"): "crashed: SIGSEGV",
    ("Plain", "v02"): "timed out",
    ("Hold", "v05"): "timed out",
    ("Hold", "v06"): "out of memory",
    ("Hold", "v07"): "crashed: SIGSEGV",
    ("Bundle", "v08"): "crashed: SIGSEGV",
}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


@pytest.fixture(scope="module")
def run(ray_session, tmp_path_factory):
    folder = tmp_path_factory.mktemp("poison")
    (folder / "workflow.yaml").write_text(WORKFLOW.format(root=folder / "store"))
    workflow = load(folder / "workflow.yaml")
    return workflow, prepare(workflow), folder


def test_each_unit_that_ends_its_worker_fails_with_the_cause_and_the_run_goes_on(run):
    workflow, done, _ = run
    ledger = Ledger(workflow.store())
    records = [(step.name, r) for step in workflow.steps for r in ledger.records(step.name)]
    failed = {(name, r.unit): r.reason for name, r in records if r.state == "failed"}
    assert failed == BECAME
    assert {r.attempts for _, r in records if r.state == "failed"} == {2}
    bundled = [r.unit for name, r in records if name == "Bundle" and r.state == "ok"]
    assert sorted(bundled) == ["v00", "v03", "v04", "v09"]
    assert done.kept == 4


def test_it_says_where_in_the_code(run):
    workflow, _, _ = run
    records = {r.unit: r for name in ("Plain", "Hold") for r in Ledger(workflow.store()).records(name)
               if r.state == "failed"}  # fmt: skip
    assert records["v01"].detail.endswith(" in go_wrong")
    assert records["v02"].detail.endswith(" in go_wrong")
    assert records["v05"].detail.startswith("poison.py:")
    assert "Unable to allocate" in records["v06"].detail


def test_no_process_of_theirs_stays(run):
    _, _, folder = run
    children = [int(line) for line in (folder / "store" / "children.log").read_text().split()]
    assert len(children) == 4                    # two tries of two units
    deadline = time.monotonic() + 10
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(map(alive, children))


def test_a_second_run_leaves_them_alone_until_a_setting_changes(run):
    workflow, _, folder = run
    assert set(prepare(workflow).redone.values()) == {0}
    cured = load(folder / "workflow.yaml", None, ["stages.Bundle.how={}"])
    assert prepare(cured).redone == {"Plain": 0, "Hold": 0, "Bundle": 5}
