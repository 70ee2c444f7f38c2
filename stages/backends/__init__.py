"""Models behind small interfaces. A workflow names one by its import path: `stages.backends.dlib:DlibFaces`.

A backend is made in a worker, once, by a constructor without arguments, and holds its model from then on. An
identity backend keeps no state. A face backend may follow a face from frame to frame, so it is told when a
clip starts: what it answers depends on the calls since then, never on what its worker saw before.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]      # px: left, top, right, bottom


@dataclass(frozen=True)
class Detection:
    """A face: left, top, right, bottom in px of the frame, and the detector's own score, higher is surer."""

    box: Box
    score: float


class FaceBackend(Protocol):
    """Finds faces and their P points: the 68 of iBUG (0-based), or more, in an order of its own."""

    name: str
    believe_above: float                     # a detection with this score is a face; with less it may be one
    smallest_px: float                       # smallest face that the detector finds
    points68: NDArray[np.intp] | None        # [68]: which of its points are iBUG's; None when they are these
    follows: bool                            # it looks where the face was: asked once a frame, in order

    def start(self) -> None:
        """A new clip begins: forget the one before."""
        ...

    def detect(self, frame: NDArray[np.uint8]) -> list[Detection]:
        """Faces in a frame, uint8 [H, W, 3] RGB, best score first; false positives may be among them."""
        ...

    def landmarks(self, frame: NDArray[np.uint8], box: Box) -> NDArray[np.float32]:
        """float32 [P, 2], px of the frame, of the face in `box`; all NaN when the model sees none there.

        Frames come in the order of time, as a rule: a backend that follows may look where the face was.
        """
        ...

    def box(self, landmarks: NDArray[np.float32]) -> Box:
        """The box that `detect` would give the face with these points [P, 2]: where to look for it next."""
        ...

    @classmethod
    def rigid(cls) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """(indices [R] into its points that do not move when a face speaks, where they lie [R, 3]).

        Places are in the frame and units of `stages.face_model`. Needs no model, so no worker.
        """
        ...


def to_68(model: type[FaceBackend], points: NDArray[np.float32]) -> NDArray[np.float32]:
    """The 68 of iBUG [..., 68, 2] among a backend's points [..., P, 2]."""
    return points if model.points68 is None else points[..., model.points68, :]


class IdentityBackend(Protocol):
    """Embeds a face. The thresholds belong to the model's file, so they live here, with its name and hash."""

    name: str
    file: str
    sha256: str                              # hex, of the file
    metric: Literal["cosine", "euclidean"]   # between unit vectors
    same_person: float                       # verification: the least cosine, or the largest distance
    same_cluster: float                      # the same, to merge clips into a person by their mean embeddings

    def embed(self, face: NDArray[np.uint8], landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [D], unit length, of an aligned crop uint8 [H, W, 3] RGB with its 68 points in crop px."""
        ...


@dataclass(frozen=True)
class IdentityModel:
    """What a clip remembers of the model that embedded it (`Clip.embedding_model`)."""

    file: str
    sha256: str
    metric: Literal["cosine", "euclidean"]
    same_person: float
    same_cluster: float

    @classmethod
    def of(cls, backend: IdentityBackend) -> IdentityModel:
        return cls(**{f.name: getattr(backend, f.name) for f in fields(cls)})

    @property
    def cluster_cosine(self) -> float:
        """`same_cluster` as a cosine: of unit vectors at distance d it is 1 - d^2 / 2."""
        return self.same_cluster if self.metric == "cosine" else 1 - self.same_cluster**2 / 2


def similarity(
    model: IdentityModel, a: NDArray[np.float32], b: NDArray[np.float32]
) -> tuple[NDArray[np.float64], float]:
    """([n, m] of unit vectors [n, D] and [m, D], the value below which its mean is not that of one person).

    Cosines for a model with a cosine threshold. For one with a distance, whose strangers are not far enough
    apart for a mean, a vote: 1 for pairs within the threshold, 0 for others; a majority is needed.
    """
    cosines = a.astype(np.float64) @ b.astype(np.float64).T
    if model.metric == "cosine":
        return cosines, model.same_person
    within = 2 - 2 * cosines <= model.same_person**2
    return within.astype(np.float64), 0.5


# Files that a backend cannot do without: asked for before workers start, where importing it would take long.
WEIGHTS: dict[str, tuple[str, ...]] = {
    "stages.backends.dlib:DlibFaces": ("dlib-landmarks",),
    "stages.backends.dlib:DlibIdentity": ("dlib-identity",),
    "stages.backends.yunet:YuNet": ("yunet",),
    "stages.backends.mediapipe:MediaPipeFaces": ("yunet", "mediapipe", "canonical-face"),
    "stages.backends.fan:FanFaces": ("yunet", "fan"),
    "stages.backends.mobilefacenet:MobileFaceNet": ("mobilefacenet",),
    "deep3d": ("deep3d",),                   # of `stages.cameras:FitCameras`
}


def weight_files(stage: object) -> list[str]:
    """Names of the weight files that the settings of a stage, `backend` and `weights`, ask for."""
    own = str(getattr(stage, "weights", ""))
    return [*WEIGHTS.get(str(getattr(stage, "backend", "")), ()), *([own] if own else [])]


FACE, IDENTITY = ("start", "detect", "landmarks", "box"), ("embed",)       # methods of the interfaces


def find(path: str) -> Any:
    """The class that "package.module:Class" names. Raises ValueError naming path and cause."""
    module_name, _, class_name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, TypeError, ValueError) as error:          # TypeError: of a relative path
        raise ValueError(f"backend: cannot import {path!r} ({error}); write package.module:Class") from None
    except AttributeError:
        raise ValueError(f"backend: {path!r}: {module_name} has no such class") from None
    if not inspect.isclass(found):
        raise ValueError(f"backend: {path!r} is no class; write package.module:Class")
    return found


def load(path: str, weights: str = "", needs: Sequence[str] = ()) -> Any:
    """Construct what `path` names, models and all; from the file `weights` where one is given.

    Raises ValueError when this backend takes no file, or lacks one of the methods that `needs` names.
    """
    backend = find(path)
    lacking = [name for name in needs if not callable(getattr(backend, name, None))]
    if lacking:
        raise ValueError(f"backend: {path!r} has no {lacking[0]}(); choose a backend of another kind")
    if not weights:
        return backend()
    if "weights" not in inspect.signature(backend).parameters:
        raise ValueError(f"weights: {weights}: {path} takes no file; leave it out, or choose another backend")
    return backend(weights=weights)
