"""Temporal tri-plane synthesis: (z_a, z_m, t, camera) -> planes (paper section 3.2, Figures 2 and 3)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from model import ops
from model.camera import CAMERA_DIM
from model.config import ModelConfig
from model.motion import MotionLayer
from model.stylegan import MappingNetwork, NoiseMode, SynthesisBlock


class SynthesisNetwork(nn.Module):
    """ws and z_m t -> the 96-channel skip image whose channels are the planes. Blocks are named b4, b8,
    ..."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.block_resolutions = config.block_resolutions
        plane_channels = config.plane_features * len(config.plane_matrices)
        inputs = 0
        for k, resolution in enumerate(self.block_resolutions):
            channels = config.channels(resolution)
            motion = None
            if k < config.motion.blocks:  # the first K blocks
                motion = MotionLayer(
                    channels,
                    z_m_dim=config.z_m_dim,
                    w_dim=config.w_dim,
                    resolution=resolution,
                    config=config.motion,
                )
            block = SynthesisBlock(
                inputs, channels, plane_channels, w_dim=config.w_dim, resolution=resolution, motion=motion
            )
            self.add_module(f"b{resolution}", block)
            inputs = channels

    def blocks(self) -> list[SynthesisBlock]:
        return [cast(SynthesisBlock, self.get_submodule(f"b{r}")) for r in self.block_resolutions]

    def forward(
        self, ws: Tensor, motion_time: Tensor, noise_mode: NoiseMode = "random", random: ops.Random = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:  # fmt: skip
        """ws [N, num_ws, W], motion_time = z_m t [N, M] -> [N, plane channels, P, P]"""
        x: Tensor | None = None
        image: Tensor | None = None
        start = 0
        for block in self.blocks():
            used = ws[:, start : start + block.convolutions + 1]
            x, image = block(x, image, used, motion_time, noise_mode, random, dtype)
            start += block.convolutions
        assert image is not None
        return image


class Backbone(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mapping = MappingNetwork(
            z_dim=config.z_dim, c_dim=CAMERA_DIM, w_dim=config.w_dim, layers=config.mapping_layers,
            lr_multiplier=config.mapping_lr_multiplier, w_avg_beta=config.w_avg_beta,
        )  # fmt: skip
        self.synthesis = SynthesisNetwork(config)
