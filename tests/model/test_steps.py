"""Draws, schedules, optimiser settings, averages, and what several workers share."""

import copy
import math

import pytest
import torch

from model import losses, ops, steps
from model.config import ModelConfig, Recipe, variant, with_changes
from model.generator import Generator
from model.losses import GeneratorInputs


def test_adam_is_corrected_for_the_lazy_regulariser():
    recipe = Recipe()
    assert steps.generator_adam(recipe)["lr"] == pytest.approx(0.002)
    assert steps.generator_adam(recipe)["betas"] == (0.0, pytest.approx(0.991992, abs=1e-6))
    assert steps.discriminator_adam(recipe)["lr"] == pytest.approx(0.00188235, abs=1e-8)
    assert steps.discriminator_adam(recipe)["betas"] == (0.0, pytest.approx(0.990585, abs=1e-6))


def test_phases_come_in_order_and_the_lazy_ones_at_their_interval():
    recipe = Recipe()
    assert steps.phases(0, recipe) == list(steps.PHASES)
    assert steps.phases(1, recipe) == ["generator_main", "discriminator_main"]
    assert "generator_reg" in steps.phases(4, recipe)
    assert "discriminator_reg" not in steps.phases(4, recipe)


def test_a_fade_of_length_zero_is_over_at_once():
    recipe = Recipe(blur_fade_kvideos=0.0, swap_fade_kvideos=0.0, resolution_fade_kvideos=0.0)
    assert steps.blur_sigma(0, recipe) == 0
    assert steps.swap_probability(0, recipe) == 0.5
    assert steps.rendering_resolution(0, recipe, 128) == 128


def test_the_blur_fades_with_the_batch_that_the_recipe_names():
    by_gpu, by_all = Recipe(), Recipe(blur_fade_by="global")
    assert steps.blur_sigma(12_500, by_gpu) == 0
    assert steps.blur_sigma(50_000, by_all) == pytest.approx(5.0)


def test_draws_are_a_function_of_seed_step_and_phase():
    def numbers(*key):
        return torch.rand(4, generator=steps.step_generator(*key))

    assert torch.equal(numbers(1, 2, "generator_main"), numbers(1, 2, "generator_main"))
    others = [(0, 2, "generator_main"), (1, 3, "generator_main"), (1, 2, "generator_reg")]
    assert not any(torch.equal(numbers(1, 2, "generator_main"), numbers(*key)) for key in others)
    first, second = steps.video_generators(1, 2, "generator_main", [0, 1])
    assert first.initial_seed() != second.initial_seed()
    with pytest.raises(ValueError, match="0 or more"):
        steps.step_generator(-1, 0, "generator_main")


@pytest.mark.parametrize(("frames", "span"), [(2, 16), (3, 48), (4, 32), (2, 200)])
def test_fake_times_are_sorted_and_the_grid_law_has_frame_times(frames, span):
    config = ModelConfig(img_resolution=512, frames_span=span)
    config = with_changes(config, {"discriminator.frames": frames})
    t = steps.sample_times(1000, config, Recipe(fake_time="grid"), torch.Generator().manual_seed(0))
    assert t.shape == (1000, frames)
    assert (t.diff(dim=1) >= 0).all()
    index = t * (span - 1)
    torch.testing.assert_close(index, index.round(), atol=1e-5, rtol=0)
    assert t.min() == 0
    assert t.max() == 1


def test_swapped_videos_take_both_cameras_of_the_one_before_them():
    c = torch.arange(4.0)[:, None, None].expand(4, 2, 25)
    swapped = steps.swap_cameras(c, torch.tensor([True, False, True, False]))
    assert swapped[:, :, 0].tolist() == [[3, 3], [1, 1], [1, 1], [3, 3]]
    with pytest.raises(ValueError, match="one coin per video"):
        steps.swap_cameras(c, torch.tensor([True]))


def test_matched_cameras_bring_their_times():
    made = variant("tiny")
    c, t = torch.zeros(4, 2, 25), torch.tensor([[0.1, 0.7]]).expand(4, 2)
    draw = {"samples": 0, "generator": torch.Generator().manual_seed(0)}
    assert torch.equal(steps.draw_inputs(c, made.model, made.recipe, matched_times=t, **draw).times, t)
    with pytest.raises(ValueError, match="matched_times"):
        steps.draw_inputs(c, made.model, made.recipe, **draw)


def test_the_average_moves_by_beta_and_copies_buffers():
    net, ema = (torch.nn.BatchNorm1d(3) for _ in range(2))
    net.weight.data.fill_(3.0)
    net.running_mean.fill_(5.0)
    steps.ema_update(ema, net, 0.75)
    assert ema.weight.tolist() == [1.5] * 3
    assert ema.running_mean.tolist() == [5.0] * 3
    with pytest.raises(ValueError, match="lacks or adds"):
        steps.ema_update(ema, torch.nn.PReLU(3), 0.5)


def test_a_non_finite_loss_stops_before_the_update_with_step_and_term():
    recipe = Recipe(batch=2, density_points=5)
    nets = steps.build(TINY, recipe)
    nets.generator.decoder.net[2].bias.data[0] = math.nan
    before = copy.deepcopy(nets.generator.state_dict())
    with pytest.raises(FloatingPointError, match="G/density is nan at step 12"):
        steps.generator_step(nets, batch(2), recipe, step=12, density=True)
    after = nets.generator.state_dict()
    assert all(torch.equal(before[k], after[k]) or before[k].isnan().any() for k in before)


