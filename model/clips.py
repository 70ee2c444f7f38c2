"""From a seed, times and cameras to frames: how everything that shows the model asks for pictures.
A seed names a person and a motion: its latents are drawn on the CPU, so that they are equal on every device.
A clip is rendered alone and in chunks of fixed size, so that its pixels do not depend on what is rendered
beside it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.camera import check_cameras
from model.config import ModelConfig
from model.generator import Frames, Generator

CHUNK = 8
"""Frames rendered at once; memory grows with it."""


def latents(config: ModelConfig, seed: int) -> tuple[Tensor, Tensor]:
    """z [1, z_dim] and z_m [1, z_m_dim] of a seed, drawn in this order from one generator."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed {seed}: give a whole number from 0 to 2^63 - 1")
    random = torch.Generator().manual_seed(seed)
    return torch.randn(1, config.z_dim, generator=random), torch.randn(1, config.z_m_dim, generator=random)


def window_times(config: ModelConfig, frames: int) -> NDArray[np.float32]:
    """[frames] times of consecutive frames from 0 on, as the training window counts them: index / (span - 1).
    Raises ValueError when they are more than the window holds.
    """
    span = config.frames_span
    if not 1 <= frames <= span:
        raise ValueError(
            f"frames {frames}: this model was trained on windows of {span} frames; give 1 to {span}"
        )
    return (np.arange(frames) / (span - 1)).astype(np.float32)


@torch.no_grad()
def render_clip(
    generator: Generator,
    seed: int,
    cameras: NDArray[np.float32],
    times: NDArray[np.float32],
    *,
    psi: float = 1.0,
    mapping_camera: NDArray[np.float32] | None = None,
    rendering_resolution: int | None = None,
    return_xyz: bool = False,
    chunk: int = CHUNK,
) -> Iterator[Frames]:
    """Yield the frames of one clip in order, in chunks: `Frames` with B = 1 and up to `chunk` times.
    `cameras` [T, 25] and `times` [T] in [0, 1] are one per frame. The mapping network sees `mapping_camera`
    [25] for all frames; without one it sees what the config says at inference (the first frame's camera, in
    the paper).
    """
    if len(cameras) != len(times):
        raise ValueError(f"{len(cameras)} cameras for {len(times)} times; give one camera per frame")
    check_cameras(cameras)
    device = next(generator.parameters()).device
    z, z_m = (latent.to(device) for latent in latents(generator.config, seed))
    seen = torch.from_numpy(np.asarray(cameras, np.float32))[None].to(device)
    t = torch.from_numpy(np.asarray(times, np.float32))[None].to(device)
    mapping, rendered = generator.condition(seen)
    if mapping_camera is not None:
        mapping = torch.from_numpy(np.asarray(mapping_camera, np.float32)).to(device).expand_as(seen)
    for start in range(0, len(times), chunk):
        part = slice(start, start + chunk)
        yield generator(
            z,
            z_m,
            t[:, part],
            rendered[:, part],
            mapping_cameras=mapping[:, part],
            truncation_psi=psi,
            noise_mode="const",
            rendering_resolution=rendering_resolution,
            deterministic=True,
            return_xyz=return_xyz,
        )


def to_uint8(image: Tensor) -> NDArray[np.uint8]:
    """[..., 3, H, W] in about [-1, 1] -> uint8 [..., H, W, 3] RGB. Raises ValueError for what is not
    finite."""
    if not bool(torch.isfinite(image).all()):
        raise ValueError(
            "a generated frame is not finite: the weights have diverged; take an earlier checkpoint"
        )
    levels = (image.detach().float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
    out: NDArray[np.uint8] = levels.movedim(-3, -1).cpu().numpy()
    return out
