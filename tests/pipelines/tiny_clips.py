"""Small clips with aligned frames in a store, as the shards take them."""

from __future__ import annotations

import io
import tarfile

import cv2
import numpy as np

from infra.storage import FolderStorage
from stages.clip import Clip

SIZE = 32


def picture(clip_id: str, index: int) -> np.ndarray:
    """A smooth picture that depends on clip and frame."""
    y, x = np.mgrid[:SIZE, :SIZE]
    phase = sum(clip_id.encode()) % 64 + 3 * index
    return np.stack([4 * x + phase, 4 * y + phase, 0 * x + 2 * phase], -1).clip(0, 255).astype(np.uint8)


def jpeg(image: np.ndarray) -> bytes:
    parameters = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), parameters)
    assert done
    return data.tobytes()


def tar_of(clip_id: str, frames: int) -> bytes:
    """Aligned frames, as `AlignCrop` keeps them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for index in range(frames):
            info = tarfile.TarInfo(f"{index:04d}.jpg")
            data = jpeg(picture(clip_id, index))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def clip_in(store: FolderStorage, clip_id: str, frames: int = 5, **changes: object) -> Clip:
    store.write(f"aligned/{clip_id}.tar", tar_of(clip_id, frames))
    random = np.random.default_rng(len(clip_id))
    clip = Clip(
        id=clip_id, source=f"{clip_id}.mp4", video=f"/private/{clip_id}.mp4", fingerprint="12:34", fps=25.0,
        width=640, height=480, frame_times_s=np.arange(frames) / 25, crop_size=SIZE, licence="CC0",
        listed={"row": 1}, face_boxes=random.random((frames, 4), np.float32),
        landmarks=random.random((frames, 68, 2), np.float32), crop_transforms=random.random((frames, 2, 3)),
        aligned=f"aligned/{clip_id}.tar", cameras=random.random((frames, 25), np.float32), identity="p1",
    )
    return clip.copy(**changes)
