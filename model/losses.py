"""The losses (paper section 3.4, Eq. 7 and 8) as functions of networks and tensors: no hidden state, no
hidden draws.
    L_G = lambda_img L_img + lambda_vid L_vid + L_sigma
    L_D = lambda_img L_img + lambda_vid L_vid + L_R1
Shapes: B videos, T frames of each (T = n of D_vid in training), H the side of a frame, R of a raw one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model import fast, ops
from model.config import Recipe
from model.discriminator import ImageDiscriminator, VideoDiscriminator
from model.generator import Generator
from model.stylegan import NoiseMode


class Sample(NamedTuple):
    """What a discriminator judges: real or generated frames with their times and cameras."""

    image: Tensor
    """[B, T, 3, H, H] in [-1, 1]"""
    image_raw: Tensor
    """[B, T, 3, R, R]"""
    times: Tensor
    """[B, T] in [0, 1], increasing"""
    cameras: Tensor
    """[B, T, 25]: those that the frames were rendered or taken with"""

    def part(self, index: int, of: int) -> Sample:
        """Videos index, index + of, ...: with such parts the minibatch-std groups are those of the whole."""
        return Sample(*(x[index::of] for x in self))


def real_sample(image: Tensor, times: Tensor, cameras: Tensor, resolution: int) -> Sample:
    """Real frames [B, T, 3, H, H] with their raw form: the same antialiased reduction that D_img enlarges
    again."""
    raw = ops.resize(image.flatten(0, 1), resolution).unflatten(0, image.shape[:2])
    return Sample(image, raw, times, cameras)


@dataclass(kw_only=True)
class GeneratorInputs:
    """Everything that decides a batch of generated frames. None and the defaults leave the draw to the
    generator."""

    z: Tensor
    """[B, z_dim]"""
    z_m: Tensor
    """[B, z_m_dim]"""
    times: Tensor
    """[B, T]"""
    cameras: Tensor
    """[B, T, 25], render the frames and condition the discriminators"""
    mapping_cameras: Tensor | None = None
    """[B, T, 25] after the camera swap; None is `Generator.condition`'s choice"""
    noise_mode: NoiseMode = "random"
    rendering_resolution: int | None = None
    random: ops.Random = None
    """One torch.Generator, or one per video (`steps.video_generators`) for runs on several workers"""
    coarse_jitter: Tensor | None = None
    fine_u: Tensor | None = None

    def part(self, index: int, of: int) -> GeneratorInputs:
        """Videos index, index + of, ... with their own random numbers, which one generator for all cannot
        give."""
        if self.coarse_jitter is not None or self.fine_u is not None:
            raise ValueError("coarse_jitter and fine_u are of whole batches; leave them to the generator")
        return replace(
            self, z=self.z[index::of], z_m=self.z_m[index::of], times=self.times[index::of],
            cameras=self.cameras[index::of],
            mapping_cameras=None if self.mapping_cameras is None else self.mapping_cameras[index::of],
            random=self.random[index::of] if isinstance(self.random, list) else self.random,
        )  # fmt: skip

    def mapping(self, generator: Generator) -> Tensor:
        return generator.condition(self.cameras)[0] if self.mapping_cameras is None else self.mapping_cameras


def generate(generator: Generator, inputs: GeneratorInputs, *, update_w_avg: bool = False) -> Sample:
    """Run the generator. Its frames' cameras are those that rendered them (frame 0's in mode `all`)."""
    frames = generator(
        inputs.z, inputs.z_m, inputs.times, inputs.cameras, mapping_cameras=inputs.mapping_cameras,
        noise_mode=inputs.noise_mode, rendering_resolution=inputs.rendering_resolution,
        generator=inputs.random,
        update_w_avg=update_w_avg, coarse_jitter=inputs.coarse_jitter, fine_u=inputs.fine_u,
    )  # fmt: skip
    return Sample(frames.image, frames.image_raw, inputs.times, generator.condition(inputs.cameras)[1])


