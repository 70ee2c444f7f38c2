"""One training update and all that surrounds it: draws, schedules, optimisers, averages (paper A.1, model
facts 8-10).
An update is G-main, [G-reg], D-main, [D-reg], EMA, in that order; every phase draws afresh and steps its
optimiser. "samples" counts real videos over all workers. Draws come from generators that are passed in: a
worker of several draws the global batch from (seed, step) and takes its rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from model import losses, times
from model.config import ModelConfig, Recipe
from model.discriminator import ImageDiscriminator, VideoDiscriminator
from model.generator import Generator
from model.losses import GeneratorInputs, Sample

Phase = Literal["generator_main", "generator_reg", "discriminator_main", "discriminator_reg"]
PHASES: tuple[Phase, ...] = ("generator_main", "generator_reg", "discriminator_main", "discriminator_reg")


# --- schedules
# -------------------------------------------------------------------------------------------------------


def blur_sigma(samples: float, recipe: Recipe) -> float:
    """Standard deviation of the blur in pixels; fades linearly to 0."""
    batch = recipe.videos_per_gpu if recipe.blur_fade_by == "per_gpu" else recipe.batch
    fade = recipe.blur_fade_kvideos * 1000 * batch / 32
    return recipe.blur_sigma * max(1 - samples / fade, 0.0) if fade > 0 else 0.0


def swap_probability(samples: float, recipe: Recipe) -> float:
    """Probability that a video's mapping network sees another video's cameras: 1, falling to
    `swap_probability`."""
    fade = recipe.swap_fade_kvideos * 1000
    done = min(samples / fade, 1.0) if fade > 0 else 1.0
    return 1 + (recipe.swap_probability - 1) * done


def rendering_resolution(samples: float, recipe: Recipe, final: int) -> int:
    """R, from `resolution_initial` to `final` (`ModelConfig.rendering.resolution`)."""
    fade = recipe.resolution_fade_kvideos * 1000
    done = min(samples / fade, 1.0) if fade > 0 else 1.0
    return int(np.rint(recipe.resolution_initial + (final - recipe.resolution_initial) * done))


def ema_beta(samples: float, recipe: Recipe) -> float:
    """Decay per update of the averaged generator: a half-life in videos, ramped up from the start."""
    half_life = recipe.ema_kvideos * 1000 * recipe.batch / 32
    if recipe.ema_rampup > 0:
        half_life = min(half_life, recipe.ema_rampup * samples)
    return float(0.5 ** (recipe.batch / max(half_life, 1e-8)))


def phases(step: int, recipe: Recipe) -> list[Phase]:
    """The phases of update `step` (0, 1, ...) in order; the lazy ones include update 0."""
    intervals = (1, recipe.generator_reg_interval, 1, recipe.discriminator_reg_interval)
    return [
        phase
        for phase, interval in zip(PHASES, intervals, strict=True)
        if step % interval == 0
    ]  # fmt: skip


def adam_kwargs(lr: float, interval: int, betas: tuple[float, ...] = (0.0, 0.99)) -> dict[str, Any]:
    """Adam's settings, corrected for a regulariser that takes one extra step every `interval` updates."""
    ratio = interval / (interval + 1)
    return {"lr": lr * ratio, "betas": (betas[0] ** ratio, betas[1] ** ratio), "eps": 1e-8}


def generator_adam(recipe: Recipe) -> dict[str, Any]:
    return adam_kwargs(recipe.lr_generator, recipe.generator_reg_interval, recipe.betas)


def discriminator_adam(recipe: Recipe) -> dict[str, Any]:
    return adam_kwargs(recipe.lr_discriminator, recipe.discriminator_reg_interval, recipe.betas)


# --- draws
# -----------------------------------------------------------------------------------------------------------


def step_generator(seed: int, step: int, phase: Phase) -> torch.Generator:
    """The generator for a phase's global draws: latents, times and the swap coins of the whole batch."""
    return _seeded(seed, step, PHASES.index(phase))


def video_generators(seed: int, step: int, phase: Phase, videos: Iterable[int]) -> list[torch.Generator]:
    """One generator per global video index, for the draws inside the networks: pass rank r's r, r + W, ..."""
    return [_seeded(seed, step, PHASES.index(phase), 1 + video) for video in videos]


