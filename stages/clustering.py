"""Average linkage of unit vectors, for 100,000 of them in little memory.

Two facts make it cheap. The mean cosine between two clusters of unit vectors is the product of their mean
vectors, so no matrix of distances is needed, only a mean and a size for each cluster. And linkage that stops
at a similarity needs few of the products, those along the graph of pairs that are at least so similar:

    Where the mean of the pairs between two clusters reaches the threshold, at least one pair does. So the
    nearest cluster of a cluster, if it is near enough to merge at all, is among those that an edge leads to.
    By induction no cluster reaches over two connected components either: A and B, each within one, merge
    only along an edge, which makes their components one. What happens in one depends on no other.

So neither shortcut changes the result: it is exact up to rounding (float32: pairs within 1e-5 of the
threshold may fall either way) and ties.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

ROWS, COLUMNS = 1024, 2048           # of a block of similarities: 8 MB
MOST_EDGES = 1 << 24                 # that are kept: 0.5 GB; with more the graph is no help
WAITING_EDGES = 1 << 20              # that are held before they join components
ROUNDING = 1e-5

Vectors = NDArray[np.float32]
Numbers = NDArray[np.int64]


def average_linkage(vectors: Vectors, least: float) -> Numbers:
    """Cluster number of each of the unit vectors [N, D]: agglomerative, mean cosine, down to `least`.

    Numbers run from 0 in the order of each cluster's first vector. Time is that of all N^2 / 2 products, and
    where pairs above `least` are very many also of 3 n products for each vector in a component of n. Memory
    is a few times N x D, and 1 GB for the graph.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    near = neighbours(vectors, least - ROUNDING)
    if near is not None:
        first = _merge(vectors, least, near)
    else:
        first = np.arange(len(vectors))
        for members in _groups(components(vectors, least - ROUNDING)):
            first[members] = members[_merge(vectors[members], least)]
    return np.asarray(np.unique(first, return_inverse=True)[1], np.int64)


# --- the graph of similar pairs ----------------------------------------------------------------------------


def neighbours(vectors: Vectors, least: float) -> list[Numbers] | None:
    """For each vector, the others with a cosine of `least` or more; None when they are too many to hold."""
    from scipy.sparse import coo_array

    count, kept, total = len(vectors), [], 0
    for rows, columns in _edges(vectors, least):
        kept.append(np.stack([rows, columns])[:, rows < columns].astype(np.int32))
        total += kept[-1].shape[1]
        if total > MOST_EDGES:
            return None
    one, other = np.concatenate([np.empty((2, 0), np.int32), *kept], axis=1)
    half = coo_array((np.ones(total, bool), (one, other)), shape=(count, count)).tocsr()
    graph = (half + half.T).tocsr()
    return np.split(graph.indices, graph.indptr[1:-1]) if count else []


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
    """Of every block on or above the diagonal: indices [E] and [E] of the pairs that are similar enough."""
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


# --- linkage -----------------------------------------------------------------------------------------------


class _Clusters:
    """Clusters that may still merge, named by their first vector: the rows 0 ... `count` - 1 of `means`."""

    def __init__(self, vectors: Vectors, near: list[Numbers] | None) -> None:
        self.count = len(vectors)
        self.means = vectors.copy()
        self.sizes = np.ones(self.count)
        self.names = np.arange(self.count)                 # by row
        self.rows = np.arange(self.count)                  # by name; -1 for what is merged or finished
        self.into = np.arange(self.count)                  # by name: what it was merged into
        self.near = near                                   # by name: vectors that edges lead to, if known

    def nearest(self, name: int) -> tuple[int, float]:
        """The most similar other cluster and the mean cosine of their pairs; (name, -2) when it is alone."""
        row = self.rows[name]
        if self.near is not None:
            rows = self.rows[self._near(name)]
            if not len(rows):
                return name, -2.0
            similar = self.means[rows] @ self.means[row]
            best = int(np.argmax(similar))
            return int(self.names[rows[best]]), float(similar[best])
        similar = self.means[: self.count] @ self.means[row]
        similar[row] = -2
        best = int(np.argmax(similar))
        return int(self.names[best]), float(similar[best])

    def _near(self, name: int) -> Numbers:
        """The clusters that edges lead to from this one."""
        assert self.near is not None
        found = self.near[name]
        while not np.array_equal(self.into[found], found):
            found = self.into[found]
        found = np.unique(found[(found != name) & (self.rows[found] >= 0)])
        self.near[name] = found
        return found

    def remove(self, name: int) -> None:
        """Take a cluster out: the last row fills its place."""
        row, last = self.rows[name], self.count - 1
        for column in (self.means, self.sizes, self.names):
            column[row] = column[last]
        self.rows[self.names[row]] = row
        self.rows[name] = -1
        self.count = last

    def merge(self, one: int, other: int) -> None:
        """Join two clusters under the smaller name."""
        stays, goes = min(one, other), max(one, other)
        a, b = self.rows[stays], self.rows[goes]
        size = self.sizes[a] + self.sizes[b]
        self.means[a] = (self.sizes[a] * self.means[a] + self.sizes[b] * self.means[b]) / size
        self.sizes[a] = size
        self.remove(goes)
        self.into[goes] = stays
        if self.near is not None:
            self.near[stays] = np.concatenate([self.near[stays], self.near[goes]])
            self.near[goes] = self.near[goes][:0]


def _merge(vectors: Vectors, least: float, near: list[Numbers] | None = None) -> Numbers:
    """First vector of the cluster of each of [m, D], by nearest-neighbour chains.

    A chain goes from cluster to nearest cluster until two are each other's nearest; average linkage would
    merge these sooner or later, and it does not matter when (it is reducible: a merged cluster is never more
    similar to a third than the nearer of its parts was). Hence also: a cluster whose nearest is less similar
    than `least` is finished.
    """
    clusters = _Clusters(vectors, near)
    chain: list[int] = []
    links: list[float] = []                                # similarity of chain[i] and chain[i + 1]
    while clusters.count:
        if not chain:
            chain = [int(clusters.names[0])]
        nearest, similar = clusters.nearest(chain[-1])
        if len(chain) > 1 and similar <= links[-1] + ROUNDING / 10:     # no nearer: these are mutual
            clusters.merge(chain.pop(), chain.pop())
            del links[-2:]
        elif similar < least:
            clusters.remove(chain.pop())
        else:
            chain.append(nearest)
            links.append(similar)
    into = clusters.into
    for index in range(len(into)):                         # names only shrink, so one pass finds every first
        into[index] = into[into[index]]
    return into