def blurred(sample: Sample, sigma: float, *, raw: bool) -> Sample:
    """The fading blur of early training: every frame; the raw frames only of real samples, with the same
    sigma in raw pixels (as official)."""
    if sigma <= 0:
        return sample

    def soften(x: Tensor) -> Tensor:
        return ops.blur(x.flatten(0, 1), sigma).view_as(x)

    return sample._replace(
        image=soften(sample.image), image_raw=soften(sample.image_raw) if raw else sample.image_raw
    )


def image_logits(d_img: ImageDiscriminator, sample: Sample) -> Tensor:
    """D_img on every frame by itself (Eq. 3): [N, 1]"""
    logits: Tensor = d_img(
        d_img.flatten(sample.image), d_img.flatten(sample.image_raw), d_img.flatten(sample.cameras)
    )
    return logits


def video_logits(d_vid: VideoDiscriminator, sample: Sample) -> Tensor:
    """D_vid on the frames of each video together (Eq. 4): [B, 1]"""
    logits: Tensor = d_vid(sample.image, sample.times, sample.cameras)
    return logits


def non_saturating(logits: Tensor) -> Tensor:
    """mean softplus(-logits): what the generator minimises on fakes, the discriminator on real frames."""
    return F.softplus(-logits).mean()


def generator_main_loss(
    generator: Generator,
    d_img: ImageDiscriminator | None,
    d_vid: VideoDiscriminator | None,
    inputs: GeneratorInputs,
    recipe: Recipe,
    *,
    blur_sigma: float = 0.0,
) -> dict[str, Tensor]:
    """L_img and L_vid of the generator (Eq. 7), weighted: {"G/img", "G/vid"}; their sum is the loss. The
    discriminators get no gradient from it, frozen (`steps.frozen`) or not."""
    fake = generate(generator, inputs)

    def seen(image: Tensor, raw: Tensor) -> Sample:
        return blurred(fake._replace(image=image, image_raw=raw), blur_sigma, raw=False)

    terms = {}
    if d_img is not None:
        img = linearised(lambda *x: non_saturating(image_logits(d_img, seen(*x))), fake.image, fake.image_raw)
        terms["G/img"] = recipe.lambda_img * img
    if d_vid is not None:
        vid = linearised(lambda *x: non_saturating(video_logits(d_vid, seen(*x))), fake.image, fake.image_raw)
        terms["G/vid"] = recipe.lambda_vid * vid
    return terms


def linearised(term: Callable[[Tensor, Tensor], Tensor], image: Tensor, raw: Tensor) -> Tensor:
    """term(image, raw), its gradient by both taken at once, so that its graph is gone before the next term's
    is built: two discriminators never lie in memory together. Value and first derivative are those of the
    term."""
    if not (torch.is_grad_enabled() and image.requires_grad):
        return term(image, raw)
    leaves = [x.detach().requires_grad_() for x in (image, raw)]
    value = term(leaves[0], leaves[1])
    with fast.no_weight_gradients():
        gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    result: Tensor = _Linear.apply(value.detach(), image, raw, *gradients)
    return result


class _Linear(torch.autograd.Function):
    """A number whose gradients by two tensors are known."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, image: Tensor, raw: Tensor, g_image: Tensor | None, g_raw: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(g_image, g_raw)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        g_image, g_raw = (None if g is None else g * grads[0] for g in ctx.saved_tensors)
        return None, g_image, g_raw, None, None


def density_points(inputs: GeneratorInputs, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Points [B, T, M, 3] uniform in [-1, 1]^3 (as official: wider than the box) and the same a little
    beside."""
    shape = (*inputs.times.shape, recipe.density_points, 3)
    points = ops.draw(shape, inputs.random, like=inputs.z) * 2 - 1
    return points, points + ops.draw(shape, inputs.random, like=inputs.z, normal=True) * recipe.density_noise


