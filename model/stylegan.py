"""StyleGAN2 parts: mapping network, modulated synthesis layers and blocks. Module names are those of the
published checkpoints.
Shapes: N frames, C channels, W = w_dim.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from model import ops
from model.fast import modulated_layer

NoiseMode = Literal["random", "const", "none"]


class FullyConnected(nn.Module):
    """x W^T + b with an equalised learning rate, then leaky ReLU with gain sqrt(2) or nothing."""

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        activation: Literal["linear", "lrelu"] = "linear",
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.lr_multiplier = lr_multiplier
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), bias_init / lr_multiplier))

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]"""
        scale = self.lr_multiplier / self.weight.shape[1] ** 0.5
        y = nn.functional.linear(x, self.weight * scale, self.bias * self.lr_multiplier)
        return nn.functional.leaky_relu(y, 0.2) * ops.SQRT2 if self.activation == "lrelu" else y


class MappingNetwork(nn.Module):
    """(z, c) -> w. With z_dim 0 it embeds cameras alone (the discriminators); with c_dim 0 latents alone."""

    w_avg: Tensor

    def __init__(
        self,
        *,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        layers: int,
        lr_multiplier: float = 0.01,
        w_avg_beta: float | None = None,
    ) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.layers, self.w_avg_beta = z_dim, c_dim, layers, w_avg_beta
        if c_dim:
            self.embed = FullyConnected(c_dim, w_dim)
        inputs = z_dim + (w_dim if c_dim else 0)
        for i in range(layers):
            layer = FullyConnected(inputs, w_dim, activation="lrelu", lr_multiplier=lr_multiplier)
            self.add_module(f"fc{i}", layer)
            inputs = w_dim
        if w_avg_beta is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, z: Tensor | None, c: Tensor | None) -> Tensor:
        """z [N, z_dim], c [N, c_dim] -> w [N, W]"""
        parts = []
        if self.z_dim:
            assert z is not None
            parts.append(ops.normalize_2nd_moment(z))
        if self.c_dim:
            assert c is not None
            parts.append(ops.normalize_2nd_moment(self.embed(c)))
        x = torch.cat(parts, dim=1)
        for i in range(self.layers):
            x = self.get_submodule(f"fc{i}")(x)
        return x

    @torch.no_grad()
    def update_w_avg(self, w: Tensor) -> None:
        """Move the running mean of w [N, W] (official: only in the generator run of the discriminator
        step)."""
        assert self.w_avg_beta is not None
        self.w_avg.copy_(w.detach().mean(dim=0).lerp(self.w_avg, self.w_avg_beta))

    def broadcast(self, w: Tensor, num_ws: int, psi: float = 1.0, cutoff: int | None = None) -> Tensor:
        """w [N, W] -> ws [N, num_ws, W]; the first `cutoff` of them (all if None) pulled towards the mean by
        psi."""
        ws = w[:, None].expand(-1, num_ws, -1)
        if psi == 1:
            return ws
        cutoff = num_ws if cutoff is None else cutoff
        return torch.cat([self.w_avg.lerp(ws[:, :cutoff], psi), ws[:, cutoff:]], dim=1)


class SynthesisLayer(nn.Module):
    """Demodulated 3 x 3 modulated convolution, noise, bias, leaky ReLU (gain sqrt 2); optionally twice the
    size."""

    resample_filter: Tensor
    noise_const: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        w_dim: int,
        resolution: int,
        up: bool = False,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.resolution, self.up, self.clamp = resolution, up, clamp
        self.affine = FullyConnected(w_dim, inputs, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("resample_filter", ops.setup_filter([1, 3, 3, 1]))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))

    def noise(self, x: Tensor, mode: NoiseMode, random: ops.Random) -> Tensor | None:
        """[N or 1, 1, H', W'] scaled by its strength, or None."""
        if mode == "none":
            return None
        if mode == "const":
            return self.noise_const[None, None] * self.noise_strength
        shape = (x.shape[0], 1, self.resolution, self.resolution)
        return ops.draw(shape, random, like=self.noise_const, normal=True) * self.noise_strength

    def forward(
        self,
        x: Tensor,
        w: Tensor,
        noise_mode: NoiseMode = "random",
        random: ops.Random = None,
        gain: float = 1.0,
    ) -> Tensor:
        """x [N, I, H, W], w [N, W] -> [N, O, H', W']"""
        return modulated_layer(
            x, self.weight, self.affine(w), self.noise(x, noise_mode, random), self.bias,
            gain=ops.SQRT2 * gain, clamp=None if self.clamp is None else self.clamp * gain,
            up=self.up, kernel=self.resample_filter,
        )  # fmt: skip


