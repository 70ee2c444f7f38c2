"""Contact sheets for the report: a few frames of a clip as one small picture, inline in the page."""

from __future__ import annotations

import base64
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from infra.storage import Storage
from stages.base import Drop
from stages.clip import Clip
from stages.video import DecodeError, Reader, resolve

Picture = NDArray[np.uint8]

SIDE = 104  # px, height of a frame
WIDEST = 16 / 9  # width by height; what is wider is squeezed
FRAMES = 6
COLUMNS = 3
GAP = 2  # px
QUALITY = 66
LAST_S = 0.2  # before the end that the header promises, which may not be reached
BOX_COLOUR = (64, 200, 120)
MOMENT_COLOUR = (235, 60, 50)

_MOMENT = re.compile(r"from ([0-9]+(?:\.[0-9]+)?) s")  # of a clip, as stages put it into details


@dataclass
class Look:
    """Some frames of a clip, or why there are none."""

    pictures: list[Picture] = field(default_factory=list)  # [H, W, 3] RGB, of one size
    note: str = ""  # what is wrong with them


def sheet(look: Look) -> Picture:
    """Its frames in rows of three, [H, W, 3]; there must be one at least."""
    height, width = look.pictures[0].shape[:2]
    columns = min(COLUMNS, len(look.pictures))
    rows = -(-len(look.pictures) // columns)
    whole = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 128, np.uint8)
    for number, picture in enumerate(look.pictures):
        top, left = (number // columns) * (height + GAP), (number % columns) * (width + GAP)
        if picture.shape != (height, width, 3):  # a file whose frames change their size
            picture = np.asarray(cv2.resize(picture, (width, height)), np.uint8)
        whole[top : top + height, left : left + width] = picture
    return whole


def look(store: Storage, clip: Clip, at: int | None = None, frames: int = FRAMES) -> Look:
    """Frames spread over the clip: of its aligned faces where the store has them, else of its source.

    Frame `at` is among them, in red; face boxes are drawn where they are known.
    """
    pictures = aligned(store, clip, frames, at)
    return Look(pictures) if pictures else from_source(store, clip, frames, at)


def moment(clip: Clip, detail: str, unlike: bool = False) -> int | None:
    """The frame for which a clip was rejected: the one that `detail` names, or when it was rejected for its
    similarities (`unlike`) the one that is least like the others. None if neither is known."""
    if not clip.is_cut or clip.frame_count < 2:
        return None
    if unlike and clip.embeddings is not None and clip.embedding_step:
        mean = clip.embeddings.mean(axis=0)
        return min(int(np.argmin(clip.embeddings @ mean)) * clip.embedding_step, clip.frame_count - 1)
    found = _MOMENT.search(detail)
    index = round(float(found[1]) * clip.fps) if found else clip.frame_count
    return index if index < clip.frame_count else None


def aligned(store: Storage, clip: Clip, frames: int, at: int | None = None) -> list[Picture]:
    """[SIDE, SIDE, 3] each; empty when the store does not hold sound aligned frames of the clip."""
    chosen = with_moment(spread(clip.frame_count, frames), at) if clip.is_cut else []
    try:
        found = aligned_frames(store, clip, chosen)
    except (OSError, tarfile.TarError, KeyError, ValueError):
        return []
    return [_marked(fit(picture, SIDE), i == at) for i, picture in zip(chosen, found, strict=True)]


def aligned_frames(store: Storage, clip: Clip, indices: Sequence[int]) -> list[Picture]:
    """[S, S, 3] RGB each, of the clip's tar.

    Raises FileNotFoundError, tarfile.TarError, KeyError or ValueError.
    """
    if not clip.aligned or not store.exists(clip.aligned):
        raise FileNotFoundError(clip.aligned)
    pictures = []
    with store.local(clip.aligned) as path, tarfile.open(path) as tar:
        for index in indices:
            member = tar.extractfile(f"{index:04d}.jpg")
            data = (member.read() if member else b"") or b"no picture"
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
            if picture is None:
                raise ValueError(f"{clip.aligned}: {index:04d}.jpg is no picture")
            pictures.append(np.asarray(picture, np.uint8))
    return pictures


def from_source(store: Storage, clip: Clip, frames: int, at: int | None = None) -> Look:
    """[SIDE, W, 3] each; fewer than asked, or none, and a note, where decoding fails."""
    found = Look()
    try:
        with resolve(store, clip.video) as path, Reader(path, exact=False) as reader:
            if clip.frame_times_s is not None:
                chosen = with_moment(spread(clip.frame_count, frames), at)
                times = [float(clip.frame_times_s[i]) for i in chosen]
            else:
                end_s = max(reader.info().duration_s - LAST_S, 0.0)
                times = sorted(set(np.linspace(0, end_s, frames).tolist()))
                chosen = [-1] * len(times)
            for index, time_s in zip(chosen, times, strict=True):
                _, frame = next(reader.frames(time_s), (0.0, None))
                if frame is not None:
                    picture = _with_box(reader.picture(frame, 4 * SIDE), clip, index)
                    found.pictures.append(_marked(picture, index == at and index >= 0))
    except DecodeError as error:  # that is often why the clip was rejected; show what there is
        found.note = _why(error, bool(found.pictures))
    if not found.pictures and not found.note:
        found.note = "no picture: no frame can be decoded"
    return found


def _why(error: Drop, some: bool) -> str:
    return f"{'no more pictures' if some else 'no picture'}: {error.reason}"


def _with_box(frame: Picture, clip: Clip, index: int) -> Picture:
    """The frame at the height of a sheet; `clip` says how large it was."""
    small = fit(frame, SIDE)
    if clip.face_boxes is None or not 0 <= index < len(clip.face_boxes):
        return small
    width, height = clip.width or frame.shape[1], clip.height or frame.shape[0]
    across, down = small.shape[1] / width, small.shape[0] / height
    left, top, right, bottom = (
        round(float(v) * s) for v, s in zip(clip.face_boxes[index], (across, down) * 2, strict=True)
    )
    return np.asarray(cv2.rectangle(small.copy(), (left, top), (right, bottom), BOX_COLOUR, 1), np.uint8)


def _marked(picture: Picture, is_moment: bool) -> Picture:
    if is_moment:
        end = (picture.shape[1] - 1, picture.shape[0] - 1)
        picture = np.asarray(cv2.rectangle(picture.copy(), (0, 0), end, MOMENT_COLOUR, 4), np.uint8)
    return picture


def fit(picture: Picture, height: int) -> Picture:
    """Scaled to `height`; not much wider than high, nor much higher than wide."""
    wanted = round(picture.shape[1] * height / picture.shape[0])
    width = min(max(wanted, height // 2), round(WIDEST * height))
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def spread(count: int, frames: int) -> list[int]:
    """`frames` indices from the first to the last of `count`, or all of them when there are fewer."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(frames, count))})


def with_moment(indices: list[int], at: int | None) -> list[int]:
    """The indices with the nearest to `at` replaced by it."""
    if at is None or not indices:
        return indices
    nearest = min(indices, key=lambda i: abs(i - at))
    return sorted({at if i == nearest else i for i in indices})


def data_uri(picture: Picture, quality: int = QUALITY) -> str:
    done, data = cv2.imencode(
        ".webp", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, quality]
    )
    assert done, "a picture in memory can be encoded"
    return inline(data.tobytes(), "image/webp")


def inline(data: bytes | Sequence[Any], kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(bytes(data)).decode()}"
