"""Real clips, damaged in every way that files get damaged, through the stages that open files.

A mutant is made of one clip, or of two: cut off, bits flipped anywhere or in the header, the header of
another file, halves spliced, stretches zeroed. The mutants are listed by the source of folders and go through
SplitShots and `ReadFrames`, which reads whole frames as the crop does, on Ray as in any run: each worker a
process, each unit with a limit of time, a unit whose worker died tried once more alone.

    crashed          mutants that killed a worker twice, or made a stage raise what it should not
    hung             mutants that ended at the limit of time
    without_reason   mutants that ended neither in a clip nor in a record with a reason
    kept, rejected   mutants of which a clip could be read; mutants that a reason stopped
"""

from __future__ import annotations

import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from infra.storage import FolderStorage, Storage
from pipelines.benches.manifest import read
from pipelines.ledger import Ledger
from pipelines.runner import prepare
from pipelines.work import StageBugError
from pipelines.workflow import Step, Workflow, load
from stages.base import Stage
from stages.clip import Clip
from stages.shots import SplitShots
from stages.sources.folder import Folder

MOST_BYTES = 1_500_000           # of a clip that is damaged
AT_ONCE = 250                    # mutants on disk
TIMEOUT_S = 60.0                 # of a stage; a sound clip takes one or two

Rng = np.random.Generator


@dataclass
class ReadFrames(Stage):
    """Reads every frame of a clip at full size, as the crop does, and keeps nothing."""

    name: ClassVar[str] = "ReadFrames"
    reads: ClassVar[tuple[str, ...]] = ("video", "width", "height", "frame_times_s")
    writes: ClassVar[tuple[str, ...]] = ("extra.frames",)

    def setup(self, store: Storage) -> None:
        self._store = store

    def process(self, clip: Clip) -> Iterator[Clip]:
        from stages import video

        with video.resolve(self._store, clip.video) as path:
            count = sum(1 for _ in video.read_frames(path, clip.need("frame_times_s")))
        yield clip.copy(extra={**clip.extra, "frames": count})


def run(
    data: Path | None = None, count: int = 1000, seed: int = 0, workflow: str = "workflow.yaml",
    in_process: int = 0, progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """The figures. Without `data` the demo's videos are damaged."""
    if count < 1 or seed < 0:
        raise ValueError(f"bench mutants: count {count}, seed {seed}; 1 and 0 are the least")
    begun = time.perf_counter()
    outcomes: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="pv3d-bench-") as folder:
        originals = list(_originals(data, Path(folder, "demo")))
        for first in range(0, count, AT_ONCE):
            place = Path(folder, str(first))
            place.mkdir()
            for number in range(first, min(first + AT_ONCE, count)):
                name, content = mutant(originals, seed, number)
                (place / f"{name}.mp4").write_bytes(content)
            with tempfile.TemporaryDirectory(prefix="pv3d-bench-") as root:
                outcomes |= _send(_workflow(workflow, place, root), place, bool(in_process), progress)
            progress(f"{len(outcomes)} of {count}: {_told(outcomes.values())}")
    ways = sorted({name.partition("-")[2] for name in outcomes})
    for way in ways:
        progress(f"{way}: {_told(out for name, out in outcomes.items() if name.endswith(way))}")
    kinds = Counter(_kind(outcome) for outcome in outcomes.values())
    seconds = time.perf_counter() - begun
    return {
        "figures": {
            "count": len(outcomes),
            **{kind: kinds[kind] for kind in ("crashed", "hung", "without_reason", "kept", "rejected")},
            "seconds": seconds,
            "mutants_per_s": len(outcomes) / seconds,
        }
    }  # fmt: skip


def _originals(data: Path | None, folder: Path) -> Iterator[bytes]:
    """Sound files. Raises ValueError where there are none."""
    if data is None:
        from stages import video
        from stages.sources import portraits

        store = FolderStorage(folder)
        for clip in portraits.clips(store):
            with video.resolve(store, clip.video) as path:
                yield path.read_bytes()
        return
    rows = [row for row in read(data) if row.good and row.path.stat().st_size <= MOST_BYTES]
    if not rows:
        raise ValueError(f"--data {data}: has no good clip below {MOST_BYTES:,} bytes")
    for row in rows:
        yield row.path.read_bytes()


# --- damage ----------------------------------------------------------------------------------------------


def mutant(originals: Sequence[bytes], seed: int, number: int) -> tuple[str, bytes]:
    """(name, content) of a damaged file; the same for the same arguments."""
    rng = np.random.default_rng((seed, number))
    data, other = (originals[i] for i in rng.integers(len(originals), size=2))
    ways = list(WAYS)
    way = ways[number % len(ways)]
    return f"m{number:05d}-{way}", WAYS[way](bytearray(data), other, rng)


