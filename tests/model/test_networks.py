"""Shapes at the boundaries, every switch, determinism, and inputs that are refused. At a very small size."""

import itertools

import numpy as np
import pytest
import torch

from model import camera, losses, reference, steps
from model.config import Recipe, variant, with_changes
from model.discriminator import ImageDiscriminator, VideoDiscriminator
from model.generator import Generator

SMALL = {
    "img_resolution": 32, "plane_resolution": 16, "channel_max": 8, "z_dim": 8, "z_m_dim": 8, "w_dim": 8,
    "plane_features": 4, "decoder_hidden": 8, "motion.blocks": 2, "rendering.resolution": 8,
    "rendering.samples_coarse": 5, "rendering.samples_fine": 3, "superresolution.input_resolution": 8,
    "superresolution.channels": [8, 4], "discriminator.channel_max": 8,
    "discriminator.minibatch_group_image": 2,
}  # fmt: skip


def small(**changes):
    return with_changes(variant("tiny").model, SMALL | changes)


def cameras(videos, frames):
    poses = [
        camera.orbit(10 * v - 5 * f).encode() for v, f in itertools.product(range(videos), range(frames))
    ]
    return torch.from_numpy(np.stack(poses)).view(videos, frames, 25)


def inputs(config, videos=2, frames=None, seed=0):
    frames = frames or config.discriminator_frames
    random = torch.Generator().manual_seed(seed)
    z, z_m = steps.sample_latents(videos, config, random)
    times = torch.rand(videos, frames, generator=random).sort(dim=1).values
    return z, z_m, times, cameras(videos, frames)


def real(config, videos=2):
    n, side = config.discriminator_frames, config.img_resolution
    image = torch.rand(videos, n, 3, side, side) * 2 - 1
    times = torch.rand(videos, n).sort(dim=1).values
    return losses.real_sample(image, times, cameras(videos, n), config.rendering.resolution)


SWITCHES = {
    "as tiny": {},
    "early": {"motion.blocks": 1},
    "late": {"motion.blocks": 3},
    "no motion layers": {"motion.blocks": 0},
    "learned fusion": {"motion.fusion": "learned"},
    "motion code z_a": {"motion.code": "z_a"},
    "MLP": {"motion.operator": "mlp"},
    "cameras All": {"camera_conditioning": "all"},
    "cameras Non": {"camera_conditioning": "non"},
    "cameras Map": {"camera_conditioning": "map"},
    "no generator camera": {"generator_camera": False},
    "D_vid without cameras": {"discriminator.video_cameras": False},
    "cameras enlarged": {"discriminator.camera_contrast": 8.0},
    "D_vid without time difference": {"discriminator.video_time_difference": False},
    "no D_img": {"discriminator.image": False},
    "no D_vid": {"discriminator.video": False},
    "four frames in a span of 32": {"discriminator.frames": 4, "frames_span": 32},
    "96-frame span": {"frames_span": 96},
    "official planes": {"plane_axes": "eg3d_compat"},
    "two planes": {"plane_axes": ["xy", "zy"]},
    "quad-plane": {"plane_axes": ["xy", "xz", "zy", [[0.7, 0.0, 0.7], [0.0, 1.0, 0.0]]]},
    "no importance samples": {"rendering.samples_fine": 0},
    "more fine than coarse": {"rendering.samples_fine": 9},
    "limits from the box": {"rendering.ray_start": None, "rendering.ray_end": None},
    "disparity": {"rendering.disparity_sampling": True},
    "white background": {"rendering.white_background": True},
    "a ball at the start": {"rendering.density_ball": 0.28, "rendering.density_scale": 20.0},
    "dense from the start": {"rendering.density_scale": 20.0},
    "larger box": {"rendering.box_warp": 1.5},
    "super-resolution x 2": {"superresolution.input_resolution": 16},
    "z_m of its own size": {"z_m_dim": 6},
}  # fmt: skip


