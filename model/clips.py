"""From a seed, times and cameras to frames: how everything that shows the model asks for pictures.
A seed names a person and a motion: its latents are drawn on the CPU, so that they are equal on every device.
What is rendered at once has a fixed shape: a clip's pixels do not depend on what is rendered beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.camera import check_cameras
from model.config import ModelConfig
from model.generator import Frames, Generator

CHUNK = 8
"""Frames of a clip rendered at once; memory grows with it."""
FILL = 1 << 22
"""Points along rays that fill a GPU: eight frames of the paper's model."""


@dataclass(frozen=True)
class Codes:
    """What B clips are made of. T may be 1 where all frames share a code."""

    ws: Tensor
    """[B, T, num_ws, W]: appearance, one w per layer"""
    motion: Tensor
    """[B, T, M]: z_m of Eq. 1, or what takes its place (`motion.code`)"""


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
def codes(
    generator: Generator, seed: int, cameras: NDArray[np.float32], *, psi: float = 1.0,
    mapping_camera: NDArray[np.float32] | None = None,
) -> Codes:  # fmt: skip
    """Those of a seed for a clip seen from `cameras` [T, 25]. The mapping network sees `mapping_camera` [25];
    without one it sees what the config says at inference (the first frame's camera, in the paper)."""
    check_cameras(cameras)
    device = next(generator.parameters()).device
    z, z_m = (latent.to(device) for latent in latents(generator.config, seed))
    seen = torch.from_numpy(np.asarray(cameras, np.float32))[None].to(device)
    mapping, _ = generator.condition(seen)
    if mapping_camera is not None:
        mapping = torch.from_numpy(np.asarray(mapping_camera, np.float32)).to(device).expand_as(seen)
    if bool((mapping == mapping[:, :1]).all()):
        mapping = mapping[:, :1]
    motion = z_m if generator.config.motion.code == "z_m" else z
    return Codes(generator.map(z, mapping, truncation_psi=psi), motion[:, None])


@torch.no_grad()
def render_views(
    generator: Generator, codes: Codes, cameras: NDArray[np.float32], times: NDArray[np.float32], *,
    rendering_resolution: int | None = None, return_xyz: bool = False, chunk: int = CHUNK,
) -> Iterator[list[Frames]]:  # fmt: skip
    """Yield the frames of B clips in order, `chunk` times at once: a list of `Frames`, one per view.
    `cameras` [V, T, 25] and `times` [T] in [0, 1] are the same for all clips. Planes are made once per time,
    whatever the number of views."""
    if cameras.ndim != 3 or cameras.shape[1] != len(times):
        shape = list(cameras.shape)
        raise ValueError(f"cameras {shape} for {len(times)} times; give one camera per frame, [V, T, 25]")
    check_cameras(cameras)
    b = len(codes.ws)
    device = codes.ws.device
    seen = torch.from_numpy(np.asarray(cameras, np.float32)).to(device)
    t = torch.from_numpy(np.asarray(times, np.float32)).to(device).expand(b, -1)
    if generator.config.camera_conditioning == "all":  # Table 2c: the first camera renders, too
        seen = seen[:, :1].expand_as(seen)
    for start in range(0, len(times), chunk):
        part = slice(start, start + chunk)
        count = t[:, part].shape[1]
        ws = codes.ws.expand(-1, len(times), -1, -1)[:, part]
        motion = codes.motion.expand(-1, len(times), -1)[:, part]
        planes = generator.planes(ws, motion, t[:, part], noise_mode="const")
        yield [
            generator.render(
                planes, ws, view[part].expand(b, count, -1), rendering_resolution=rendering_resolution,
                deterministic=True, return_xyz=return_xyz,
            )
            for view in seen
        ]  # fmt: skip


def render_clip(
    generator: Generator, seed: int, cameras: NDArray[np.float32], times: NDArray[np.float32], *,
    psi: float = 1.0, mapping_camera: NDArray[np.float32] | None = None,
    rendering_resolution: int | None = None, return_xyz: bool = False, chunk: int = CHUNK,
) -> Iterator[Frames]:  # fmt: skip
    """Yield the frames of one clip in order, in chunks: `Frames` with B = 1 and up to `chunk` times.
    `cameras` [T, 25] and `times` [T] in [0, 1] are one per frame; `psi` and `mapping_camera` as in
    `codes`."""
    if len(cameras) != len(times):
        raise ValueError(f"{len(cameras)} cameras for {len(times)} times; give one camera per frame")
    made = codes(generator, seed, cameras, psi=psi, mapping_camera=mapping_camera)
    views = render_views(
        generator, made, np.asarray(cameras)[None], times, rendering_resolution=rendering_resolution,
        return_xyz=return_xyz, chunk=chunk,
    )  # fmt: skip
    for (frames,) in views:
        yield frames


def clips_at_once(config: ModelConfig, frames: int, *, accelerator: bool) -> int:
    """How many clips of `frames` frames fill the device: 1 on a CPU, which one clip keeps busy."""
    r = config.rendering
    points = r.resolution**2 * (r.samples_coarse + r.samples_fine) * min(frames, CHUNK)
    return max(FILL // points, 1) if accelerator else 1


def together(clips: list[Codes], count: int) -> Codes:
    """Codes of several clips as one batch of `count`, the last repeated: a batch always has its full size."""
    full = clips + clips[-1:] * (count - len(clips))
    return Codes(torch.cat([c.ws for c in full]), torch.cat([c.motion for c in full]))


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
