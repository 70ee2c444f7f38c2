"""Who is in a clip, and whether it is the same person throughout (PV3D, Appendix A.3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from infra.storage import Storage
from stages import backends
from stages.base import Rejected, Stage
from stages.clip import Clip
from stages.crop import apply


@dataclass
class EmbedFaces(Stage):
    """Embed every `every`-th aligned frame by a model of face identity."""

    backend: str = "stages.backends.dlib:DlibIdentity"
    every: int = 2

    name: ClassVar[str] = "EmbedFaces"
    reads: ClassVar[tuple[str, ...]] = ("frame_times_s", "landmarks", "crop_transforms", "aligned")
    writes: ClassVar[tuple[str, ...]] = ("embeddings", "embedding_step", "embedding_backend")

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"stages.identity.every: {self.every} is below 1; give 1 or more")

    def setup(self, store: Storage) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._store = store
        self._model: backends.IdentityBackend = backends.load(self.backend)

    def process(self, clip: Clip) -> Iterator[Clip | Rejected]:
        from stages.shards import aligned_frames, decode_jpeg

        points = apply(clip.need("crop_transforms"), clip.need("landmarks")).astype(np.float32)
        frames = aligned_frames(self._store, clip, self.every)
        embeddings = [
            self._model.embed(decode_jpeg(data, clip.aligned), landmarks)
            for data, landmarks in zip(frames, points[::self.every], strict=True)
        ]
        yield clip.copy(
            embeddings=np.stack(embeddings).astype(np.float32), embedding_step=self.every,
            embedding_backend=self.backend,
        )


@dataclass
class VerifyIdentity(Stage):
    """Reject clips in which more than `maximum_noisy_frames` embedded frames are unlike the others.

    A frame is noisy when its mean similarity to all others is below the threshold of the model that made the
    embeddings; see `stages.backends.similarity`.
    """

    maximum_noisy_frames: int = 2

    name: ClassVar[str] = "VerifyIdentity"
    reads: ClassVar[tuple[str, ...]] = ("embeddings", "embedding_backend")
    writes: ClassVar[tuple[str, ...]] = ("verification",)

    def process(self, clip: Clip) -> Iterator[Clip | Rejected]:
        model = backends.find(clip.embedding_backend)
        clip = clip.copy(verification=verify(clip.need("embeddings"), model))
        noisy, count = clip.verification["noisy_frames"], len(clip.need("embeddings"))
        if noisy > self.maximum_noisy_frames:
            yield Rejected(clip, "identity changes", f"{noisy} of {count} frames are unlike the others")
        else:
            yield clip


def verify(embeddings: NDArray[np.float32], model: type[backends.IdentityBackend]) -> dict[str, float]:
    """Verification of unit vectors [S, D].

    mean_cosine, median_cosine: over all pairs of frames; lowest: the least mean similarity of a frame to the
    others; noisy_frames: how many of these are below the model's threshold.
    """
    count = len(embeddings)
    if count < 2:
        return {"mean_cosine": 1.0, "median_cosine": 1.0, "lowest": 1.0, "noisy_frames": 0}
    similar, threshold = backends.similarity(model, embeddings, embeddings)
    np.fill_diagonal(similar, 0)
    to_others = similar.sum(axis=1) / (count - 1)
    pairs = (embeddings.astype(np.float64) @ embeddings.astype(np.float64).T)[np.triu_indices(count, 1)]
    return {
        "mean_cosine": round(float(pairs.mean()), 6),
        "median_cosine": round(float(np.median(pairs)), 6),
        "lowest": round(float(to_others.min()), 6),
        "noisy_frames": int((to_others < threshold).sum()),
    }
