"""Directions of motion: the principal components of each motion layer's codes w_m (paper, Eq. 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

CODES = 1024
COMPONENTS = 3


@dataclass(frozen=True)
class Directions:
    """Of K layers."""

    components: tuple[Tensor, ...]
    """[COMPONENTS, W] each, scaled to one standard deviation, by how much of the motion they are"""
    explained: tuple[tuple[float, ...], ...]
    """That share, in [0, 1]"""


def motion_layers(generator: nn.Module) -> list[Any]:
    """The K of them, from coarse to fine."""
    return [module for module in generator.modules() if hasattr(module, "motion_mlp")]


@torch.no_grad()
def find_directions(generator: Any, codes: int = CODES, seed: int = 0) -> Directions:
    """From `codes` motion codes at times spread over [0, 1]."""
    random = torch.Generator().manual_seed(seed)
    device = generator.plane_axes.device
    config = generator.config
    size = config.z_m_dim if config.motion.code == "z_m" else config.z_dim
    motion = torch.randn(codes, size, generator=random) * torch.linspace(0, 1, codes)[:, None]
    components, explained = [], []
    for layer in motion_layers(generator):
        w_m = layer.code(motion.to(device))
        _, sizes, axes = torch.linalg.svd(w_m - w_m.mean(dim=0), full_matrices=False)
        scale = sizes / (codes - 1) ** 0.5
        components.append(axes[:COMPONENTS] * scale[:COMPONENTS, None])
        share = sizes**2 / (sizes**2).sum().clamp(min=1e-12)
        explained.append(tuple(share[:COMPONENTS].tolist()))
    return Directions(tuple(components), tuple(explained))


@contextmanager
def moved(
    generator: Any, directions: Directions, by: Sequence[tuple[int, int, float]]
) -> Iterator[None]:
    """While the context lasts, w_m of layers goes along (layer, component, standard deviations)."""
    layers = motion_layers(generator)
    with ExitStack() as hooks:
        for layer, component, amount in by:
            offset = directions.components[layer][component] * amount
            handle = layers[layer].motion_mlp.register_forward_hook(
                lambda _, __, w_m, offset=offset: w_m + offset
            )
            hooks.callback(handle.remove)
        yield