@pytest.mark.parametrize("changes", SWITCHES.values(), ids=SWITCHES)
def test_every_switch_trains_one_update_and_keeps_the_shapes(changes):
    torch.manual_seed(0)
    config = small(**changes)
    recipe = Recipe(batch=2, density_points=10)
    nets = steps.build(config, recipe)
    z, z_m, times, c = inputs(config)
    given = losses.GeneratorInputs(z=z, z_m=z_m, times=times, cameras=c)
    before = [p.detach().clone() for p in nets.generator.parameters()]
    terms = steps.generator_step(nets, given, recipe, step=0, blur=1.0)
    terms |= steps.generator_step(nets, given, recipe, step=0, density=True)
    terms |= steps.discriminator_step(nets, given, real(config), recipe, step=0, blur=1.0)
    terms |= steps.r1_step(nets, real(config), recipe, step=0)
    kinds = ["img"] * config.discriminator.image + ["vid"] * config.discriminator.video
    expected = {
        f"{k}/{x}"
        for d in kinds
        for k, x in ((f"D_{d}", "fake"), (f"D_{d}", "real"), (f"D_{d}", "r1"), ("G", d))
    }
    assert set(terms) == expected | {"G/density"}
    assert any(not torch.equal(a, b) for a, b in zip(before, nets.generator.parameters(), strict=True))
    frames = nets.generator.eval()(z, z_m, times, c, return_xyz=True)
    b, t, side, h = 2, config.discriminator_frames, 8, 32
    assert frames.image.shape == (b, t, 3, h, h)
    assert frames.image_raw.shape == (b, t, 3, side, side)
    assert frames.depth.shape == frames.weight_total.shape == (b, t, 1, side, side)
    assert frames.xyz.shape == (b, t, side, side, 3)
    assert frames.weight_total.min() >= 0
    assert frames.weight_total.max() <= 1 + 1e-5
    assert frames.image.isfinite().all()


@pytest.mark.parametrize("frames", [1, 3, 5])
def test_any_number_of_frames_can_be_generated(frames):
    config = small()
    net = Generator(config).eval()
    with torch.no_grad():
        whole = net(*inputs(config, frames=frames), noise_mode="const").image
    assert whole.shape == (2, frames, 3, 32, 32)


def test_evaluation_is_deterministic_and_training_follows_its_generator():
    config = small()
    net = Generator(config).eval()
    given = inputs(config)
    with torch.no_grad():
        assert torch.equal(*(net(*given, noise_mode="const").image for _ in range(2)))
        net.train()
        first, same, other = (
            net(*given, generator=torch.Generator().manual_seed(seed)).image for seed in (1, 1, 2)
        )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_planes_computed_once_render_any_camera_as_the_whole_generator_does():
    config = small()
    net = Generator(config).eval()
    z, z_m, times, c = inputs(config)
    with torch.no_grad():
        ws = net.map(z, net.condition(c)[0])
        planes = net.planes(ws, z_m, times, noise_mode="const")
        parts = net.render(planes, ws, c, rendering_resolution=6)
        whole = net(z, z_m, times, c, noise_mode="const", rendering_resolution=6)
    assert torch.equal(parts.image, whole.image)
    assert parts.image_raw.shape[-1] == 6


def test_a_frame_does_not_depend_on_its_batch_mates():
    config = small()
    net = Generator(config).eval()
    z, z_m, times, c = inputs(config)
    with torch.no_grad():
        both = net(z, z_m, times, c, noise_mode="const")
        alone = net(z[1:], z_m[1:], times[1:], c[1:], noise_mode="const")
    torch.testing.assert_close(both.image[1:], alone.image, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both.depth[1:], alone.depth, rtol=1e-5, atol=1e-5)


def test_at_time_zero_the_motion_code_does_not_matter_and_later_it_does():
    config = small()
    net = Generator(config).eval()
    z, z_m, _, c = inputs(config)
    for t, equal in ((0.0, True), (1.0, False)):
        times = torch.full((2, 2), t)
        with torch.no_grad():
            images = [net(z, m, times, c, noise_mode="const").image for m in (z_m, -z_m)]
        assert torch.allclose(*images, atol=1e-6) == equal