def _seeded(*key: int) -> torch.Generator:
    if min(key) < 0:
        raise ValueError(f"seed and step are {key[0]} and {key[1]}; give 0 or more")
    state = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))


def sample_latents(
    videos: int, config: ModelConfig, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """z [B, z_dim] and z_m [B, z_m_dim], both N(0, I)."""
    z = torch.randn(videos, config.z_dim, generator=generator)
    return z, torch.randn(videos, config.z_m_dim, generator=generator)


def sample_times(
    videos: int, config: ModelConfig, recipe: Recipe, generator: torch.Generator | None = None
) -> Tensor:
    """[B, n] sorted times of generated frames: the Beta pair for n = 2, n uniforms beyond; on the frame grid
    if asked."""
    uniforms = torch.rand(videos, config.discriminator_frames, generator=generator)
    t: Tensor = times.unsorted_times(uniforms)
    if recipe.fake_time == "grid":
        span = config.frames_span
        t = (t * span).floor().clamp(max=span - 1) / (span - 1)
    return t.sort(dim=1).values


def swap_cameras(cameras: Tensor, swap: Tensor) -> Tensor:
    """cameras [B, T, 25] of the global batch, swap [B] bool -> those of the previous video (cyclic) where
    swapped."""
    if swap.shape != cameras.shape[:1]:
        raise ValueError(f"swap has shape {list(swap.shape)}; give one coin per video, [{cameras.shape[0]}]")
    return torch.where(swap.to(cameras.device)[:, None, None], cameras.roll(1, dims=0), cameras)


def draw_inputs(
    cameras: Tensor, config: ModelConfig, recipe: Recipe, *, samples: float, generator: torch.Generator,
    matched_times: Tensor | None = None,
) -> GeneratorInputs:  # fmt: skip
    """A global batch for one phase. `cameras` [B, T, 25] from the data set, fresh for every phase; with
    `fake_camera_time` matched also their times [B, T], which are then used instead of a draw."""
    videos = cameras.shape[0]
    z, z_m = sample_latents(videos, config, generator)
    t = sample_times(videos, config, recipe, generator)
    if recipe.fake_camera_time == "matched":
        if matched_times is None:
            raise ValueError(
                "fake_camera_time is 'matched' but matched_times is None; pass the cameras' times"
            )
        t = matched_times.to(t)
    swap = torch.rand(videos, generator=generator) < swap_probability(samples, recipe)
    return GeneratorInputs(
        z=z, z_m=z_m, times=t, cameras=cameras,
        mapping_cameras=swap_cameras(shared_for_mapping(cameras, config), swap),
        rendering_resolution=rendering_resolution(samples, recipe, config.rendering.resolution),
    )  # fmt: skip


def shared_for_mapping(cameras: Tensor, config: ModelConfig) -> Tensor:
    """The mapping network's cameras in training: frame 0's for `map` and `all`, each frame's own
    otherwise."""
    share = config.camera_conditioning in ("map", "all")
    return cameras[:, :1].expand_as(cameras) if share else cameras


def rows(inputs: GeneratorInputs, rank: int, workers: int) -> GeneratorInputs:
    """Worker `rank`'s videos rank, rank + workers, ... of a global batch: with them the minibatch-std groups
    are those of one worker."""
    if inputs.z.shape[0] % workers:
        raise ValueError(
            f"a batch of {inputs.z.shape[0]} videos cannot be split over {workers} workers; use a multiple"
        )
    return inputs.part(rank, workers)


# --- the update
# ------------------------------------------------------------------------------------------------------


@contextmanager
def frozen(*networks: nn.Module | None) -> Iterator[None]:
    """No parameter gradients inside (the discriminators in the generator's step)."""
    parameters = [
        p for network in networks if network is not None for p in network.parameters() if p.requires_grad
    ]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


def check_finite(terms: Mapping[str, Tensor | float], step: int) -> dict[str, float]:
    """The terms as numbers; a NaN or infinity stops the run before the update, with step and term named."""
    values = {
        name: float(term.detach() if isinstance(term, Tensor) else term) for name, term in terms.items()
    }
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"loss term {name} is {value} at step {step}; resume from the last checkpoint with a lower "
                "learning rate or a higher r1_gamma, or look at the batch of that step"
            )
    return values


