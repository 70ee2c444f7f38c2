"""At most two clips per person, where nobody says who is in which clip (PV3D, Appendix A.3)."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from stages import backends
from stages.base import GroupStage, Rejected
from stages.clip import Clip
from stages.clustering import average_linkage


@dataclass
class BalanceIdentities(GroupStage):
    """Cluster clips into pseudo-identities, and keep the best `per_identity` clips of each.

    Listed identities are kept as they are. The others are clusters of the clips' mean embeddings, by average
    linkage of cosines down to the model's own threshold (`stages.clustering`). A cluster's name is a hash of
    its smallest clip id. Best is: higher source resolution, larger face, surer verification, smaller id; but
    a second source video before a second clip of the first.
    """

    per_identity: int = 2
    same_cluster: float | None = None        # another threshold than the model's own, in its metric

    name: ClassVar[str] = "BalanceIdentities"
    reads: ClassVar[tuple[str, ...]] = (
        "width", "height", "face_boxes", "embedding_mean", "embedding_model", "verification",
    )
    writes: ClassVar[tuple[str, ...]] = ("identity",)
    whole_clips: ClassVar[bool] = False
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.per_identity < 1:
            raise ValueError(f"stages.balance.per_identity: {self.per_identity} is below 1; give 1 or more")

    def process_group(self, group: str, clips: list[Clip]) -> Iterator[Clip | Rejected]:
        names = identities(clips, self.same_cluster)
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


def identities(clips: list[Clip], same_cluster: float | None = None) -> dict[str, str]:
    """Identity of each clip id: as listed, else the name of its cluster, at the model's own threshold."""
    unlisted = sorted((c for c in clips if not c.identity), key=lambda c: c.id)
    names = {c.id: c.identity for c in clips if c.identity}
    clusters: dict[int, list[str]] = defaultdict(list)
    for clip, number in zip(unlisted, _cluster(unlisted, same_cluster), strict=True):
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


def _cluster(clips: list[Clip], same_cluster: float | None) -> list[int]:
    """A cluster number for each clip. Raises ValueError for clips of several models."""
    if not clips:
        return []
    models = {replace(backends.IdentityModel(**clip.embedding_model), same_person=0.0) for clip in clips}
    if same_cluster is not None:
        models = {replace(model, same_cluster=same_cluster) for model in models}
    if len({model.sha256 for model in models}) > 1:
        names = " and ".join(sorted(f"{model.file} ({model.sha256[:8]})" for model in models))
        raise ValueError(f"embeddings of {names} do not compare; embed all clips with one model")
    if len(models) > 1:
        values = sorted(model.same_cluster for model in models)
        raise ValueError(f"same_cluster: clips of one model carry the thresholds {values}; set it to one")
    (model,) = models
    means = np.stack([clip.need("embedding_mean") for clip in clips]).astype(np.float32)
    return [int(number) for number in average_linkage(means, model.cluster_cosine)]