def test_frozen_networks_get_their_gradients_back():
    net = torch.nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    with steps.frozen(net, None):
        assert not net.weight.requires_grad
    assert net.weight.requires_grad
    assert not net.bias.requires_grad


TINY = with_changes(variant("tiny").model, {
    "img_resolution": 32, "plane_resolution": 16, "channel_max": 8, "z_dim": 8, "z_m_dim": 8, "w_dim": 8,
    "plane_features": 4, "motion.blocks": 2, "rendering.resolution": 8, "rendering.samples_coarse": 4,
    "rendering.samples_fine": 4, "superresolution.input_resolution": 8, "discriminator.channel_max": 8,
})  # fmt: skip


def poses(videos):
    import numpy as np

    from model.camera import orbit

    poses = [orbit(6.0 * i - 20).encode() for i in range(2 * videos)]
    return torch.from_numpy(np.stack(poses)).view(videos, 2, 25)


def batch(videos):
    z, z_m = steps.sample_latents(videos, TINY, torch.Generator().manual_seed(0))
    times = torch.rand(videos, 2, generator=torch.Generator().manual_seed(1)).sort(dim=1).values
    return GeneratorInputs(z=z, z_m=z_m, times=times, cameras=poses(videos))


def real_batch(videos):
    image = torch.rand(videos, 2, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    return losses.real_sample(image, batch(videos).times, poses(videos), 8)


def gradients(network, loss):
    network.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    "phase", ["generator_main", "generator_reg", "discriminator_main", "discriminator_reg"]
)
def test_two_workers_average_to_the_gradient_of_one(phase):
    """Every phase, with swap, minibatch groups and the draws inside the networks: rank r takes r, r + 2."""
    recipe = Recipe(batch=4, density_points=20)
    torch.manual_seed(0)
    nets = steps.build(TINY, recipe)
    full = steps.draw_inputs(poses(4), TINY, recipe, samples=0, generator=steps.step_generator(7, 0, phase))
    everything = real_batch(4)

    def part(rank, workers):
        inputs = steps.rows(full, rank, workers)
        inputs.random = steps.video_generators(7, 0, phase, range(rank, 4, workers))
        inputs.rendering_resolution = 8
        real = losses.Sample(*(x[rank::workers] for x in everything))
        return inputs, real

    def gradient(rank, workers):
        inputs, real = part(rank, workers)
        if phase.startswith("generator"):
            with steps.frozen(nets.d_img, nets.d_vid):
                if phase == "generator_reg":
                    terms = losses.density_regularization(nets.generator, inputs, recipe)
                else:
                    terms = losses.generator_main_loss(nets.generator, nets.d_img, nets.d_vid, inputs, recipe)
                return gradients(nets.generator, sum(terms.values()))
        with torch.no_grad():
            fake = losses.generate(nets.generator, inputs)
        both = []
        for network in (nets.d_img, nets.d_vid):
            if phase == "discriminator_reg":
                terms = losses.r1_loss(network, real, recipe, blur_sigma=0.5)
            else:
                terms = losses.discriminator_main_loss(network, fake, real, recipe, blur_sigma=0.5)
            both.append(gradients(network, sum(terms.values())))
        return torch.cat(both)

    one = gradient(0, 1)
    two = (gradient(0, 2) + gradient(1, 2)) / 2
    assert float((one - two).norm() / one.norm()) < 1e-4


def test_parts_of_a_batch_share_no_video_and_keep_their_random_numbers():
    inputs = batch(4)
    inputs.random = steps.video_generators(7, 0, "generator_main", range(4))
    parts = [inputs.part(i, 2) for i in range(2)]
    joined = torch.stack([p.z for p in parts], dim=1).flatten(0, 1)
    assert torch.equal(joined, inputs.z)
    assert [r.initial_seed() for r in parts[1].random] == [r.initial_seed() for r in inputs.random[1::2]]
    real = real_batch(4)
    assert torch.equal(real.part(1, 2).image, real.image[1::2])
    inputs.fine_u = torch.zeros(1)
    with pytest.raises(ValueError, match="leave them to the generator"):
        inputs.part(0, 2)


def test_the_blur_leaves_fake_raw_frames_alone_and_softens_real_ones():
    sample = real_batch(2)
    fake, real = (losses.blurred(sample, 1.0, raw=raw) for raw in (False, True))
    assert torch.equal(fake.image_raw, sample.image_raw)
    assert not torch.equal(real.image_raw, sample.image_raw)
    assert torch.equal(fake.image, real.image)
    assert losses.blurred(sample, 0.0, raw=True) is sample
    assert torch.equal(ops.blur(sample.image[0], 0.2), sample.image[0])


def test_a_small_generator_learns_to_raise_the_image_score():
    torch.manual_seed(0)
    recipe = Recipe(batch=2)
    nets = steps.build(TINY, recipe)
    nets.d_vid = None
    fixed = batch(2)
    fixed.noise_mode = "const"
    scores = [steps.generator_step(nets, fixed, recipe, step=i)["G/img"] for i in range(6)]
    assert scores[-1] < scores[0]


def test_the_tiny_generator_fits_in_five_megabytes():
    assert sum(t.numel() * 4 for t in Generator(variant("tiny").model).state_dict().values()) < 5e6
