"""A real run, killed with SIGKILL again and again: it must end in the bytes of one that nobody disturbed.

The run is `pv3d run --until WriteShards` on Ray, of the demo's videos at small size. First it runs
undisturbed: that gives its duration, and the shards, manifests, versions and units to compare with. Then it
is killed at times uniform over that duration, and started again at once, until it ends; then a new store is
begun. A seeded generator chooses who is killed: every process of the run ("machine"), the driver's process
group ("group"), the driver alone, or one Ray worker. Of one run at most one worker is killed, because a unit
whose worker dies twice is poison, and failed on purpose. Every third run is not killed by the clock: the
store is watched, and the kill is aimed at a commit.

    kills                  made
    kills_inside_commit    of these, between the first put of a shard and the create of its manifest, or
                           between the last manifest and the version: at the kill and a fifth of a second
                           after it the store had the same shard that this run began and that has no manifest;
                           or the driver was killed, and there were all manifests and no version
    shards_differing       objects below shards/, manifest/ and dataset/ that are missing, other or too many
    units_lost             units of the undisturbed run that ended in no state, or in another one
    units_doubled          units, or samples of the dataset, that are there twice or should not be
    runs_failed            runs that ended by themselves, and not well
    processes_left         processes of a killed run that were still there half a minute later
    stores, runs           stores that were begun, commands that were started
    undisturbed_s, seconds of the first run, and of all of it
"""

from __future__ import annotations

import hashlib
import logging
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.storage import FolderStorage
from pipelines.benches.victim import WATCH_S, Victim
from pipelines.status import workflow_status
from pipelines.workflow import load
from stages.dataset import open_dataset

log = logging.getLogger(__name__)

WORKFLOW = """\
storage:
  root: {root}
source:
  use: stages.sources.folder:Folder
  location: {videos}
stages:
  - use: stages.shots:SplitShots
    maximum_seconds: 0.64
    minimum_frames: 8
  - use: stages.faces:FollowFace
    backend: stages.backends.dlib:DlibFaces
    minimum_frames: 8
    detect_every: 15
  - use: stages.smooth:SmoothLandmarks
  - use: stages.crop:AlignCrop
    size: 64
  - use: stages.cameras:FitCameras
  - use: stages.identity:EmbedFaces
    backend: stages.backends.dlib:DlibIdentity
    every: 6
  - use: stages.identity:VerifyIdentity
  - use: stages.balance:BalanceIdentities
    per_identity: 1000
  - use: stages.shards:WriteShards
    buckets: 64
train:
  variant: model.config:tiny
"""
COMMITTED = ("shards", "manifest", "dataset")
MUST_BE_NOUGHT = ("shards_differing", "units_lost", "units_doubled", "runs_failed", "processes_left")
AIMED = 3                        # every so many runs
SETTLED_S = 0.2                  # after a kill; a commit that nobody stopped is over then
ORPHANED_S = 30.0                # after a kill; what Ray started has noticed by then
AIM_S = 0.01                     # a commit of a small shard lasts about so long
MOST_FAILED = 3                  # runs; then the bench gives up

Tell = Callable[[str], None]
Unit = tuple[str, ...]


@dataclass
class Reference:
    """What the undisturbed run came to."""

    seconds: float
    objects: dict[str, str]                  # key -> sha256
    units: Counter[Unit]

    @property
    def manifests(self) -> set[str]:
        return {key for key in self.objects if key.startswith("manifest/")}


@dataclass
class Figures:
    kills: int = 0
    kills_inside_commit: int = 0
    shards_differing: int = 0
    units_lost: int = 0
    units_doubled: int = 0
    runs_failed: int = 0
    processes_left: int = 0
    stores: int = 0
    runs: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)


def run(
    kills: int = 10, seed: int = 0, videos: str = "", in_process: int = 0, progress: Tell = lambda line: None
) -> dict[str, Any]:
    """The figures. `videos`: a folder in place of the demo's; `in_process`: no Ray, so no workers."""
    if kills < 1:
        raise ValueError(f"bench chaos: --kills {kills}; give 1 or more")
    if not Path("/proc/self/stat").exists():
        raise ValueError("bench chaos: needs /proc, where it finds the processes of a run; use Linux")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pv3d-", ignore_cleanup_errors=True) as folder:
        chaos = Chaos(Path(folder), _videos(Path(folder), videos), kills, seed, bool(in_process), progress)
        chaos.all()
    found = chaos.found
    progress("kills: " + ", ".join(f"{kind} {count}" for kind, count in found.by_kind.most_common()))
    names = [name for name in vars(found) if name != "by_kind"]
    return {
        "figures": {
            **{name: getattr(found, name) for name in names},
            "undisturbed_s": round(chaos.reference.seconds, 1),
            "seconds": round(time.monotonic() - begun, 1),
        }
    }


def _videos(folder: Path, given: str) -> Path:
    """The folder of the videos. Raises ValueError when the demo's cannot be made."""
    if given:
        return Path(given).absolute()
    from stages.sources import portraits

    store = FolderStorage(folder / "demo")
    for clip in list(portraits.clips(store)):
        if clip.id.endswith("-2"):                           # four of the six do
            store.delete(clip.video.removeprefix("store:"))
    return Path(store.root, "demo", "videos")


