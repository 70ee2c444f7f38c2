"""Super-resolution: rendered feature image and raw RGB -> the final frame (the R(.) of the paper's section
3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model import ops
from model.config import SuperResolutionConfig
from model.stylegan import SynthesisBlock


class SuperResolution(nn.Module):
    """Two synthesis blocks without noise, styled by the last w. The first keeps its size if output = 2 x
    input."""

    def __init__(
        self, features: int, *, w_dim: int, img_resolution: int, config: SuperResolutionConfig
    ) -> None:
        super().__init__()
        self.input_resolution = config.input_resolution
        first, second = config.channels
        half = img_resolution // 2
        self.block0 = SynthesisBlock(
            features,
            first,
            3,
            w_dim=w_dim,
            resolution=half,
            up=half != config.input_resolution,
            clamp=config.conv_clamp,
        )
        self.block1 = SynthesisBlock(
            first, second, 3, w_dim=w_dim, resolution=img_resolution, clamp=config.conv_clamp
        )

    def forward(self, rgb: Tensor, features: Tensor, w: Tensor, dtype: torch.dtype | None) -> Tensor:
        """rgb [N, 3, R, R], features [N, C, R, R], w [N, W] -> [N, 3, H, H]"""
        x: Tensor = ops.resize(features, self.input_resolution)
        if dtype is not None:
            x = x.to(dtype, memory_format=torch.channels_last)
        rgb = ops.resize(rgb, self.input_resolution)
        ws = w[:, None].expand(-1, 3, -1)
        x, rgb = self.block0(x, rgb, ws, noise_mode="none")
        x, rgb = self.block1(x, rgb, ws, noise_mode="none")
        return rgb
