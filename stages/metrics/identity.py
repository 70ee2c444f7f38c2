"""Multi-view identity: is it one person, from the front and from the side, now and later?

Paper, appendix A.4: the mean dot product of unit face embeddings over all six pairs of a video's four views
(both modes agree; `official` only draws the two times with replacement, so that they may be equal).

`id` is the paper's figure: ArcFace IR-SE50 on the whole frame, brought to 112 px (bilinear), no face cut out.
Its weights are listed as a state dict, which no metric can run: name an export to TorchScript or ONNX as
`evaluate.networks.arcface`, and the figure is called `id/<file>`: the same arithmetic by a network of which
the hash does not say that it is the paper's.

`id/<backend>` is the figure by the embedding network of `evaluate.identity_backend`: comparable within this
project, never with the paper. Here too no face is searched: the network gets the whole frame, aligned by
where the camera says that the 68 points of an average face are. A model that draws no face at all therefore
has an identity too, often a high one; `faces_found/<backend>`, the share of frames in which a detector finds
a face, says how much the figure means.
"""

from __future__ import annotations

import functools
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.camera import RADIUS, Camera
from stages import backends
from stages.face_model import LANDMARKS
from stages.metrics import Evaluation, MultiView, Value, each, mean_of, not_computed
from stages.metrics.chamfer import resize
from stages.metrics.networks import Network, find_network, missing, state_dict
from stages.metrics.warping import project
from stages.pnp import CROP_DISTANCE

ARCFACE = "arcface"
WEIGHTS = (ARCFACE,)
BACKENDS = ("identity_backend", "face_backend")
NAMES = ("id", "id/*", "faces_found/*")
DETECTION_SIDE = 256
ARCFACE_SIDE = 112


def compute(evaluation: Evaluation) -> dict[str, Value]:
    """`id` or `id/<file>`, `id/<backend>` (cosine, higher is better), `faces_found/<backend>` (share)."""
    network, detector = backends.find(evaluation.identity_backend), backends.find(evaluation.face_backend)
    by_backends = functools.partial(
        _by_backends, identity=evaluation.identity_backend, faces=evaluation.face_backend
    )
    pairs = list(each(evaluation.views, by_backends))
    similarity, found = [one for one, _ in pairs], [one for _, one in pairs]
    note = f"{network.name} embeddings, not comparable with the paper's id"
    mode, none = evaluation.mode, "no video was generated"
    return {
        **_papers(evaluation),
        f"id/{network.name}": mean_of(
            similarity, unit="cosine", direction="higher", mode=mode, note=note, nan_means=none
        ),
        f"faces_found/{detector.name}": mean_of(
            found, unit="share of frames", direction="higher", mode=mode, nan_means=none
        ),
    }


def _papers(evaluation: Evaluation) -> dict[str, Value]:
    """The paper's arithmetic by ArcFace's network, under the name that belongs to its file."""
    network = find_network(ARCFACE, evaluation.networks, evaluation.weights(ARCFACE))
    reason = missing(ARCFACE)
    if network is not None:
        reason = ""
        if state_dict(network.path):
            reason = (
                f"weights file {network.path.name} holds no network; name an export of it to TorchScript or "
                f"ONNX as evaluate.networks.{ARCFACE}"
            )
    if network is None or reason:
        return {"id": not_computed(reason, unit="cosine", direction="higher", mode=evaluation.mode)}
    similarity = list(each(evaluation.views, functools.partial(whole_frame_similarity, network=network)))
    doubt = f"by {network.path.name}, whose hash is not the listed one: no figure of the paper"
    return {
        network.figure("id"): mean_of(
            similarity, unit="cosine", direction="higher", mode=evaluation.mode,
            note="" if network.listed else doubt, nan_means="no video was generated", network=network.sha256,
        )
    }  # fmt: skip


def whole_frame_similarity(view: MultiView, network: Network) -> float:
    """Mean cosine over the six pairs of the four views; the network sees whole frames, RGB in [-1, 1]."""
    embeddings = []
    for image in view.images:
        pixels = resize(image, ARCFACE_SIDE) / 127.5 - 1
        vector = network(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], dtype=np.float32)).reshape(-1)
        embeddings.append(vector.astype(np.float64) / max(float(np.linalg.norm(vector)), 1e-12))
    return mean_cosine(np.asarray(embeddings))


@functools.lru_cache(maxsize=4)
def _loaded(path: str) -> Any:
    """A backend in this process, made once."""
    return backends.load(path)


def _by_backends(view: MultiView, identity: str, faces: str) -> tuple[float, float]:
    """(mean cosine, share of the frames in which a face is found)"""
    detector = _loaded(faces)
    found = float(np.mean([has_face(image, detector) for image in view.images]))
    return video_similarity(view, _loaded(identity)), found


def video_similarity(view: MultiView, network: backends.IdentityBackend) -> float:
    """Mean cosine over the six pairs of the four views."""
    embeddings = [
        network.embed(image, frame_landmarks(camera, image.shape[0]))
        for image, camera in zip(view.images, view.cameras, strict=True)
    ]
    return mean_cosine(np.asarray(embeddings, np.float64))


def mean_cosine(embeddings: NDArray[np.float64]) -> float:
    """Over all pairs of unit vectors [N, D]."""
    return float(np.mean([a @ b for a, b in combinations(embeddings, 2)]))


def frame_landmarks(camera: NDArray[Any], side: int) -> NDArray[np.float32]:
    """[68, 2] px: where an average face lies in a frame of `side` px seen by `camera` [25].

    The 25 numbers carry a camera at radius 2.7 whose picture was taken from `CROP_DISTANCE`.
    """
    seen = Camera.decode(camera)
    taken = Camera(
        rotation=seen.rotation, position=seen.position * CROP_DISTANCE / RADIUS, intrinsics=seen.intrinsics
    )
    uv, _ = project(taken, np.asarray(LANDMARKS))
    return np.asarray(uv * side - 0.5, dtype=np.float32)


def has_face(image: NDArray[np.uint8], detector: backends.FaceBackend) -> bool:
    """Whether the detector is more sure than not; small frames are enlarged to what detectors are made
    for."""
    import cv2

    if image.shape[0] < DETECTION_SIDE:
        image = np.asarray(
            cv2.resize(image, (DETECTION_SIDE, DETECTION_SIDE), interpolation=cv2.INTER_CUBIC), np.uint8
        )
    return any(detection.score > 0 for detection in detector.detect(image))