class Chaos:
    """Runs, kills and compares."""

    def __init__(
        self, folder: Path, videos: Path, kills: int, seed: int, in_process: bool, tell: Tell
    ) -> None:
        self.folder, self.videos, self.kills, self.in_process = folder, videos, kills, in_process
        self.random = random.Random(seed)
        self.tell = tell
        self.found = Figures()

    def all(self) -> None:
        first = self._start("undisturbed")
        status, seconds = first.wait(), first.seconds
        if status != 0:
            raise RuntimeError(f"bench chaos: the undisturbed run ended with status {status}: {first.tail()}")
        store = first.store
        self.reference = Reference(seconds, _objects(store), self._units("undisturbed"))
        self.tell(f"undisturbed: {seconds:.1f} s, {len(self.reference.manifests)} shards")
        begun = time.monotonic()
        while self.found.kills < self.kills:
            name = f"store-{self.found.stores:03d}"
            self.found.stores += 1
            killed = self._until_it_ends(name, begun)
            self._bury(killed)
            self._compare(name)
            shutil.rmtree(self.folder / name)

    def _until_it_ends(self, name: str, begun: float) -> list[Victim]:
        """Run, kill and run again. Returns the runs that were killed."""
        killed: list[Victim] = []
        while True:
            run = self._start(name)
            self._disturb(run)
            status = run.wait(timeout_s=120 + 10 * self.reference.seconds)
            if status == 0:
                return killed
            killed.append(run)
            if not run.driver_killed:
                self.found.runs_failed += 1
                self.tell(f"a run ended with status {status}: {run.tail()}")
                if self.found.runs_failed >= MOST_FAILED:
                    raise RuntimeError(f"bench chaos: {MOST_FAILED} runs failed; the last: {run.tail()}")
            done = self.found.kills
            left = (self.kills - done) * (time.monotonic() - begun) / max(done, 1)
            self.tell(
                f"{done} of {self.kills} kills, {self.found.kills_inside_commit} inside a commit, "
                f"{self.found.stores} stores, {left:.0f} s left"
            )

    def _bury(self, killed: list[Victim]) -> None:
        """Wait until no process of the runs is left: orphans end by themselves."""
        limit = time.monotonic() + ORPHANED_S
        while any(run.processes() for run in killed) and time.monotonic() < limit:
            time.sleep(0.2)
        for run in killed:
            self.found.processes_left += len(run.processes())
            run.end()

    def _start(self, name: str) -> Victim:
        self.found.runs += 1
        return Victim(self.folder, name, self._workflow(name), self.in_process)

    def _workflow(self, name: str) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(WORKFLOW.format(root=self.folder / name, videos=self.videos))
        return path

    # --- killing -----------------------------------------------------------------------------------------

    def _disturb(self, run: Victim) -> None:
        """Kill while there are kills left, the driver lives and the drawn time is not beyond its end."""
        kinds = ["driver"] if self.in_process else ["machine", "group", "driver"]
        earliest = 0.0
        while self.found.kills < self.kills and not run.driver_killed:
            if self.found.runs % AIMED == 0:
                if not self._await_commit(run):
                    return
                kind = "driver" if self.in_process else self.random.choice(["machine", "worker"])
            else:
                at = self.random.uniform(earliest, self.reference.seconds)
                if run.ended(at):
                    return
                kind, earliest = self.random.choice([*kinds, "worker"]), at
            if kind == "worker" and (run.worker_killed or not run.workers()):
                kind = self.random.choice(kinds)
            if not run.kill(kind, self.random):
                return
            self.found.kills += 1
            self.found.by_kind[kind] += 1
            at_kill = run.open_shards()
            time.sleep(SETTLED_S)
            inside = run.left_inside_commit(self.reference.manifests, at_kill)
            self.found.kills_inside_commit += inside
            log.debug("%s killed after %.1f s%s", kind, run.seconds, ", inside a commit" * inside)

    def _await_commit(self, run: Victim) -> bool:
        """Wait until a shard is begun, and some milliseconds; False when the run ends before."""
        number = self.random.randint(1, max(1, len(self.reference.manifests) // 3))
        while len(run.begun()) < number:
            if run.ended(within=WATCH_S):
                return False
            run.look()                       # who to kill has to be known when it is time
        time.sleep(self.random.uniform(0, AIM_S))
        return True

    # --- comparing ---------------------------------------------------------------------------------------

    def _units(self, name: str) -> Counter[Unit]:
        answer, _ = workflow_status(load(self._workflow(name)))
        told = ("source", "clip", "stage", "state", "reason")
        return Counter(tuple(str(unit[key]) for key in told) for unit in answer["units"])

    def _compare(self, name: str) -> None:
        reference, store = self.reference, FolderStorage(self.folder / name)
        objects, units = _objects(store), self._units(name)
        differing = sorted(
            key for key in objects.keys() | reference.objects.keys()
            if objects.get(key) != reference.objects.get(key)
        )  # fmt: skip
        lost, doubled = reference.units - units, units - reference.units
        samples = Counter(sample.clip_id for sample in open_dataset(store).samples)
        twice = sorted(clip for clip, count in samples.items() if count > 1)
        for what, some in (("differing", differing), ("lost", sorted(lost)), ("doubled", sorted(doubled))):
            if some:
                self.tell(f"{name}: {what}: {some[:3]}")
        self.found.shards_differing += len(differing)
        self.found.units_lost += lost.total()
        self.found.units_doubled += doubled.total() + len(twice)


def _objects(store: FolderStorage) -> dict[str, str]:
    return {
        key: hashlib.sha256(store.read(key)).hexdigest() for part in COMMITTED for key in store.list(part)
    }
