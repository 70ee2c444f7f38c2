"""LPIPS of reconstructions (Zhang et al. 2018): distance of VGG-16 features, by a network in a file.

The listed file is NVIDIA's TorchScript VGG-16, whose features are scaled so that the squared distance of two
pictures' features is their LPIPS (version 0.1, VGG). It gets RGB levels of 0 to 255.

    lpips           the listed network
    lpips/<file>    another (`evaluate.networks.lpips`): with one input, as the listed one
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from stages.metrics import Evaluation, Value, not_computed
from stages.metrics.networks import Network, find_network, missing, state_dict
from stages.metrics.pairs import Frames, levels, per_frame

LPIPS = "lpips"
WEIGHTS = (LPIPS,)
NAMES = ("lpips", "lpips/*")


def compute(evaluation: Evaluation) -> dict[str, Value]:
    """`lpips`: a distance without unit. Lower is better."""
    network = find_network(LPIPS, evaluation.networks, evaluation.weights(LPIPS))
    reason = missing(LPIPS)
    if network is not None and state_dict(network.path):
        reason = f"weights file {network.path.name} holds no network; export it to TorchScript or ONNX"
    if network is None or state_dict(network.path):
        return {"lpips": not_computed(reason, unit="distance", direction="lower", mode=evaluation.mode)}
    note = "" if network.listed else f"by {network.path.name}, not the listed network"
    return per_frame(
        evaluation, network.figure("lpips"), functools.partial(lpips, network=network), unit="distance",
        direction="lower", note=note, network=network.sha256,
    )  # fmt: skip


def lpips(real: Frames, made: Frames, network: Network) -> NDArray[np.float64]:
    """[T] of videos [T, H, W, 3] with levels of 0 to 255. Raises ValueError as `pairs.levels` does."""
    a, b = levels(real, made)
    distances = []
    for x, y in zip(a, b, strict=True):
        one, other = (
            network(np.ascontiguousarray(picture.transpose(2, 0, 1)[None], dtype=np.float32))
            for picture in (x, y)
        )
        distances.append(((one.astype(np.float64) - other.astype(np.float64)) ** 2).sum())
    return np.asarray(distances)
