"""From planes to density and colour at 3-D points (paper section 3.4, Eq. 5).
Shapes: N frames, P planes, C features, M points.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.stylegan import FullyConnected


def project(points: Tensor, axes: Tensor) -> Tensor:
    """points [N, M, 3], axes [P, 2, 3] -> [N, P, M, 2]: the (width, height) coordinate on every plane."""
    return torch.einsum("nmk,pik->npmi", points, axes)


def plane_layout(planes: Tensor) -> Tensor:
    """[N, P, C, H, W] with one pixel's features together in memory: sampling is twice as fast so."""
    flat = planes.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    laid: Tensor = flat.unflatten(0, planes.shape[:2])
    return laid


def sample_planes(planes: Tensor, points: Tensor, axes: Tensor, box_warp: float) -> Tensor:
    """Bilinear features, zero outside the box of side `box_warp`: [N, P, C, H, W], [N, M, 3] -> [N, P, M,
    C]."""
    n, p, c = planes.shape[:3]
    grid = project(points * (2 / box_warp), axes).reshape(n * p, -1, 1, 2).to(planes.dtype)
    flat = plane_layout(planes).flatten(0, 1)
    features = F.grid_sample(flat, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return features.view(n, p, c, -1).transpose(2, 3)


class Decoder(nn.Module):
    """Mean plane feature -> raw density and colour feature: the "Decoder" of Eq. 5, one hidden layer with
    softplus.
    The view direction is not used.
    """

    def __init__(self, features: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            FullyConnected(features, hidden), nn.Softplus(), FullyConnected(hidden, 1 + outputs)
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[N, P, M, C] -> colour [N, M, outputs] in (0, 1), raw density [N, M, 1] (before softplus)"""
        mean = features.mean(dim=1)
        if not (torch.is_grad_enabled() and mean.requires_grad):
            return self.shade(mean)
        # What lies between is eight times the result and costs 1 % of a step to compute again.
        shaded: tuple[Tensor, Tensor] = checkpoint(
            self.shade, mean, use_reentrant=False, preserve_rng_state=False
        )
        return shaded

    def shade(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """[N, M, C] -> as `forward`."""
        x: Tensor = self.net(feature)
        return torch.sigmoid(x[..., 1:]) * 1.002 - 0.001, x[..., :1]
