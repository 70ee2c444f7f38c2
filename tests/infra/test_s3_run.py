"""Runs of small real stages into S3, undisturbed and not, against the same run into a folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

pytest.importorskip("cv2")

from fault_proxy import FaultProxy
from people_store import STAGES, contents, outcomes, workflow_file

from infra.storage import FolderStorage, Storage
from pipelines.ledger import read_segment
from pipelines.runner import prepare
from pipelines.workflow import load
from stages.dataset import open_dataset

pytestmark = pytest.mark.s3

OUTAGE_S = float(os.environ.get("PV3D_TEST_OUTAGE_S", "3"))
TESTS = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)              # where the stages note what they do


def workflow(root, *changes):
    return load(workflow_file(Path(), root, count=20), None, changes)


def made(store: Storage) -> dict[str, bytes]:
    """What readers see: shards, indices, manifests and the dataset."""
    return contents(store, "shards", "manifest", "dataset")


def records_written(store: Storage) -> dict[str, int]:
    segments = [key for key in store.list("ledger") if key.endswith(".jsonl")]
    counts = dict.fromkeys(STAGES, 0)
    for key in segments:
        counts[key.split("/")[1]] += len(read_segment(store, key))
    return counts


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The same run into a folder: what it made, and how every unit ended."""
    folder = tmp_path_factory.mktemp("undisturbed")
    before = Path.cwd()
    os.chdir(folder)
    try:
        prepare(workflow(folder / "store"), in_process=True)
    finally:
        os.chdir(before)
    store = FolderStorage(folder / "store")
    assert len(made(store)) >= 10
    return made(store), outcomes(store)


def check(root, server, undisturbed):
    """Nothing lost, nothing twice, the same bytes."""
    store = workflow(root, f"storage.s3.endpoint={server.endpoint}").store()
    shards, ended = undisturbed
    assert outcomes(store) == ended
    assert {stage: len(units) for stage, units in ended.items()} == records_written(store)
    assert made(store) == shards
    log = Path(root, "calls.log")            # a folder named s3:, for a root on S3
    calls = log.read_text().splitlines()
    assert len(calls) == len(set(calls))


@pytest.fixture
def root():
    return f"s3://pv3d-test/{uuid.uuid4().hex[:12]}"


@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_through_a_faulty_network_loses_nothing_and_does_nothing_twice(rgw, root, seed, undisturbed):
    with FaultProxy(rgw.endpoint, rate=0.05, seed=seed) as proxy:
        prepare(workflow(root, f"storage.s3.endpoint={proxy.endpoint}"), in_process=True)
        assert sum(count for fault, count in proxy.faults.items() if fault) >= 5
    check(root, rgw, undisturbed)


def test_a_run_outlives_an_outage_of_the_server(rgw, root, undisturbed):
    with FaultProxy(rgw.endpoint) as proxy:
        proxy.outage(OUTAGE_S, after=60)
        begun = time.monotonic()
        prepare(workflow(root, f"storage.s3.endpoint={proxy.endpoint}"), in_process=True)
        assert time.monotonic() - begun >= OUTAGE_S
        assert proxy.faults["reset"] > 0
    check(root, rgw, undisturbed)


def test_a_run_that_is_killed_ends_the_same_when_it_is_started_again(rgw, root, undisturbed):
    with FaultProxy(rgw.endpoint) as proxy:
        endpoint = f"storage.s3.endpoint={proxy.endpoint}"
        path = workflow(root, endpoint).path
        for requests in (40, 90):            # after so many of them, in the midst of the next
            command = [
                sys.executable, "-c", "from pipelines.cli import main; main()", "run", path, "--in-process",
                "--until", "WriteShards", "--set", endpoint,
            ]  # fmt: skip
            paths = os.pathsep.join(map(str, (TESTS.parent, TESTS / "pipelines")))
            most = proxy.requests + requests
            quiet = subprocess.DEVNULL
            with subprocess.Popen(
                command, env={**os.environ, "PYTHONPATH": paths}, stdout=quiet, stderr=quiet
            ) as child:
                while proxy.requests < most and child.poll() is None:
                    time.sleep(0.002)
                child.kill()
            assert child.returncode == -signal.SIGKILL
    prepare(workflow(root, f"storage.s3.endpoint={rgw.endpoint}"), in_process=True)
    store = workflow(root, f"storage.s3.endpoint={rgw.endpoint}").store()
    shards, ended = undisturbed
    assert outcomes(store) == ended
    assert made(store) == shards


