"""Multi-view identity: is it one person, from the front and from the side, now and later?

Paper, appendix A.4: the mean dot product of unit face embeddings over all six pairs of a video's four views
(both modes agree; `official` only draws the two times with replacement, so that they may be equal).

`id` is the paper's figure and needs its ArcFace weights. `id/<backend>` is the same figure by the embedding
network that the workflow names: comparable within this project, never with the paper. As in the paper no
face is searched: the network gets the whole frame, aligned by where the camera says that the 68 points of an
average face are. A model that draws no face at all therefore has an identity too, often a high one;
`faces_found/<backend>`, the share of frames in which a detector finds a face, says how much the figure means.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.camera import RADIUS, Camera
from stages import backends
from stages.face_model import LANDMARKS
from stages.metrics import Evaluation, MultiView, Value, mean_of, missing_weights, not_computed
from stages.metrics.warping import project
from stages.pnp import CROP_DISTANCE

ARCFACE = "model_ir_se50.pth"
WEIGHTS = (ARCFACE,)
BACKENDS = ("identity_backend", "face_backend")
DETECTION_SIDE = 256


def compute(evaluation: Evaluation) -> dict[str, Value]:
    """`id` (not computed here), `id/<backend>` (cosine, higher is better), `faces_found/<backend>`
    (share)."""
    network, detector = backends.load(evaluation.identity_backend), backends.load(evaluation.face_backend)
    similarity, found = [], []
    for view in evaluation.views:
        similarity.append(video_similarity(view, network))
        found.append(float(np.mean([has_face(image, detector) for image in view.images])))
    if evaluation.weights(ARCFACE) is None:
        reason = missing_weights(ARCFACE)
    else:
        reason = f"weights file {ARCFACE} is here, but this version cannot run its network yet"
    frames = 4 * len(found)
    note = (
        f"{network.name} embeddings, not comparable with the paper's id; "
        f"{detector.name} finds a face in {round(4 * sum(found))} of {frames} frames"
    )
    mode, none = evaluation.mode, "no video was generated"
    return {
        "id": not_computed(reason, unit="cosine", direction="higher", mode=mode),
        f"id/{network.name}": mean_of(
            similarity, unit="cosine", direction="higher", mode=mode, note=note, nan_means=none
        ),
        f"faces_found/{detector.name}": mean_of(
            found, unit="share of frames", direction="higher", mode=mode, nan_means=none
        ),
    }


def video_similarity(view: MultiView, network: backends.IdentityBackend) -> float:
    """Mean cosine over the six pairs of the four views."""
    embeddings = [
        network.embed(image, frame_landmarks(camera, image.shape[0]))
        for image, camera in zip(view.images, view.cameras, strict=True)
    ]
    return float(np.mean([a @ b for a, b in combinations(np.asarray(embeddings, np.float64), 2)]))


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
