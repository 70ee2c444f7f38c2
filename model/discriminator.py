"""Image and video discriminators (paper section 3.3, Eq. 3 and 4): StyleGAN2's residual network with the
cameras by projection. Module names are those of the published checkpoints.
Shapes: N frames, B videos, n frames of each, H = W the side of the final image, R of the raw one.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from model import fast, ops
from model.camera import CAMERA_DIM, canonical_camera
from model.config import DiscriminatorConfig, ModelConfig
from model.stylegan import FullyConnected, MappingNetwork


class Conv2d(nn.Module):
    """Equalised convolution, optionally FIR-down-sampling; with `activate` bias, leaky ReLU (gain sqrt 2) and
    clamp."""

    resample_filter: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        down: bool = False,
        activate: bool = True,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.down, self.clamp = down, clamp
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs)) if activate else None
        self.register_buffer("resample_filter", ops.setup_filter([1, 3, 3, 1]))

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """[N, I, H, W] -> [N, O, H', W']"""
        if self.bias is not None:
            gain = gain * ops.SQRT2  # folded into weight and bias: leaky ReLU is positively homogeneous
        scale = gain / self.weight[0].numel() ** 0.5
        weight = (self.weight * scale).to(x.dtype)
        bias = None if self.bias is None else (self.bias * gain).to(x.dtype)
        stride, padding = 1, weight.shape[-1] // 2
        if self.down and padding == 0:
            x = ops.fir_downsample(x, self.resample_filter)
        elif self.down:
            x, stride, padding = ops.fir(x, self.resample_filter, 2), 2, 0
        y = fast.conv2d(x, weight, bias, stride=stride, padding=padding)
        if self.bias is None:
            return y
        return fast.leaky_clamp(y, None if self.clamp is None else self.clamp * gain / ops.SQRT2)


class DiscriminatorBlock(nn.Module):
    """Residual block that halves the resolution; the first one also turns the image into features."""

    resample_filter: Tensor

    def __init__(self, image_channels: int, inputs: int, outputs: int, *, clamp: float | None) -> None:
        super().__init__()
        self.register_buffer("resample_filter", ops.setup_filter([1, 3, 3, 1]))
        self.fromrgb = Conv2d(image_channels, inputs, 1, clamp=clamp) if image_channels else None
        self.conv0 = Conv2d(inputs, inputs, 3, clamp=clamp)
        self.conv1 = Conv2d(inputs, outputs, 3, down=True, clamp=clamp)
        self.skip = Conv2d(inputs, outputs, 1, down=True, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, image channels or I, H, W] -> [N, O, H/2, W/2]"""
        if self.fromrgb is not None:
            x = self.fromrgb(x)
        skip: Tensor = self.skip(x, gain=0.5**0.5)
        x = self.conv1(self.conv0(x), gain=0.5**0.5)
        return skip + x


class DiscriminatorEpilogue(nn.Module):
    """4 x 4 features -> logits: minibatch standard deviation, convolution, two dense layers, projection."""

    def __init__(self, channels: int, *, cmap_dim: int, group: int | None, clamp: float | None) -> None:
        super().__init__()
        self.group, self.cmap_dim = group, cmap_dim
        self.conv = Conv2d(channels + 1, channels, 3, clamp=clamp)
        self.fc = FullyConnected(channels * 16, channels, activation="lrelu")
        self.out = FullyConnected(channels, cmap_dim or 1)

    def forward(self, x: Tensor, cmap: Tensor | None) -> Tensor:
        """x [N, C, 4, 4], cmap [N, cmap_dim] -> [N, 1]"""
        x = self.conv(ops.minibatch_std(ops.at_least_fp32(x), self.group))
        x = self.out(self.fc(x.flatten(1)))
        if cmap is None:
            return x
        projected: Tensor = (x * cmap).sum(dim=1, keepdim=True) / self.cmap_dim**0.5
        return projected


