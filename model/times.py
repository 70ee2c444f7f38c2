"""When a video is looked at: the laws of the sampled times (model facts section 8). Arrays in, arrays out; no
torch.
The paper (A.1) draws the pair (t_i, t_j) from Beta distributions as DIGAN does: one from Beta(2, 1), one from
Beta(1, 2), then sorted. For n > 2 frames (patent [0071]) the times are n sorted uniform draws. The functions
take uniform numbers, so that numpy and torch, one worker and many, get the same times from the same draws.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def unsorted_times(uniforms: Any) -> Any:
    """Times in [0, 1] of independent uniforms [..., n] (numpy or torch): the Beta pair for n = 2, else
    uniform."""
    n = uniforms.shape[-1]
    if n < 2:
        raise ValueError(f"{n} frames per video; a video discriminator needs 2 or more")
    if n != 2:
        return uniforms
    times = uniforms + 0.0
    times[..., 0] = uniforms[..., 0] ** 0.5  # inverse CDF of Beta(2, 1): t^2
    times[..., 1] = 1 - (1 - uniforms[..., 1]) ** 0.5  # inverse CDF of Beta(1, 2): 1 - (1 - t)^2
    return times


def frame_indices(uniforms: NDArray[np.floating[Any]], span: int) -> NDArray[np.int64]:
    """Sorted frame indices in a window of `span` frames, of uniforms [..., n]. They may coincide."""
    if span < 2:
        raise ValueError(f"a window of {span} frames; it needs 2 or more")
    indices = np.floor(unsorted_times(np.asarray(uniforms)) * span).astype(np.int64)
    return np.sort(np.minimum(indices, span - 1), axis=-1)


def index_times(indices: NDArray[np.int64], span: int) -> NDArray[np.float32]:
    """t of a frame index: index / (span - 1)."""
    return (np.asarray(indices) / (span - 1)).astype(np.float32)


def index_pair_probability(span: int) -> NDArray[np.float64]:
    """[span, span]: the exact law of the sorted pair (i, j) of real frames."""
    edges = np.arange(span + 1) / span
    late = np.diff(edges**2)  # Beta(2, 1)
    early = np.diff(1 - (1 - edges) ** 2)  # Beta(1, 2)
    joint = np.outer(late, early)
    return np.triu(joint, 1) + np.tril(joint, -1).T + np.diag(np.diag(joint))
