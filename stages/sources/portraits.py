"""The demo's videos: two public-domain portraits, filmed by a moving camera that never was.

Both pictures come with Python packages, so nothing is downloaded: Grace Hopper (US Navy, in matplotlib) and
Eileen Collins (NASA, in scikit-image). Each becomes three 25 fps mp4 files under `demo/videos/` of the store,
and the true cameras and identities go to `demo/truth/`, which tests, the report and benches read, no stage.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from infra.read_only import is_read_only
from infra.storage import Storage
from stages.cameras import angle_errors, as_filmed, encode
from stages.clip import Clip

if TYPE_CHECKING:
    from stages.sources.relief import Expression, Relief, View

FPS = 25.0
RENDER_VERSION = 3                       # raise it when the same scenes give other pictures


@dataclass(frozen=True)
class Portrait:
    """A picture inside a package, and where its 68 points are (measured once, lids corrected by eye)."""

    identity: str
    package: str
    path: str
    width: int
    height: int
    licence: str
    lid: float                           # see `relief.Relief`; glasses leave little skin above the eye
    landmarks: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Scene:
    """One video: frame, framing and movement. Angles are amplitudes in degrees, times in seconds."""

    portrait: Portrait
    width: int
    height: int
    frames: int
    px_per_mm: float                     # how large the face is
    centre: tuple[float, float]          # where it is, as shares of the frame
    yaw: float
    pitch: float
    roll: float
    period: float                        # of the yaw
    phase: float                         # rad
    blinks: tuple[float, ...]
    mouth: float                         # mm


GRACE_HOPPER = Portrait(
    "grace-hopper", "matplotlib", "mpl-data/sample_data/grace_hopper.jpg", 512, 600,
    "public domain (US Navy)", 0.3,
    (
        (178, 203), (181, 226), (186, 248), (192, 270), (199, 291),
        (209, 310), (226, 323), (245, 331), (269, 333),
        (293, 329), (312, 319), (329, 304), (340, 284), (347, 262), (351, 241), (353, 218), (355, 195),
        (189, 188), (196, 172), (211, 165), (228, 165), (243, 171),
        (284, 168), (298, 161), (315, 161), (331, 167), (340, 181),
        (265, 188), (265, 205), (266, 221), (267, 238), (247, 246),
        (257, 249), (268, 252), (278, 249), (287, 246),
        (211, 193), (218, 186), (227, 186), (236, 193), (228, 194), (219, 194),
        (292, 191), (300, 183), (309, 183), (318, 190), (311, 192), (301, 193),
        (233, 281), (245, 274), (258, 272), (267, 274), (277, 271), (288, 273), (300, 277),
        (289, 284), (278, 287), (269, 289), (259, 288), (246, 285),
        (238, 279), (258, 278), (268, 279), (277, 278), (296, 278), (277, 278), (268, 279), (258, 279),
    ),
)  # fmt: skip

EILEEN_COLLINS = Portrait(
    "eileen-collins", "skimage", "data/astronaut.png", 512, 512,
    "public domain (NASA)", 0.75,
    (
        (179, 104), (180, 116), (181, 127), (182, 139), (185, 150),
        (191, 160), (200, 168), (209, 176), (220, 178),
        (232, 177), (243, 171), (253, 163), (260, 154), (265, 143), (268, 131), (270, 120), (272, 108),
        (186, 94), (192, 88), (200, 87), (208, 89), (216, 92),
        (236, 93), (244, 91), (252, 91), (260, 92), (265, 99),
        (226, 102), (225, 111), (225, 119), (225, 127), (214, 131),
        (219, 133), (224, 134), (229, 133), (234, 132),
        (194, 100), (199, 97), (207, 97), (212, 103), (206, 104), (199, 104),
        (237, 105), (243, 99), (250, 99), (258, 104), (251, 106), (244, 106),
        (201, 139), (209, 139), (218, 139), (224, 141), (230, 140), (238, 140), (246, 141),
        (238, 151), (229, 155), (222, 156), (216, 155), (208, 150),
        (204, 141), (218, 143), (223, 144), (230, 143), (243, 142), (229, 150), (223, 151), (217, 150),
    ),
)  # fmt: skip

SCENES = {
    "eileen-collins-1": Scene(
        EILEEN_COLLINS, 512, 640, 75, 1.75, (0.50, 0.42), 18, 5, 4, 2.6, 0.0, (0.9, 2.3), 5,
    ),
    "eileen-collins-2": Scene(
        EILEEN_COLLINS, 640, 480, 66, 1.70, (0.42, 0.50), 12, 7, 6, 2.1, 1.6, (1.4,), 6,
    ),
    "eileen-collins-3": Scene(
        EILEEN_COLLINS, 448, 448, 60, 1.50, (0.52, 0.50), 15, 6, 5, 1.9, 3.4, (0.6, 1.9), 4,
    ),
    "grace-hopper-1": Scene(
        GRACE_HOPPER, 640, 480, 75, 2.05, (0.52, 0.50), 16, 6, 4, 2.7, 0.5, (0.7, 2.1), 5,
    ),
    "grace-hopper-2": Scene(
        GRACE_HOPPER, 512, 640, 66, 1.75, (0.50, 0.42), 17, 4, 5, 2.3, 2.2, (1.2,), 6,
    ),
    "grace-hopper-3": Scene(
        GRACE_HOPPER, 480, 480, 60, 1.75, (0.50, 0.50), 13, 7, 6, 2.0, 4.0, (0.5, 1.7), 4,
    ),
}  # fmt: skip


def clips(store: Storage) -> Iterator[Clip]:
    """List the demo's videos, rendering those that the store does not hold yet.

    For who must change nothing they are listed without a fingerprint, unless there are records to compare.
    Raises ValueError when a picture's package is absent or holds another picture.
    """
    make = _not_made if is_read_only(store) and next(store.list("ledger"), None) is None else _make
    with ThreadPoolExecutor() as pool:       # OpenCV and the encoder let go of the interpreter
        fingerprints = list(pool.map(lambda name: _present(store, name) or make(store, name), SCENES))
    for (name, scene), fingerprint in zip(SCENES.items(), fingerprints, strict=True):
        yield Clip(
            id=name, source=f"{name}.mp4", video=f"store:{video_key(name)}", fingerprint=fingerprint,
            dataset="demo", licence=scene.portrait.licence,
        )  # fmt: skip


def video_key(name: str) -> str:
    return f"demo/videos/{name}.mp4"


def truth_key(name: str) -> str:
    return f"demo/truth/{name}.json"


def read_truth(store: Storage, name: str) -> dict[str, Any]:
    """`identity`, `fps` and `cameras` (one list of 25 numbers per frame, of the frame as filmed)."""
    found: dict[str, Any] = json.loads(store.read(truth_key(name)))
    return found


def pose_errors(store: Storage, clip: Clip) -> dict[str, float] | None:
    """`cameras.angle_errors` of a clip of the demo against the true cameras; None for any other clip."""
    name = clip.video.removeprefix("store:demo/videos/").removesuffix(".mp4")
    if clip.video != f"store:{video_key(name)}" or not store.exists(truth_key(name)):
        return None
    truth = read_truth(store, name)
    frames = np.rint(clip.need("frame_times_s") * truth["fps"]).astype(int)
    true = np.array(truth["cameras"])[np.clip(frames, 0, len(truth["cameras"]) - 1)]
    return angle_errors(as_filmed(clip.need("cameras"), clip.need("crop_transforms")), true)


def shots(scene: Scene) -> list[tuple[View, Expression]]:
    """What is filmed in each frame of a scene."""
    from stages.sources.relief import Expression, View

    made = []
    for time in np.arange(scene.frames) / FPS:
        turn = 2 * np.pi * time / scene.period + scene.phase
        drift = 0.012 * np.array([np.sin(0.7 * turn), np.cos(0.9 * turn)])
        syllables = np.sin(2 * np.pi * 3.1 * time + scene.phase) + 0.6 * np.sin(2 * np.pi * 1.3 * time)
        blink = sum(float(np.exp(-(((time - middle) / 0.07) ** 2))) for middle in scene.blinks)
        view = View(
            yaw_deg=scene.yaw * float(np.sin(turn)),
            pitch_deg=scene.pitch * float(np.sin(0.63 * turn + 1.1)),
            roll_deg=scene.roll * float(np.sin(0.81 * turn + 2.3)),
            px_per_mm=scene.px_per_mm * (1 + 0.02 * float(np.sin(0.5 * turn))),
            centre_px=(
                float((scene.centre[0] + drift[0]) * scene.width),
                float((scene.centre[1] + drift[1]) * scene.height),
            ),
        )
        opening = scene.mouth * max(float(syllables), 0.0) / 1.6
        made.append((view, Expression(blink=blink if blink > 0.02 else 0.0, mouth=opening)))
    return made


def load(portrait: Portrait) -> Relief:
    """The portrait with its depth. Raises ValueError when its package does not hold it."""
    import cv2

    from stages.sources.relief import Relief

    picture = cv2.imread(str(_path(portrait)))
    if picture is None or picture.shape != (portrait.height, portrait.width, 3):
        raise _absent(portrait)
    return Relief(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), portrait.landmarks, portrait.lid)


def _path(portrait: Portrait) -> Path:
    """Of its picture. Raises ValueError when there is none."""
    spec = importlib.util.find_spec(portrait.package)
    for folder in (spec and spec.submodule_search_locations) or []:
        if Path(folder, portrait.path).is_file():
            return Path(folder, portrait.path)
    raise _absent(portrait)


def _absent(portrait: Portrait) -> ValueError:
    return ValueError(
        f"source.location: demo:portraits needs {portrait.path} of the package {portrait.package}, "
        "which is not there; install pv3d-pipeline[data]"
    )


def render(scene: Scene, relief: Relief) -> Iterator[NDArray[np.uint8]]:
    """Frames of a scene, uint8 [H, W, 3] RGB; the same every time."""
    for view, expression in shots(scene):
        yield relief.frame(view, expression, scene.width, scene.height)


def true_cameras(scene: Scene) -> NDArray[np.float32]:
    """[T, 25] of a scene."""
    from stages.sources.relief import truth

    poses = [truth(view) for view, _ in shots(scene)]
    return encode(np.stack([r for r, _ in poses]), np.stack([p for _, p in poses]))


def _present(store: Storage, name: str) -> str:
    """sha256 of the video in the store, or "" when it is not there whole and of this version."""
    if not (store.exists(truth_key(name)) and store.exists(video_key(name))):
        return ""
    sha256 = hashlib.sha256(store.read(video_key(name))).hexdigest()
    truth = read_truth(store, name)
    return sha256 if truth.get("render") == RENDER_VERSION and truth.get("sha256") == sha256 else ""


def _not_made(store: Storage, name: str) -> str:
    _path(SCENES[name].portrait)             # a run would refuse, too
    return ""


def _make(store: Storage, name: str) -> str:
    from stages.video import write_video

    scene = SCENES[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.mp4")
        write_video(path, render(scene, load(scene.portrait)), FPS)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        truth = {
            "render": RENDER_VERSION, "sha256": sha256, "identity": scene.portrait.identity, "fps": FPS,
            "cameras": np.round(true_cameras(scene).astype(float), 7).tolist(),
        }  # fmt: skip
        store.write(truth_key(name), json.dumps(truth).encode())
        store.upload(video_key(name), path)          # last: a video without its truth is rendered again
    return sha256
