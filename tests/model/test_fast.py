"""The fast operators against the plain ones: values, gradients, double backward. In double precision."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from model import fast, ops, reference

KERNEL = ops.setup_filter([1, 3, 3, 1]).double()


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def leaf(*shape):
    return torch.randn(*shape).requires_grad_()


@pytest.mark.parametrize(("stride", "padding", "size"), [(1, 1, 3), (2, 0, 3), (1, 0, 1)])
def test_conv2d_has_right_first_and_second_derivatives(stride, padding, size):
    def convolve(x, w, b):
        return fast.conv2d(x, w, b, stride=stride, padding=padding)

    inputs = (leaf(2, 3, 5, 5), leaf(4, 3, size, size), leaf(4))
    assert gradcheck(convolve, inputs)
    assert gradgradcheck(convolve, inputs)


@pytest.mark.parametrize(
    "filtered",
    [
        lambda x: ops.fir(x, KERNEL, 1, gain=4.0),
        lambda x: ops.fir(x, KERNEL, 2),
        lambda x: ops.fir_downsample(x, KERNEL),
        lambda x: ops.fir_upsample(x, KERNEL),
    ],
)
def test_a_fir_filter_has_right_derivatives_of_both_orders(filtered):
    x = leaf(2, 3, 6, 8)
    assert gradcheck(filtered, (x,))
    assert gradgradcheck(filtered, (x,))


@pytest.mark.parametrize("clamp", [None, 0.5])
def test_leaky_clamp_has_right_derivatives_of_both_orders(clamp):
    x = leaf(40)
    assert gradcheck(lambda x: fast.leaky_clamp(x * 1, clamp), (x,))
    assert gradgradcheck(lambda x: fast.leaky_clamp(x * 1, clamp) ** 2, (x,))


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("clamp", [None, 1.0])
@pytest.mark.parametrize("per_sample_noise", [False, True])
def test_the_modulated_layer_equals_the_plain_one_with_its_gradients(up, clamp, per_sample_noise):
    side = 12 if up else 6
    inputs = (
        leaf(3, 4, 6, 6),
        leaf(5, 4, 3, 3),
        leaf(3, 4),
        leaf(3 if per_sample_noise else 1, 1, side, side),
        leaf(5),
    )
    arguments = {"gain": 1.3, "clamp": clamp, "up": up, "kernel": KERNEL}
    ours, theirs = (
        layer(*inputs, **arguments) for layer in (fast.modulated_layer, reference.modulated_layer)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(ours)
    gradients = [torch.autograd.grad((y * weights).sum(), inputs) for y in (ours, theirs)]
    for mine, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-9, atol=1e-11)


def test_weight_gradients_can_be_left_out_of_a_pass():
    x, w = leaf(1, 2, 4, 4), leaf(2, 2, 3, 3)
    y = fast.conv2d(x, w, padding=1).square().sum()
    with fast.no_weight_gradients():
        (gx,) = torch.autograd.grad(y, x, create_graph=True)
    gx.square().sum().backward()  # the second pass has them again
    plain_w = w.detach().clone().requires_grad_()
    y = torch.nn.functional.conv2d(x, plain_w, padding=1).square().sum()
    (gx,) = torch.autograd.grad(y, x, create_graph=True)
    gx.square().sum().backward()
    torch.testing.assert_close(w.grad, plain_w.grad)


@pytest.mark.parametrize(("white", "scale"), [(False, 1.0), (True, 1.0), (False, 20.0)])
def test_marching_unsorted_samples_equals_sorting_them(white, scale):
    from model import rendering

    depths = torch.rand(2, 7, 9) + 2
    density, colours = leaf(2, 7, 9), leaf(2, 7, 9, 4)
    weights = torch.randn(2, 7, 4)
    results = []
    for march in (rendering.composite, reference.composite):
        parts = [colours[:, :, :4], colours[:, :, 4:]]
        seen = march(density, depths, parts, white_background=white, density_scale=scale)
        loss = (seen.colour * weights).sum() + seen.depth.sum() + seen.weight_total.sum()
        results.append((seen.colour, seen.depth, *torch.autograd.grad(loss, (density, colours))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_a_density_of_another_unit_of_length_is_that_of_a_scaled_ray():
    from model import rendering

    depths, density = torch.rand(2, 7, 9).sort(dim=-1).values, leaf(2, 7, 9)
    scaled = rendering.interval_weights(density, depths, 20.0)
    torch.testing.assert_close(scaled, rendering.interval_weights(density, 20 * depths))
    assert (scaled.sum(dim=-1) > rendering.interval_weights(density, depths).sum(dim=-1)).all()


def test_minibatch_groups_are_those_of_one_worker_when_videos_are_dealt_out():
    x = torch.randn(8, 3, 4, 4)
    whole = ops.minibatch_std(x, 4)
    for rank in (0, 1):
        torch.testing.assert_close(ops.minibatch_std(x[rank::2], 4), whole[rank::2])


def test_a_batch_that_the_group_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"a batch of 6 cannot be split .* groups of 4"):
        ops.minibatch_std(torch.zeros(6, 1, 4, 4), 4)


def test_one_generator_per_video_gives_a_video_the_same_numbers_anywhere():
    def seeded():
        return [torch.Generator().manual_seed(i) for i in range(4)]

    like = torch.zeros(1)
    together = ops.draw((8, 3), seeded(), like=like)
    alone = ops.draw((2, 3), seeded()[2:3], like=like)
    assert torch.equal(together[4:6], alone)
    with pytest.raises(ValueError, match="one per video"):
        ops.draw((7, 3), seeded(), like=like)
