"""How a variant is trained: loss weights, optimisers and schedules (paper, appendix A.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.plain import require


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Loss weights, optimisers and schedules. Counts are videos over all workers ("samples")."""

    batch: int = 16
    """Videos per update over all workers."""
    updates: int = 300_000
    lambda_img: float = 1.0
    lambda_vid: float = 0.65
    lambda_reg: float = 0.6
    r1_gamma: float = 2.0
    lr_generator: float = 0.0025
    lr_discriminator: float = 0.002
    betas: tuple[float, ...] = (0.0, 0.99)
    """Before the lazy correction (`steps.adam_kwargs`)."""
    generator_reg_interval: int = 4
    discriminator_reg_interval: int = 16
    density_points: int = 1000
    density_noise: float = 0.004
    blur_sigma: float = 10.0
    """First standard deviation of the fading blur, in pixels."""
    blur_fade_kvideos: float = 200.0
    """Length of the fade, in thousand videos, at 32 videos per batch; it scales with the batch below."""
    blur_fade_by: Literal["global", "per_gpu"] = "per_gpu"
    videos_per_gpu: int = 2
    """The batch that sets the fade under `per_gpu` (2 in the paper's run, whatever ours uses)."""
    swap_probability: float = 0.5
    """Camera swap falls from 1 to this."""
    swap_fade_kvideos: float = 1000.0
    resolution_initial: int = 64
    """First rendering resolution; the last is `rendering.resolution`."""
    resolution_fade_kvideos: float = 1000.0
    ema_kvideos: float = 10.0
    """EMA half-life in thousand videos at 32 videos per batch; it scales with the batch."""
    ema_rampup: float = 0.05
    fake_time: Literal["continuous", "grid"] = "continuous"
    """Law of the fake times; `grid` rounds to frame index / (span - 1) as real ones are."""
    fake_camera_time: Literal["independent", "matched"] = "independent"
    """`independent`: cameras of another draw than the times (official); `matched`: those of the same
    indices."""
    flip_fake_cameras: bool = False
    checkpointing: bool = False
    """Recompute renderer and super-resolution in the backward pass: less memory, about a tenth more time."""

    def __post_init__(self) -> None:
        positive = ("batch", "updates", "lr_generator", "lr_discriminator", "generator_reg_interval",
                    "discriminator_reg_interval", "density_points", "videos_per_gpu",
                    "resolution_initial")  # fmt: skip
        for name in positive:
            require(getattr(self, name) > 0, name, getattr(self, name), "greater than 0")
        not_negative = ("lambda_img", "lambda_vid", "lambda_reg", "r1_gamma", "density_noise", "blur_sigma",
                        "blur_fade_kvideos", "swap_fade_kvideos", "resolution_fade_kvideos", "ema_kvideos",
                        "ema_rampup")  # fmt: skip
        for name in not_negative:
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(
            0 <= self.swap_probability <= 1, "swap_probability", self.swap_probability, "between 0 and 1"
        )
        require(
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas),
            "betas",
            self.betas,
            "two numbers in [0, 1)",
        )
