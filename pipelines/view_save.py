"""What the page shows, as files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2

from pipelines.meshes import mesh_of
from pipelines.publish import Marking, publish
from pipelines.view_renderer import FULL, Portrait, Renderer, Shot
from stages.video import write_video

FPS = 25.0
MESH_POINTS = 128                # per side of the grid


def image_file(renderer: Renderer, shot: Shot, folder: Path, marking: Marking) -> Path:
    """The picture, as the model makes it."""
    picture = renderer.picture(replace(shot, level=FULL))
    path = folder / f"{_name(shot)}-{shot.frame:03d}.png"
    done, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done
    path.write_bytes(data.tobytes())
    publish(path, _about(renderer, shot.portrait), marking)
    return path


def video_file(renderer: Renderer, shot: Shot, folder: Path, marking: Marking) -> Path:
    """All frames, seen from where the page is."""
    frames = range(renderer.frames(shot.portrait))
    path = folder / f"{_name(shot)}.mp4"
    write_video(path, (renderer.picture(replace(shot, frame=i, level=FULL)) for i in frames), FPS)
    publish(path, _about(renderer, shot.portrait), marking)
    return path


def mesh_file(renderer: Renderer, shot: Shot, folder: Path, marking: Marking) -> Path:
    """The surface of the frame. Raises ValueError where there is none."""
    planes, ws = renderer.planes_and_style(shot.portrait, shot.frame)
    made = mesh_of(renderer.generator, planes, ws, resolution=MESH_POINTS)
    return made.save(folder / f"{_name(shot)}-{shot.frame:03d}.glb")


def _name(shot: Shot) -> str:
    who = "latent" if shot.portrait.latent else f"seed{shot.portrait.seed:04d}"
    return who if shot.kind == "image" else f"{who}-{shot.kind}"


def _about(renderer: Renderer, portrait: Portrait) -> dict[str, object]:
    told: dict[str, object] = {"model": renderer.model.sha256[:12]}
    return told if portrait.latent else {**told, "seed": portrait.seed}
