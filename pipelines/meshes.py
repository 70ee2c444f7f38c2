"""The surface of a portrait as a mesh: a level of the density, with normals and colours.

World axes: x to the right of the picture, y up, z towards the frontal camera; the box is centred. Normals
point out of the head, and faces are counter-clockwise seen from outside.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.latents import Latent, write_whole

if TYPE_CHECKING:
    from model.config import RenderingConfig
    from model.generator import Generator

log = logging.getLogger(__name__)

SUFFIXES = (".ply", ".obj", ".glb")
LEVEL, RESOLUTION, CHUNK = 10.0, 128, 1 << 18    # level and resolution of the authors' meshes
MOST_BOX = 1000.0                                # world units: a head is about 1
MOST_RESOLUTION = 768                            # points per side: 1.8 GB of density


@dataclass(frozen=True)
class Mesh:
    """V vertices, F triangles."""

    vertices: NDArray[np.float32]
    """[V, 3], world units"""
    faces: NDArray[np.int64]
    """[F, 3]"""
    normals: NDArray[np.float32]
    """[V, 3], unit, outwards"""
    colours: NDArray[np.uint8]
    """[V, 3] RGB"""

    def save(self, path: Path) -> Path:
        """PLY, OBJ or GLB, by the suffix; whole or not at all. Raises ValueError for another suffix."""
        check_suffix(path)
        made = _trimesh().Trimesh(
            vertices=self.vertices, faces=self.faces, vertex_normals=self.normals,
            vertex_colors=self.colours, process=False,
        )  # fmt: skip
        options: dict[str, Any] = {".ply": {"vertex_normal": True}, ".obj": {"include_normals": True}}.get(
            path.suffix, {"include_normals": True}
        )
        data = made.export(file_type=path.suffix[1:], **options)
        write_whole(path, data.encode() if isinstance(data, str) else data)
        return path


def surface(
    density: NDArray[np.float32], box: float, level: float
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """Vertices [V, 3], faces [F, 3] and outward normals [V, 3] where density [G, G, G] (x, y, z) on the cube
    of side `box` passes through `level`. Raises ValueError where it does not."""
    from skimage.measure import marching_cubes

    low, high = float(density.min()), float(density.max())
    if not low < level < high:
        raise ValueError(
            f"--level {level:g}: no surface, the density reaches from {low:.3g} to {high:.3g}; "
            "give a level between"
        )
    spacing = (box / (len(density) - 1),) * 3
    vertices, faces, normals, _ = marching_cubes(density, level, spacing=spacing)
    # It takes the inside for the lower side: its faces look inwards.
    outwards = np.ascontiguousarray(faces[:, ::-1]).astype(np.int64)
    return (vertices - box / 2).astype(np.float32), outwards, normals.astype(np.float32)


def mesh_of(
    generator: Generator, planes: Any, ws: Any, *, level: float = LEVEL, box: float | None = None,
    resolution: int = RESOLUTION, chunk: int = CHUNK,
) -> Mesh:  # fmt: skip
    """The mesh of planes [1, 1, P, C, H, W], coloured by ws [1, 1, num_ws, W]; `box` is `seen_box` unless
    given. At most `chunk` points are looked up at once. Raises ValueError where no surface is."""
    from model.geometry import colours_at, density_grid

    box = seen_box(generator.config.rendering) if box is None else box
    _check(level, box, resolution, chunk)
    density = density_grid(generator, planes, box=box, resolution=resolution, chunk=chunk)
    if not np.isfinite(density).all():
        raise ValueError("the density is not finite: the weights have diverged; take an earlier checkpoint")
    vertices, faces, normals = surface(density, box, level)
    del density
    return Mesh(vertices, faces, normals, colours_at(generator, planes, ws, vertices, chunk=chunk))


def seen_box(rendering: RenderingConfig) -> float:
    """Side of the cube whose front is where the rays of a frontal camera begin: nothing tells a model what to
    do nearer than that, and there are sheets of density."""
    from model.camera import RADIUS

    start = rendering.ray_start
    return rendering.box_warp if start is None else min(rendering.box_warp, 2 * (RADIUS - start))


def write_meshes(
    model: str | None, out: Path, *, tracking: str, seed: int = 0, latent: str | None = None,
    time: float = 0.0, frames: int | None = None, psi: float = 1.0, **options: Any,
) -> list[Path]:  # fmt: skip
    """Write `out`, or with `frames` one file per frame, OUT-0000 and on; `options` as in `mesh_of`.

    The portrait is that of `seed`, or of the file `latent`, at `time`; or all along its frames. Without a
    `model` it is the latent's own. Raises ValueError of one line, and leaves no file behind then.
    """
    from pipelines.api import Model
    from pipelines.motions import opened as opened_latent
    from pipelines.outputs import make_folder
    from pipelines.progress import Progress

    check_suffix(out)
    _trimesh()
    if latent is None:
        opened, found = Model.load(model, tracking), None
    else:
        found, opened = opened_latent(Path(latent), model, tracking)
    portrait = _portrait(opened, seed, found, time, frames, psi)
    names = [out] if frames is None else [
        out.with_name(f"{out.stem}-{index:04d}{out.suffix}") for index in range(len(portrait))
    ]  # fmt: skip
    written: list[Path] = []
    with Progress(["mesh"]) as bars:
        bars.expect("mesh", len(names))
        try:
            for index, name in enumerate(names):
                made = opened.mesh(portrait, frame=index, **options)
                make_folder(out.parent)
                written.append(made.save(name))
                log.info("%s: %d vertices, %d faces", name, len(made.vertices), len(made.faces))
                bars.done("mesh")
                bars.tick()
        except ValueError:
            for path in written:
                path.unlink(missing_ok=True)
            raise
    return written


def _portrait(
    model: Any, seed: int, latent: Latent | None, time: float, frames: int | None, psi: float
) -> Latent:
    if not 0 <= time <= 1:
        raise ValueError(f"--time {time:g}: give a time from 0 to 1")
    times = model.times(frames) if frames is not None else np.array([time], np.float32)
    if latent is None:
        sampled: Latent = model.sample(seed, times=times, psi=psi)
        return sampled
    if frames is None:
        nearest = [int(np.abs(latent.times - time).argmin())] if len(latent.z_m) > 1 else [0]
        return latent.with_motion(latent.z_m[nearest], times)
    if frames > len(latent):
        raise ValueError(f"--frames {frames}: the latent has {len(latent)}; give so many or fewer")
    return latent.with_motion(latent.z_m[:frames], latent.times[:frames])


def check_suffix(path: Path) -> None:
    """Raises ValueError for a file that is no mesh."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"--out {path}: no kind of mesh; end it in {', '.join(SUFFIXES)}")


def _check(level: float, box: float, resolution: int, chunk: int) -> None:
    if not np.isfinite(level):
        raise ValueError(f"--level {level}: must be a finite number")
    if not 0 < box <= MOST_BOX:
        raise ValueError(f"--box {box:g}: give a side in world units, such as 1")
    if not 8 <= resolution <= MOST_RESOLUTION:
        raise ValueError(f"--resolution {resolution}: give 8 to {MOST_RESOLUTION} points per side")
    if chunk < 1:
        raise ValueError(f"--chunk {chunk}: give 1 or more")


def _trimesh() -> Any:
    try:
        import trimesh
    except ImportError:
        raise ValueError("meshes need trimesh; pip install 'pv3d-pipeline[view]'") from None
    return trimesh