def test_camera_conditioning_shares_what_table_2c_says():
    c = cameras(2, 2)
    shared = c[:, :1].expand_as(c)
    expected = {  # mode: (mapping in training, mapping at inference, rendering)
        "all": (shared, shared, shared), "non": (c, c, c), "map": (shared, shared, c), "mapt": (c, shared, c),
    }  # fmt: skip
    for mode, (training, inference, rendering) in expected.items():
        net = Generator(small(camera_conditioning=mode))
        assert torch.equal(net.train().condition(c)[0], training)
        assert torch.equal(net.eval().condition(c)[0], inference)
        assert torch.equal(net.condition(c)[1], rendering)


def test_without_generator_camera_the_mapping_ignores_it():
    net = Generator(small(generator_camera=False)).eval()
    z = inputs(net.config)[0]
    assert torch.equal(net.map(z, cameras(2, 2)), net.map(z, cameras(2, 2).flip(0)))


def test_truncation_pulls_styles_to_the_mean_and_training_moves_the_mean():
    net = Generator(small())
    z, z_m, times, c = inputs(net.config)
    net(z, z_m, times, c, update_w_avg=True)
    mean = net.backbone.mapping.w_avg.clone()
    assert mean.abs().sum() > 0
    ws = net.map(z, c, truncation_psi=0.0, truncation_cutoff=2)
    assert torch.allclose(ws[:, :, :2], mean.expand_as(ws[:, :, :2]))
    assert torch.equal(ws[:, :, 2:], net.map(z, c)[:, :, 2:])


def test_checkpointing_changes_no_gradient():
    config = small()
    given = losses.GeneratorInputs(**dict(zip(("z", "z_m", "times", "cameras"), inputs(config), strict=True)))
    d_img = ImageDiscriminator(config)
    gradients = []
    torch.manual_seed(0)
    net = Generator(config)
    for net.checkpointing in (False, True):
        net.zero_grad()
        given.random = torch.Generator().manual_seed(0)
        losses.generator_main_loss(net, d_img, None, given, Recipe())["G/img"].backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


BOX = {"rendering.samples_fine": 0, "rendering.ray_start": None, "rendering.ray_end": None}


@pytest.mark.parametrize(
    ("chunk", "checkpointing", "changes"),  # of 64 rays a frame
    [(7, False, {}), (16, True, {}), (1000, False, BOX), (33, True, BOX)],
)
def test_rays_in_chunks_give_the_same_frames_and_gradients(chunk, checkpointing, changes):
    names = ("z", "z_m", "times", "cameras")
    given = losses.GeneratorInputs(**dict(zip(names, inputs(small()), strict=True)))
    results = []
    for rays in (None, chunk):
        torch.manual_seed(0)
        config = small(**changes, **{"rendering.chunk_rays": rays})
        net, d_img, d_vid = Generator(config), ImageDiscriminator(config), VideoDiscriminator(config)
        net.checkpointing = checkpointing
        given.random = [torch.Generator().manual_seed(video) for video in range(2)]
        sum(losses.generator_main_loss(net, d_img, d_vid, given, Recipe()).values()).backward()
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        with torch.no_grad():
            frames = net.eval()(given.z, given.z_m, given.times, given.cameras, return_xyz=True,
                                noise_mode="const")  # fmt: skip
        results.append([*vars(frames).values(), *gradients])
    assert len(results[0]) > 30
    for whole, chunked in zip(*results, strict=True):
        assert float((whole - chunked).abs().max()) <= 1e-6 * max(1.0, float(whole.abs().max()))


def test_rays_in_chunks_keep_less_for_the_backward_pass():
    """Bytes that a rendering keeps until its backward pass, without the planes that both keep."""
    kept = {}
    for rays in (None, 16):
        config = small(**{"rendering.chunk_rays": rays, "rendering.resolution": 16})
        net, held = Generator(config), {}
        _, _, _, c = inputs(config)
        planes = torch.randn(2, 2, 3, 4, 16, 16, requires_grad=True)

        def hold(tensor, held=held, planes=planes):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            net.trace(planes.flatten(0, 1), c.flatten(0, 1), 16, torch.rand(4, 256, 5), torch.rand(4, 256, 3))
        kept[rays] = sum(held.values())
    assert kept[16] < kept[None] / 3


