"""MobileFaceNet with its real weights, on the two portraits that ship inside matplotlib and scikit-image."""

from __future__ import annotations

from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
import skimage.data

pytest.importorskip("onnxruntime")
pytest.importorskip("dlib")

from infra.weights import WeightsError
from stages import backends
from stages.backends import IdentityBackend, identity_file
from stages.backends.arcface import ArcFace
from stages.backends.mobilefacenet import FACTS, MobileFaceNet

Faces = dict[str, tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def network(shared_data: Path) -> IdentityBackend:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PV3D_WEIGHTS", str(shared_data / "weights"))
        return backends.load("stages.backends.mobilefacenet:MobileFaceNet")


@pytest.fixture(scope="module")
def portraits() -> Faces:
    """Picture and 68 points."""
    grace = cv2.imread(str(Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")))
    pictures = {"grace": np.ascontiguousarray(grace[:, :, ::-1]), "astronaut": skimage.data.astronaut()}
    faces = backends.load("stages.backends.dlib:DlibFaces")
    return {name: (p, faces.landmarks(p, faces.detect(p)[0].box)) for name, p in pictures.items()}


def test_embeds_as_a_unit_vector(network: IdentityBackend, portraits: Faces) -> None:
    for picture, points in portraits.values():
        vector = network.embed(picture, points)
        assert (vector.shape, vector.dtype) == ((128,), np.float32)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_tells_the_two_people_apart_at_any_size(network: IdentityBackend, portraits: Faces) -> None:
    vectors: dict[str, list[np.ndarray]] = {}
    for name, (picture, points) in portraits.items():
        vectors[name] = [network.embed(picture, points)]
        for zoom in (0.4, 1.7):
            scaled = cv2.resize(picture, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
            vectors[name].append(network.embed(scaled, points * zoom))
    for one, own in vectors.items():
        for other, theirs in vectors.items():
            for a, b in ((a, b) for a in own for b in theirs):
                assert (float(a @ b) > network.same_cluster) == (one == other)
                assert (float(a @ b) > network.same_person) == (one == other)


def test_a_mirrored_face_is_the_same_face(network: IdentityBackend, portraits: Faces) -> None:
    """The embeddings of a face and of its mirror image are added, so it does not matter which one came."""
    swap = [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1)]
    swap += [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
    swap += [*range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1)]
    for picture, points in portraits.values():
        mirrored = points[swap] * (-1, 1) + (picture.shape[1] - 1, 0)
        again = network.embed(np.ascontiguousarray(picture[:, ::-1]), mirrored.astype(np.float32))
        assert float(again @ network.embed(picture, points)) > 0.99


def test_the_same_file_as_a_users_own_gives_the_same(
    network: IdentityBackend, portraits: Faces, shared_data: Path, tmp_path: Path
) -> None:
    """What the class knows of its file can be said in a json as well."""
    copy = tmp_path / "own.onnx"
    copy.write_bytes((shared_data / "weights" / network.file).read_bytes())
    text = f'{{"mean": {list(FACTS.mean)}, "std": {list(FACTS.std)}, "mirror": true, "same_person": 0.45}}'
    identity_file.beside(copy).write_text(text)
    own = ArcFace(weights=str(copy))
    picture, points = portraits["grace"]
    np.testing.assert_array_equal(own.embed(picture, points), network.embed(picture, points))
    assert own.sha256 == network.sha256


def test_without_its_file_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PV3D_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=r"foamliu_mobilefacenet\.onnx missing .* `pv3d weights list`"):
        MobileFaceNet()
