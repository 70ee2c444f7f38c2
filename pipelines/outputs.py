"""Pictures and videos of a model as files. All that is generated goes through here on its way to a disk.

Pictures are uint8 [H, W, 3] RGB. A file appears whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.latents import write_whole
from pipelines.publish import MARKED, Marking, publish

if TYPE_CHECKING:
    from torch import Tensor

    from model.config import ModelConfig
    from model.generator import Frames

FPS = 25.0
KINDS = ("image", "depth", "normals")
Kind = Literal["image", "depth", "normals"]
Format = Literal["mp4", "png"]
Picture = NDArray[np.uint8]


def pictures_of(frames: Frames, cameras: Tensor, config: ModelConfig, kind: str) -> Picture:
    """uint8 [B, T, H, W, 3] of rendered `frames`; `cameras` [T, 25]. Depth: near is bright, over the depths
    that rays may reach. Normals: red to the right, green up, blue towards the camera.

    Raises ValueError for frames that are not finite.
    """
    from model.clips import to_uint8
    from model.geometry import normals_of

    if kind == "image":
        return to_uint8(frames.image)
    b, t = frames.depth.shape[:2]
    if kind == "depth":
        r = config.rendering
        near = r.ray_start if r.ray_start is not None else float(frames.depth.min())
        far = r.ray_end if r.ray_end is not None else float(frames.depth.max())
        grey = 1 - 2 * (frames.depth - near) / max(far - near, 1e-6)
        large = enlarged(grey.flatten(0, 1), config)
        return to_uint8(large.expand(-1, 3, -1, -1).reshape(b, t, 3, *large.shape[-2:]))
    assert frames.xyz is not None, "normals need the points that rays end at"
    normals = normals_of(frames.xyz.flatten(0, 1), cameras.repeat(b, 1))
    large = enlarged(normals.permute(0, 3, 1, 2), config)
    return to_uint8(large.reshape(b, t, *large.shape[-3:]))


def enlarged(picture: Tensor, config: ModelConfig) -> Tensor:
    """[N, C, R, R] -> [N, C, H, H]"""
    import torch.nn.functional as F

    side = (config.img_resolution,) * 2
    return F.interpolate(picture, size=side, mode="bilinear", align_corners=False)


def write_clip(
    path: Path, frames: Iterable[Picture], how: Format = "mp4", fps: float = FPS, *,
    about: Mapping[str, object] | None = None, marking: Marking = MARKED,
) -> Path:  # fmt: skip
    """`path` without suffix: PATH.mp4, or the folder PATH of 0000.png and on, each marked as synthetic
    (`pipelines.publish`). Returns what was written."""
    if how == "mp4":
        from stages.video import write_video

        # by hand: a dot in the name is no suffix
        file = path.with_name(f"{path.name}.mp4")
        write_video(file, (_even(frame) for frame in frames), fps)
        publish(file, about, marking)
        return file
    path.mkdir(parents=True, exist_ok=True)
    for index, frame in enumerate(frames):
        write_picture(path / f"{index:04d}.png", frame, about=about, marking=marking)
    return path


def write_picture(
    path: Path, picture: Picture, *, about: Mapping[str, object] | None = None, marking: Marking = MARKED
) -> Path:
    """A PNG, marked as synthetic."""
    import cv2

    done, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done
    write_whole(path, data.tobytes())
    publish(path, about, marking)
    return path


def side_by_side(pictures: Sequence[Picture]) -> Picture:
    """[..., H, W, 3] each -> [..., H, sum of W, 3]"""
    return np.concatenate(list(pictures), axis=-2)


def tiled(clips: Sequence[Picture], columns: int) -> Picture:
    """Clips [T, H, W, 3] -> [T, rows x H, columns x W, 3], row by row; what is left of the last is black."""
    empty = np.zeros_like(clips[0])
    padded = [*clips, *[empty] * (-len(clips) % columns)]
    rows = [side_by_side(padded[i : i + columns]) for i in range(0, len(padded), columns)]
    return np.concatenate(rows, axis=-3)


def make_folder(folder: Path) -> None:
    """Raises ValueError when it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {folder}: cannot be a folder ({error.strerror}); give another") from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"--out {folder}: cannot be written to; give another")


def _even(frame: Picture) -> Any:
    """H.264 wants even sides: the last row or column twice where they are not."""
    height, width = frame.shape[:2]
    if height % 2 or width % 2:
        return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return frame
