"""Embedding and verification, on vectors of known angles and on the demo's two portraits."""

from __future__ import annotations

import io
import tarfile
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
import skimage.data

from infra import weights
from infra.storage import FolderStorage, Storage
from pipelines.settings import Workers
from pipelines.workflow import Step
from stages import backends
from stages.backends import identity_file
from stages.base import Rejected, Resources
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


def test_by_mean_the_rule_is_the_papers() -> None:
    """Against the definition, frame by frame."""
    vectors = people([20, 3], 0.3, 3.0)
    found = verify(vectors, COSINE, "mean")
    means = [np.mean([float(a @ b) for j, b in enumerate(vectors) if j != i]) for i, a in enumerate(vectors)]
    assert found["noisy_frames"] == sum(m < COSINE.same_person for m in means)
    assert found["lowest"] == pytest.approx(min(means), abs=1e-5)


def test_what_the_paper_rejects_is_rejected_and_equal_halves_are_too() -> None:
    """Still people who share a clip equally: the mean to the others is 0.5 and more, the median is not."""
    random = np.random.default_rng(0)
    for _ in range(20):
        counts = random.integers(1, 30, 2).tolist()
        vectors = people(counts, float(random.uniform(0.05, 1)), 3.0, int(random.integers(1000)))
        by_mean = verify(vectors, COSINE, "mean")["noisy_frames"]
        assert verify(vectors, COSINE)["noisy_frames"] >= by_mean
    halves = people([20, 20], 0.02, 2.5)
    assert verify(halves, COSINE, "mean")["noisy_frames"] == 0
    assert verify(halves, COSINE, "median")["noisy_frames"] == 40
    assert verify(halves, COSINE)["noisy_frames"] == 40
    lively = people([40], 1.6, 2.0)
    assert verify(lively, COSINE)["lowest"] < verify(halves, COSINE)["lowest"] + 0.1
    assert verify(lively, COSINE)["noisy_frames"] == 0


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
        assert set(verification) == {
            "mean_cosine", "median_cosine", "lowest", "lowest_median", "noisy_frames",
        }
        if isinstance(out, Rejected):
            assert out.reason == "identity changes"


def test_the_threshold_travels_with_the_clip() -> None:
    clip = Clip(id="a", source="a", video="a", embeddings=people([20], 0.5, 1.0))
    strict = replace(COSINE, same_person=0.99)
    for model, setting, kept in [(COSINE, None, True), (strict, None, False), (strict, 0.5, True)]:
        (out,) = VerifyIdentity(same_person=setting).process(clip.copy(embedding_model=asdict(model)))
        assert isinstance(out, Clip) == kept


def test_a_file_of_ones_own_is_part_of_the_stage_wherever_it_lies(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "net.onnx", tmp_path / "elsewhere.onnx"
    for one in (path, elsewhere):
        one.write_bytes(b"a network")
    stages = [EmbedFaces(weights=str(one)) for one in (path, elsewhere)]
    path.write_bytes(b"another")
    stages.append(EmbedFaces(weights=str(path)))
    first, moved, changed = (Step("EmbedFaces", "x:X", s, Resources(), Workers(), 1.0).key for s in stages)
    assert first == moved != changed
    with pytest.raises(ValueError, match="as where the run was started"):
        stages[0].setup(FolderStorage(tmp_path))
    with pytest.raises(ValueError, match=r"^weights: no file missing\.onnx in"):
        EmbedFaces(weights="missing.onnx")


def test_arcface_without_a_named_file_is_followed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PV3D_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (name,) = identity_file.DEFAULTS.values()
    assert name == weights.entry("arcface-onnx").file
    backend = "stages.backends.arcface:ArcFace"
    with pytest.raises(ValueError, match=f"no file {name}"):
        EmbedFaces(backend=backend)
    seen = set()
    for content in (b"one", b"two"):
        (tmp_path / name).write_bytes(content)
        seen.add(EmbedFaces(backend=backend).digest)
    assert len(seen) == 2
    backends.find(backend)


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
    model = backends.load(out.embedding_backend)
    assert out.embedding_model == asdict(backends.IdentityModel.of(model))
    np.testing.assert_allclose(np.linalg.norm(out.embedding_mean), 1, atol=1e-6)
    assert float(out.embedding_mean @ out.embeddings.mean(axis=0)) > 0.99
    direct = model.embed(picture, points)
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
