"""Who is in a clip, and whether it is the same person throughout (PV3D, Appendix A.3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from infra.storage import Storage
from stages import backends
from stages.affine import apply
from stages.backends import identity_file
from stages.base import Rejected, Stage
from stages.clip import Clip
from stages.smooth import check_not_negative


@dataclass
class EmbedFaces(Stage):
    """Embed every `every`-th aligned frame by a model of face identity.

    A file of your own is named by `weights`; the stage is redone when that file, or the json beside it, has
    changed, wherever it lies.
    """

    backend: str = "stages.backends.dlib:DlibIdentity"
    weights: str = field(default="", metadata={"output": False})  # file of the backend: absolute, or by name
    digest: str = ""                         # of that file and its json; found, when empty
    every: int = 2

    name: ClassVar[str] = "EmbedFaces"
    reads: ClassVar[tuple[str, ...]] = ("frame_times_s", "landmarks", "crop_transforms", "aligned")
    writes: ClassVar[tuple[str, ...]] = (
        "embeddings", "embedding_step", "embedding_mean", "embedding_backend", "embedding_model",
    )
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"stages.identity.every: {self.every} is below 1; give 1 or more")
        self.weights = self.weights or identity_file.DEFAULTS.get(self.backend, "")
        if self.weights and not self.digest:
            self.digest = identity_file.digest(identity_file.locate(self.weights))

    def setup(self, store: Storage) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._store = store
        if self.weights:
            self._check_digest()
        self._model: backends.IdentityBackend = backends.load(
            self.backend, self.weights, needs=backends.IDENTITY
        )

    def process(self, clip: Clip) -> Iterator[Clip | Rejected]:
        from stages.shards import aligned_frames, decode_jpeg

        points = apply(clip.need("crop_transforms"), clip.need("landmarks")).astype(np.float32)
        frames = aligned_frames(self._store, clip, self.every)
        found = [
            self._model.embed(decode_jpeg(data, clip.aligned), landmarks)
            for data, landmarks in zip(frames, points[::self.every], strict=True)
        ]
        embeddings = np.stack(found).astype(np.float32)
        yield clip.copy(
            embeddings=embeddings, embedding_step=self.every, embedding_mean=unit_mean(embeddings),
            embedding_backend=self.backend,
            embedding_model=asdict(backends.IdentityModel.of(self._model)),
        )

    def _check_digest(self) -> None:
        """A worker elsewhere may find another file of the same name."""
        path = identity_file.locate(self.weights)
        found = identity_file.digest(path)
        if found != self.digest:
            raise ValueError(
                f"weights: {path} (with its json) has the digest {found}, not {self.digest} as where the run "
                "was started; copy that file here"
            )


def unit_mean(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean of [S, D] as a unit vector [D]."""
    mean = embeddings.astype(np.float64).mean(axis=0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), np.float32)


@dataclass
class VerifyIdentity(Stage):
    """Reject clips in which more than `maximum_noisy_frames` embedded frames are unlike the others.

    A frame is noisy when its mean similarity to all others is below the threshold that belongs to the file of
    the model (the paper's rule; see `stages.backends.similarity`), or when the median is. The mean alone is
    blind to a clip of two people who share it equally: a still person's own half lifts it to that of one
    lively person, while the median falls to that of strangers.
    """

    maximum_noisy_frames: int = 2
    aggregate: Literal["mean", "median", "either"] = "either"     # which of them must not be below
    same_person: float | None = None         # another threshold than the model's own, in its metric

    name: ClassVar[str] = "VerifyIdentity"
    reads: ClassVar[tuple[str, ...]] = ("embeddings", "embedding_model")
    writes: ClassVar[tuple[str, ...]] = ("verification",)
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_not_negative(maximum_noisy_frames=self.maximum_noisy_frames)

    def process(self, clip: Clip) -> Iterator[Clip | Rejected]:
        model = backends.IdentityModel(**clip.embedding_model)
        if self.same_person is not None:
            model = replace(model, same_person=self.same_person)
        clip = clip.copy(verification=verify(clip.need("embeddings"), model, self.aggregate))
        noisy, count = clip.verification["noisy_frames"], len(clip.need("embeddings"))
        if noisy > self.maximum_noisy_frames:
            yield Rejected(clip, "identity changes", f"{noisy:.0f} of {count} frames are unlike the others")
        else:
            yield clip


def verify(
    embeddings: NDArray[np.float32], model: backends.IdentityModel, aggregate: str = "either"
) -> dict[str, float]:
    """Verification of unit vectors [S, D].

    mean_cosine, median_cosine: over all pairs of frames; lowest, lowest_median: the least mean and the least
    median similarity of a frame to the others; noisy_frames: how many of these are below the threshold.
    """
    count = len(embeddings)
    if count < 2:
        ones = dict.fromkeys(("mean_cosine", "median_cosine", "lowest", "lowest_median"), 1.0)
        return {**ones, "noisy_frames": 0}
    similar, threshold = backends.similarity(model, embeddings, embeddings)
    others = similar[~np.eye(count, dtype=bool)].reshape(count, count - 1)
    means, medians = others.mean(axis=1), np.median(others, axis=1)
    decides = {"mean": means, "median": medians, "either": np.minimum(means, medians)}[aggregate]
    pairs = (embeddings.astype(np.float64) @ embeddings.astype(np.float64).T)[np.triu_indices(count, 1)]
    return {
        "mean_cosine": round(float(pairs.mean()), 6),
        "median_cosine": round(float(np.median(pairs)), 6),
        "lowest": round(float(means.min()), 6),
        "lowest_median": round(float(medians.min()), 6),
        "noisy_frames": int((decides < threshold).sum()),
    }
