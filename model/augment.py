"""What discriminators see, changed at random so that few clips are not known by heart: colours and place,
alike for real and generated frames (differentiable augmentation, Zhao et al. 2020; no part of the paper).
Shapes: B videos, T frames of each; all frames of a video are changed alike.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BRIGHTNESS = 0.5                 # of a range of 2
CONTRAST = 0.5
SATURATION = 1.0
SHIFT = 0.125                    # of the side
DRAWS = 5


def draw(videos: int, strength: float, generator: torch.Generator | None = None) -> Tensor:
    """[B, 5] within +-strength: brightness, contrast, saturation, shift to the left and up."""
    return (torch.rand(videos, DRAWS, generator=generator) * 2 - 1) * strength


def augmented(frames: Tensor, draws: Tensor) -> Tensor:
    """frames [B, T, 3, H, W] about [-1, 1] as `draws` [B, 5] say; 0 where nothing is shifted to."""
    brightness, contrast, saturation = draws[:, :3, None, None, None].unbind(dim=1)
    frames = frames + BRIGHTNESS * brightness[..., None]
    grey = frames.mean(dim=2, keepdim=True)
    frames = grey + (1 + SATURATION * saturation[..., None]) * (frames - grey)
    mean = frames.mean(dim=(2, 3, 4), keepdim=True)
    frames = mean + (1 + CONTRAST * contrast[..., None]) * (frames - mean)
    return _shifted(frames, draws[:, 3:])


def _shifted(frames: Tensor, draws: Tensor) -> Tensor:
    """By whole pixels: between them a picture would lose its sharpness."""
    side = torch.tensor(frames.shape[:2:-1], device=frames.device)
    affine = torch.eye(2, 3, device=frames.device).repeat(len(frames), 1, 1)
    affine[:, :, 2] = 2 * (SHIFT * side * draws).round() / side
    stacked = frames.flatten(1, 2)
    grid = F.affine_grid(affine, list(stacked.shape), align_corners=False).to(frames.dtype)
    return F.grid_sample(stacked, grid, mode="nearest", align_corners=False).view_as(frames)