def test_bf16_stays_close_and_gives_finite_gradients():
    config = small()
    torch.manual_seed(0)
    net, d_img, d_vid = Generator(config), ImageDiscriminator(config), VideoDiscriminator(config)
    given = losses.GeneratorInputs(**dict(zip(("z", "z_m", "times", "cameras"), inputs(config), strict=True)))
    given.noise_mode = "const"
    fp32 = net.eval()(given.z, given.z_m, given.times, given.cameras, noise_mode="const").image
    for network in (net, d_img, d_vid):
        network.use_bf16()
    bf16 = net(given.z, given.z_m, given.times, given.cameras, noise_mode="const").image
    assert (bf16 - fp32).abs().mean() < 0.03 * fp32.abs().mean()
    assert not torch.equal(bf16, fp32)
    terms = losses.generator_main_loss(net.train(), d_img, d_vid, given, Recipe())
    sum(terms.values()).backward()
    sum(losses.r1_penalties(d, real(config)).mean() for d in (d_img, d_vid)).backward()
    for network in (net, d_img, d_vid):
        assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("bad", ["dtype", "times", "shape", "camera", "planes", "resolution", "mapping"])
def test_a_wrong_input_is_named(bad):
    config = small()
    net = Generator(config)
    z, z_m, times, c = inputs(config)
    extra = {}
    if bad == "times":
        times, message = times + 1, "times reach .* in \\[0, 1\\]"
    elif bad == "shape":
        z_m, message = z_m[:1], "z_m has shape"
    elif bad == "camera":
        c = c.clone()
        c[0, 0, 0] = 3
        message = "has no rotation"
    elif bad == "planes":
        ws = net.map(z, c)
        with pytest.raises(ValueError, match="planes has shape"):
            net.render(torch.zeros(2, 2, 96, 16, 16), ws, c)
        return
    elif bad == "resolution":
        extra, message = {"rendering_resolution": 0}, "rendering_resolution is 0"
    elif bad == "mapping":
        extra, message = {"mapping_cameras": c[:1]}, "mapping cameras has shape"
    else:
        z, message = z[:, :3], "z has shape \\[2, 3\\]"
    with pytest.raises(ValueError, match=message):
        net(z, z_m, times, c, **extra)


def test_an_untrained_ball_is_seen_as_one_and_given_to_meshes():
    """Turned by 30 degrees it is the same ball, and the density of a mesh is what the rays meet."""
    config = small(**{
        "rendering.density_ball": 0.28, "rendering.density_scale": 20.0, "rendering.resolution": 15,
        "rendering.samples_coarse": 24, "rendering.samples_fine": 24,
    })  # fmt: skip
    torch.manual_seed(0)
    generator = Generator(config).eval()
    with torch.no_grad():
        generator.decoder.net[2].weight[0] = 0           # the ball alone
        views = [camera.orbit(yaw, target=(0, 0, 0)).encode() for yaw in (0, 30)]
        c = torch.from_numpy(np.stack(views))[None]
        z, z_m, _, _ = inputs(config, videos=1)
        seen = generator(z, z_m, torch.zeros(1, 2), c, return_xyz=True, deterministic=True)
        planes = generator.planes(generator.map(z, c[:, :1]), z_m, torch.zeros(1, 1), noise_mode="const")
        points = torch.tensor([[0.0, 0, 0], [0, 0, 0.22], [0, 0.45, 0]])
        inside, near, outside = generator.density(planes, points[None, None]).flatten().tolist()
    far = seen.xyz[0, :, 7, 7].norm(dim=-1)
    assert far.tolist() == pytest.approx([0.25, 0.25], abs=0.03)
    front, side = (depth[0, 5:10, 5:10] for depth in seen.depth[0])      # around it is the wall
    torch.testing.assert_close(front, side, rtol=0, atol=0.02)
    assert inside > near > 10 > outside


