"""Discriminators, losses and gradients against the official ones (discriminators_losses.npz)."""

import math

import pytest
import torch

from model import losses, ops
from model.discriminator import ImageDiscriminator, VideoDiscriminator
from model.generator import Generator
from model.losses import GeneratorInputs, Sample
from model.steps import frozen

GOLDEN_FILE = "discriminators_losses"


def gradient_norms(prefix, network):
    """NaN where the parameter got no gradient."""
    return {
        f"{prefix}/{name}": torch.tensor(math.nan) if p.grad is None else p.grad.norm()
        for name, p in network.named_parameters()
    }


@pytest.fixture(scope="module")
def computed(golden):
    torch.set_num_threads(1)
    a = golden.arrays(GOLDEN_FILE)
    config, recipe = golden.config, golden.recipe
    d_img = golden.load(ImageDiscriminator(config), "Dimg")
    d_vid = golden.load(VideoDiscriminator(config), "Dvid")
    b, t = a["in/real_Ts"].shape

    def sample(kind):
        image, raw, c = (a[f"in/{kind}_{k}"].unflatten(0, (b, t)) for k in ("image", "image_raw", "c"))
        return Sample(image, raw, a[f"in/{kind}_Ts"], c)

    real, fake = sample("real"), sample("fake")
    out = {name: a[name] for name in a if name.startswith("in/")}
    out["in/real_image_raw"] = losses.real_sample(
        real.image, real.times, real.cameras, config.rendering.resolution
    ).image_raw.flatten(0, 1)
    with torch.no_grad():
        out["mid/real_raw_upsampled"] = ops.resize(real.image_raw[0, :1], config.img_resolution)
        out["mid/cmap_img_real"] = d_img.mapping(None, real.cameras.flatten(0, 1))
        out["mid/cmap_vid_real"] = d_vid.mapping(None, real.cameras.flatten(1))
        out["mid/vid_input_fake_first"] = d_vid.input(fake.image, fake.times)[:1]
        for name, s in (("real", real), ("fake", fake)):
            out[f"out/{name}_img_logits"] = losses.image_logits(d_img, s)
            out[f"out/{name}_vid_logits"] = losses.video_logits(d_vid, s)
        swapped = real._replace(cameras=real.cameras.flip(1))
        out["out/real_vid_logits_swapped_cameras"] = losses.video_logits(d_vid, swapped)
        for sigma in (1, 3):
            soft = losses.blurred(real, float(sigma), raw=True)
            out[f"blur{sigma}/filter"] = ops.blur_taps(float(sigma))
            out[f"blur{sigma}/image_raw"] = soft.image_raw.flatten(0, 1)
            out[f"blur{sigma}/image_first"] = soft.image[0, :1]
            out[f"blur{sigma}/img_logits"] = losses.image_logits(d_img, soft)
            out[f"blur{sigma}/vid_logits"] = losses.video_logits(d_vid, soft)

    with torch.enable_grad():
        image, raw = real.image.clone().requires_grad_(), real.image_raw.clone().requires_grad_()
        logits = losses.image_logits(d_img, real._replace(image=image, image_raw=raw))
        g_image, g_raw = torch.autograd.grad(logits.sum(), [image, raw])
        out["r1/img_penalty_image_part"] = g_image.flatten(0, 1).square().flatten(1).sum(dim=1)
        out["r1/img_penalty_raw_part"] = g_raw.flatten(0, 1).square().flatten(1).sum(dim=1)
        out["r1/grad_image_first"] = g_image[0, :1]
        seen = d_vid.input(real.image, real.times).requires_grad_()
        (g_seen,) = torch.autograd.grad(d_vid.logits(seen, real.cameras.flatten(1)).sum(), seen)
        out["r1/grad_vid_input_first"] = g_seen[:1]
        out["r1/vid_penalty_dt_channel_part"] = g_seen[:, 3 * t :].square().flatten(1).sum(dim=1)

        for part, network in (("img", d_img), ("vid", d_vid)):
            out[f"r1/{part}_penalty"] = losses.r1_penalties(network, real).detach()
            network.zero_grad()
            ((name, reg),) = losses.r1_loss(network, real, recipe).items()
            assert name == f"D_{part}/r1"
            reg.backward()
            out[f"loss/Dreg_{part}"] = reg.detach()
            out |= gradient_norms(f"gradnorm_Dreg/D{part}", network)
            network.zero_grad()
            main = torch.stack(
                list(losses.discriminator_main_loss(network, fake, real, recipe).values())
            ).sum()
            main.backward()
            out[f"loss/Dmain_{part}"] = main.detach()
            out |= gradient_norms(f"gradnorm_Dmain/D{part}", network)

        inputs = generator_inputs(golden)
        net = golden.load(Generator(config), "G").train()
        with frozen(d_img, d_vid):
            terms = losses.generator_main_loss(net, d_img, d_vid, inputs, recipe)
            torch.stack(list(terms.values())).sum().backward()
        out["loss/Gmain_img"], out["loss/Gmain_vid"] = (terms[k].detach() for k in ("G/img", "G/vid"))
        out |= gradient_norms("gradnorm_Gmain/G", net)

        net.zero_grad()
        points, perturbed = (a[f"density/{k}"].unflatten(0, (b, t)) for k in ("coords", "coords_perturbed"))
        given = {"points": points, "perturbed": perturbed}
        reg = losses.density_regularization(net, inputs, recipe, **given)["G/density"]
        reg.backward()
        out["loss/Greg"] = reg.detach()
        out["density/l1"] = reg.detach() / (recipe.lambda_reg * recipe.generator_reg_interval)
        out["density/coords"], out["density/coords_perturbed"] = points.flatten(0, 1), perturbed.flatten(0, 1)
        out |= gradient_norms("gradnorm_Greg/G", net)
    for name in ("Dreg", "Dmain", "Gmain"):
        out[f"loss/{name}"] = out[f"loss/{name}_img"] + out[f"loss/{name}_vid"]
    return out


def generator_inputs(golden):
    a = golden.arrays("generator")
    b, t = a["in/Ts"].shape
    z, z_m = (a[f"in/{k}"].view(b, t, -1)[:, 0] for k in ("z", "z_m"))
    jitter, u = a["rand/coarse_jitter"].squeeze(-1), a["rand/fine_u"]
    return GeneratorInputs(
        z=z, z_m=z_m, times=a["in/Ts"], cameras=a["in/c"].view(b, t, -1), noise_mode="const",
        coarse_jitter=jitter, fine_u=u.view(b * t, -1, u.shape[-1]),
    )  # fmt: skip


def test_golden_discriminator_array(golden_array, computed, golden, agree):
    assert golden_array in computed, f"{golden_array} is not compared; compute it in this file"
    ours, theirs = computed[golden_array], golden.arrays(GOLDEN_FILE)[golden_array]
    if golden_array.startswith("gradnorm"):
        ours = torch.where(
            ours.isnan(), ours.new_zeros(()), ours
        )  # no gradient and a zero one are the same step
        theirs = torch.where(theirs.isnan(), theirs.new_zeros(()), theirs)
        agree(golden_array, ours, theirs, rtol=1e-3, atol=1e-6)
    else:
        agree(golden_array, ours, theirs)
