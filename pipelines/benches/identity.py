"""`pv3d bench identity`: who is who in the manifest's clips, by the stages of the product.

The good clips go through the stages from the cut to the balance, with the best backends that are here. Every
check that is not about identity is open, so that small or turned faces are judged as well.

`adjusted_rand`       the balance's people against the manifest's, over clips
`good_clips_dropped`  videos of which `VerifyIdentity` rejects a clip
`spliced_kept`        spliced clips that `VerifyIdentity` keeps. Embeddings are of single frames, so those of
                      a splice are those of its parts: equal halves of two people, or one with 3 frames, 10 %,
                      25 % or 40 % of the frames of another; all pairs of clips, or some of very many
`clips_missing`       videos of which no clip reaches the embedding
`cluster_100k_*`      seconds and memory (largest resident set) of the balance of `count` synthetic clips of
                      `count` / 3 people, in a process of its own
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra import weights
from pipelines.bench import peak_gb
from pipelines.benches.manifest import Videos, read
from pipelines.ledger import Ledger
from pipelines.runner import prepare
from pipelines.workflow import Step, load
from stages.backends import IdentityModel
from stages.balance import BalanceIdentities
from stages.clip import Clip
from stages.crop import AlignCrop
from stages.identity import VerifyIdentity

SPLICES = 10_000                         # at most
SHARES = (0.0, 0.1, 0.25, 0.4)           # of a clip that is another person; 3 frames at least
OPEN = (
    "stages.SplitShots.minimum_source_fps=1", "stages.SplitShots.minimum_frames=12",
    "stages.FollowFace.minimum_frames=12", "stages.FollowFace.minimum_face_px=1",
    "stages.AlignCrop.min_source_px=1", "stages.AlignCrop.max_padded=1",
)  # fmt: skip


def run(
    data: Path, workflow: str = "workflow.yaml", faces: str = "", network: str = "", size: int = 256,
    root: str = "", in_process: int = 0, count: int = 100_000,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """The figures. `faces` and `network` name other backends than the best that are here; `size` is that of
    the aligned crops, px; `root` names a store that keeps what is made."""
    rows = [row for row in read(data) if row.good]
    given = {"stages.FollowFace.backend": faces, "stages.EmbedFaces.backend": network}
    backends = {**best_backends(), **{name: path for name, path in given.items() if path}}
    progress(f"backends: {', '.join(path.partition(':')[2] for path in backends.values())}")
    settings = [f"{name}={path}" for name, path in backends.items()]
    with tempfile.TemporaryDirectory(prefix="pv3d-bench-") as folder:
        planned = load(workflow, None, [*settings, *OPEN])
        planned = replace(
            planned, source=Videos(rows), steps=tuple(_steps(planned.steps, size)),
            storage=planned.storage.model_copy(update={"root": root or folder}),
        )  # fmt: skip
        prepare(planned, until="BalanceIdentities", in_process=bool(in_process))
        found = Found.read(Ledger(planned.store()))
    figures = measure(found, {row.name: row.identity for row in rows}, progress)
    return {"figures": {**figures, **scale(count)}}


def best_backends() -> dict[str, str]:
    """The settings of the best backends whose packages and files are here."""
    mesh = all(find_spec(name) for name in ("mediapipe", "onnxruntime"))
    faces = mesh and weights.find("mediapipe") and weights.find("yunet")
    network = find_spec("onnxruntime") and weights.find("mobilefacenet")
    return {
        "stages.FollowFace.backend": (
            "stages.backends.mediapipe:MediaPipeFaces" if faces else "stages.backends.dlib:DlibFaces"
        ),
        "stages.EmbedFaces.backend": (
            "stages.backends.mobilefacenet:MobileFaceNet" if network else "stages.backends.dlib:DlibIdentity"
        ),
    }


def _steps(steps: tuple[Step, ...], size: int) -> Iterator[Step]:
    """Without the cameras, which nothing here reads, and with smaller crops."""
    for step in steps:
        if "cameras" not in step.stage.writes:
            stage = step.stage
            yield replace(step, stage=replace(stage, size=size)) if isinstance(stage, AlignCrop) else step


@dataclass(frozen=True)
class Found:
    """What came of the good videos. `source` of a clip is its row's name."""

    embedded: list[Clip]
    rejected: list[Clip]                     # by VerifyIdentity
    people: dict[str, str]                   # clip id -> identity, of the clips that were balanced

    @classmethod
    def read(cls, ledger: Ledger) -> Found:
        arrays = ("embeddings",)
        embedded = [
            ledger.load(ref, arrays)
            for record in ledger.records("EmbedFaces") for ref in ledger.outputs(record)
        ]  # fmt: skip
        rejected = {record.unit for record in ledger.records("VerifyIdentity") if record.state != "ok"}
        people = {
            out.id: out.identity
            for record in ledger.records("BalanceIdentities") for out in record.outputs
        }  # fmt: skip
        return cls(embedded, [clip for clip in embedded if clip.id in rejected], people)


