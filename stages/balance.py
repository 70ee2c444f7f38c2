"""At most two clips per person, where nobody says who is in which clip (PV3D, Appendix A.3)."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from stages import backends
from stages.base import GroupStage, Rejected
from stages.clip import Clip


@dataclass
class BalanceIdentities(GroupStage):
    """Cluster clips into pseudo-identities, and keep the best `per_identity` clips of each.

    Listed identities are kept as they are. The others are clusters of the clips' mean embeddings, by average
    linkage at the model's own threshold; exact, in memory quadratic in the number of clips. A cluster's name
    is a hash of its smallest clip id. Best is: higher source resolution, larger face, surer verification,
    smaller id; but a second source video before a second clip of the first.
    """

    per_identity: int = 2

    name: ClassVar[str] = "BalanceIdentities"
    reads: ClassVar[tuple[str, ...]] = (
        "width", "height", "face_boxes", "embeddings", "embedding_backend", "verification",
    )
    writes: ClassVar[tuple[str, ...]] = ("identity",)

    def __post_init__(self) -> None:
        if self.per_identity < 1:
            raise ValueError(f"stages.balance.per_identity: {self.per_identity} is below 1; give 1 or more")

    def process_group(self, group: str, clips: list[Clip]) -> Iterator[Clip | Rejected]:
        names = identities(clips)
        members: dict[str, list[Clip]] = defaultdict(list)
        for clip in clips:
            members[names[clip.id]].append(clip)
        places = {c.id: place for some in members.values() for place, c in enumerate(ranked(some), start=1)}
        for clip in clips:
            name, place = names[clip.id], places[clip.id]
            kept = clip.copy(identity=name)
            if place <= self.per_identity:
                yield kept
            else:
                yield Rejected(kept, "balanced out", f"number {place} of {len(members[name])} of {name}")


def identities(clips: list[Clip]) -> dict[str, str]:
    """Identity of each clip id: as listed, else the name of its cluster."""
    unlisted = sorted((c for c in clips if not c.identity), key=lambda c: c.id)
    names = {c.id: c.identity for c in clips if c.identity}
    clusters: dict[int, list[str]] = defaultdict(list)
    for clip, number in zip(unlisted, _cluster(unlisted), strict=True):
        clusters[number].append(clip.id)
    for ids in clusters.values():
        name = "auto-" + hashlib.sha256(ids[0].encode()).hexdigest()[:12]       # ids are sorted
        names.update(dict.fromkeys(ids, name))
    return names


def ranked(clips: list[Clip]) -> list[Clip]:
    """Clips of one person, best first; the first of every source video before any second."""
    best = sorted(clips, key=_merit)
    seen: Counter[str] = Counter()
    rounds = []
    for clip in best:
        rounds.append(seen[clip.source])
        seen[clip.source] += 1
    return [best[i] for i in sorted(range(len(best)), key=lambda i: (rounds[i], i))]


def _merit(clip: Clip) -> tuple[float, float, float, str]:
    boxes = clip.need("face_boxes")
    face = float(np.median(boxes[:, 2] - boxes[:, 0]))
    return (-clip.width * clip.height, -round(face, 3), -clip.verification.get("mean_cosine", 0.0), clip.id)


def _cluster(clips: list[Clip]) -> list[int]:
    """A cluster number for each clip."""
    if len(clips) < 2:
        return [0] * len(clips)
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist

    used = sorted({c.embedding_backend for c in clips})
    if len(used) > 1:
        raise ValueError(f"embeddings of {' and '.join(used)} do not compare; use one backend for all clips")
    model: type[backends.IdentityBackend] = backends.find(used[0])
    means = np.stack([_mean(c.need("embeddings")) for c in clips])
    limit = 1 - model.same_cluster if model.metric == "cosine" else model.same_cluster
    tree = linkage(pdist(means, model.metric), "average")
    return [int(n) for n in fcluster(tree, limit, "distance")]


def _mean(embeddings: NDArray[Any]) -> NDArray[np.float64]:
    """Unit vector [D] of the mean of [S, D]."""
    mean = embeddings.astype(np.float64).mean(axis=0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12))