class ToRGB(nn.Module):
    """1 x 1 modulated convolution without demodulation: a feature to image channels."""

    def __init__(self, inputs: int, outputs: int, *, w_dim: int, clamp: float | None = None) -> None:
        super().__init__()
        self.clamp = clamp
        self.affine = FullyConnected(w_dim, inputs, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x [N, I, H, W], w [N, W] -> [N, O, H, W] in fp32"""
        n, i, height, width = x.shape
        styles = self.affine(w) / i**0.5
        weight = (self.weight[:, :, 0, 0] * styles[:, None]).to(
            x.dtype
        )  # [N, O, I]: as small as the styles' work
        if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            pixels = x.permute(0, 2, 3, 1).reshape(n, height * width, i)
            y = torch.bmm(pixels, weight.transpose(1, 2)).view(n, height, width, -1).permute(0, 3, 1, 2)
        else:
            y = torch.bmm(weight, x.reshape(n, i, height * width)).view(n, -1, height, width)
        y = ops.at_least_fp32(y) + self.bias[:, None, None]
        return y if self.clamp is None else y.clamp(-self.clamp, self.clamp)


class SynthesisBlock(nn.Module):
    """One resolution of the skip generator: S^0, motion, S^1 and the to-RGB skip (paper Eq. 2, Figure 3).
    The first block (inputs 0) starts from a learned constant and has one convolution only, so its motion
    enters after it and no S^1 follows; the paper's formula has both for every k."""

    resample_filter: Tensor

    def __init__(
        self, inputs: int, channels: int, image_channels: int, *, w_dim: int, resolution: int,
        up: bool = True, clamp: float | None = None, motion: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.inputs, self.up, self.resolution = inputs, up, resolution
        self.register_buffer("resample_filter", ops.setup_filter([1, 3, 3, 1]))
        if inputs == 0:
            self.const = nn.Parameter(torch.randn(channels, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(
                inputs, channels, w_dim=w_dim, resolution=resolution, up=up, clamp=clamp
            )
        if motion is not None:
            self.motion_time_fuser = motion
        self.has_motion = motion is not None
        self.conv1 = SynthesisLayer(channels, channels, w_dim=w_dim, resolution=resolution, clamp=clamp)
        self.torgb = ToRGB(channels, image_channels, w_dim=w_dim, clamp=clamp)

    @property
    def convolutions(self) -> int:
        """Number of w that its convolutions read; its to-RGB reads one more, shared with the next block."""
        return 1 if self.inputs == 0 else 2

    def forward(
        self, x: Tensor | None, image: Tensor | None, ws: Tensor, motion_time: Tensor | None = None,
        noise_mode: NoiseMode = "random", random: ops.Random = None, dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """x [N, I, H, W], image [N, image channels, H, W], ws [N, convolutions + 1, W], motion_time = z_m t
        [N, M] -> x [N, C, H', W'], image [N, image channels, H', W']"""
        if self.inputs == 0:
            x = self.const.to(dtype or self.const.dtype)[None].expand(ws.shape[0], -1, -1, -1)
            x = self.conv1(x, ws[:, 0], noise_mode, random)
            x = self._fuse(x, motion_time, noise_mode, random)
        else:
            f_star = self.conv0(x, ws[:, 0], noise_mode, random)  # Eq. 2: f* = S^0_k(f_{k-1}, w_a)
            fused = self._fuse(f_star, motion_time, noise_mode, random)  # Eq. 2: f* + ModConv(f*, w_m)
            x = self.conv1(fused, ws[:, 1], noise_mode, random)  # Eq. 2: f_k = S^1_k(..., w_a)
        rgb = self.torgb(x, ws[:, -1])
        if image is not None:
            rgb = rgb + (ops.fir_upsample(image, self.resample_filter) if self.up else image)
        return cast(Tensor, x), rgb

    def _fuse(
        self, x: Tensor, motion_time: Tensor | None, noise_mode: NoiseMode, random: ops.Random
    ) -> Tensor:
        if not self.has_motion:
            return x
        fused: Tensor = self.motion_time_fuser(x, motion_time, noise_mode, random)
        return fused
