"""Videos and pictures of a model's seeds, as files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.outputs import KINDS, Format, make_folder, tiled, write_clip
from pipelines.publish import MARKED, Marking, ready

log = logging.getLogger(__name__)

FRAMES = 16
MOST_TILES = 64                              # clips of a grid are in memory together


def generate(
    model: str | None, *, seeds: Sequence[int], out: Path, tracking: str, frames: int | None = None,
    span: tuple[float, float] | None = None, psi: float = 1.0, camera: str = "still",
    yaw: float | None = None, pitch: float | None = None, mapping: str = "first",
    yaws: Sequence[float] = (0.0,), kinds: str = "image", grid: int | None = None, how: Format = "mp4",
    marking: Marking = MARKED,
) -> list[Path]:  # fmt: skip
    """Write `out/seed0000.mp4` for every seed, `seed0000-depth.mp4` for other kinds, `grid.mp4` for all in
    one (`grid` columns); folders of PNG frames for `how` png. Returns what was written.

    Equal arguments give equal pixels, and a seed's do not depend on the other seeds. `model`: as
    `pipelines.models.open_model` takes it. `camera`, `yaw`, `pitch`: see `pipelines.trajectories`. `mapping`:
    the mapping network sees the `first` frame's camera, as in the paper, or the `front` one. `yaws`: views
    side by side. Raises ValueError of one line, before a file is written.
    """
    from pipelines.api import Model
    from pipelines.progress import Progress
    from pipelines.trajectories import trajectory

    wanted = kinds_of(kinds)
    if grid is not None and len(seeds) > MOST_TILES:
        raise ValueError(f"--grid {grid}: {len(seeds)} seeds; a grid has {MOST_TILES} at most")
    ready(marking)
    opened = Model.load(model, tracking)
    about: dict[str, object] = {"model": opened.sha256[:12]}
    count = min(FRAMES, opened.config.frames_span) if frames is None else frames
    times = opened.times(count, span)
    cameras = trajectory(
        camera, len(times), yaw_deg=yaw, pitch_deg=pitch, cameras=opened.opened.cameras
    )
    front = opened.opened.cameras.canonical_camera().encode() if mapping == "front" else None
    made = opened.generate(
        seeds, times=times, cameras=cameras, psi=psi, kinds=wanted, yaws=yaws, mapping_camera=front
    )
    opened.sample(seeds[0], times=times, cameras=cameras, psi=psi)  # whatever is wrong shows before a folder
    make_folder(out)
    files: list[Path] = []
    tiles: dict[str, list[NDArray[Any]]] = {kind: [] for kind in wanted}
    with Progress(["frames"]) as bars:
        bars.expect("frames", len(seeds) * len(times))
        for clip in made:
            for kind, pictures in clip.pictures.items():
                if grid is None:
                    path = out / _name(f"seed{clip.seed:04d}", kind)
                    told = {**about, "seed": clip.seed}
                    files.append(write_clip(path, pictures, how, about=told, marking=marking))
                else:
                    tiles[kind].append(pictures)
            bars.done("frames", len(times))
            bars.tick()
        if grid is not None:
            for kind, clips in tiles.items():
                joined: NDArray[np.uint8] = tiled(clips, min(grid, len(clips)))
                path = out / _name("grid", kind)
                files.append(write_clip(path, joined, how, about=about, marking=marking))
    log.info("%d clips of %d frames from %s in %s", len(seeds), len(times), model, out)
    return files


def kinds_of(text: str) -> tuple[str, ...]:
    """"image,depth" -> ("image", "depth"). Raises ValueError for another kind."""
    kinds = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"--kinds {text}: {unknown[0]!r} is unknown; give some of {', '.join(KINDS)}")
    return kinds


def _name(stem: str, kind: str) -> str:
    return stem if kind == "image" else f"{stem}-{kind}"
