"""Disks that are full, read-only or broken: one line, nothing half-written, and the same command goes on."""

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from disks import small_disk

from infra import cluster
from infra.storage import FolderStorage, StorageError
from pipelines.alone import run_alone
from pipelines.ledger import Ledger
from pipelines.run import run_workflow
from pipelines.runner import prepare
from pipelines.work import Chain, ChainSpec, SetupError
from stages.base import Stage
from stages.clip import Clip

TINY = Path(__file__).parent


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk") as made:
        yield made


def command(*words):
    program = "from pipelines.cli import main; main()"
    surroundings = {**os.environ, "PYTHONPATH": str(TINY), "RAY_AUTH_MODE": "disabled"}
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=surroundings,
    )  # fmt: skip


def refusal(process):
    """The line that a run ends with."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    assert out == ""
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("pv3d: ")]
    assert err.splitlines()[-1] == line
    return line


def check_whole(store, caplog):
    """Nothing is half-written: no temporary file, no record without its arrays, no damage."""
    assert [entry.key for entry, _ in store.unfinished()] == []
    keys = set(store.list("ledger"))
    assert {key.removesuffix("jsonl") + "npz" for key in keys if key.endswith(".jsonl")} <= keys
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        ledger = Ledger(store)
        for stage in ("Cut", "Mark", "Second", "Keep", "Write"):
            list(ledger.records(stage))
    assert caplog.text == ""


def refused_by(workflow):
    """What a run says that cannot end, "" for one that does."""
    try:
        run_workflow(workflow, until="Write", in_process=True)
    except StorageError as error:
        return str(error)
    return ""


def test_a_disk_that_is_full_at_any_moment_of_a_run_stops_it_and_the_next_run_goes_on(
    tiny, disk, tmp_path, caplog
):
    undisturbed = run_workflow(tiny.load(), until="Write", in_process=True)[0]
    expected = tiny.output()
    refused = 0
    for pages in range(0, 200):
        root = disk.path / f"store-{pages}"
        workflow = tiny.load(f"storage.root={root}")
        disk.leave(pages)
        said = refused_by(workflow)
        disk.free()
        if not said:
            break
        refused += 1
        assert "No space left on device" in said
        assert "make room" in said
        assert "\n" not in said
        store = FolderStorage(root)
        check_whole(store, caplog)
        if pages % 5 == 0:
            again = run_workflow(workflow, until="Write", in_process=True)[0]
            assert again["kept"] == undisturbed["kept"]
            assert {key: store.read(key) for key in store.list("out")} == expected
        subprocess.run(["rm", "-rf", str(root)], check=True)
    assert refused > 10
    assert pages < 199


def test_the_command_says_it_in_one_line_and_goes_on_when_there_is_room(tiny, disk):
    words = ("run", tiny.path, "--until", "Write", "--in-process", "--set", f"storage.root={disk.path}/store")
    disk.leave(0)
    assert refusal(command(*words)) == (
        f"pv3d: storage.root: cannot write to {disk.path}/store (No space left on device); make room or "
        "permit it, or choose another folder"
    )
    disk.free()
    again = command(*words)
    assert again.wait(60) == 0, again.communicate()[1]


def test_a_store_that_becomes_read_only_stops_the_run_and_the_next_one_goes_on(tiny, disk, caplog):
    root = disk.path / "store"
    slow = ("--set", "stages.Mark.seconds=0.1", "--set", "source.count=20")
    words = ("run", tiny.path, "--until", "Write", "--in-process", "--set", f"storage.root={root}")
    process = command(*words, *slow)
    log = root / "calls.log"
    limit = time.monotonic() + 30
    while not (log.exists() and log.read_text().count("Mark") > 3):
        assert time.monotonic() < limit
        time.sleep(0.02)
    disk.read_only()
    assert "(Read-only file system); make room or permit it" in refusal(process)
    refused = refusal(command(*words))
    assert refused.startswith(f"pv3d: storage.root: cannot write to {root} (Read-only file system); ")
    for reader in ("status", "describe"):
        process = command(reader, tiny.path, "--set", f"storage.root={root}")
        assert process.wait(60) == 0, process.communicate()[1]
    disk.read_only(False)
    check_whole(FolderStorage(root), caplog)
    again = command(*words, "--json")
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["kept"] == 8


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere; see the read-only disk")
def test_a_folder_without_permission_is_refused_in_one_line(tiny, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    line = refusal(command("run", tiny.path, "--set", f"storage.root={locked}/store"))
    assert line.startswith(f"pv3d: storage.root: cannot write to {locked}/store (Permission denied); ")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_disk_that_is_full_is_told_by_workers_of_ray_too(tiny, disk, caplog):
    root = disk.path / "store"
    workflow = tiny.load(f"storage.root={root}")
    disk.leave(12)
    with pytest.raises(StorageError, match="No space left on device") as error:
        prepare(workflow, until="Write")
    assert "\n" not in str(error.value)
    disk.free()
    check_whole(FolderStorage(root), caplog)
    assert prepare(workflow, until="Write").kept == 8


# --- the disk for temporary files ------------------------------------------------------------------------


def test_a_full_disk_for_temporary_files_writes_no_shard_and_blames_no_clip(tmp_path, disk, monkeypatch):
    from tiny_dataset import clip_in

    from stages.shards import WriteShards

    store = FolderStorage(tmp_path / "store")
    chain = Chain([WriteShards(buckets=1)], ["WriteShards"], store)
    clips = [clip_in(store, "a1")]
    monkeypatch.setattr(tempfile, "tempdir", str(disk.path))
    disk.leave(2)
    with pytest.raises(StorageError) as error:
        chain.run_group("00000", clips)
    assert str(error.value) == (
        f"stage WriteShards: cannot use a file below {disk.path} (No space left on device); make room or "
        "permit it, or set TMPDIR to another folder"
    )
    assert [*store.list("shards"), *store.list("manifest")] == []
    assert [path.name for path in disk.path.iterdir()] == ["filler"]
    disk.free()
    (piece,) = chain.run_group("00000", clips)
    assert piece.state == "ok"


def test_no_ray_is_started_on_a_full_disk(disk, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(disk.path))
    with pytest.raises(ValueError, match=r"TMPDIR: .* has \d\.\d MB free, and a Ray needs 50 MB .*make room"):
        cluster._check_room()
    monkeypatch.setattr(cluster, "LEAST_ROOM", 1_000_000)
    cluster._check_room()


@pytest.mark.parametrize("pages", [0, 3])
def test_a_unit_that_is_tried_alone_is_not_failed_for_a_full_disk(tiny, disk, monkeypatch, pages):
    spec = ChainSpec((("tiny_stages:Cut", {}),), ("Cut",), str(tiny.root), {}, (str(TINY),))
    monkeypatch.setattr(tempfile, "tempdir", str(disk.path))
    disk.leave(pages)
    with pytest.raises(StorageError, match=r"stage Cut: cannot use .*No space left on device\); make room"):
        run_alone(spec, [Clip("v00", "v00.mp4", "/none/v00.mp4")], 0, None, 30.0)


def test_no_folder_for_temporary_files_at_all_is_one_line(tmp_path, monkeypatch):
    class Spills(Stage):
        name = "Spills"

        def process(self, clip):
            with tempfile.TemporaryDirectory():
                yield clip

        def setup(self, store):
            tempfile.gettempdir()

    def nowhere():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(SetupError, match=r"stage Spills: no folder for temporary files .* set TMPDIR"):
        Chain([Spills()], ["Spills"], FolderStorage(tmp_path)).run(Clip("a", "a", "a"), 0, 0)
