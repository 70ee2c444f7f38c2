"""Average linkage of unit vectors, for 100,000 of them in little memory.

Two facts make it cheap. The mean cosine between two clusters of unit vectors is the product of their mean
vectors, so no matrix of distances is needed, only a mean and a size for each cluster. And where linkage stops
at a similarity, it never leaves the connected components of the graph of pairs at least so similar:

    Clusters start as single vectors, each within one component. Let A and B merge, both within components.
    The mean of their pairs is at least the threshold, so at least one pair is, and that edge joins their
    components: they are one, and A with B lies within it. What happens in one component depends on no
    other, as merges across are never made. So linkage inside each component gives the same clusters.

This is exact up to rounding (float32: pairs within 1e-5 of the threshold may fall either way) and ties.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

ROWS, COLUMNS = 1024, 2048           # of a block of similarities: 8 MB
WAITING_EDGES = 1 << 20              # edges that are held before they join components
ROUNDING = 1e-5

Vectors = NDArray[np.float32]
Numbers = NDArray[np.int64]


def average_linkage(vectors: Vectors, least: float) -> Numbers:
    """Cluster number of each of the unit vectors [N, D]: agglomerative, mean cosine, down to `least`.

    Numbers run from 0 in the order of each cluster's first vector. Time is that of all N^2 / 2 products, and
    of three products with all its vectors for each vector of a component; memory is N x D and some blocks.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    first = np.arange(len(vectors))
    for members in _groups(components(vectors, least - ROUNDING)):
        first[members] = members[_merge(vectors[members], least)]
    return np.asarray(np.unique(first, return_inverse=True)[1], np.int64)


def components(vectors: Vectors, least: float) -> Numbers:
    """Component number [N] in the graph whose edges are the pairs with a cosine of `least` or more."""
    count = len(vectors)
    labels = np.arange(count)
    waiting: list[Numbers] = []                            # edges between labels, each as one number
    for rows, columns in _edges(vectors, least):
        one, other = labels[rows], labels[columns]
        # Most edges of a crowded block say what is known: one for each two components is enough.
        waiting.append(np.unique((one * count + other)[one != other]))
        if sum(map(len, waiting)) > WAITING_EDGES:
            labels, waiting = _join(labels, waiting), []
    return _join(labels, waiting)


def _edges(vectors: Vectors, least: float) -> Iterator[tuple[Numbers, Numbers]]:
    """Of every block: indices [E] and [E] of the pairs that are similar enough."""
    for top in range(0, len(vectors), ROWS):
        for left in range(top, len(vectors), COLUMNS):
            similar = vectors[top : top + ROWS] @ vectors[left : left + COLUMNS].T
            rows, columns = np.nonzero(similar >= least)
            yield rows + top, columns + left


def _join(labels: Numbers, waiting: list[Numbers]) -> Numbers:
    """Labels after the edges between labels have joined them."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(labels)
    one, other = np.divmod(np.concatenate([np.empty(0, np.int64), *waiting]), max(count, 1))
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)[labels]


def _groups(labels: Numbers) -> Iterator[Numbers]:
    """Ascending indices of the vectors of every label that has more than one."""
    order = np.argsort(labels, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        if len(members) > 1:
            yield members


class _Clusters:
    """Clusters that may still merge: the rows 0 ... `count` - 1 of `means`, in any order."""

    def __init__(self, vectors: Vectors) -> None:
        self.count = len(vectors)
        self.means = vectors.copy()
        self.sizes = np.ones(self.count)
        self.names = np.arange(self.count)                 # of the cluster in a row: its first vector
        self.rows = np.arange(self.count)                  # where the cluster of a name is

    def nearest(self, name: int) -> tuple[int, float]:
        """The most similar other cluster and the mean cosine of their pairs; (name, -2) where it is alone."""
        row = self.rows[name]
        similar = self.means[: self.count] @ self.means[row]
        similar[row] = -2
        best = int(np.argmax(similar))
        return int(self.names[best]), float(similar[best])

    def remove(self, name: int) -> None:
        """Take a cluster out: the last row fills its place."""
        row, last = self.rows[name], self.count - 1
        for column in (self.means, self.sizes, self.names):
            column[row] = column[last]
        self.rows[self.names[row]] = row
        self.count = last

    def merge(self, one: int, other: int) -> tuple[int, int]:
        """Join two clusters; (the name that stays, the smaller one, and the name that goes)."""
        stays, goes = min(one, other), max(one, other)
        a, b = self.rows[stays], self.rows[goes]
        size = self.sizes[a] + self.sizes[b]
        self.means[a] = (self.sizes[a] * self.means[a] + self.sizes[b] * self.means[b]) / size
        self.sizes[a] = size
        self.remove(goes)
        return stays, goes


def _merge(vectors: Vectors, least: float) -> Numbers:
    """First vector of the cluster of each of [m, D], by nearest-neighbour chains.

    A chain goes from cluster to nearest cluster until two are each other's nearest; average linkage would
    merge these sooner or later, and it does not matter when (it is reducible: a merged cluster is never more
    similar to a third than the nearer of its parts was). Hence also: a cluster whose nearest is less similar
    than `least` is finished.
    """
    clusters = _Clusters(vectors)
    into = np.arange(len(vectors))
    chain: list[int] = []
    links: list[float] = []                                # similarity of chain[i] and chain[i + 1]
    while clusters.count:
        if not chain:
            chain = [int(clusters.names[0])]
        nearest, similar = clusters.nearest(chain[-1])
        if len(chain) > 1 and similar <= links[-1] + ROUNDING / 10:     # no nearer: these are mutual
            stays, goes = clusters.merge(chain.pop(), chain.pop())
            into[goes] = stays
            del links[-2:]
        elif similar < least:
            clusters.remove(chain.pop())
        else:
            chain.append(nearest)
            links.append(similar)
    for index in range(len(into)):                         # names only shrink, so one pass finds every first
        into[index] = into[into[index]]
    return into
