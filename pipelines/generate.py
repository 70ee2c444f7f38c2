"""Videos of a model: one mp4 per seed."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.models import OpenModel, open_model

log = logging.getLogger(__name__)

FPS = 25.0


def generate(
    model: str,
    *,
    seeds: Sequence[int],
    frames: int,
    out: Path,
    tracking: str,
    yaw_deg: float = 0.0,
    psi: float = 1.0,
) -> list[Path]:
    """Write `out/seed0000.mp4` for every seed and return the files. Equal arguments give equal pixels.

    `model` as `pipelines.models.open_model` takes it. The camera is frontal, or swings `yaw_deg` to either
    side once; the mapping network sees the first frame's. Raises ValueError of one line for a mistake.
    """
    from pipelines.progress import Progress
    from stages.video import write_video

    for option, value in (("--yaw", yaw_deg), ("--psi", psi)):
        if not math.isfinite(value):
            raise ValueError(f"{option} {value}: must be a finite number")
    opened = open_model(model, tracking)
    times = opened.clips.window_times(opened.generator.config, frames)
    make_folder(out)
    cameras = swing(opened.cameras, frames, yaw_deg)
    files = []
    with Progress(["generate"]) as bars:
        bars.expect("generate", len(seeds))
        for seed in seeds:
            files.append(out / f"seed{seed:04d}.mp4")
            write_video(files[-1], frames_of(opened, seed, cameras, times, psi=psi), FPS)
            bars.done("generate")
            bars.tick()
    log.info("%d videos of %d frames from %s in %s", len(files), frames, model, out)
    return files


def frames_of(
    opened: OpenModel,
    seed: int,
    cameras: NDArray[np.float32],
    times: NDArray[np.float32],
    *,
    psi: float = 1.0,
) -> Iterator[NDArray[np.uint8]]:
    """uint8 [H, W, 3] RGB, one by one, in order."""
    for part in opened.clips.render_clip(opened.generator, seed, cameras, times, psi=psi):
        yield from opened.clips.to_uint8(part.image[0])


def swing(cameras: Any, frames: int, yaw_deg: float) -> NDArray[np.float32]:
    """[frames, 25]: front, `yaw_deg` to one side, back, to the other and nearly back, at eye height."""
    angles = yaw_deg * np.sin(2 * np.pi * np.arange(frames) / frames)
    views = [
        cameras.orbit(float(yaw), target=(0.0, 0.0, 0.0), vertical_offset=0.0).encode() for yaw in angles
    ]
    return np.stack(views).astype(np.float32)


def make_folder(folder: Path) -> None:
    """Raises ValueError when it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {folder}: cannot be a folder ({error.strerror}); give another") from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"--out {folder}: cannot be written to; give another")
