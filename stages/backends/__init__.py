"""Models behind small interfaces. A workflow names one by its import path: `stages.backends.dlib:DlibFaces`.

A backend is made in a worker, once, by a constructor without arguments, and holds its model from then on. It
keeps no state between frames: what it answers depends on its arguments alone.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
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
    """Finds faces and their 68 points (iBUG order, 0-based)."""

    name: str

    def detect(self, frame: NDArray[np.uint8]) -> list[Detection]:
        """Faces in a frame, uint8 [H, W, 3] RGB, best score first; false positives may be among them."""
        ...

    def landmarks(self, frame: NDArray[np.uint8], box: Box) -> NDArray[np.float32]:
        """float32 [68, 2], px of the frame, of the face in `box`."""
        ...


class IdentityBackend(Protocol):
    """Embeds a face. The thresholds belong to the model, so they live here."""

    name: str
    metric: Literal["cosine", "euclidean"]
    same_person: float                       # verification of one clip: lowest cosine, or highest distance
    same_cluster: float                      # merging clips into a person, between mean embeddings

    def embed(self, face: NDArray[np.uint8], landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [D], unit length, of an aligned crop uint8 [H, W, 3] RGB with its 68 points in crop px."""
        ...


def load(path: str) -> Any:
    """Import and construct what "package.module:Class" names. Raises ValueError naming path and cause."""
    module_name, _, class_name = path.partition(":")
    try:
        made = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, ValueError) as error:
        raise ValueError(f"backend: cannot import {path!r} ({error}); write package.module:Class") from None
    except AttributeError:
        raise ValueError(f"backend: {path!r}: {module_name} has no such class") from None
    return made()