def measure(
    found: Found, identities: dict[str, str], progress: Callable[[str], None] = lambda line: None
) -> dict[str, float]:
    """The figures about real clips; `identities` by row."""
    dropped = sorted({clip.source for clip in found.rejected})
    missing = sorted(set(identities) - {clip.source for clip in found.embedded})
    for what, names in (("dropped", dropped), ("missing", missing)):
        if names:
            progress(f"{what}: {', '.join(names)}")
    balanced = [clip for clip in found.embedded if clip.id in found.people]
    spliced, kept = splice(found.embedded, identities)
    return {
        "videos": len(identities),
        "clips": len(found.embedded),
        "people": len(set(identities.values())),
        "people_found": len(set(found.people.values())),
        "adjusted_rand": adjusted_rand(
            [identities[clip.source] for clip in balanced], [found.people[clip.id] for clip in balanced]
        ),
        "good_clips_dropped": len(dropped),
        "spliced": spliced,
        "spliced_kept": kept,
        "clips_missing": len(missing),
    }


def splice(clips: list[Clip], identities: dict[str, str], most: int = SPLICES) -> tuple[int, int]:
    """(splices of two people, how many of them `VerifyIdentity` keeps)."""
    stage = VerifyIdentity()
    pairs = [(a, b) for a, b in permutations(clips, 2) if identities[a.source] != identities[b.source]]
    chosen = np.random.default_rng(0).permutation(len(pairs))[: most // (1 + len(SHARES))]
    total = kept = 0
    for first, second in (pairs[i] for i in sorted(chosen)):
        for vectors in spliced(first.need("embeddings"), second.need("embeddings")):
            (out,) = stage.process(first.copy(embeddings=vectors))
            total += 1
            kept += isinstance(out, Clip)
    return total, kept


def spliced(a: NDArray[np.float32], b: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Equal halves of [S, D] and [R, D]; then the first with some frames of the second in the middle."""
    half = min(len(a), len(b)) // 2
    yield np.concatenate([a[:half], b[-half:]])
    for share in SHARES:
        count = min(max(3, round(share * len(a))), len(b), len(a) - 1)
        at = (len(a) - count) // 2
        yield np.concatenate([a[:at], b[:count], a[at + count :]])


def adjusted_rand(truth: Sequence[str], found: Sequence[str]) -> float:
    """Hubert and Arabie 1985: 1 for equal partitions, about 0 for unrelated ones."""
    rows, columns = np.unique(truth, return_inverse=True)[1], np.unique(found, return_inverse=True)[1]
    table = np.zeros((rows.max(initial=0) + 1, columns.max(initial=0) + 1))
    np.add.at(table, (rows, columns), 1)
    both, one, other = (_pairs(counts) for counts in (table, table.sum(axis=1), table.sum(axis=0)))
    expected = one * other / max(_pairs(table.sum()), 1)
    most = (one + other) / 2
    return float((both - expected) / (most - expected)) if most != expected else 1.0


def _pairs(counts: NDArray[np.float64]) -> float:
    return float((counts * (counts - 1) / 2).sum())


# --- many clips --------------------------------------------------------------------------------------------


def scale(count: int) -> dict[str, float]:
    """Seconds and GB of the balance of `count` clips, measured in a process of its own."""
    code = f"from pipelines.benches.identity import balance_many; balance_many({count})"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(done.stdout)
    name = f"cluster_{count // 1000}k" if count % 1000 == 0 else f"cluster_{count}"
    return {f"{name}_{unit}": value for unit, value in found.items()}


def balance_many(count: int) -> None:
    """Write seconds, GB and the adjusted Rand index of a balance of synthetic clips to standard output."""
    people, clips = synthetic(count)
    stage = BalanceIdentities()
    begun = time.perf_counter()
    outs = list(stage.process_group("all", clips))
    seconds = time.perf_counter() - begun
    names = [(out if isinstance(out, Clip) else out.clip).identity for out in outs]
    resident = peak_gb()
    rand = adjusted_rand([str(person) for person in people], names)
    sys.stdout.write(json.dumps({"seconds": seconds, "gb": resident, "rand": rand}))


def synthetic(count: int, dimensions: int = 128) -> tuple[NDArray[np.int64], list[Clip]]:
    """(person [count] of each, clips): three clips a person on average, cosine about 0.8 within one."""
    random = np.random.default_rng(0)
    people = random.integers(0, max(count // 3, 1), count)
    centres = random.normal(size=(max(count // 3, 1), dimensions)).astype(np.float32)
    vectors = centres[people] + 0.5 * random.normal(size=(count, dimensions)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    model = asdict(IdentityModel("synthetic", "0" * 64, "cosine", same_person=0.5, same_cluster=0.42))
    boxes = np.tile(np.array([0, 0, 200, 200], np.float32), (150, 1))
    return people, [
        Clip(
            id=f"c{number:07d}", source=f"v{number // 2}", video=f"/videos/v{number // 2}.mp4", width=1280,
            height=720, face_boxes=boxes.copy(), embedding_mean=vector.copy(), embedding_model=dict(model),
            verification={"mean_cosine": 0.8},
        )
        for number, vector in enumerate(vectors)
    ]  # fmt: skip
