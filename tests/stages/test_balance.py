"""Balancing: clusters are people, names are stable, two clips of each person stay."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest

from stages.backends import IdentityModel
from stages.balance import BalanceIdentities, identities
from stages.base import Rejected
from stages.clip import Clip

MODEL = IdentityModel("a.dat", "0" * 64, "euclidean", same_person=0.37, same_cluster=0.30)


def clip_of(
    clip_id: str, person: int, source: str = "", width: int = 640, face: float = 200, **changes: object
) -> Clip:
    """A clip whose embeddings are near the person's own direction."""
    centre = np.eye(32)[0] + 0.6 * np.eye(32)[person + 1]
    random = np.random.default_rng(sum(clip_id.encode()))
    vector = centre + 0.01 * random.normal(size=32)
    clip = Clip(
        id=clip_id, source=source or clip_id, video="v", width=width, height=480,
        face_boxes=np.tile(np.array([0, 0, face, face], np.float32), (6, 1)),
        embedding_mean=(vector / np.linalg.norm(vector)).astype(np.float32),
        embedding_model=asdict(MODEL), verification={"mean_cosine": 0.9},
    )
    return clip.copy(**changes)


def balance(clips: list[Clip], **settings: int) -> tuple[list[Clip], list[Rejected]]:
    out = list(BalanceIdentities(**settings).process_group("all", clips))
    assert len(out) == len(clips)
    return [o for o in out if isinstance(o, Clip)], [o for o in out if isinstance(o, Rejected)]


def test_finds_the_people() -> None:
    people = [0, 0, 1, 2, 1, 0, 2]
    clips = [clip_of(f"c{i}", p) for i, p in enumerate(people)]
    names = identities(clips)
    assert len(set(names.values())) == 3
    for one, p in zip(clips, people, strict=True):
        for other, q in zip(clips, people, strict=True):
            assert (names[one.id] == names[other.id]) == (p == q)


def test_agrees_with_average_linkage_of_another_library() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    random = np.random.default_rng(0)
    means = np.eye(32)[0] + 0.3 * random.normal(size=(60, 32)) / 6
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    clips = [clip_of(f"c{i:02d}", 0, embedding_mean=mean.astype(np.float32)) for i, mean in enumerate(means)]
    reference = cluster.AgglomerativeClustering(
        n_clusters=None, metric="cosine", linkage="average", distance_threshold=1 - MODEL.cluster_cosine
    ).fit_predict(means).tolist()
    names = identities(clips)
    pairs = {(names[c.id], r) for c, r in zip(clips, reference, strict=True)}
    assert len(pairs) == len(set(names.values())) == len(set(reference))
    assert 1 < len(pairs) < len(clips)


def test_at_most_two_clips_per_person_stay() -> None:
    clips = [clip_of(f"c{i}", i % 3) for i in range(12)]
    kept, rejected = balance(clips)
    assert Counter(c.identity for c in kept) == Counter({c.identity: 2 for c in kept})
    assert {r.reason for r in rejected} == {"balanced out"}
    assert all(r.clip.identity for r in rejected)
    assert len(balance(clips, per_identity=3)[0]) == 9


def test_ranks_by_resolution_then_face_then_verification_then_id() -> None:
    clips = [
        clip_of("a", 0), clip_of("b", 0, face=220), clip_of("c", 0, width=1280),
        clip_of("d", 0, verification={"mean_cosine": 0.99}),
    ]
    for count, best in [(1, "c"), (2, "bc"), (3, "bcd"), (4, "abcd")]:
        assert "".join(sorted(c.id for c in balance(clips, per_identity=count)[0])) == best


def test_prefers_another_source_video() -> None:
    clips = [clip_of("a", 0, "one", 1920), clip_of("b", 0, "one", 1920), clip_of("c", 0, "two", 320)]
    assert [c.id for c in balance(clips)[0]] == ["a", "c"]


def test_listed_people_are_believed() -> None:
    clips = [clip_of("a", 0, identity="id1"), clip_of("b", 0, identity="id2"), clip_of("c", 0)]
    names = identities(clips)
    assert (names["a"], names["b"]) == ("id1", "id2")
    assert names["c"] not in ("id1", "id2")


def test_order_changes_nothing_and_names_outlive_additions() -> None:
    clips = [clip_of(f"c{i}", i % 2) for i in range(6)]
    names = identities(clips)
    assert identities(clips[::-1]) == names
    more = identities([*clips, clip_of("d", 0), clip_of("e", 5)])
    assert {i: more[i] for i in names} == names


def test_one_clip_and_none() -> None:
    assert [c.id for c in balance([clip_of("a", 0)])[0]] == ["a"]
    assert balance([]) == ([], [])


def test_two_models_do_not_compare() -> None:
    with pytest.raises(ValueError, match="do not compare"):
        balance([clip_of("a", 0), clip_of("b", 0, embedding_model=asdict(replace(MODEL, sha256="1" * 64)))])
