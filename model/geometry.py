"""The radiance field itself: density on a grid, colours at points, normals of rendered surfaces.
Shapes: G points of the grid per side, M points."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.generator import Generator
from model.triplane import plane_layout

LEVEL = 10.0
"""Raw density of the surface, as the authors' meshes have it."""
CHUNK = 1 << 18
"""Points looked up at once: about 100 MB with the paper's sizes."""


@torch.no_grad()
def density_grid(
    generator: Generator, planes: Tensor, *, box: float, resolution: int, chunk: int = CHUNK
) -> NDArray[np.float32]:
    """Raw density [G, G, G] (x, y, z) of planes [1, 1, P, C, H, W] in the centred cube of side `box`, the
    first and the last points on its faces; at most `chunk` points at once."""
    planes = plane_layout(planes[0])[None]
    ticks = torch.linspace(-box / 2, box / 2, resolution, device=planes.device)
    out = np.empty(resolution**3, np.float32)
    for start in range(0, len(out), chunk):
        index = torch.arange(start, min(start + chunk, len(out)), device=planes.device)
        x, y, z = index // resolution**2, index // resolution % resolution, index % resolution
        points = torch.stack([ticks[x], ticks[y], ticks[z]], dim=-1)
        density = generator.density(planes, points[None, None])
        out[start : start + len(index)] = density.flatten().float().cpu().numpy()
    return out.reshape(resolution, resolution, resolution)


@torch.no_grad()
def colours_at(
    generator: Generator, planes: Tensor, ws: Tensor, points: NDArray[np.float32], *, chunk: int = CHUNK
) -> NDArray[np.uint8]:
    """RGB [M, 3] of the field at points [M, 3], as the raw picture has it where a ray ends. planes [1, 1,
    P, C, H, W], ws [1, 1, num_ws, W]."""
    planes = plane_layout(planes[0])[None]
    parts = [np.zeros((0, 3), np.uint8)]
    for start in range(0, len(points), chunk):
        at = torch.from_numpy(points[start : start + chunk]).to(planes.device)
        colour, _ = generator.sample(planes, at[None, None])
        features = (colour[0, 0] * 2 - 1).T[None, :, :, None]  # [1, C, M, 1], as the renderer's picture
        rgb = generator.to_img_raw(features, ws[0, :, 0])[0, :, :, 0].T
        parts.append((rgb.float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8).cpu().numpy())
    return np.concatenate(parts)


def normals_of(xyz: Tensor, cameras: Tensor) -> Tensor:
    """Points of surfaces [N, R, R, 3] and cameras [N, 25] -> unit normals [N, R, R, 3] in the axes of the
    camera as one holds it: x right, y up, z towards the camera."""
    padded = F.pad(xyz.permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate")
    right = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    normal = F.normalize(torch.linalg.cross(down, right, dim=1), dim=1)
    rotation = cameras[:, :16].view(-1, 4, 4)[:, :3, :3]
    seen = torch.einsum("nckl,ncd->nkld", normal, rotation)  # OpenCV: x right, y down, z forward
    return seen * seen.new_tensor([1.0, -1.0, -1.0])
