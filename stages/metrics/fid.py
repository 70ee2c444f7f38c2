"""Frechet inception distance of frames: all of the generated videos' against all of held-out people's.

The paper reports none; it is Heusel et al. 2017 with the network that StyleGAN's scripts use (2,048 features,
its own resizing to 299 px). Both modes are one. Frames of a video are alike: the interval is over videos.

    fid           the listed network
    fid/<file>    another (`evaluate.networks.inception`)
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from stages.metrics import Evaluation, Value, Video, not_computed
from stages.metrics.frechet import distance_to, frechet_distance, jackknife, whole
from stages.metrics.networks import Network, find_network, missing, state_dict
from stages.metrics.reference import Features, check_video, collect, real_statistics
from stages.metrics.statistics import Statistics

INCEPTION = "inception"
WEIGHTS = (INCEPTION,)
REAL = True
NAMES = ("fid", "fid/*")


def compute(evaluation: Evaluation) -> dict[str, Value]:
    """`fid`: a distance without unit. Lower is better. The interval is a jackknife over generated videos."""
    network, reason = inception(evaluation)
    if network is None or reason:
        return {"fid": not_computed(reason, unit="distance", direction="lower", mode=evaluation.mode)}
    real, made = frame_features(evaluation, network)
    fake = whole(made.groups)
    try:
        covariance = fake.covariance
    except ValueError as error:
        raise ValueError(f"generated videos: {error}") from None
    value = frechet_distance(real.mean, real.covariance, fake.mean, covariance)
    return {network.figure("fid"): Value(
        value=value, unit="distance", direction="lower", samples=made.videos, mode=evaluation.mode,
        interval=jackknife(value, made.groups, distance_to(real.mean, real.covariance)),
        network=network.sha256, note=frames_note(evaluation, network, real, fake.features),
    )}  # fmt: skip


def frames_note(evaluation: Evaluation, network: Network, real: Statistics, features: int) -> str:
    """What a reader must know to compare a figure of frames."""
    frames = evaluation.frames
    texts = [f"{frames} frames a video, against {real.count} real videos"]
    if not network.listed:
        texts.append(f"by {network.path.name}, not the listed network: not comparable with published figures")
    if min(len(evaluation.videos), real.count) * frames <= features:
        texts.append(f"fewer frames than the {features} features: compare at equal counts only")
    return "; ".join(texts)


def inception(evaluation: Evaluation) -> tuple[Network | None, str]:
    """The network of FID and KID, and why it gives no figure ("" when it can)."""
    network = find_network(INCEPTION, evaluation.networks, evaluation.weights(INCEPTION))
    if network is None:
        return None, missing(INCEPTION)
    if state_dict(network.path):
        return network, f"weights file {network.path.name} holds no network; export it to TorchScript or ONNX"
    if not len(evaluation.videos):
        return network, "no video was generated"
    return network, "" if len(evaluation.real) else evaluation.real_missing


def frame_features(evaluation: Evaluation, network: Network) -> tuple[Statistics, Features]:
    """Of real and generated frames; FID and KID share one pass over them."""
    # A copy of an evaluation (`replace`) has the same memory, and may have other videos.
    of = (evaluation.videos, evaluation.real)
    which = [network.sha256, *map(id, of), evaluation.real_key, evaluation.frames, evaluation.size]
    key = f"frame_features/{which}"
    if key not in evaluation.memory:
        function = functools.partial(
            inception_features, network=network, frames=evaluation.frames, size=evaluation.size
        )
        real = real_statistics(evaluation, network, "inception", function, rows=True)
        made = collect(evaluation.videos, function, rows=True, what="generated video")
        real.check_network(network.sha256, made.groups[0].features, "real videos")
        evaluation.memory[key] = (real, made), of            # kept, so that an id stays theirs
    found: tuple[Statistics, Features] = evaluation.memory[key][0]
    return found


def inception_features(video: Video, network: Network, frames: int, size: int) -> NDArray[np.float32]:
    """[T, D] of the frames of a video, uint8 [T, H, W, 3], which the network gets as levels of 0 to 255.

    A network that takes one size only gets frames of that size, averaged where they shrink.
    """
    video = check_video(video, frames, size)
    if network.side and video.shape[1:3] != (network.side,) * 2:
        import cv2

        side = (network.side, network.side)
        video = np.stack([cv2.resize(f, side, interpolation=cv2.INTER_AREA) for f in video]).astype(np.uint8)
    answer = network(np.ascontiguousarray(video.transpose(0, 3, 1, 2), dtype=np.float32))
    if answer.ndim < 2 or len(answer) != frames or answer[0].size != answer.shape[1]:
        given = f"{list(answer.shape)} for {frames} frames"
        raise ValueError(f"{network.path.name} gives {given}, not [{frames}, features]")
    return np.asarray(answer.reshape(frames, -1), np.float32)
