"""The sample video of a training: the same people and motions every time, seen from three sides, and their
depth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model.camera import orbit
from model.clips import latents, to_uint8, window_times
from model.generator import Generator

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Grid:
    """One column per seed; rows: front, `yaw` degrees to either side, depth of the front (near is bright)."""

    seeds: tuple[int, ...] = (0, 1, 2, 3)
    yaws: tuple[float, ...] = (0.0, -30.0, 30.0)
    frames: int = 16


@torch.no_grad()
def grid_frames(generator: Generator, grid: Grid = Grid()) -> Iterator[Picture]:
    """Yield uint8 [rows x H, seeds x W, 3] for each frame of the window. The generator must be in evaluation
    mode."""
    config = generator.config
    device = next(generator.parameters()).device
    times = window_times(config, min(grid.frames, config.frames_span))
    z, z_m = (
        torch.cat(part).to(device)
        for part in zip(*(latents(config, seed) for seed in grid.seeds), strict=True)
    )
    views = torch.from_numpy(np.stack([orbit(yaw).encode() for yaw in grid.yaws])).to(device)
    front = views[0].expand(len(grid.seeds), 1, -1)
    ws = generator.map(z, front)
    motion = z_m if config.motion.code == "z_m" else z
    for t in times:
        # Planes do not depend on the camera that renders: made once per frame, seen from every side.
        planes = generator.planes(
            ws, motion, torch.full((len(grid.seeds), 1), float(t), device=device), noise_mode="const"
        )
        seen = [
            generator.render(planes, ws, view.expand(len(grid.seeds), 1, -1), deterministic=True)
            for view in views
        ]
        rows = [np.concatenate(list(to_uint8(s.image[:, 0])), axis=1) for s in seen]
        yield np.concatenate([*rows, _depth_row(generator, seen[0].depth)])


def _depth_row(generator: Generator, depth: torch.Tensor) -> Picture:
    """Depth [B, 1, 1, R, R] as grey [H, B x W, 3], over the depths that rays may reach."""
    rendering, side = generator.config.rendering, generator.config.img_resolution
    near = rendering.ray_start if rendering.ray_start is not None else float(depth.min())
    far = rendering.ray_end if rendering.ray_end is not None else float(depth.max())
    grey = (1 - (depth[:, 0] - near) / max(far - near, 1e-6)).clamp(0, 1) * 2 - 1
    large = torch.nn.functional.interpolate(grey, size=(side, side), mode="nearest").expand(-1, 3, -1, -1)
    return np.concatenate(list(to_uint8(large)), axis=1)
