"""The bench that kills: it kills what it means to, and sees what it looks for."""

import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_dataset import clip_in, write

from infra.storage import FolderStorage
from pipelines.benches import chaos
from pipelines.benches.chaos import Chaos, Reference
from pipelines.benches.victim import Victim, session

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")

PARENT = """\
import subprocess, time
for _ in range(2):
    subprocess.Popen(["ray::Actor.run", "60"], executable="/bin/sleep", process_group=0)
helper = subprocess.Popen(["sleep", "60"])
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def victim(tmp_path):
    """A driver with a helper in its process group, and two "workers" in groups of their own, as Ray's are."""
    made = object.__new__(Victim)
    made.store = FolderStorage(tmp_path / "store")
    made.process = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    made.driver_killed = made.worker_killed = False
    made._known, made._looked = {}, 0.0
    assert made.process.stdout is not None
    made.process.stdout.readline()
    limit = time.monotonic() + 10
    while len(made.workers()) < 2 and time.monotonic() < limit:
        made._looked = 0.0
        time.sleep(0.05)
    yield made
    made.end()
    made.process.stdout.close()


def alive(victim):
    time.sleep(0.3)
    names = {"ray::Actor.run": "worker", "sleep": "helper"}
    return Counter(names.get(line.split()[0], "driver") for line in victim.processes().values())


@pytest.mark.parametrize(
    ("kind", "left"),
    [
        ("worker", {"driver": 1, "worker": 1, "helper": 1}), ("driver", {"worker": 2, "helper": 1}),
        ("group", {"worker": 2}), ("machine", {}),
    ],
)  # fmt: skip
def test_each_kind_of_kill_takes_what_it_says_and_nothing_else(victim, kind, left):
    bystander = subprocess.Popen(["sleep", "60"], start_new_session=True)
    assert alive(victim) == {"driver": 1, "worker": 2, "helper": 1}
    assert victim.kill(kind, random.Random(0))
    assert alive(victim) == left
    assert victim.worker_killed == (kind == "worker")
    victim.end()
    assert victim.processes() == {}
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_what_has_ended_by_itself_is_not_killed(victim):
    victim.process.kill()
    victim.process.wait()
    assert not victim.kill("driver", random.Random(0))
    assert victim.process.pid not in session(victim.process.pid)


def opened(tmp_path):
    made = object.__new__(Victim)
    made.store = FolderStorage(tmp_path / "store")
    made.driver_killed = True
    made._open_at_start = made.open_shards()
    made._names_at_start = made._names()
    made._committed_at_start = set(made.store.list("manifest"))
    return made


def test_a_kill_is_inside_a_commit_while_a_shard_of_this_run_has_no_manifest(tmp_path):
    store = FolderStorage(tmp_path / "store")
    first, both = {"manifest/00000-a.json"}, {"manifest/00000-a.json", "manifest/00001-b.json"}

    def inside(run, manifests):
        return run.left_inside_commit(manifests, run.open_shards())

    assert not inside(opened(tmp_path), first)
    run = opened(tmp_path)
    (tmp_path / "store" / "shards").mkdir(parents=True)
    unfinished = tmp_path / "store" / "shards" / ".tmp-1-ab"
    unfinished.write_bytes(b"half")
    assert inside(run, first)
    assert not inside(opened(tmp_path), first)                   # of a run before
    assert not run.left_inside_commit(first, set())              # begun by another worker, after the kill
    unfinished.unlink()
    store.write("shards/00000-a.tar", b"whole")
    assert run.begun() == {"00000-a.tar"}
    assert inside(run, first)
    store.create("manifest/00000-a.json", b"{}")
    assert not inside(run, both)
    assert inside(run, first)                                    # no version yet
    run.driver_killed = False
    assert not inside(run, first)                                # who makes the version lives
    run.driver_killed = True
    store.write("dataset/latest.json", b"{}")
    assert not inside(run, first)


def test_what_differs_is_lost_or_there_twice_is_counted(tmp_path, monkeypatch):
    store = FolderStorage(tmp_path / "store")
    write(store, [clip_in(store, name) for name in ("a1", "b2", "c3")])
    units = Counter({("a", "a1", "WriteShards", "ok", ""): 1, ("b", "b2", "WriteShards", "ok", ""): 1})
    told = []
    bench = Chaos(tmp_path, tmp_path, 1, 0, True, told.append)
    bench.reference = Reference(1.0, chaos._objects(store), units)
    monkeypatch.setattr(bench, "_units", lambda name: units)
    bench._compare("store")
    assert told == []
    (shard, *_) = (key for key in store.list("shards") if key.endswith(".tar"))
    store.write(shard, b"other")
    store.write("manifest/00009-f.json", b"{}")
    failed = ("b", "b2", "AlignCrop", "failed", "crashed: SIGKILL")
    monkeypatch.setattr(bench, "_units", lambda name: Counter({**units, failed: 1}) - Counter([*units][1:]))
    bench._compare("store")
    found = bench.found
    assert (found.shards_differing, found.units_lost, found.units_doubled) == (2, 1, 1)
    assert any(shard in line for line in told)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="--kills 0; give 1 or more"):
        chaos.run(kills=0)


@pytest.mark.slow
def test_a_real_run_that_is_killed_ends_in_the_same_bytes(tmp_path):
    pytest.importorskip("dlib")
    from stages.sources import portraits
    from stages.video import write_video

    scene = replace(portraits.SCENES["grace-hopper-3"], frames=32)
    frames = portraits.render(scene, portraits.load(scene.portrait))
    write_video(tmp_path / "v.mp4", frames, portraits.FPS)
    told = []
    figures = chaos.run(kills=2, seed=2, videos=str(tmp_path), in_process=1, progress=told.append)["figures"]
    assert figures["kills"] == 2
    assert figures["runs"] >= 3
    assert {name: figures[name] for name in chaos.MUST_BE_NOUGHT} == dict.fromkeys(chaos.MUST_BE_NOUGHT, 0)
    assert any("2 of 2 kills" in line for line in told)
