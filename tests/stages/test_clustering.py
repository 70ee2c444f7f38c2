"""Linkage without a matrix: the clusters are those of scipy and scikit-learn, whatever the vectors."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

from stages import clustering
from stages.clustering import average_linkage, components


def people(count: int, centres: int, dimensions: int, noise: float, seed: int) -> np.ndarray:
    """Unit vectors near some centres."""
    random = np.random.default_rng(seed)
    centre = random.normal(size=(centres, dimensions))
    vectors = centre[random.integers(0, centres, count)] + noise * random.normal(size=(count, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = set(zip(a.tolist(), b.tolist(), strict=True))
    return len(pairs) == len(set(a.tolist())) == len(set(b.tolist()))


@settings(max_examples=150, deadline=None)
@given(
    count=st.integers(2, 80), centres=st.integers(1, 20), dimensions=st.integers(2, 24),
    noise=st.floats(0.05, 1.5), least=st.floats(-0.5, 0.95), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_clusters_are_those_of_plain_average_linkage(count, centres, dimensions, noise, least, seed):
    vectors = people(count, centres, dimensions, noise, seed)
    tree = linkage(pdist(vectors.astype(np.float64), "cosine"), "average")
    assume(np.abs(tree[:, 2] - (1 - least)).min() > 1e-4)    # else rounding decides
    plain = fcluster(tree, 1 - least, "distance")
    with pytest.MonkeyPatch.context() as patch:
        for most_edges in (clustering.MOST_EDGES, -1):       # along the graph, and in whole components
            patch.setattr(clustering, "MOST_EDGES", most_edges)
            assert same_partition(average_linkage(vectors, least), plain)


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 60), least=st.floats(-0.5, 0.95), seed=st.integers(0, 2**32 - 1))
def test_components_are_closed_under_linkage(count, least, seed):
    """What makes the shortcut exact: no cluster reaches over two components."""
    vectors = people(count, max(count // 4, 1), 8, 0.5, seed)
    inside, clusters = components(vectors, least - 1e-5), average_linkage(vectors, least)
    assert all(len(set(inside[clusters == n].tolist())) == 1 for n in set(clusters.tolist()))


@pytest.mark.parametrize("most_edges", [10**7, 1000])
@pytest.mark.parametrize(("count", "centres", "least"), [(2000, 700, 0.45), (1500, 1, 0.68)])
def test_blocks_meet(count, centres, least, most_edges, monkeypatch):
    """Several blocks of rows and columns, and edges that are joined many times, against scikit-learn."""
    cluster = pytest.importorskip("sklearn.cluster")
    monkeypatch.setattr(clustering, "ROWS", 128)
    monkeypatch.setattr(clustering, "COLUMNS", 300)
    monkeypatch.setattr(clustering, "WAITING_EDGES", 500)
    monkeypatch.setattr(clustering, "MOST_EDGES", most_edges)
    vectors = people(count, centres, 32, 0.7, 1)
    reference = cluster.AgglomerativeClustering(
        n_clusters=None, metric="cosine", linkage="average", distance_threshold=1 - least
    ).fit_predict(vectors)
    found = average_linkage(vectors, least)
    assert 1 < found.max() < count
    assert same_partition(found, reference)


def test_equal_vectors_are_one_cluster_and_numbers_follow_the_first():
    vectors = np.eye(3, dtype=np.float32)[[2, 0, 2, 1, 0, 2]]
    assert average_linkage(vectors, 0.5).tolist() == [0, 1, 0, 2, 1, 0]


def test_none_and_one():
    assert average_linkage(np.empty((0, 4), np.float32), 0.5).tolist() == []
    assert average_linkage(np.eye(1, 4, dtype=np.float32), 0.5).tolist() == [0]


def test_one_person_of_many_clips_needs_no_matrix():
    """5,000 clips in one component: a matrix of their distances alone would be 200 MB."""
    code = (
        "import resource, numpy as np\n"
        "from stages import clustering\n"
        "clustering.MOST_EDGES = 10**6\n"
        "import scipy.sparse.csgraph\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "vectors = np.random.default_rng(0).normal(size=(5000, 16)) + 2\n"
        "vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)\n"
        "found = clustering.average_linkage(vectors.astype(np.float32), 0.3)\n"
        "print(found.max(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    clusters, grown_kb = (int(word) for word in done.stdout.split())
    assert clusters == 0
    assert grown_kb < 100 * 1024
