"""A small committed dataset of smooth pictures, moving cameras and known people."""

import io
import tarfile

import cv2
import numpy as np

from infra.storage import Storage
from model.camera import orbit
from stages.clip import Clip
from stages.shards import WriteShards

SIZE = 64


def picture(clip_id: str, index: int, size: int = SIZE) -> np.ndarray:
    """A smooth picture that depends on clip and frame."""
    y, x = np.mgrid[:size, :size] / size
    phase = sum(clip_id.encode()) % 64 + 2 * index
    colours = [160 * x + phase, 160 * y + phase, 90 * (1 - x) + phase]
    return np.stack(colours, -1).clip(0, 255).astype(np.uint8)


def cameras(clip_id: str, frames: int) -> np.ndarray:
    yaw = sum(clip_id.encode()) % 20
    return np.stack([orbit(yaw + i / 3, i / 5).encode() for i in range(frames)])


def clip_in(store: Storage, clip_id: str, frames: int = 20, **changes: object) -> Clip:
    """The record of a finished clip, whose aligned pictures are in the store."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for index in range(frames):
            info = tarfile.TarInfo(f"{index:04d}.jpg")
            how = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
            data = cv2.imencode(".jpg", picture(clip_id, index)[..., ::-1], how)[1].tobytes()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    store.write(f"aligned/{clip_id}.tar", buffer.getvalue())
    clip = Clip(
        id=clip_id, source=f"videos/{clip_id}.mp4", video=f"/private/{clip_id}.mp4", dataset="tiny", fps=25.0,
        licence=f"licence of {clip_id}", listed={"source_id": f"youtube:{clip_id}"}, width=640, height=480,
        frame_times_s=np.arange(frames) / 25, crop_size=SIZE, aligned=f"aligned/{clip_id}.tar",
        face_boxes=np.full((frames, 4), 10, np.float32), landmarks=np.full((frames, 68, 2), 7, np.float32),
        crop_transforms=np.tile(np.eye(3)[:2], (frames, 1, 1)), cameras=cameras(clip_id, frames),
        identity=f"person of {clip_id[0]}",
    )
    return clip.copy(**changes)


def write(store: Storage, clips: list[Clip], **settings: object) -> None:
    """What a runner does: group, write every group, finish."""
    stage = WriteShards(**{"buckets": 2, **settings})
    stage.setup(store)
    groups: dict[str, list[Clip]] = {}
    for clip in clips:
        groups.setdefault(stage.group(clip), []).append(clip)
    done = [out for name, members in groups.items() for out in stage.process_group(name, members)]
    stage.finish(store, iter(sorted(done, key=lambda clip: clip.id)))
