"""Frechet video distance: I3D logits (Kinetics-400) of 16-frame videos, real against generated.

Not computed without the weights of I3D: no other network's distance is called FVD here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.metrics import Evaluation, Value, missing_weights, not_computed

I3D = "i3d_pretrained_400.pt"
WEIGHTS = (I3D,)
NAMES = ("fvd",)
RESOLUTION = 224


def compute(evaluation: Evaluation) -> dict[str, Value]:
    """`fvd`: a distance without unit. Lower is better."""
    if evaluation.weights(I3D) is None:
        reason = missing_weights(I3D)
    else:
        reason = f"weights file {I3D} is here, but this version cannot run its network yet"
    return {"fvd": not_computed(reason, unit="distance", direction="lower", mode=evaluation.mode)}


def i3d_preprocess(videos: NDArray[np.uint8], resolution: int = RESOLUTION) -> NDArray[np.float32]:
    """[B, T, H, W, 3] uint8 -> [B, 3, T, resolution, resolution] in [-1, 1].

    Bilinear without antialiasing so that the shorter side fits, then the centre.
    """
    import torch
    import torch.nn.functional as F

    batch, frames, height, width, _ = videos.shape
    x = torch.from_numpy(np.ascontiguousarray(videos)).float().div(255).permute(0, 1, 4, 2, 3)
    scale = resolution / min(height, width)
    size = (
        (resolution, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), resolution)
    )
    x = F.interpolate(
        x.reshape(batch * frames, 3, height, width), size=size, mode="bilinear", align_corners=False
    )
    top, left = (size[0] - resolution) // 2, (size[1] - resolution) // 2
    x = x[:, :, top : top + resolution, left : left + resolution].reshape(
        batch, frames, 3, resolution, resolution
    )
    out: NDArray[Any] = (x.permute(0, 2, 1, 3, 4) * 2 - 1).contiguous().numpy()
    return out
