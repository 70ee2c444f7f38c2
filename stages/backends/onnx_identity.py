"""Identity networks in ONNX files: the 112 px face that ArcFace was trained with, in; a unit vector, out.

One thread a worker and no spinning: a second thread gains nothing on networks of this size, and workers are
counted by cores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import ArrayLike, NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as failures

from infra import weights
from infra.weights import WeightsError
from stages.affine import warp
from stages.backends.identity_file import Facts

SIDE = 112                           # px
MOST_AT_ONCE, MOST_NUMBERS = 256, 1 << 16     # faces, and numbers of one
TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
"""ArcFace's places of the eyes, the tip of the nose and the corners of the mouth, px of the 112 px face."""

UNREADABLE = (
    failures.Fail, failures.InvalidProtobuf, failures.InvalidGraph, failures.InvalidArgument,
    failures.NotImplemented, failures.RuntimeException,
)  # fmt: skip


def five_points(landmarks: ArrayLike) -> NDArray[np.float64]:
    """[..., 68, 2] -> [..., 5, 2]: the middles of the eyes (of six points each), nose tip, mouth corners."""
    points = np.asarray(landmarks, np.float64)
    eyes = [points[..., 36:42, :].mean(axis=-2), points[..., 42:48, :].mean(axis=-2)]
    return np.stack([*eyes, points[..., 30, :], points[..., 48, :], points[..., 54, :]], axis=-2)


def similarity_transform(points: ArrayLike, target: ArrayLike) -> NDArray[np.float64]:
    """[2, 3]: the turn, scale and shift that takes [N, 2] nearest to `target` [N, 2] in least squares."""
    here = np.asarray(points, np.float64) @ (1, 1j)
    there = np.asarray(target, np.float64) @ (1, 1j)
    spread = here - here.mean()
    factor = np.vdot(spread, there) / max(float(np.vdot(spread, spread).real), 1e-12)
    shift = there.mean() - factor * here.mean()
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def align_face(face: NDArray[np.uint8], landmarks: ArrayLike) -> NDArray[np.uint8]:
    """uint8 [112, 112, 3]: the crop with its five points on the template; averaged, where it shrinks."""
    matrix = similarity_transform(five_points(landmarks), TEMPLATE)
    zoom = float(np.hypot(*matrix[:, 0]))
    return warp(face, matrix, SIDE, max(1, min(8, int(np.ceil(1 / max(zoom, 1e-6))))))


class OnnxIdentity:
    """`IdentityBackend` of one file. Raises WeightsError for a file that is no network of this form."""

    name: str
    metric: ClassVar[Literal["cosine", "euclidean"]] = "cosine"
    same_person: float
    same_cluster: float

    def __init__(self, name: str, path: Path, facts: Facts) -> None:
        self.name = name
        self.same_person, self.same_cluster = facts.same_person, facts.same_cluster
        self.file, self.sha256 = path.name, weights.digest(path)
        self._mean = np.array(facts.mean, np.float32)
        self._std = np.array(facts.std, np.float32)
        self._mirror = facts.mirror
        self._session = open_session(path)
        (given, *others), outputs = self._session.get_inputs(), self._session.get_outputs()
        wanted = zip(given.shape[1:], (3, SIDE, SIDE), strict=False)
        fits = all(not isinstance(side, int) or side == needed for side, needed in wanted)
        if others or len(given.shape) != 4 or not fits or len(outputs) != 1:
            raise WeightsError(f"weights file {path}: takes {given.shape}, not faces [N, 3, {SIDE}, {SIDE}]")
        self._input = given.name
        # A free batch is best left at one: on one thread, more at once are slower for each.
        self._batch = given.shape[0] if isinstance(given.shape[0], int) else 1
        if not 1 <= self._batch <= MOST_AT_ONCE:
            most = f"not 1 to {MOST_AT_ONCE}"
            raise WeightsError(f"weights file {path}: takes {self._batch} faces at once, {most}")
        self._try(path)

    def _try(self, path: Path) -> None:
        """Run it once: what it gives is known only then."""
        black = np.zeros((self._batch, 3, SIDE, SIDE), np.float32)
        try:
            (answer,) = self._session.run(None, {self._input: black})
        except UNREADABLE as error:
            cause = str(error).strip().splitlines()[0][:120]
            raise WeightsError(f"weights file {path}: fails on a black face ({cause})") from None
        shape: tuple[int, ...] = getattr(answer, "shape", ())
        numbers = int(np.prod(shape[1:])) if len(shape) > 1 and shape[0] == self._batch else 0
        if not 1 < numbers <= MOST_NUMBERS or answer.dtype.kind != "f" or not np.isfinite(answer).all():
            raise WeightsError(f"weights file {path}: gives {shape} of no use, not [N, D] finite numbers")

    def embed(self, face: NDArray[np.uint8], landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
        seen = (align_face(face, landmarks).astype(np.float32) - self._mean) / self._std
        faces = [seen, seen[:, ::-1]] if self._mirror else [seen]
        vector = self._run(np.stack(faces).transpose(0, 3, 1, 2)).sum(axis=0)
        return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), np.float32)

    def _run(self, faces: NDArray[np.float32]) -> NDArray[np.float64]:
        """[N, 3, 112, 112] -> [N, D], in batches of the size that the file asks for."""
        found: list[NDArray[np.float64]] = []
        for first in range(0, len(faces), self._batch):
            some = faces[first : first + self._batch]
            full = np.zeros((self._batch, *faces.shape[1:]), np.float32)
            full[: len(some)] = some
            (answer,) = self._session.run(None, {self._input: full})
            found.append(answer.reshape(self._batch, -1)[: len(some)].astype(np.float64))
        return np.concatenate(found)


def open_session(path: Path) -> Any:
    """An `onnxruntime.InferenceSession` of one thread. Raises WeightsError for a file that is no ONNX."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3           # errors; warnings are about the exporter's leftovers
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except UNREADABLE as error:
        cause = str(error).strip().splitlines()[0][:120]
        raise WeightsError(f"weights file {path}: onnxruntime cannot read it ({cause})") from None
