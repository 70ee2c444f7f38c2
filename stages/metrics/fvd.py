"""Frechet video distance: I3D logits (Kinetics-400) of whole videos, real against generated.

Paper, appendix A.4: I3D features of 16-frame videos that were saved with H.264 and read back; 5,000 of them.
`fvd` is of 16 frames, `fvd48` of 48 (`evaluate.frames`): distances of different lengths are not comparable.

`official` differs as the authors' script does: frames that are not of 512 px are first brought to 512 px
(bilinear), then to I3D's 224 px as here. Their real videos were clips that the model was trained on; ours are
of held-out people in both modes. The network that they ran (VideoGPT's, a state dict) is another conversion
of I3D than the listed file, so figures may differ slightly.

    fvd                     the listed network, against held-out people of the dataset
    fvd/<file>              another network (`evaluate.networks.i3d`)
    fvd/vs-<file>           against a file of statistics (`evaluate.statistics`)
    fvd/<file>-vs-<file>    both

`evaluate.statistics` takes the file that the authors published for VoxCeleb: sums over 5,000 clips that do
not say which network they are of, so only their number of features can be checked, and the figure says so.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.metrics import Evaluation, Mode, Value, Video, not_computed
from stages.metrics.frechet import distance_to, frechet_distance, jackknife, whole
from stages.metrics.networks import Network, find_network, missing, state_dict, stem
from stages.metrics.reference import check_video, collect, real_statistics
from stages.metrics.statistics import Moments, Statistics, read_statistics

I3D = "i3d"
WEIGHTS = (I3D,)
REAL = True
NAMES = ("fvd", "fvd/*", "fvd48", "fvd48/*")
RESOLUTION = 224
OFFICIAL_SIDE = 512
PAPER_FRAMES = 16


def compute(evaluation: Evaluation) -> dict[str, Value]:
    """`fvd`: a distance without unit. Lower is better. The interval is a jackknife over generated videos.

    Raises ValueError for videos of another size or length, features that are not finite, too few videos, and
    for statistics of another network.
    """
    plain = "fvd" if evaluation.frames == PAPER_FRAMES else f"fvd{evaluation.frames}"
    network = find_network(I3D, evaluation.networks, evaluation.weights(I3D))
    reason = missing(I3D)
    if network is not None:
        reason = _obstacle(evaluation, network)
    if network is None or reason:
        none = not_computed(reason, unit="distance", direction="lower", mode=evaluation.mode)
        return {plain: none}
    function = functools.partial(
        video_features, network=network, frames=evaluation.frames, size=evaluation.size, mode=evaluation.mode
    )
    real = _given(evaluation, network) or real_statistics(evaluation, network, "i3d", function)
    groups = collect(evaluation.videos, function, what="generated video").groups
    name = network.figure(plain)
    if evaluation.statistics is not None:
        real.check_network(network.sha256, whole(groups).features, f"statistics {evaluation.statistics}")
        name = f"{name}{'/' if network.listed else '-'}vs-{stem(evaluation.statistics)}"
    return {name: _distance(evaluation, network, groups, real)}


def _given(evaluation: Evaluation, network: Network) -> Statistics | None:
    """The statistics that take the place of real videos. Raises ValueError for those of another network, of
    another number of frames or of the other mode, if they say so, before any video is made."""
    if evaluation.statistics is None:
        return None
    given = read_statistics(evaluation.statistics)
    what = f"statistics {evaluation.statistics}"
    given.check_network(network.sha256, len(given.mean), what)
    for name, asked in (("frames", evaluation.frames), ("mode", evaluation.mode)):
        said = given.about.get(name, asked)
        if said != asked:
            raise ValueError(f"{what}: of {name} {said}, this evaluation of {asked}; name another file")
    return given


def _obstacle(evaluation: Evaluation, network: Network) -> str:
    """Why there is no figure although there is a network; "" when there can be one."""
    if state_dict(network.path):
        return f"weights file {network.path.name} holds no network; export it to TorchScript or ONNX"
    if not len(evaluation.videos):
        return "no video was generated"
    if evaluation.statistics is None and not len(evaluation.real):
        return evaluation.real_missing
    return ""


def _distance(evaluation: Evaluation, network: Network, groups: list[Moments], real: Statistics) -> Value:
    fake = whole(groups)
    try:
        covariance = fake.covariance
    except ValueError as error:
        raise ValueError(f"generated videos: {error}") from None
    value = frechet_distance(real.mean, real.covariance, fake.mean, covariance)
    return Value(
        value=value, unit="distance", direction="lower", samples=fake.count, mode=evaluation.mode,
        interval=jackknife(value, groups, distance_to(real.mean, real.covariance)),
        network=network.sha256, note=note(network, fake.count, real, fake.features),
    )  # fmt: skip


def note(network: Network, videos: int, real: Statistics, features: int) -> str:
    """What a reader must know: against what, by which network, and whether the videos are few."""
    texts = [f"against {real.count} real videos"]
    if not real.network:
        texts.append("whose statistics do not say which network they are of")
    if not network.listed:
        texts.append(f"by {network.path.name}, not the listed network: not comparable with published figures")
    if min(videos, real.count) <= features:
        texts.append(f"fewer videos than the {features} features: compare at equal counts only")
    return "; ".join(texts)


def video_features(
    video: Video, network: Network, frames: int, size: int, mode: Mode = "paper"
) -> NDArray[np.float32]:
    """[1, D]: the network's answer to one video, uint8 [T, H, W, 3]; its mean over time if it has one."""
    video = check_video(video, frames, size)
    if mode == "official" and video.shape[1:3] != (OFFICIAL_SIDE, OFFICIAL_SIDE):
        import cv2

        side = (OFFICIAL_SIDE, OFFICIAL_SIDE)
        large = [cv2.resize(frame, side, interpolation=cv2.INTER_LINEAR) for frame in video]
        video = np.stack(large).astype(np.uint8)
    answer = network(i3d_preprocess(video[None], network.side or RESOLUTION))
    if answer.ndim < 2 or answer.shape[0] != 1:
        raise ValueError(f"{network.path.name} gives {list(answer.shape)} for a video, not [1, features]")
    return np.asarray(answer.reshape(*answer.shape[:2], -1).mean(axis=2), np.float32)


def i3d_preprocess(videos: NDArray[np.uint8], resolution: int = RESOLUTION) -> NDArray[np.float32]:
    """[B, T, H, W, 3] uint8 -> [B, 3, T, resolution, resolution] in [-1, 1].

    Bilinear without antialiasing so that the shorter side fits, then the centre.
    """
    import torch
    import torch.nn.functional as F

    _, _, height, width, _ = videos.shape
    scale = resolution / min(height, width)
    size = (
        (resolution, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), resolution)
    )
    top, left = (size[0] - resolution) // 2, (size[1] - resolution) // 2

    def small(frame: NDArray[np.uint8]) -> torch.Tensor:
        """[3, resolution, resolution], one frame at a time: a video's worth of floats leaves the cache."""
        x = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float()
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return x[0, :, top : top + resolution, left : left + resolution]

    x = torch.stack([torch.stack([small(frame) for frame in video], dim=1) for video in videos])
    out: NDArray[Any] = x.div_(127.5).sub_(1).contiguous().numpy()
    return out
