"""The whole data half over a folder of real videos: what is kept, and whether it ought to be.

DATA/videos goes through every stage of the workflow, with the best backends that are here and limits of size
that admit videos of 256 px. `inspection` then looks at each clip that reached the balance.

    kept_good_clips_fraction   videos that are not `neg` in the manifest of which a clip reaches the balance
    bad_clips_kept             clips that reach it and have a cut inside, two lasting faces, no face for more
                               than 5 frames, a frozen picture, fewer than 48 frames, or a file that does not
                               decode
    over_two_per_identity      people of the manifest, or of the balance, of more than two clips in the shards
    negatives_kept             `neg` videos of which a clip is kept; no fault where it lies beside the fault
    videos, clips, kept        listed; that reached the balance; in the shards
    seconds                    of the stages

A video of less than `minimum_source_fps` (20) frames per second is rejected as in any run: its frames would
be doubled, and a model of motion would learn that. Paper and lists say nothing of it.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.benches.identity import best_backends
from pipelines.benches.inspection import Detect, faults
from pipelines.benches.manifest import Listed, Videos, read
from pipelines.ledger import Ledger, Record
from pipelines.runner import prepare
from pipelines.workflow import Workflow, load
from stages.clip import Clip

# Talking heads of 256 px fill their frame; the smallest wanted face has about 70 px.
ADMIT = ("stages.FollowFace.minimum_face_px=64", "stages.AlignCrop.min_source_px=100")


def run(
    data: Path, workflow: str = "workflow.yaml", faces: str = "", network: str = "", root: str = "",
    in_process: int = 0, progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """The figures. `faces` and `network` name other backends than the best that are here; `root` names a
    store that keeps what is made."""
    rows = {row.name: row for row in read(data)}
    chosen = best_backends()
    for name, path in (("stages.FollowFace.backend", faces), ("stages.EmbedFaces.backend", network)):
        chosen |= {name: path} if path else {}
    progress(f"backends: {', '.join(path.partition(':')[2] for path in chosen.values())}")
    settings = [f"{name}={path}" for name, path in chosen.items()]
    with tempfile.TemporaryDirectory(prefix="pv3d-bench-") as folder:
        planned = load(workflow, None, [*settings, *ADMIT])
        planned = replace(
            planned, source=Videos(list(rows.values())),
            storage=planned.storage.model_copy(update={"root": root or folder}),
        )  # fmt: skip
        begun = time.perf_counter()
        prepare(planned, in_process=bool(in_process))
        seconds = time.perf_counter() - begun
        found = Found.read(planned, rows)
        for row in rows.values():
            progress(f"{row.kind:<5} {row.name:<28} {found.told(row)}")
        bad = list(found.bad(_detector(progress)))
        for name, detail in bad:
            progress(f"bad: {name}: {detail}")
    figures = {**found.figures(), "bad_clips_kept": len({name for name, _ in bad}), "seconds": seconds}
    return {"figures": figures}


def _detector(progress: Callable[[str], None]) -> Detect | None:
    from infra import weights

    if not weights.find("yunet"):
        progress("no weights of YuNet are here: clips are not searched for other faces, or for none")
        return None
    from stages.backends.yunet import YuNet

    return YuNet().detect


@dataclass(frozen=True)
class Found:
    """What the run came to. `source` of a clip is the name of its row."""

    rows: dict[str, Listed]
    reached: list[Clip]                      # the balance
    kept: list[Clip]                         # in the shards
    reasons: dict[str, Counter[str]]         # by row: why clips, or the whole video, are not among `reached`

    @classmethod
    def read(cls, workflow: Workflow, rows: dict[str, Listed]) -> Found:
        ledger = Ledger(workflow.store())
        names = [step.name for step in workflow.steps]
        place = names.index("BalanceIdentities")
        reasons: dict[str, Counter[str]] = defaultdict(Counter)
        for name in names[:place]:
            for record in ledger.records(name):
                for reason in _rejections(record):
                    reasons[record.source][f"{name}: {reason}"] += 1
        before, last = names[place - 1], names[-1]

        def clips(name: str) -> list[Clip]:
            records = ledger.records(name)
            return [ledger.load(ref) for record in records for ref in ledger.outputs(record)]

        return cls(rows, clips(before), clips(last), reasons)

    def told(self, row: Listed) -> str:
        """What became of a video, in a line."""
        count = sum(clip.source == row.name for clip in self.reached)
        why = ", ".join(f"{reason} ({n})" for reason, n in self.reasons.get(row.name, {}).items())
        kept = f"{count} clips" if count else "nothing"
        return f"{kept}; {why}" if why else kept

    def bad(self, detect: Detect | None) -> Iterator[tuple[str, str]]:
        """(clip id, what is wrong with it)."""
        for clip in sorted(self.reached, key=lambda clip: clip.id):
            if not self.rows[clip.source].decodes:
                yield clip.id, "the manifest says that the file does not decode"
            for fault in faults(Path(clip.video), clip, detect):
                yield clip.id, fault

    def figures(self) -> dict[str, float]:
        reached = {clip.source for clip in self.reached}
        good = [name for name, row in self.rows.items() if row.good]
        listed = (self.rows[clip.source] for clip in self.kept)
        people = Counter(row.identity for row in listed if row.one_person)
        clusters = Counter(clip.identity for clip in self.kept)
        too_many = [name for count in (people, clusters) for name, n in count.items() if n > 2]
        return {
            "videos": len(self.rows),
            "good_videos": len(good),
            "clips": len(self.reached),
            "kept": len(self.kept),
            "kept_good_clips_fraction": sum(name in reached for name in good) / max(len(good), 1),
            "negatives_kept": len(reached - set(good)),
            "over_two_per_identity": len(too_many),
        }


def _rejections(record: Record) -> Iterator[str]:
    rejected = [out.reason for out in record.outputs if out.state == "rejected"]
    yield from rejected or ([record.reason] if record.state != "ok" else [])