def truncated(data: bytearray, other: bytes, rng: Rng) -> bytes:
    return bytes(data[:_place(rng, len(data))])


def flipped(data: bytearray, other: bytes, rng: Rng) -> bytes:
    return _flip(data, 0, len(data), rng)


def flipped_header(data: bytearray, other: bytes, rng: Rng) -> bytes:
    return _flip(data, *header(data), rng)


def swapped_header(data: bytearray, other: bytes, rng: Rng) -> bytes:
    """The description of another file, or just its first bytes."""
    first, end = header(other)
    if rng.random() < 0.5:
        size = _place(rng, len(data))
        return bytes(other[:size] + data[size:])
    start, stop = header(data)
    return bytes(data[:start] + other[first:end] + data[stop:])


def spliced(data: bytearray, other: bytes, rng: Rng) -> bytes:
    return bytes(data[:_place(rng, len(data))] + other[_place(rng, len(other)):])


def zeroed(data: bytearray, other: bytes, rng: Rng) -> bytes:
    for _ in range(rng.integers(1, 5)):
        start, size = rng.integers(len(data)), round(16 * (len(data) / 16) ** rng.random())
        data[start:start + size] = bytes(len(data[start:start + size]))
    return bytes(data)


WAYS: dict[str, Callable[[bytearray, bytes, Rng], bytes]] = {
    way.__name__: way for way in (truncated, flipped, flipped_header, swapped_header, spliced, zeroed)
}


def header(data: bytes | bytearray) -> tuple[int, int]:
    """(first byte, end) of an mp4 file's `moov` box, which describes all else; elsewhere of 4 kB."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack(">I4s", data[at:at + 8])
        if kind == b"moov" and size >= 8:
            return at, min(at + size, len(data))
        if size < 8:
            break
        at += size
    return 0, min(4096, len(data))


def _flip(data: bytearray, start: int, end: int, rng: Rng) -> bytes:
    count = round(64 ** rng.random())                      # 1 ... 64, few more often than many
    for at in rng.integers(start, end, count):
        data[at] ^= 1 << int(rng.integers(8))
    return bytes(data)


def _place(rng: Rng, size: int) -> int:
    """Anywhere in a file, its first and last bytes more often."""
    near = round(size ** rng.random())
    return (int(rng.integers(size)), near, size - near)[rng.integers(3)]


# --- what becomes of it ----------------------------------------------------------------------------------


def _workflow(path: str, videos: Path, root: str) -> Workflow:
    planned = load(path)
    steps = [
        Step(stage.name, f"{type(stage).__module__}:{type(stage).__name__}", stage, stage.resources,
             planned.steps[0].workers, TIMEOUT_S)
        for stage in (SplitShots(), ReadFrames())
    ]  # fmt: skip
    return replace(
        planned, source=Folder(location=str(videos)), steps=tuple(steps),
        storage=planned.storage.model_copy(update={"root": root}),
    )  # fmt: skip


def _send(
    workflow: Workflow, place: Path, in_process: bool, progress: Callable[[str], None]
) -> dict[str, str]:
    """What became of each file of `place`, by name: "kept", a reason, "bug: ...", or ""."""
    outcomes = {path.stem: "" for path in place.iterdir()}
    while True:
        try:
            prepare(workflow, in_process=in_process)
            break
        except StageBugError as error:                     # stops a run: go on without its file
            unit = error.args[1]
            name = unit if unit in outcomes else unit.rpartition("_")[0]
            progress(str(error))
            outcomes[name] = f"bug: {error}"
            (place / f"{name}.mp4").unlink()
    ledger = Ledger(workflow.store())
    cut, frames = ({record.unit: record for record in ledger.records(step.name)} for step in workflow.steps)
    for name in [name for name, outcome in outcomes.items() if not outcome and name in cut]:
        record = cut[name]
        outcomes[name] = record.reason
        if record.state == "ok":
            states = [frames[out.id] for out in record.outputs if out.state == "ok" and out.id in frames]
            whole = sum(out.state == "ok" for out in record.outputs) == len(states)
            reasons = ["kept" if one.state == "ok" else one.reason for one in states]
            outcomes[name] = max(reasons, key=_rank) if whole and all(reasons) else ""
    return outcomes


def _kind(outcome: str) -> str:
    if outcome.startswith(("crashed", "bug")):
        return "crashed"
    return {"kept": "kept", "timed out": "hung", "": "without_reason"}.get(outcome, "rejected")


def _rank(outcome: str) -> int:
    """The worst of a file's clips counts, but one that is kept more than one that is rejected."""
    return ["rejected", "kept", "hung", "crashed"].index(_kind(outcome))


def _told(outcomes: Any) -> str:
    return ", ".join(f"{reason or 'no reason'} {count}" for reason, count in Counter(outcomes).most_common())