def density_regularization(
    generator: Generator,
    inputs: GeneratorInputs,
    recipe: Recipe,
    *,
    points: Tensor | None = None,
    perturbed: Tensor | None = None,
) -> dict[str, Tensor]:
    """L_sigma (Eq. 7): raw density is smooth in space. L1 of its change over a small step, x lambda_reg x
    interval.
    {"G/density": weighted loss}. Renders nothing: 3-D points, not frames (the paper says "on the generated
    frames"). `points`, `perturbed` [B, T, M, 3] replace the draw of `density_points`."""
    if points is None or perturbed is None:
        points, perturbed = density_points(inputs, recipe)
    ws = generator.map(inputs.z, inputs.mapping(generator))
    motion = inputs.z_m if generator.config.motion.code == "z_m" else inputs.z
    planes = generator.planes(ws, motion, inputs.times, noise_mode=inputs.noise_mode, generator=inputs.random)
    density = generator.sample(planes, torch.cat([points, perturbed], dim=2))[1]
    here, beside = density.chunk(2, dim=2)
    return {"G/density": recipe.lambda_reg * recipe.generator_reg_interval * F.l1_loss(here, beside)}


def discriminator_main_loss(
    discriminator: ImageDiscriminator | VideoDiscriminator,
    fake: Sample | None,
    real: Sample | None,
    recipe: Recipe,
    *,
    blur_sigma: float = 0.0,
) -> dict[str, Tensor]:
    """softplus(fake) + softplus(-real) of one discriminator (Eq. 8), weighted: {"D_img/fake", "D_img/real"}
    or D_vid.
    Leave one of them None to run and differentiate them one after the other: the same gradient, less memory.
    """
    name, weight, logits = _role(discriminator, recipe)
    terms = {}
    if fake is not None:
        terms[f"{name}/fake"] = weight * non_saturating(-logits(blurred(fake, blur_sigma, raw=False)))
    if real is not None:
        terms[f"{name}/real"] = weight * non_saturating(logits(blurred(real, blur_sigma, raw=True)))
    return terms


def r1_penalties(
    discriminator: ImageDiscriminator | VideoDiscriminator, real: Sample, *, blur_sigma: float = 0.0
) -> Tensor:
    """R1 (L_R1 of Eq. 8) before its weights: squared gradient norm of the logit by its real input.
    D_img -> [N] per frame, by image and raw image (before the blur, as official); D_vid -> [B] per video, by
    all its channels, the time differences included (after the blur, as official)."""
    with torch.enable_grad():
        if isinstance(discriminator, ImageDiscriminator):
            image, raw = (x.detach().requires_grad_() for x in (real.image, real.image_raw))
            inputs = [image, raw]
            seen = blurred(real._replace(image=image, image_raw=raw), blur_sigma, raw=True)
            logits = image_logits(discriminator, seen)
        else:
            x = (
                discriminator.input(blurred(real, blur_sigma, raw=True).image, real.times)
                .detach()
                .requires_grad_()
            )
            inputs = [x]
            logits = discriminator.logits(x, real.cameras.flatten(1))
        with fast.no_weight_gradients():
            gradients = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    if isinstance(discriminator, ImageDiscriminator):
        gradients = tuple(discriminator.flatten(g) for g in gradients)
    total = gradients[0].square().flatten(1).sum(dim=1)
    for g in gradients[1:]:
        total = total + g.square().flatten(1).sum(dim=1)
    return total


def r1_loss(
    discriminator: ImageDiscriminator | VideoDiscriminator,
    real: Sample,
    recipe: Recipe,
    *,
    blur_sigma: float = 0.0,
) -> dict[str, Tensor]:
    """{"D_img/r1"} or {"D_vid/r1"}: mean(penalty) x gamma / 2 x interval (x lambda_vid for D_vid; lambda_img
    is not applied, as official)."""
    name, weight, _ = _role(discriminator, recipe)
    weight = weight if name == "D_vid" else 1.0
    penalty = r1_penalties(discriminator, real, blur_sigma=blur_sigma).mean()
    return {f"{name}/r1": weight * recipe.discriminator_reg_interval * recipe.r1_gamma / 2 * penalty}


def _role(discriminator: nn.Module, recipe: Recipe):  # type: ignore[no-untyped-def]
    if isinstance(discriminator, ImageDiscriminator):
        return "D_img", recipe.lambda_img, lambda sample: image_logits(discriminator, sample)
    assert isinstance(discriminator, VideoDiscriminator)
    return "D_vid", recipe.lambda_vid, lambda sample: video_logits(discriminator, sample)
