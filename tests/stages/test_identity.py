"""Embedding and verification, on vectors of known angles and on the demo's two portraits."""

from __future__ import annotations

import io
import tarfile
from dataclasses import asdict
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
import skimage.data

from infra.storage import Storage
from stages import backends
from stages.base import Rejected
from stages.clip import Clip
from stages.identity import EmbedFaces, VerifyIdentity, verify

COSINE = backends.IdentityModel("a.onnx", "0" * 64, "cosine", same_person=0.5, same_cluster=0.5)
EUCLIDEAN = backends.IdentityModel("b.dat", "1" * 64, "euclidean", same_person=0.4, same_cluster=0.3)


def people(counts: list[int], noise: float, apart: float, seed: int = 0) -> np.ndarray:
    """Unit vectors of several people: noise within, `apart` between, in shares of the vectors' length."""
    random = np.random.default_rng(seed)
    common = np.eye(1, 64)[0]
    rows = []
    for count in counts:
        own = random.normal(size=64)
        own[0] = 0
        centre = common + apart * own / np.linalg.norm(own)
        rows += [centre + noise * random.normal(size=64) / 8 for _ in range(count)]
    vectors = np.array(rows)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_mean_cosine_to_the_others_decides() -> None:
    """Against the definition, frame by frame."""
    vectors = people([20, 3], 0.3, 3.0)
    found = verify(vectors, COSINE)
    means = [np.mean([float(a @ b) for j, b in enumerate(vectors) if j != i]) for i, a in enumerate(vectors)]
    assert found["noisy_frames"] == sum(m < COSINE.same_person for m in means)
    assert found["lowest"] == pytest.approx(min(means), abs=1e-5)


@pytest.mark.parametrize(("counts", "noisy"), [([40], 0), ([40, 2], 2), ([40, 3], 3), ([20, 20], 40)])
def test_counts_the_frames_of_another_person(counts: list[int], noisy: int) -> None:
    assert verify(people(counts, 0.1, 0.5), EUCLIDEAN)["noisy_frames"] == noisy
    if len(counts) == 1 or counts[0] != counts[1]:
        assert verify(people(counts, 0.1, 3.0), COSINE)["noisy_frames"] == noisy


def test_more_than_two_noisy_frames_drop_the_clip() -> None:
    stage = VerifyIdentity()
    for counts, kept in [([40], True), ([40, 2], True), ([40, 3], False), ([20, 20], False)]:
        clip = Clip(
            id="a", source="a", video="a", embeddings=people(counts, 0.1, 0.8), embedding_step=2,
            embedding_model=asdict(EUCLIDEAN),
        )
        (out,) = stage.process(clip)
        assert isinstance(out, Clip) == kept
        verification = out.verification if isinstance(out, Clip) else out.clip.verification
        assert set(verification) == {"mean_cosine", "median_cosine", "lowest", "noisy_frames"}
        if isinstance(out, Rejected):
            assert out.reason == "identity changes"


def test_one_frame_is_one_person() -> None:
    assert verify(people([1], 0.1, 1.0), COSINE)["noisy_frames"] == 0


def clip_of(store: Storage, pictures: list[np.ndarray], landmarks: np.ndarray) -> Clip:
    """A cut and followed clip with aligned frames in the store."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for index, picture in enumerate(pictures):
            data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
            info = tarfile.TarInfo(f"{index:04d}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    store.write("aligned/a.tar", buffer.getvalue())
    count = len(pictures)
    # Landmarks are in source px: here the crop is the source at half its size.
    transforms = np.tile(np.array([[0.5, 0, 0], [0, 0.5, 0]]), (count, 1, 1))
    return Clip(
        id="a", source="a", video="a", frame_times_s=np.arange(count) / 25, landmarks=2 * landmarks,
        crop_transforms=transforms, aligned="aligned/a.tar",
    )


def test_embeds_every_second_aligned_frame(store: Storage) -> None:
    pytest.importorskip("dlib")
    picture = skimage.data.astronaut()
    faces = backends.load("stages.backends.dlib:DlibFaces")
    points = faces.landmarks(picture, faces.detect(picture)[0].box)
    clip = clip_of(store, [picture, 255 - picture, picture, 255 - picture, picture], np.stack([points] * 5))
    stage = EmbedFaces()
    stage.setup(store)
    (out,) = stage.process(clip)
    assert out.embeddings.shape == (3, 128)
    assert out.embedding_step == 2
    direct = backends.load(out.embedding_backend).embed(picture, points)
    for vector in out.embeddings:
        assert float(vector @ direct) > 0.99
    (kept,) = VerifyIdentity().process(out)
    assert isinstance(kept, Clip)


def test_a_splice_of_the_two_demo_people_is_dropped(store: Storage) -> None:
    pytest.importorskip("dlib")
    grace = cv2.imread(str(Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")))
    grace = np.ascontiguousarray(grace[:512, :, ::-1])
    faces = backends.load("stages.backends.dlib:DlibFaces")
    stage = EmbedFaces(every=1)
    stage.setup(store)
    # How many frames of each; two noisy frames may stay.
    for counts, kept in [((0, 5), True), ((3, 3), False), ((2, 4), True)]:
        pictures, points = [], []
        for picture, count in zip((grace, skimage.data.astronaut()), counts, strict=True):
            found = faces.landmarks(picture, faces.detect(picture)[0].box)
            pictures += [picture] * count
            points += [found] * count
        (embedded,) = stage.process(clip_of(store, pictures, np.stack(points)))
        (out,) = VerifyIdentity().process(embedded)
        assert isinstance(out, Clip) == kept, counts
