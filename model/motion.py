"""Motion layers: z_m and t move the appearance features (paper section 3.2, Eq. 1 and 2, Figure 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model import ops
from model.config import MotionConfig
from model.stylegan import FullyConnected, NoiseMode, SynthesisLayer


class MotionLayer(nn.Module):
    """f* -> f* + M(f*, w_m) with w_m = MLP(H(z_m t)).
    M is a demodulated modulated convolution with its own noise, bias and leaky ReLU; the sum has no scale,
    and at t = 0 every z_m gives the same, bias-driven feature. Neither camera nor appearance code enters."""

    def __init__(
        self, channels: int, *, z_m_dim: int, w_dim: int, resolution: int, config: MotionConfig
    ) -> None:
        super().__init__()
        self.affine = FullyConnected(z_m_dim, w_dim, activation="lrelu")  # H_m, the mapping head
        self.motion_mlp = nn.Sequential(
            FullyConnected(w_dim, w_dim, activation="lrelu"), FullyConnected(w_dim, w_dim)
        )
        self.conv: nn.Module
        if config.operator == "modconv":
            self.conv = SynthesisLayer(channels, channels, w_dim=w_dim, resolution=resolution)
        else:
            self.conv = PixelMLP(channels, w_dim=w_dim)
        if config.fusion == "learned":
            self.fusion_weight = nn.Parameter(torch.ones([]))
        self.learned_fusion = config.fusion == "learned"

    def code(self, motion_time: Tensor) -> Tensor:
        """z_m t [N, M] -> w_m [N, W]"""
        w_m: Tensor = self.motion_mlp(self.affine(motion_time))  # Eq. 1
        return w_m

    def feature(
        self, f_star: Tensor, w_m: Tensor, noise_mode: NoiseMode = "random", random: ops.Random = None
    ) -> Tensor:
        """f* [N, C, H, W], w_m [N, W] -> M(f*, w_m) [N, C, H, W]"""
        moved: Tensor = self.conv(f_star, w_m, noise_mode, random)
        return moved

    def forward(
        self, f_star: Tensor, motion_time: Tensor, noise_mode: NoiseMode = "random", random: ops.Random = None
    ) -> Tensor:
        """f* [N, C, H, W], z_m t [N, M] -> [N, C, H, W]"""
        moved = self.feature(f_star, self.code(motion_time), noise_mode, random)
        if self.learned_fusion:
            moved = moved * self.fusion_weight.to(moved.dtype)  # Table 2a, "learned"
        return f_star + moved  # Eq. 2, inside S^1


class PixelMLP(nn.Module):
    """Table 2b's "MLP instead of ModConv": a two-layer MLP over [f*, w_m] at every pixel (the paper gives no
    detail)."""

    def __init__(self, channels: int, *, w_dim: int) -> None:
        super().__init__()
        self.code = FullyConnected(w_dim, channels)
        self.hidden = FullyConnected(channels, channels)
        self.out = FullyConnected(channels, channels)

    def forward(self, x: Tensor, w_m: Tensor, noise_mode: NoiseMode, random: ops.Random) -> Tensor:
        """x [N, C, H, W], w_m [N, W] -> [N, C, H, W]; it has no noise."""
        pixels = x.movedim(1, -1)
        hidden = self.hidden(pixels) + self.code(w_m)[:, None, None]
        hidden = nn.functional.leaky_relu(hidden, 0.2) * ops.SQRT2
        moved: Tensor = self.out(hidden).movedim(-1, 1).to(x.dtype)
        return moved
