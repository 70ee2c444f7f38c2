"""Features of generated videos, and those of the real ones that they are compared with.

Real videos are of people whom the training has not seen. What their features are is found once and kept, by a
hash of the dataset, the network, the settings and the code that prepares frames; it is written when all are
done, or not at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.metrics import Evaluation, Samples, Video, each, networks, statistics
from stages.metrics.frechet import GROUPS
from stages.metrics.networks import Network
from stages.metrics.statistics import Moments, Statistics, checked, from_bytes

log = logging.getLogger(__name__)

FOLDER = "statistics"
VERSION = 1
"""Of what is kept; raise it when features change by code that `code_of` does not see."""

Function = Callable[[Video], NDArray[Any]]


@dataclass
class Features:
    """Of some videos: moments in groups (video i in group i mod 10), and one row of each video."""

    groups: list[Moments] = field(default_factory=lambda: [Moments() for _ in range(GROUPS)])
    rows: list[NDArray[np.float32]] = field(default_factory=list)
    videos: int = 0


def collect(
    samples: Samples[Video] | Iterable[Video],
    function: Function,
    *,
    groups: int = GROUPS,
    rows: bool = False,
    what: str = "video",
) -> Features:
    """Features [n, D] of every video, added up as they come. With `rows` one is kept of each video, in turn
    of the first, second, ... frame. Raises ValueError for features that are not finite."""
    found = Features([Moments() for _ in range(groups)])
    answers = each(samples, function)
    while True:
        number = found.videos
        try:
            features = next(answers)
            found.groups[number % groups].add(features)
        except StopIteration:
            return found
        except ValueError as error:
            if type(error) is not ValueError:            # of the network's file, or of the dataset
                raise
            raise ValueError(f"{what} {number}: {error}") from None
        if rows:
            found.rows.append(checked(features)[number % len(features)].astype(np.float32))
        found.videos += 1


def real_statistics(
    evaluation: Evaluation, network: Network, kind: str, function: Function, *, rows: bool = False
) -> Statistics:
    """Of `evaluation.real`; kept in `evaluation.cache` when the real videos have a key.

    Raises ValueError for too few videos, and for a kept file that is damaged or of another network.
    """
    about = {
        "kind": kind, "real": evaluation.real_key, "frames": evaluation.frames, "size": evaluation.size,
        "mode": evaluation.mode, "version": VERSION, "code": code_of(function),
    }  # fmt: skip
    text = json.dumps([about, network.sha256], sort_keys=True)
    name = f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
    key = f"{FOLDER}/{evaluation.real_key}/{name}"
    cache = evaluation.cache if evaluation.real_key else None
    if cache is not None and cache.exists(key):
        found = from_bytes(cache.read(key), key)
        found.check_network(network.sha256, len(found.mean), key)
        return found
    log.info("%s of %d real videos", kind, len(evaluation.real))
    features = collect(evaluation.real, function, groups=1, rows=rows, what="real video")
    moments = features.groups[0]
    try:
        covariance = moments.covariance
    except ValueError as error:
        raise ValueError(f"real videos: {error}") from None
    found = Statistics(
        moments.mean, covariance, features.videos, network.sha256, about,
        np.stack(features.rows) if rows else None,
    )  # fmt: skip
    if cache is not None:
        cache.write(key, found.to_bytes())
    return found


def code_of(function: Function) -> str:
    """A hash of the files that decide what the features of a video are: its own, and those that run networks
    and add up. Another way to prepare frames must not meet statistics of the old one."""
    names = {getattr(function, "func", function).__module__, __name__, networks.__name__, statistics.__name__}
    code = hashlib.sha256()
    for name in sorted(names):
        code.update(Path(str(sys.modules[name].__file__)).read_bytes())
    return code.hexdigest()[:16]


def check_video(video: NDArray[Any], frames: int, size: int) -> Video:
    """The video as it is. Raises ValueError for another length, size or kind of numbers."""
    if video.dtype != np.uint8:
        bad = video.dtype.kind == "f" and not np.isfinite(video).all()
        raise ValueError(f"a video has {'NaN in its' if bad else video.dtype} frames; give uint8 RGB")
    if video.ndim != 4 or video.shape[3] != 3 or video.shape[0] != frames:
        raise ValueError(f"a video is {list(video.shape)}, not of {frames} frames [T, H, W, 3]")
    if size and video.shape[1:3] != (size, size):
        raise ValueError(f"a video is of {video.shape[2]}x{video.shape[1]} px, the others of {size}x{size}")
    return video
