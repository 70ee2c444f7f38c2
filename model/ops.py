"""The few operators under the networks, in plain torch, exact and fast on CPU and CUDA.
FIR filters are symmetric and carry no gradient. `FirDown` and `FirUp` are each other's transpose, so that any
order of derivative stays one depthwise convolution (torch's own double backward loops over every channel).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SQRT2 = 2.0**0.5
Random = torch.Generator | Sequence[torch.Generator] | None
"""Where random numbers come from: torch's global state, one generator, or one per video."""


def draw(shape: Sequence[int], random: Random, *, like: Tensor, normal: bool = False) -> Tensor:
    """Uniform [0, 1) or normal numbers. With one generator per video, shape[0] is split evenly over them, so
    that a video gets the same numbers on any number of workers."""
    make = torch.randn if normal else torch.rand
    if random is None or isinstance(random, torch.Generator):
        device = like.device if random is None else random.device
        return make(tuple(shape), generator=random, device=device, dtype=like.dtype).to(like.device)
    if shape[0] % len(random):
        raise ValueError(
            f"{shape[0]} rows cannot be split over {len(random)} random generators; pass one per video"
        )
    part = (shape[0] // len(random), *shape[1:])
    return torch.cat([make(part, generator=g, device=g.device, dtype=like.dtype) for g in random]).to(
        like.device
    )


def setup_filter(taps: Sequence[float]) -> Tensor:
    """[k, k] outer product of 1-D taps, summing to 1."""
    f = torch.tensor(taps, dtype=torch.float32)
    f = torch.outer(f, f)
    return f / f.sum()


def at_least_fp32(x: Tensor) -> Tensor:
    """bfloat16 as fp32; fp32 and double as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def normalize_2nd_moment(x: Tensor, eps: float = 1e-8) -> Tensor:
    """x / sqrt(mean(x^2)) over the last dimension."""
    return x * (x.square().mean(dim=-1, keepdim=True) + eps).rsqrt()


Size = tuple[int, int]


def _depthwise(
    x: Tensor, kernel: Tensor, transposed: bool, stride: int, padding: int, extra: Size = (0, 0)
) -> Tensor:
    channels = x.shape[1]
    weight = kernel.to(x.dtype).expand(channels, 1, *kernel.shape)
    if transposed:
        return F.conv_transpose2d(
            x, weight, stride=stride, padding=padding, output_padding=extra, groups=channels
        )
    return F.conv2d(x, weight, stride=stride, padding=padding, groups=channels)


class FirDown(torch.autograd.Function):
    """Depthwise convolution of [N, C, H, W] with one symmetric kernel, padded, every `stride`-th pixel
    kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(kernel)
        ctx.stride, ctx.padding, ctx.size = stride, padding, x.shape[-2:]
        return _depthwise(x, kernel, False, stride, padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (kernel,) = ctx.saved_tensors
        lost = kernel.shape[-1] - 2 * ctx.padding
        reached = [(side - 1) * ctx.stride + lost for side in grads[0].shape[-2:]]
        extra = (
            ctx.size[0] - reached[0],
            ctx.size[1] - reached[1],
        )  # border pixels that the stride never reached
        return FirUp.apply(grads[0], kernel, ctx.stride, ctx.padding, extra), None, None, None


class FirUp(torch.autograd.Function):
    """The transpose of `FirDown`: zeros inserted, then the same kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, stride: int, padding: int, extra: Size) -> Tensor:
        ctx.save_for_backward(kernel)
        ctx.stride, ctx.padding = stride, padding
        return _depthwise(x, kernel, True, stride, padding, extra)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (kernel,) = ctx.saved_tensors
        return FirDown.apply(grads[0], kernel, ctx.stride, ctx.padding), None, None, None, None


def fir(x: Tensor, kernel: Tensor, padding: int, gain: float = 1.0) -> Tensor:
    """Same-resolution FIR filter of [N, C, H, W], zero padding."""
    return cast(Tensor, FirDown.apply(x, kernel * gain, 1, padding))


def fir_downsample(x: Tensor, kernel: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, H/2, W/2] with the 4 x 4 kernel; the dropped pixels are never computed."""
    return cast(Tensor, FirDown.apply(x, kernel, 2, kernel.shape[-1] // 2 - 1))


def fir_upsample(x: Tensor, kernel: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, 2H, 2W] with the 4 x 4 kernel and gain 4."""
    return cast(Tensor, FirUp.apply(x, kernel * 4, 2, kernel.shape[-1] // 2 - 1, (0, 0)))


def up_conv2d(x: Tensor, weight: Tensor, kernel: Tensor) -> Tensor:
    """x2 up-sampling 3 x 3 convolution: transposed convolution, then FIR with gain 4. A true convolution (the
    kernel is flipped against `conv2d` on a zero-inserted grid), as in the published weights."""
    return fir(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), kernel, 1, gain=4.0)


def demodulation(weight: Tensor, styles: Tensor, eps: float = 1e-8) -> Tensor:
    """[N, O]: rsqrt(sum over inputs and taps of (w * s)^2), as a matrix product: no per-sample weights."""
    energy = weight.square().sum(dim=(2, 3))  # [O, I]
    return (styles.square() @ energy.t() + eps).rsqrt()


def minibatch_std(x: Tensor, group: int | None, channels: int = 1) -> Tensor:
    """[N, C, H, W] -> [N, C + channels, H, W]: the standard deviation over a group of items, as extra planes.
    Groups are strided: item n belongs to group n mod (N / G). So if worker r of W takes videos r, r + W, ...
    and N/G is a multiple of W, the groups are those of one worker."""
    n, c, h, w = x.shape
    size = n if group is None else min(group, n)
    if n % size:
        raise ValueError(
            f"a batch of {n} cannot be split into minibatch-std groups of {size}; use a multiple of {size}"
        )
    y = x.reshape(size, n // size, channels, c // channels, h, w)
    y = (y - y.mean(dim=0)).square().mean(dim=0)  # population variance in the group
    y = (y + 1e-8).sqrt().mean(dim=(2, 3, 4))  # [N / G, channels]
    y = y.repeat(size, 1)[:, :, None, None].expand(n, channels, h, w)
    return torch.cat([x, y.to(x.dtype)], dim=1)


def resize(x: Tensor, size: int) -> Tensor:
    """[N, C, H, W] -> [N, C, size, size]: bilinear, antialiased, as D_img and the super-resolution use it."""
    if x.shape[-1] == size and x.shape[-2] == size:
        return x
    return F.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def blur_taps(sigma: float) -> Tensor:
    """1-D kernel exp2(-(k / sigma)^2), |k| <= floor(3 sigma), normalised."""
    k = torch.arange(-int(3 * sigma), int(3 * sigma) + 1, dtype=torch.float32)
    taps = torch.exp2(-(k / sigma).square())
    return taps / taps.sum()


def blur(x: Tensor, sigma: float) -> Tensor:
    """The fading blur of [N, C, H, W]: both axes, zero padding. Nothing below a one-pixel kernel."""
    radius = int(3 * sigma)
    if radius <= 0:
        return x
    n, c, h, w = x.shape
    taps = blur_taps(sigma).to(x)
    y = x.reshape(n * c, 1, h, w)
    y = F.conv2d(y, taps.view(1, 1, 1, -1), padding=(0, radius))
    y = F.conv2d(y, taps.view(1, 1, -1, 1), padding=(radius, 0))
    return y.reshape(n, c, h, w)


Network = TypeVar("Network", bound=nn.Module)


def channels_last(network: Network) -> Network:
    """Lay the convolution weights out for channels_last inputs."""
    for p in network.parameters():
        if p.ndim == 4:
            p.data = p.data.contiguous(memory_format=torch.channels_last)
    return network
