"""What is wrong with a clip, found by other means than the stages': a second opinion, for benches.

The file is decoded by PyAV directly, from its beginning. Of the clip only the times of its frames and the
boxes of its face are believed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages import boxes
from stages.backends import Box, Detection
from stages.clip import Clip

Picture = NDArray[np.uint8]
Detect = Callable[[Picture], Sequence[Detection]]

SHORTEST = 48                    # frames: 16 in each of three spans
FROZEN_S, FROZEN_LEVELS = 1.0, 2.0          # no block of a 16 x 16 raster changes more, for so long
MISSING = 5                      # frames in a row without a face
LASTING_S = 0.6                  # of a second face
SECOND_SIDE = 0.5                # of the first one's side
FACE_EVERY, OTHERS_EVERY = 2, 5  # frames that are looked at for the face, and for others
SURE, POSSIBLE = 0.8, 0.4        # scores of a second face, and of the face that is followed
# A cut, by the correlation of pictures of 32 x 32: of a frame and the next, and from two before to one after.
UNLIKE, UNLIKE_LASTING = 0.65, 0.8
STANDS_OUT = 2.5                 # times any other loss around it: fast heads move for several frames


def faults(path: Path, clip: Clip, detect: Detect | None) -> list[str]:
    """Everything that is wrong with a clip of the file at `path`; without `detect`, but for its faces."""
    times_s = clip.need("frame_times_s")
    if len(times_s) < SHORTEST:
        return [f"too short: {len(times_s)} frames"]
    frames, problem = decode(path, times_s)
    if problem:
        return [problem]
    found = [cut_inside(frames), frozen(frames, clip.fps)]
    if detect is not None:
        found += [lost(frames, clip, detect), two(frames, clip, detect)]
    return [one for one in found if one]


def decode(path: Path, times_s: NDArray[Any]) -> tuple[list[Picture], str]:
    """(uint8 [H, W, 3] RGB of every wanted time, "") or ([], what is wrong)."""
    import av

    wanted = [round(float(t), 3) for t in times_s]
    held: dict[float, Picture] = {}
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                time = round(float(frame.time or 0.0), 3)
                if wanted[0] <= time <= wanted[-1]:
                    held[time] = turned(frame.to_ndarray(format="rgb24"), frame.rotation)
                if time >= wanted[-1]:
                    break
    except (av.FFmpegError, ValueError) as error:
        return [], f"undecodable: {error}"
    missing = [t for t in wanted if t not in held]
    if missing:
        return [], f"undecodable: no frame at {missing[0]} s"
    return [held[t] for t in wanted], ""


def turned(picture: Picture, rotation: int) -> Picture:
    return np.asarray(np.rot90(picture, round(rotation / 90) % 4), np.uint8)


def cut_inside(frames: Sequence[Picture]) -> str:
    """A step at which the picture becomes another one, and stays it."""
    small = np.stack([_small(frame, 32) for frame in frames])
    flat = small.reshape(len(small), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True) + 1e-6
    loss = 1 - (flat[1:] * flat[:-1]).sum(axis=1)          # of the step from frame i to i + 1
    for i in np.flatnonzero(loss > 1 - UNLIKE).tolist():
        before, after = max(i - 2, 0), min(i + 2, len(flat) - 1)
        around = np.delete(loss[max(i - 5, 0):i + 6], i - max(i - 5, 0))
        lasting = float(flat[before] @ flat[after])
        if lasting < UNLIKE_LASTING and loss[i] > STANDS_OUT * max(around, default=0.0):
            return f"cut inside: at frame {i + 1} of {len(frames)}"
    return ""


def frozen(frames: Sequence[Picture], fps: float) -> str:
    small = np.stack([_small(frame, 16) for frame in frames])
    since = 0
    for i in range(1, len(small)):
        if np.abs(small[i] - small[since]).max() >= FROZEN_LEVELS:
            since = i
        elif (i - since) / fps >= FROZEN_S:
            return f"frozen: from frame {since}"
    return ""


def lost(frames: Sequence[Picture], clip: Clip, detect: Detect) -> str:
    """More than MISSING frames in a row in which no face is seen where the clip says that one is."""
    gap = 0
    faces = clip.need("face_boxes")
    for i in range(0, len(frames), FACE_EVERY):
        box: Box = tuple(faces[i].tolist())
        around, left, top = _surroundings(frames[i], box)
        seen = [boxes.shifted(d.box, left, top) for d in detect(around) if d.score >= POSSIBLE]
        gap = 0 if any(boxes.overlap(one, box) > 0.2 for one in seen) else gap + 1
        if (gap - 1) * FACE_EVERY + 1 > MISSING:
            return f"face missing: frames {i - (gap - 1) * FACE_EVERY} to {i}"
    return ""


def two(frames: Sequence[Picture], clip: Clip, detect: Detect) -> str:
    """Two faces of like size, for longer than LASTING_S."""
    together = 0
    for i in range(0, len(frames), OTHERS_EVERY):
        sides = sorted((boxes.side(d.box) for d in detect(frames[i]) if d.score >= SURE), reverse=True)
        together = together + 1 if len(sides) > 1 and sides[1] >= SECOND_SIDE * sides[0] else 0
        if together * OTHERS_EVERY / clip.fps > LASTING_S:
            return f"two faces: until frame {i}"
    return ""


def _surroundings(frame: Picture, box: Box) -> tuple[Picture, float, float]:
    """Twice the box, as far as the frame goes; and its corner."""
    side = boxes.side(box)
    height, width = frame.shape[:2]
    left, top = max(int(box[0] - side / 2), 0), max(int(box[1] - side / 2), 0)
    right, bottom = min(int(box[2] + side / 2) + 1, width), min(int(box[3] + side / 2) + 1, height)
    if right - left < 8 or bottom - top < 8:
        return frame, 0.0, 0.0
    return np.ascontiguousarray(frame[top:bottom, left:right]), float(left), float(top)


def _small(frame: Picture, size: int) -> NDArray[np.float64]:
    """[size, size] grey."""
    import cv2

    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, (size, size), interpolation=cv2.INTER_AREA), np.float64)