def pv3d(*arguments, **environment):
    """The command in a process of its own: exit status, the last line of stderr, all that it said."""
    paths = os.pathsep.join(map(str, (TESTS.parent, TESTS / "pipelines")))
    done = subprocess.run(
        [sys.executable, "-c", "from pipelines.cli import main; main()", *arguments],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths, **environment},
    )  # fmt: skip
    return done.returncode, (done.stderr.strip().splitlines() or [""])[-1], done.stdout + done.stderr


def test_the_command_refuses_wrong_credentials_and_a_missing_bucket_in_one_line(rgw, root):
    there = f"storage.s3.endpoint={rgw.endpoint}"
    for command in (["run", "--in-process", "--until", "Cut"], ["status"]):
        status, line, said = pv3d(
            *command, workflow(root).path, "--set", there, AWS_SECRET_ACCESS_KEY="wrong-and-secret"
        )
        assert status == 2
        assert line.startswith("pv3d: storage.root: s3://pv3d-test/")
        assert "check AWS_SECRET_ACCESS_KEY or storage.s3.profile" in line
        assert len(said.splitlines()) == 1
        assert "wrong-and-secret" not in said
    status, line, said = pv3d("status", workflow("s3://pv3d-none/x").path, "--set", there)
    assert (status, len(said.splitlines())) == (2, 1)
    assert "create the bucket" in line


def test_neither_the_log_nor_the_store_holds_a_secret(rgw, root):
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    status, _, said = pv3d(
        "run", "--in-process", "--until", "WriteShards", workflow(root).path,
        "--set", f"storage.s3.endpoint={rgw.endpoint}", "--set", "source.count=2", PV3D_LOG="DEBUG",
    )  # fmt: skip
    assert status == 0, said
    assert secret not in said
    assert "Credential=" not in said
    store = workflow(root, f"storage.s3.endpoint={rgw.endpoint}").store()
    assert all(secret.encode() not in store.read(key) for key in store.list())


def test_readers_list_nothing_and_fetch_only_what_a_manifest_names(rgw, root):
    workflow_ = workflow(root, f"storage.s3.endpoint={rgw.endpoint}", "source.count=4")
    prepare(workflow_, in_process=True)
    store = workflow_.store()
    manifests = [json.loads(store.read(key)) for key in store.list("manifest")]
    orphan = f"shards/{'0' * 5}-{'f' * 16}"  # a shard without a manifest, as a run that was killed leaves it
    store.write(f"{orphan}.tar", store.read(manifests[0]["tar"]))
    store.write(f"{orphan}.index.json", store.read(manifests[0]["index"]))
    with FaultProxy(rgw.endpoint) as proxy:
        data = open_dataset(workflow(root, f"storage.s3.endpoint={proxy.endpoint}").store())
        assert {sample.clip_id for sample in data.samples} == {
            sample["clip_id"] for manifest in manifests for sample in manifest["samples"]
        }
        assert all(data.frames(sample, [0]).shape for sample in data.samples)
    base = f"/{root.removeprefix('s3://')}/"
    asked = {path.partition("?")[0].removeprefix(base) for _, path, _ in proxy.asked}
    assert not [path for _, path, _ in proxy.asked if "list-type" in path]
    named = {manifest[kind] for manifest in manifests for kind in ("tar", "index")}
    assert {key for key in asked if key.startswith("shards/")} == named
    assert {key.split("/")[0] for key in asked} == {"dataset", "manifest", "shards"}