def test_contrast_enlarges_what_differs_from_the_frontal_camera():
    plain, enlarged = small(), small(**{"discriminator.camera_contrast": 8.0})
    frontal = torch.from_numpy(camera.canonical_camera().encode())
    for kind in (ImageDiscriminator, VideoDiscriminator):
        torch.manual_seed(0)
        one, other = kind(plain), kind(enlarged)
        other.load_state_dict(one.state_dict())          # it adds nothing to a checkpoint
        sample = real(plain)
        given = losses.image_logits if kind is ImageDiscriminator else losses.video_logits
        far = sample._replace(cameras=frontal + 8 * (sample.cameras - frontal))
        torch.testing.assert_close(given(other, sample), given(one, far))
        assert not torch.allclose(given(other, sample), given(one, sample))


def test_the_generator_loss_leaves_no_gradient_in_the_discriminators():
    config = small()
    net, d_img, d_vid = Generator(config), ImageDiscriminator(config), VideoDiscriminator(config)
    given = losses.GeneratorInputs(**dict(zip(("z", "z_m", "times", "cameras"), inputs(config), strict=True)))
    sum(losses.generator_main_loss(net, d_img, d_vid, given, Recipe()).values()).backward()
    assert net.decoder.net[0].weight.grad.norm() > 0
    assert all(p.grad is None for d in (d_img, d_vid) for p in d.parameters())


def test_discriminators_refuse_wrong_shapes():
    config = small()
    sample = real(config)
    d_img, d_vid = ImageDiscriminator(config), VideoDiscriminator(config)
    with pytest.raises(ValueError, match=r"image has shape \[4, 3, 16, 16\]; give \[4, 3, 32, 32\]"):
        d_img(torch.zeros(4, 3, 16, 16), torch.zeros(4, 3, 8, 8), torch.zeros(4, 25))
    with pytest.raises(ValueError, match="times has shape"):
        d_vid(sample.image, sample.times[:, :1], sample.cameras)


def test_gradients_of_all_phases_equal_the_plain_formulation_in_double():
    """Generator, discriminators and R1: every parameter gradient, fast path against model/reference.py."""
    config = small()
    torch.manual_seed(0)
    nets = [Generator(config), ImageDiscriminator(config), VideoDiscriminator(config)]
    for network in nets:
        network.double()
        for name, p in network.named_parameters():
            if "noise_strength" in name or "bias" in name:
                p.data.add_(torch.randn_like(p) * 0.1)
    given = losses.GeneratorInputs(**{k: v.double() for k, v in zip(
        ("z", "z_m", "times", "cameras"), inputs(config), strict=True)})  # fmt: skip
    given.noise_mode = "const"
    sample = losses.Sample(*(x.double() for x in real(config)))

    def gradients():
        g, d_img, d_vid = nets
        for network in nets:
            network.zero_grad()
        given.coarse_jitter = torch.full((4, 64, 5), 0.3, dtype=torch.float64)
        given.fine_u = torch.linspace(0.05, 0.9, 3, dtype=torch.float64).expand(4, 64, 3)
        sum(losses.generator_main_loss(g, d_img, d_vid, given, Recipe()).values()).backward()
        points = torch.linspace(-0.4, 0.4, 4 * 10 * 3, dtype=torch.float64).view(2, 2, 10, 3)
        losses.density_regularization(g, given, Recipe(), points=points, perturbed=points + 1e-2)[
            "G/density"
        ].backward()
        for network in (d_img, d_vid):
            network.zero_grad()  # the generator's loss leaves none behind in ours
            sum(losses.discriminator_main_loss(network, None, sample, Recipe()).values()).backward()
            sum(losses.r1_loss(network, sample, Recipe()).values()).backward()
        return {
            f"{i}.{n}": p.grad.clone()
            for i, net in enumerate(nets)
            for n, p in net.named_parameters()
            if p.grad is not None
        }

    ours = gradients()
    with reference.installed():
        theirs = gradients()
    assert ours.keys() == theirs.keys()
    for name in ours:
        scale = float(theirs[name].norm()) + 1e-9
        assert float((ours[name] - theirs[name]).norm()) / scale < 1e-6, name