class Discriminator(nn.Module):
    """The trunk that both share."""

    resample_filter: Tensor
    frontal: Tensor

    def __init__(
        self,
        image_channels: int,
        camera_dim: int,
        group: int,
        *,
        resolution: int,
        config: DiscriminatorConfig,
    ) -> None:
        super().__init__()
        self.resolution, self.camera_dim, self.contrast = resolution, camera_dim, config.camera_contrast
        self.register_buffer("resample_filter", ops.setup_filter([1, 3, 3, 1]))

        def width(side: int) -> int:
            return min(config.channel_base // side, config.channel_max)

        self.names = []
        side = resolution
        while side > 4:
            first = side == resolution
            block = DiscriminatorBlock(
                image_channels if first else 0, width(side), width(side // 2), clamp=config.conv_clamp
            )
            self.names.append(f"b{side}")
            self.add_module(self.names[-1], block)
            side //= 2
        cmap_dim = width(4) if camera_dim else 0
        self.b4 = DiscriminatorEpilogue(width(4), cmap_dim=cmap_dim, group=group, clamp=config.conv_clamp)
        if camera_dim:
            frontal = torch.from_numpy(canonical_camera().encode()).repeat(camera_dim // CAMERA_DIM)
            self.register_buffer("frontal", frontal, persistent=False)
            self.mapping = MappingNetwork(
                z_dim=0, c_dim=camera_dim, w_dim=cmap_dim, layers=config.mapping_layers
            )
        self.compute_dtype: torch.dtype | None = None
        """None: the dtype of the inputs."""

    def use_bf16(self) -> Discriminator:
        """Convolutions in bfloat16 and channels_last; the 4 x 4 epilogue stays in fp32."""
        self.compute_dtype = torch.bfloat16
        return ops.channels_last(self)

    def logits(self, x: Tensor, cameras: Tensor) -> Tensor:
        """x [N, channels, H, H], cameras [N, camera_dim] -> [N, 1]"""
        if self.compute_dtype is not None:
            x = x.to(self.compute_dtype, memory_format=torch.channels_last)
        for name in self.names:
            x = cast(DiscriminatorBlock, self.get_submodule(name))(x)
        logits: Tensor = self.b4(x, self.mapping(None, self.seen(cameras)) if self.camera_dim else None)
        return logits

    def seen(self, cameras: Tensor) -> Tensor:
        """[N, 25 n], their differences from the frontal camera as the config enlarges them."""
        if self.contrast == 1:
            return cameras
        return self.frontal + self.contrast * (cameras - self.frontal)

    def _check(self, name: str, x: Tensor, expected: tuple[int, ...]) -> None:
        if tuple(x.shape) != expected:
            raise ValueError(f"{name} has shape {list(x.shape)}; give {list(expected)}")


class ImageDiscriminator(Discriminator):
    """p_img = D_img(I_i, c_i) (Eq. 3), dual as in EG3D: the frame beside its raw rendering, enlarged."""

    def __init__(self, config: ModelConfig) -> None:
        d = config.discriminator
        super().__init__(6, CAMERA_DIM, d.minibatch_group_image, resolution=config.img_resolution, config=d)
        self.frame_order = d.frame_order

    def flatten(self, frames: Tensor) -> Tensor:
        """[B, T, ...] -> [N, ...] in the config's order, which decides the minibatch-std groups."""
        return (frames.transpose(0, 1) if self.frame_order == "time_major" else frames).flatten(0, 1)

    def forward(self, image: Tensor, image_raw: Tensor, cameras: Tensor) -> Tensor:
        """image [N, 3, H, H], image_raw [N, 3, R, R], cameras [N, 25] -> logits [N, 1]"""
        n, side = image.shape[0], self.resolution
        self._check("image", image, (n, 3, side, side))
        self._check("image_raw", image_raw, (n, 3, image_raw.shape[-1], image_raw.shape[-1]))
        self._check("cameras", cameras, (n, CAMERA_DIM))
        return self.logits(torch.cat([image, ops.resize(image_raw, side)], dim=1), cameras)


class VideoDiscriminator(Discriminator):
    """p_vid = D_vid([I_i, I_j, dt], [c_i, c_j]) (Eq. 4), for n >= 2 frames: n - 1 planes of t_{j+1} - t_j."""

    def __init__(self, config: ModelConfig) -> None:
        d = config.discriminator
        self.frames, self.with_dt = d.frames, d.video_time_difference
        channels = 3 * d.frames + (d.frames - 1 if d.video_time_difference else 0)
        camera_dim = CAMERA_DIM * d.frames if d.video_cameras else 0
        super().__init__(
            channels, camera_dim, d.minibatch_group_video, resolution=config.img_resolution, config=d
        )

    def input(self, video: Tensor, times: Tensor) -> Tensor:
        """video [B, n, 3, H, H], times [B, n] -> [B, 3n + n - 1, H, H]: frames, then constant planes of
        dt."""
        b, side = video.shape[0], self.resolution
        self._check("video", video, (b, self.frames, 3, side, side))
        self._check("times", times, (b, self.frames))
        stacked = video.flatten(1, 2)
        if not self.with_dt:
            return stacked
        dt = times.diff(dim=1).to(video.dtype)[:, :, None, None].expand(-1, -1, side, side)
        return torch.cat([stacked, dt], dim=1)

    def forward(self, video: Tensor, times: Tensor, cameras: Tensor) -> Tensor:
        """video [B, n, 3, H, H], times [B, n], cameras [B, n, 25] -> logits [B, 1]"""
        self._check("cameras", cameras, (video.shape[0], self.frames, CAMERA_DIM))
        return self.logits(self.input(video, times), cameras.flatten(1))
