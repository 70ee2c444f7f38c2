"""Thumbnails for the report: a few frames of a clip as one small picture, inline in the page."""

from __future__ import annotations

import base64
import tarfile
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from infra.storage import Storage
from stages.clip import Clip
from stages.video import DecodeError, probe, read_frames, resolve

Picture = NDArray[np.uint8]

SIDE = 96
FRAMES = 6
QUALITY = 70
BOX_COLOUR = (64, 200, 120)


def strip(store: Storage, clip: Clip, frames: int = FRAMES) -> str:
    """A row of frames spread over the clip, as a data URI; "" when its video cannot be decoded.

    Aligned faces when the store holds them, else whole frames of the source with the face box, if there is
    one.
    """
    pictures = aligned(store, clip, frames) or from_source(store, clip, frames)
    return data_uri(np.concatenate(pictures, axis=1)) if pictures else ""


def aligned(store: Storage, clip: Clip, frames: int) -> list[Picture]:
    """[SIDE, SIDE, 3] each; empty when the store holds no aligned frames of the clip."""
    if not clip.aligned or not store.exists(clip.aligned):
        return []
    pictures = []
    with store.local(clip.aligned) as path, tarfile.open(path) as tar:
        for index in spread(clip.frame_count, frames):
            member = tar.extractfile(f"{index:04d}.jpg")
            data = np.frombuffer(member.read() if member else b"", np.uint8)
            pictures.append(fit(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), np.uint8), SIDE))
    return pictures


def from_source(store: Storage, clip: Clip, frames: int) -> list[Picture]:
    """[SIDE, W, 3] each; fewer than asked, or none, when decoding fails."""
    pictures: list[Picture] = []
    try:
        with resolve(store, clip.video) as path:
            indices, times = spread(frames, frames), _times(clip, probe(path).duration_s, frames)
            if clip.is_cut:
                indices = spread(clip.frame_count, frames)
            for index, frame in zip(indices, read_frames(path, times), strict=False):
                pictures.append(_with_box(frame, clip, index))
    except DecodeError:
        pass  # that is often why the clip was rejected; show what there is
    return pictures


def _times(clip: Clip, duration_s: float, frames: int) -> NDArray[np.float64]:
    if clip.frame_times_s is not None:
        return np.asarray(clip.frame_times_s[spread(clip.frame_count, frames)], np.float64)
    return np.linspace(0, max(duration_s - 0.2, 0), frames)


def _with_box(frame: Picture, clip: Clip, index: int) -> Picture:
    small = fit(frame, SIDE)
    if clip.face_boxes is None or index >= len(clip.face_boxes):
        return small
    left, top, right, bottom = (round(float(v) * SIDE / frame.shape[0]) for v in clip.face_boxes[index])
    return np.asarray(cv2.rectangle(small.copy(), (left, top), (right, bottom), BOX_COLOUR, 1), np.uint8)


def fit(picture: Picture, height: int) -> Picture:
    """Scaled to `height`; at most twice as wide as high."""
    width = min(max(round(picture.shape[1] * height / picture.shape[0]), 8), 2 * height)
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def spread(count: int, frames: int) -> list[int]:
    """`frames` indices from the first to the last of `count`, or all of them when there are fewer."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(frames, count))})


def data_uri(picture: Picture) -> str:
    done, data = cv2.imencode(
        ".webp", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, QUALITY]
    )
    assert done, "a picture in memory can be encoded"
    return inline(data.tobytes(), "image/webp")


def inline(data: bytes | Sequence[Any], kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(bytes(data)).decode()}"
