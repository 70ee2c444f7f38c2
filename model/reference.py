"""The same operators written the plain way: what tests compare the fast ones with, and what `bench` measures
against.
Scale activations -> `conv2d` -> demodulate; zeros inserted, then a 4 x 4 FIR; bias, activation, gain and
clamp one by one; PyTorch's own double backward; discriminators not frozen in the
generator's step. `installed()` puts these into the networks for the time of a
`with`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from model import ops
from model.discriminator import Conv2d
from model.stylegan import ToRGB
from model.triplane import project

ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "linear": (lambda x: x, 1.0),
    "relu": (torch.relu, ops.SQRT2),
    "lrelu": (lambda x: F.leaky_relu(x, 0.2), ops.SQRT2),
    "swish": (F.silu, ops.SQRT2),
    "tanh": (torch.tanh, 1.0),
    "sigmoid": (torch.sigmoid, 1.0),
    "elu": (F.elu, 1.0),
    "selu": (F.selu, 1.0),
    "softplus": (F.softplus, 1.0),
}


def upfirdn2d(
    x: Tensor,
    f: Tensor,
    *,
    up: Sequence[int] = (1, 1),
    down: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    flip_filter: bool = False,
    gain: float = 1.0,
) -> Tensor:
    """Insert zeros after each pixel, pad or crop [x0, x1, y0, y1], convolve (correlate if flipped), keep
    every down-th.
    x [N, C, H, W], f [h, w]; up and down are (x, y).
    """
    n, c, h, w = x.shape
    (ux, uy), (dx, dy), (x0, x1, y0, y1) = up, down, padding
    x = F.pad(x.reshape(n, c, h, 1, w, 1), (0, ux - 1, 0, 0, 0, uy - 1)).reshape(n, c, h * uy, w * ux)
    x = F.pad(x, (max(x0, 0), max(x1, 0), max(y0, 0), max(y1, 0)))
    x = x[:, :, max(-y0, 0) : x.shape[2] - max(-y1, 0), max(-x0, 0) : x.shape[3] - max(-x1, 0)]
    kernel = (f if flip_filter else f.flip((0, 1))).to(x) * gain
    return F.conv2d(x, kernel.expand(c, 1, *kernel.shape), groups=c)[:, :, ::dy, ::dx]


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    act: str = "linear",
    alpha: float = 0.2,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """clamp(gain * act(x + bias), +-clamp) for [N, C, ...]. `gain` None is the activation's own (sqrt 2 for
    lrelu)."""
    function, default_gain = ACTIVATIONS[act]
    if bias is not None:
        x = x + bias.to(x.dtype).view(1, -1, *[1] * (x.ndim - 2))
    x = F.leaky_relu(x, alpha) if act == "lrelu" else function(x)
    gain = default_gain if gain is None else gain
    if gain != 1:
        x = x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


def conv2d_resample(
    x: Tensor, w: Tensor, f: Tensor, *, up: int = 1, down: int = 1, padding: int = 0, flip_weight: bool = True
) -> Tensor:
    """Convolution with up- or down-sampling by `f`. `flip_weight` False is a true convolution (kernel
    flipped)."""
    taps = f.shape[-1]
    w = w if flip_weight else w.flip((2, 3))
    if up > 1:  # the convolution is valid on the FIR's output, which is larger by the kernel's reach
        low, high = (taps + up - 1) // 2 + padding, (taps - up) // 2 + padding
        x = upfirdn2d(x, f, up=(up, up), padding=(low, high, low, high), gain=up**2)
        return F.conv2d(x, w)
    if down > 1:
        low, high = (taps - down + 1) // 2 + padding, (taps - down) // 2 + padding
        x = upfirdn2d(x, f, padding=(low, high, low, high))
        return F.conv2d(x, w, stride=down)
    return F.conv2d(x, w, padding=padding)


def modulated_conv2d(
    x: Tensor, weight: Tensor, styles: Tensor, *, noise: Tensor | None = None, demodulate: bool = True,
    resample: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """conv(x s, w) d + noise. `resample` is the convolution (default: same size)."""
    convolve = resample or (lambda y, w: F.conv2d(y, w, padding=w.shape[-1] // 2))
    y = convolve(x * styles[:, :, None, None], weight)
    if demodulate:
        per_sample = weight[None] * styles[:, None, :, None, None]
        y = y * (per_sample.square().sum(dim=(2, 3, 4)) + 1e-8).rsqrt()[:, :, None, None]
    return y if noise is None else y + noise


def modulated_layer(
    x: Tensor, weight: Tensor, styles: Tensor, noise: Tensor | None, bias: Tensor, *, gain: float,
    clamp: float | None, up: bool, kernel: Tensor,
) -> Tensor:  # fmt: skip
    """`fast.modulated_layer`, the plain way."""

    def resample(y: Tensor, w: Tensor) -> Tensor:
        return conv2d_resample(y, w, kernel, up=2 if up else 1, padding=w.shape[-1] // 2, flip_weight=not up)

    y = modulated_conv2d(x, weight, styles, noise=noise, resample=resample)
    return bias_act(y, bias, act="lrelu", gain=gain, clamp=clamp)


def to_rgb(self: ToRGB, x: Tensor, w: Tensor) -> Tensor:
    """`stylegan.ToRGB.forward`, the plain way."""
    styles = self.affine(w) / self.weight.shape[1] ** 0.5
    y = modulated_conv2d(x, self.weight, styles, demodulate=False)
    return bias_act(y, self.bias, clamp=self.clamp)


def discriminator_conv2d(self: Conv2d, x: Tensor, gain: float = 1.0) -> Tensor:
    """`discriminator.Conv2d.forward`, the plain way."""
    weight = self.weight / self.weight[0].numel() ** 0.5
    down = 2 if self.down else 1
    y = conv2d_resample(x, weight, self.resample_filter, down=down, padding=weight.shape[-1] // 2)
    if self.bias is None:
        return y * gain
    clamp = None if self.clamp is None else self.clamp * gain
    return bias_act(y, self.bias, act="lrelu", gain=ops.SQRT2 * gain, clamp=clamp)


def sample_planes(planes: Tensor, points: Tensor, axes: Tensor, box_warp: float) -> Tensor:
    """`triplane.sample_planes` without a change of layout."""
    n, p, c, h, w = planes.shape
    grid = project(points * (2 / box_warp), axes).reshape(n * p, -1, 1, 2)
    features = F.grid_sample(planes.reshape(n * p, c, h, w), grid, padding_mode="zeros", align_corners=False)
    return features.view(n, p, c, -1).transpose(2, 3)


def fir_downsample(x: Tensor, kernel: Tensor) -> Tensor:
    return upfirdn2d(x, kernel, down=(2, 2), padding=(1, 1, 1, 1))


def fir_upsample(x: Tensor, kernel: Tensor) -> Tensor:
    return upfirdn2d(x, kernel, up=(2, 2), padding=(2, 1, 2, 1), gain=4.0)


@contextmanager
def installed() -> Iterator[None]:
    """The networks run on the operators of this file inside."""
    with (
        patch("model.stylegan.modulated_layer", modulated_layer),
        patch.object(ToRGB, "forward", to_rgb),
        patch.object(Conv2d, "forward", discriminator_conv2d),
        patch("model.rendering.sample_planes", sample_planes),
        patch("model.generator.sample_planes", sample_planes),
        patch("model.ops.fir_upsample", fir_upsample),
        patch("model.rendering.composite", composite),
        patch("model.steps.frozen", lambda *networks: nullcontext()),
        patch("model.generator.checkpoint", lambda function, *args, **options: function(*args)),
        patch("model.losses.linearised", lambda term, image, raw: term(image, raw)),
    ):
        yield


def composite(  # type: ignore[no-untyped-def]
    density: Tensor, depths: Tensor, colours: list[Tensor], *, white_background: bool = False,
    density_scale: float = 1.0,
):  # fmt: skip
    """`rendering.composite`, the plain way: sort everything, then march the interval colours."""
    from model import rendering

    colour = torch.cat(colours, dim=2)
    depths, order = depths.sort(dim=-1)
    density = density.gather(-1, order)
    colour = colour.gather(2, order[..., None].expand_as(colour))
    weights = rendering.interval_weights(density, depths, density_scale)
    total = weights.sum(dim=-1)
    seen = (weights[..., None] * (colour[:, :, 1:] + colour[:, :, :-1]) / 2).sum(dim=2)
    if white_background:
        seen = seen + (1 - total)[..., None]
    depth = ((weights * (depths[..., 1:] + depths[..., :-1]) / 2).sum(dim=-1) / total).nan_to_num(
        nan=float("inf")
    )
    depth = depth.clamp(depths.min(), depths.max())
    return rendering.Composite(seen, depth, total, weights, depths, density)
