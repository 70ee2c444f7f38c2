"""Videos that show whether cameras are right: what each camera says of the head, drawn over its frame.

Drawn are the head's axes (red to the right of the picture, green up, blue out of the face), a box around the
head, and in yellow the brows, nose and eyes of the average face. Where the camera is right the yellow lies on
the face and the blue axis points where the nose does. White dots are the landmarks, where they are known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.camera import RADIUS, Camera, check_cameras
from pipelines.camera_files import EG3D_LABELS, PV3D_CAMERAS, PV3D_VIDEOS, Chosen, find_cameras, store_of
from stages.affine import apply
from stages.cameras import at_radius, euler_degrees
from stages.dataset import Dataset, Sample, open_dataset
from stages.face_model import LANDMARKS, to_world
from stages.pnp import CROP_DISTANCE

Array = NDArray[np.float64]
Picture = NDArray[np.uint8]

SHOWN_PX = 512                   # side of the video, at least
PICTURES = 250                   # of EG3D's layout
FPS = 25.0                       # of clips that name no rate

YELLOW, WHITE, BLACK = (255, 220, 40), (255, 255, 255), (0, 0, 0)
AXES = (((90, 0, 0), (255, 60, 60)), ((0, 90, 0), (60, 230, 60)), ((0, 0, 110), (80, 140, 255)))   # mm, RGB
NOSE_MM = (0.0, -10.0, 30.0)     # where the axes begin, as in `stages.face_model`
BOX_MM = ((-80.0, -125.0, -110.0), (80.0, 105.0, 25.0))
LINES = (                        # brows, nose, eyes
    range(17, 22), range(22, 27), range(27, 31), range(31, 36), (*range(36, 42), 36), (*range(42, 48), 42),
)  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """A clip whose frames and cameras are at hand."""

    name: str
    fps: float
    frames: Iterator[Picture]
    cameras: NDArray[np.float32]             # [T, 25]
    landmarks: Array | None                  # [T, 68, 2], crop px


def write_overlays(
    paths: Sequence[str], folder: Path, clips: int, chosen: Chosen | None = None
) -> list[Path]:
    """Write `folder/<clip>.mp4` for up to `clips` clips of every path, and return the files.

    Raises ValueError for a path without pictures.
    """
    from pipelines.outputs import make_folder
    from stages.video import write_video

    make_folder(folder)
    files = []
    for path in paths:
        for shown in _clips(path, clips, chosen):
            files.append(folder / f"{shown.name}.mp4")
            write_video(files[-1], _drawn(shown), shown.fps)
    return files


def _clips(path: str, count: int, chosen: Chosen | None) -> Iterator[Shown]:
    folder, store = Path(path), store_of(path, chosen)
    if store is not None:
        dataset = open_dataset(store)
        for sample in dataset.samples[:count]:
            yield _sample(dataset, sample)
    elif (folder / PV3D_CAMERAS).is_dir() and (folder / PV3D_VIDEOS).is_dir():
        for file in sorted((folder / PV3D_CAMERAS).glob("*.json"))[:count]:
            yield _video(folder, file)
    elif (folder / EG3D_LABELS).is_file():
        yield _pictures(folder)
    else:
        raise ValueError(
            f"--overlay: {path} holds no pictures; give a storage.root or a folder in PV3D's or EG3D's layout"
        )


def _sample(dataset: Dataset, sample: Sample) -> Shown:
    transforms = np.array(dataset.record(sample)["crop_transforms"])
    frames = (dataset.frames(sample, [index])[0] for index in range(sample.frame_count))
    landmarks = apply(transforms, dataset.landmarks(sample))
    return Shown(sample.clip_id, sample.fps, frames, dataset.cameras(sample), landmarks)


def _video(folder: Path, file: Path) -> Shown:
    from stages.video import probe, read_all

    (cameras,) = find_cameras(str(file))
    if cameras.fault:
        raise ValueError(f"--overlay: {file}: {cameras.fault}")
    video = folder / PV3D_VIDEOS / f"{file.stem}.mp4"
    frames = (frame for _, frame in read_all(video))
    return Shown(file.stem, probe(video).fps or FPS, frames, cameras.numbers.astype(np.float32), None)


def _pictures(folder: Path) -> Shown:
    """The first pictures of EG3D's labels, one after the other."""
    import cv2

    labels = json.loads((folder / EG3D_LABELS).read_bytes())["labels"][:PICTURES]

    def frames() -> Iterator[Picture]:
        for name, _ in labels:
            picture = cv2.imread(str(folder / name), cv2.IMREAD_COLOR_RGB)
            if picture is None:
                raise ValueError(f"--overlay: {folder / name}: no picture that can be read")
            yield np.asarray(picture, np.uint8)

    numbers = np.array([numbers for _, numbers in labels], np.float32)
    return Shown(folder.resolve().name, FPS, frames(), numbers, None)


