"""Own autograd for the three places where PyTorch's is slow or wasteful. Values are unchanged.
- `conv2d`: a convolution whose derivatives of any order are convolutions again. PyTorch takes the weight
gradient of a double backward as a convolution with an image-sized kernel. - `leaky_clamp`: leaky ReLU and
clamp in place, keeping the result alone. - `modulated_layer`: a whole modulated layer that keeps its input
and output alone and recomputes the rest. First derivatives only: nothing in PV3D differentiates the generator
twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from model import ops

SLOPE = 0.2  # of every leaky ReLU
_weight_gradients = True


@contextmanager
def no_weight_gradients() -> Iterator[None]:
    """Skip the weight gradients of `conv2d` inside: R1's first pass asks for image gradients alone, but a
    Python autograd function would compute both."""
    global _weight_gradients
    before, _weight_gradients = _weight_gradients, False
    try:
        yield
    finally:
        _weight_gradients = before


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int = 0
) -> Tensor:
    """`torch.nn.functional.conv2d`, with derivatives of any order that stay fast."""
    y: Tensor = Conv.apply(x, weight, stride, padding, bias)
    return y


def _convolution_backward(
    g: Tensor, x: Tensor, w: Tensor, stride: int, padding: int, mask: list[bool]
) -> Any:
    return torch.ops.aten.convolution_backward(
        g, x, w, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, mask
    )


class Conv(torch.autograd.Function):
    """y = x * w + b"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, stride: int, padding: int, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, w, bias, stride=stride, padding=padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, Tensor | None]:
        (g,), (x, w) = grads, ctx.saved_tensors
        gx = gw = gb = None
        if ctx.needs_input_grad[0]:
            gx = ConvInputGrad.apply(g, w, x.detach(), ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1] and _weight_gradients:
            gw = ConvWeightGrad.apply(g, x, w.shape, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[4] and _weight_gradients:
            gb = g.sum(dim=(0, 2, 3))
        return gx, gw, None, None, gb


class ConvInputGrad(torch.autograd.Function):
    """dy/dx applied to g: linear in g and in w. Of `like` only the shape is read."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, w: Tensor, like: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(g, w)
        ctx.stride, ctx.padding = stride, padding
        gx: Tensor = _convolution_backward(g, like, w, stride, padding, [True, False, False])[0]
        return gx

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (ggx,), (g, w) = grads, ctx.saved_tensors
        gg = gw = None
        if ctx.needs_input_grad[0]:
            gg = Conv.apply(ggx, w, ctx.stride, ctx.padding, None)
        if ctx.needs_input_grad[1] and _weight_gradients:
            gw = ConvWeightGrad.apply(g, ggx, w.shape, ctx.stride, ctx.padding)
        return gg, gw, None, None, None


class ConvWeightGrad(torch.autograd.Function):
    """dy/dw applied to g: linear in g and in x."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, w_shape: torch.Size, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(g, x)
        ctx.stride, ctx.padding = stride, padding
        w = g.new_empty(1).expand(w_shape)
        gw: Tensor = _convolution_backward(g, x, w, stride, padding, [False, True, False])[1]
        return gw

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (ggw,), (g, x) = grads, ctx.saved_tensors
        gg = gx = None
        if ctx.needs_input_grad[0]:
            gg = Conv.apply(x, ggw, ctx.stride, ctx.padding, None)
        if ctx.needs_input_grad[1]:
            gx = ConvInputGrad.apply(g, ggw, x.detach(), ctx.stride, ctx.padding)
        return gg, gx, None, None, None


def leaky_clamp(x: Tensor, clamp: float | None = None) -> Tensor:
    """clamp(leaky_relu(x, 0.2), +-clamp) in place: `x` must be a fresh result that nobody else reads."""
    y: Tensor = LeakyClamp.apply(x, clamp)
    return y


class LeakyClamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, clamp: float | None) -> Tensor:
        y = F.leaky_relu_(x, SLOPE)
        ctx.clamp = _clamp_(y, clamp)
        ctx.mark_dirty(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return LeakyClampGrad.apply(grads[0], ctx.saved_tensors[0], ctx.clamp), None


class LeakyClampGrad(torch.autograd.Function):
    """g times the slope at the result y: linear in g, and its own derivative."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, y: Tensor, clamp: float | None) -> Tensor:
        ctx.save_for_backward(y)
        ctx.clamp = clamp
        return _slope_times(g, y, clamp)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return LeakyClampGrad.apply(grads[0], ctx.saved_tensors[0], ctx.clamp), None, None


def _clamp_(y: Tensor, clamp: float | None) -> float | None:
    """Clamp in place. Returns the bound that the derivative must mask, None where nothing reached it: looking
    costs one cheap read on the CPU; on an accelerator it would stall, so there the mask is always taken."""
    if clamp is None:
        return None
    if y.device.type == "cpu":
        last = y.is_contiguous(memory_format=torch.channels_last)
        low, high = torch.aminmax(y.permute(0, 2, 3, 1) if last else y)  # as it lies: it would copy y else
        if -clamp < float(low) and float(high) < clamp:
            return None
    y.clamp_(-clamp, clamp)
    return clamp


def _slope_times(g: Tensor, y: Tensor, clamp: float | None) -> Tensor:
    out: Tensor = torch.ops.aten.leaky_relu_backward(g, y, SLOPE, True)
    return out if clamp is None else out.masked_fill_(y.abs() >= clamp, 0)


def modulated_layer(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None,
    bias: Tensor,
    *,
    gain: float,
    clamp: float | None,
    up: bool,
    kernel: Tensor,
) -> Tensor:
    """clamp(gain * lrelu(demodulated modulated conv + noise + bias)).
    x [N, I, H, W], weight [O, I, k, k], styles [N, I], noise [N or 1, 1, H', W'], bias [O] -> [N, O, H', W'].
    The gain goes into the scales: leaky ReLU is positively homogeneous.
    """
    scale = ops.demodulation(weight, styles) * gain
    noise = None if noise is None else noise * gain
    y: Tensor = ModulatedLayer.apply(x, weight, styles, scale, noise, bias * gain, kernel, up, clamp)
    return y


class ModulatedLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, styles: Tensor, scale: Tensor, noise: Tensor | None,
        bias: Tensor, kernel: Tensor, up: bool, clamp: float | None,
    ) -> Tensor:  # fmt: skip
        modulated, w = x * _map(styles, x), weight.to(x.dtype)
        pad = w.shape[-1] // 2
        y = ops.up_conv2d(modulated, w, kernel) if up else F.conv2d(modulated, w, padding=pad)
        del modulated
        torch.addcmul(_map(bias[None], x), y, _map(scale, x), out=y)
        if noise is not None:
            y.add_(noise.to(y.dtype))
        F.leaky_relu_(y, SLOPE)
        ctx.clamp, ctx.up = _clamp_(y, clamp), up
        ctx.save_for_backward(x, weight, styles, scale, noise, bias, kernel, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, styles, scale, noise, bias, kernel, y = ctx.saved_tensors
        need_x, need_w, need_styles, need_scale, need_noise, need_bias = ctx.needs_input_grad[:6]
        precise = torch.promote_types(x.dtype, torch.float32)
        # At 512 px a tensor of this layer has 268 MB a video: each is dropped as soon as it can be.
        total = _slope_times_dot(grads[0], y, ctx.clamp, precise) if need_scale else None
        g = _slope_times(grads[0], y, ctx.clamp)  # at the pre-activation
        g_bias = g.sum(dim=(0, 2, 3)).to(bias.dtype) if need_bias else None
        g_noise = g_scale = None
        if noise is not None and need_noise:
            g_noise = g.sum(dim=1, keepdim=True)
            g_noise = (g_noise if noise.shape[0] == g.shape[0] else g_noise.sum(dim=0, keepdim=True)).to(
                noise.dtype
            )
        if total is not None:  # convolution = (pre-activation - noise - bias) / scale
            total -= g.sum(dim=(2, 3), dtype=precise) * bias
            if noise is not None:
                total -= (g * noise.to(g.dtype)).sum(dim=(2, 3), dtype=precise)
            g_scale = (total / scale).to(scale.dtype)
        g = g.mul_(_map(scale, g))  # at the convolution's output
        if ctx.up:
            g = ops.FirUp.apply(g, kernel * 4, 1, 1, (0, 0))
        g_x = g_weight = g_styles = None
        w = weight.to(x.dtype)
        if need_w:
            g_weight = _layer_backward(g, x * _map(styles, x), w, ctx.up, [False, True, False])[1]
            g_weight = (g_weight.transpose(0, 1) if ctx.up else g_weight).to(weight.dtype)
        if need_x or need_styles:
            g_modulated = _layer_backward(g, x, w, ctx.up, [True, False, False])[0]
            del g
            if need_styles:
                g_styles = (g_modulated * x).sum(dim=(2, 3), dtype=precise).to(styles.dtype)
            g_x = g_modulated.mul_(_map(styles, x)) if need_x else None
        return g_x, g_weight, g_styles, g_scale, g_noise, g_bias, None, None, None


def _layer_backward(g: Tensor, x: Tensor, w: Tensor, up: bool, mask: list[bool]) -> Any:
    """Derivatives of a modulated layer's convolution of `x`; for that by x only its shape is read."""
    stride, padding = 1, w.shape[-1] // 2
    if up:
        w, stride, padding = w.transpose(0, 1), 2, 0
    return torch.ops.aten.convolution_backward(
        g, x, w, None, [stride] * 2, [padding] * 2, [1, 1], up, [0, 0], 1, mask
    )


def _slope_times_dot(g: Tensor, y: Tensor, clamp: float | None, dtype: torch.dtype) -> Tensor:
    """[N, C]: the sum over pixels of `_slope_times` times the pre-activation. A piecewise linear y is slope
    times pre-activation, so it is the sum of g y where y was not clamped."""
    product = g * y
    if clamp is not None:
        product.masked_fill_(y.abs() >= clamp, 0)
    return product.sum(dim=(2, 3), dtype=dtype)


def _map(values: Tensor, like: Tensor) -> Tensor:
    """[N, C] -> [N, C, 1, 1] in the dtype of `like`."""
    return values.to(like.dtype)[:, :, None, None]
