"""How near a reconstruction is to what it was made from: `stages.metrics`, averaged over frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.latents import Latent
from pipelines.publish import MARKED, Marking, ready


def measured(latent: Latent, made: NDArray[np.uint8]) -> dict[str, Any]:
    """l1 (share of the full range), psnr (dB) and ssim of frames [T, H, W, 3] against the latent's target,
    and lpips, or in `not_computed` why there is none. Raises ValueError for a latent without a target."""
    from infra import weights
    from stages.metrics.l1 import l1
    from stages.metrics.lpips import LPIPS, lpips
    from stages.metrics.networks import find_network, missing
    from stages.metrics.psnr import psnr
    from stages.metrics.ssim import ssim

    if latent.target is None:
        raise ValueError("the latent has no picture to compare with; give what `pv3d invert` wrote")
    found: dict[str, Any] = {
        name: round(float(np.mean(function(latent.target, made))), 5)
        for name, function in (("l1", l1), ("psnr", psnr), ("ssim", ssim))
    }
    network = find_network(LPIPS, {}, weights.find(LPIPS))
    if network is None:
        return {**found, "lpips": None, "not_computed": {"lpips": missing(LPIPS)}}
    return {**found, "lpips": round(float(np.mean(lpips(latent.target, made, network))), 5)}


def reconstruct(
    latent: Path, out: Path, *, model: str | None, tracking: str, marking: Marking = MARKED
) -> dict[str, Any]:
    """Write what was inverted and what the model makes of it, side by side, into the folder `out`: an mp4, or
    a PNG of a picture; returns the figures. Raises ValueError of one line."""
    from pipelines.motions import opened
    from pipelines.outputs import make_folder, side_by_side, write_clip, write_picture

    ready(marking)
    found, loaded = opened(latent, model, tracking)
    made, figures = loaded.reconstruct(found)
    assert found.target is not None
    make_folder(out)
    both = side_by_side([found.target, made])
    stem = out / f"{latent.stem}-reconstruction"
    how: dict[str, Any] = {"about": {"model": loaded.sha256[:12]}, "marking": marking}
    if len(both) == 1:
        file = write_picture(stem.with_name(f"{stem.name}.png"), both[0], **how)
    else:
        file = write_clip(stem, both, **how)
    return {"files": [str(file)], **figures}