@torch.no_grad()
def ema_update(ema: nn.Module, model: nn.Module, beta: float) -> None:
    """ema <- beta ema + (1 - beta) model for the parameters; buffers are copied."""
    averaged = dict(ema.named_parameters())
    current = dict(model.named_parameters())
    if averaged.keys() != current.keys():
        raise ValueError(
            f"the averaged model lacks or adds {sorted(averaged.keys() ^ current.keys())[:3]}; copy it anew"
        )
    torch._foreach_lerp_([averaged[n] for n in current], list(current.values()), 1 - beta)
    for target, source in zip(ema.buffers(), model.buffers(), strict=True):
        target.copy_(source)


@dataclass(kw_only=True)
class Networks:
    """The three networks, the averaged generator and their optimisers, on one worker."""

    generator: Generator
    generator_ema: Generator
    d_img: ImageDiscriminator | None
    d_vid: VideoDiscriminator | None
    adam_generator: torch.optim.Optimizer
    adam_d_img: torch.optim.Optimizer | None
    adam_d_vid: torch.optim.Optimizer | None

    def discriminators(self) -> list[tuple[ImageDiscriminator | VideoDiscriminator, torch.optim.Optimizer]]:
        pairs = [(self.d_img, self.adam_d_img), (self.d_vid, self.adam_d_vid)]
        return [(d, adam) for d, adam in pairs if d is not None and adam is not None]


def build(config: ModelConfig, recipe: Recipe) -> Networks:
    """Fresh networks in training mode and their lazy-corrected Adams."""
    generator = Generator(config)
    generator.checkpointing = recipe.checkpointing
    ema = Generator(config).eval().requires_grad_(False)
    ema.load_state_dict(generator.state_dict())
    d_img = ImageDiscriminator(config) if config.discriminator.image else None
    d_vid = VideoDiscriminator(config) if config.discriminator.video else None

    def adam(network: nn.Module | None) -> torch.optim.Optimizer | None:
        return (
            None if network is None else torch.optim.Adam(network.parameters(), **discriminator_adam(recipe))
        )

    return Networks(
        generator=generator, generator_ema=ema, d_img=d_img, d_vid=d_vid,
        adam_generator=torch.optim.Adam(generator.parameters(), **generator_adam(recipe)),
        adam_d_img=adam(d_img), adam_d_vid=adam(d_vid),
    )  # fmt: skip


def generator_step(
    nets: Networks,
    inputs: GeneratorInputs,
    recipe: Recipe,
    *,
    step: int,
    density: bool = False,
    blur: float = 0.0,
) -> dict[str, float]:
    """G-main, or with `density` G-reg: loss, gradient, one Adam step. Returns the weighted terms."""
    nets.adam_generator.zero_grad(set_to_none=True)
    with frozen(nets.d_img, nets.d_vid):
        if density:
            terms = losses.density_regularization(nets.generator, inputs, recipe)
        else:
            terms = losses.generator_main_loss(
                nets.generator, nets.d_img, nets.d_vid, inputs, recipe, blur_sigma=blur
            )
        values = check_finite(terms, step)
        torch.stack(list(terms.values())).sum().backward()
    nets.adam_generator.step()
    return values


def discriminator_step(
    nets: Networks, inputs: GeneratorInputs, real: Sample, recipe: Recipe, *, step: int, blur: float = 0.0
) -> dict[str, float]:
    """D-main of both discriminators. The only generator run that moves w_avg."""
    with torch.no_grad():
        fake = losses.generate(nets.generator, inputs, update_w_avg=True)
    values: dict[str, float] = {}
    for network, adam in nets.discriminators():
        adam.zero_grad(set_to_none=True)
        for part in ({"fake": fake, "real": None}, {"fake": None, "real": real}):  # one graph at a time
            terms = losses.discriminator_main_loss(network, recipe=recipe, blur_sigma=blur, **part)
            values |= check_finite(terms, step)
            torch.stack(list(terms.values())).sum().backward()
        adam.step()
    return values


def r1_step(
    nets: Networks, real: Sample, recipe: Recipe, *, step: int, blur: float = 0.0
) -> dict[str, float]:
    """D-reg: R1 of both discriminators."""
    values: dict[str, float] = {}
    for network, adam in nets.discriminators():
        adam.zero_grad(set_to_none=True)
        terms = losses.r1_loss(network, real, recipe, blur_sigma=blur)
        values |= check_finite(terms, step)
        torch.stack(list(terms.values())).sum().backward()
        adam.step()
    return values