def _drawn(shown: Shown) -> Iterator[Picture]:
    for index, (frame, camera) in enumerate(zip(shown.frames, shown.cameras, strict=False)):
        yield draw(frame, camera, None if shown.landmarks is None else shown.landmarks[index])


def draw(
    frame: Picture, camera: NDArray[np.float32], landmarks: Array | None = None, with_text: bool = True
) -> Picture:
    """The frame uint8 [S, S, 3] RGB, at least 512 px large, with what its camera [25] says drawn over it.

    `landmarks` [68, 2] are px of the frame.
    """
    import cv2

    size = frame.shape[0]
    scale = max(round(SHOWN_PX / size), 1)
    side = scale * size
    picture = np.ascontiguousarray(cv2.resize(frame, (side, side), interpolation=cv2.INTER_CUBIC))

    def line(points: Array, colour: tuple[int, int, int], width: int = 1) -> None:
        whole = np.rint(16 * points).astype(np.int32)                # 4 binary digits after the point
        cv2.polylines(picture, [whole], False, colour, width, cv2.LINE_AA, 4)

    text = "no camera"
    if _is_camera(camera):
        for edge in _box():
            line(project(camera, edge, side), WHITE)
        for chosen in LINES:
            line(project(camera, LANDMARKS[list(chosen)], side), YELLOW, 2)
        for end, colour in AXES:
            line(project(camera, to_world(np.array([(0, 0, 0), end]) + NOSE_MM), side), colour, 3)
        angles = zip(("yaw", "pitch", "roll"), euler_degrees(camera), strict=True)
        text = "  ".join(f"{name} {round(float(angle)):+d}" for name, angle in angles)
    if landmarks is not None:
        for x, y in np.rint(16 * ((landmarks + 0.5) * scale - 0.5)).astype(int).tolist():
            cv2.circle(picture, (x, y), 32, WHITE, -1, cv2.LINE_AA, 4)
    if with_text:
        cv2.rectangle(picture, (0, side - 30), (260, side), BLACK, -1)
        cv2.putText(picture, text, (8, side - 9), cv2.FONT_HERSHEY_SIMPLEX, 0.55, WHITE, 1, cv2.LINE_AA)
    return picture


def _is_camera(numbers: NDArray[np.float32]) -> bool:
    try:
        return bool(np.isfinite(numbers).all()) and check_cameras(numbers) is not None
    except ValueError:
        return False


def project(camera: NDArray[np.float32], points: Array, size: int) -> Array:
    """World [N, 3] -> px [N, 2] of a crop of `size`, from where the camera really stands.

    The 25 numbers of the mode `orig` say 2.7 from the origin, by convention; the crop, whose scale the
    alignment fixes, was seen from 2.86. Cameras of the other modes stand where they say.
    """
    one = Camera.decode(camera)
    distance = float(np.linalg.norm(one.position))
    stands = at_radius(one.position, CROP_DISTANCE) if abs(distance - RADIUS) < 0.05 else one.position
    seen = (points - stands) @ one.rotation
    image = seen @ one.intrinsics.T
    return np.asarray(image[:, :2] / image[:, 2:] * size - 0.5, np.float64)


def _box() -> Iterator[Array]:
    """The 12 edges of the box around the head, world [2, 3] each."""
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    low, high = np.array(BOX_MM)
    for i, a in enumerate(corners):
        for b in corners[i + 1:]:
            if np.abs(a - b).sum() == 1:
                yield to_world(low + np.array([a, b]) * (high - low))
