"""Identity networks in files: what belongs to a file, what is refused, and what the network is shown."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from infra.weights import WeightsError
from stages import backends
from stages.backends.arcface import ArcFace
from stages.backends.identity_file import Facts, digest, locate, read_facts
from stages.backends.onnx_identity import TEMPLATE, align_face, five_points, similarity_transform
from stages.face_model import LANDMARKS

SIDE = 112


def field(number: int, content: bytes | int) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def value_info(name: str, shape: list[int | str]) -> bytes:
    sides = [field(1, field(2, s.encode()) if isinstance(s, str) else field(1, s)) for s in shape]
    tensor = field(1, 1) + field(2, b"".join(sides))                       # float32
    return field(1, name.encode()) + field(2, field(1, tensor))


def onnx_flatten(batch: int | str = 1, side: int = SIDE) -> bytes:
    """An ONNX file whose network gives back its pixels: [N, 3, side, side] -> [N, 3 side^2]."""
    node = field(1, b"x") + field(2, b"y") + field(4, b"Flatten")
    inside = value_info("x", [batch, 3, side, side])
    graph = field(1, node) + field(2, b"g") + field(11, inside) + field(12, value_info("y", [batch, "d"]))
    return field(1, 8) + field(7, graph) + field(8, field(2, 13))


@pytest.fixture
def face() -> np.ndarray:
    """A crop with structure, 256 px."""
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    return np.asarray(cv2.resize(noise, (256, 256), interpolation=cv2.INTER_CUBIC), np.uint8)


@pytest.fixture
def landmarks() -> np.ndarray:
    """The 68 points of an average face, turned a little, in px of the crop."""
    points = np.asarray(LANDMARKS)[:, :2] * (1, -1)
    points = (points - points.mean(axis=0)) / np.ptp(points[:, 0]) * 140
    turn = np.array([[0.98, -0.2], [0.2, 0.98]])
    return (points @ turn.T + 128).astype(np.float32)


def model(folder: Path, batch: int | str = 1, **facts: object) -> ArcFace:
    path = folder / "net.onnx"
    path.write_bytes(onnx_flatten(batch))
    if facts:
        path.with_name("net.onnx.json").write_text(json.dumps(facts))
    return ArcFace(weights=str(path))


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_the_network_is_shown_arcface_pixels(tmp_path, face, landmarks):
    shown = align_face(face, landmarks).astype(np.float64)
    vector = model(tmp_path).embed(face, landmarks)
    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, unit(((shown - 127.5) / 127.5).transpose(2, 0, 1).ravel()), atol=1e-6)


def test_mean_std_and_mirror_are_the_files_own(tmp_path, face, landmarks):
    mean, std = [120, 110.5, 100], [58, 57, 56]
    shown = (align_face(face, landmarks).astype(np.float64) - mean) / std
    expected = unit((shown + shown[:, ::-1]).transpose(2, 0, 1).ravel())
    found = model(tmp_path, mean=mean, std=std, mirror=True).embed(face, landmarks)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("batch", [4, "N"])
def test_the_batch_is_that_of_the_file(tmp_path, face, landmarks, batch):
    alone = model(tmp_path).embed(face, landmarks)
    np.testing.assert_array_equal(model(tmp_path, batch).embed(face, landmarks), alone)


def test_five_points_come_to_lie_on_the_template(face, landmarks):
    matrix = similarity_transform(five_points(landmarks), TEMPLATE)
    moved = five_points(landmarks) @ matrix[:, :2].T + matrix[:, 2]
    assert np.abs(moved - TEMPLATE).mean() < 4, "an average face is nearly ArcFace's"
    # The best one: no small change of it is nearer.
    error = ((moved - TEMPLATE) ** 2).sum()
    for change in np.random.default_rng(0).normal(size=(50, 4)) * 1e-3:
        a, b, x, y = change
        other = np.add(matrix, [[a, -b, x], [b, a, y]])
        assert ((five_points(landmarks) @ other[:, :2].T + other[:, 2] - TEMPLATE) ** 2).sum() >= error
    # A face on the template is shown as it is.
    exact = np.zeros((68, 2))
    for index, place in zip([slice(36, 42), slice(42, 48), 30, 48, 54], TEMPLATE, strict=True):
        exact[index] = place
    np.testing.assert_array_equal(align_face(face, exact), face[:SIDE, :SIDE])


def test_a_large_face_is_averaged_not_picked(landmarks):
    """One black column in two is grey once it is four times smaller."""
    stripes = np.zeros((1024, 1024, 3), np.uint8)
    stripes[:, ::2] = 255
    seen = align_face(stripes, landmarks * 4)
    assert seen.min() > 90
    assert seen.max() < 165


def test_thresholds_belong_to_the_file(tmp_path):
    assert (model(tmp_path).same_person, model(tmp_path).same_cluster) == (0.5, 0.5)
    own = model(tmp_path, same_person=0.3, same_cluster=0.35)
    assert (own.same_person, own.same_cluster) == (0.3, 0.35)
    facts = backends.IdentityModel.of(own)
    assert (facts.file, facts.same_cluster, len(facts.sha256)) == ("net.onnx", 0.35, 64)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[0.5]", "no object"),
        ('{"threshold": 0.4}', "'threshold' is unknown; known: same_person"),
        ('{"same_person": "high"}', "same_person: 'high' is not a number"),
        ('{"same_cluster": 30}', "same_cluster: 30 is no cosine"),
        ('{"same_cluster": NaN}', "same_cluster: nan is no cosine"),
        ('{"same_person": true}', "same_person: True is not a number"),
        ('{"mean": [1, 2]}', "mean: \\[1, 2\\] is not a number, or three"),
        ('{"std": 0}', "std: 0 is not positive"),
        ('{"mirror": "yes"}', "mirror: 'yes' is neither"),
    ],
)
def test_a_wrong_json_is_one_line_with_file_and_key(tmp_path, text, words):
    path = tmp_path / "net.onnx"
    (tmp_path / "net.onnx.json").write_text(text)
    with pytest.raises(WeightsError, match=words) as error:
        read_facts(path)
    assert "net.onnx.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_without_a_json_all_is_as_in_the_paper(tmp_path):
    assert read_facts(tmp_path / "net.onnx") == Facts()
    assert (Facts().same_person, Facts().mean[0], Facts().mirror) == (0.5, 127.5, False)


@pytest.mark.parametrize("content", [b"", b"no network", onnx_flatten(side=128), onnx_flatten()[:40]])
def test_a_file_that_is_no_such_network_is_one_line(tmp_path, content):
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(WeightsError, match=r"net\.onnx") as error:
        ArcFace(weights=str(tmp_path / "net.onnx"))
    assert "\n" not in str(error.value)


def test_a_file_is_found_by_name_in_the_folders_of_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("PV3D_WEIGHTS", str(tmp_path))
    (tmp_path / "net.onnx").write_bytes(onnx_flatten())
    assert locate("net.onnx") == tmp_path / "net.onnx"
    with pytest.raises(WeightsError, match=r"no file other\.onnx in"):
        locate("other.onnx")


def test_the_digest_follows_the_file_and_its_json(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"one")
    seen = {digest(path)}
    path.write_bytes(b"two")
    seen.add(digest(path))
    (tmp_path / "net.onnx.json").write_text("{}")
    seen.add(digest(path))
    (tmp_path / "net.onnx.json").write_text('{"same_person": 0.4}')
    assert len(seen | {digest(path)}) == 4


def test_a_backend_without_a_file_refuses_one():
    pytest.importorskip("dlib")
    with pytest.raises(ValueError, match="takes no file"):
        backends.load("stages.backends.dlib:DlibIdentity", "net.onnx")


@pytest.mark.parametrize("batch", [0, 10**9])
def test_a_file_that_takes_absurdly_many_faces_is_refused(tmp_path: Path, batch: int) -> None:
    with pytest.raises(WeightsError, match=r"net\.onnx: "):
        model(tmp_path, batch)


@pytest.mark.parametrize("operator", [b"Log", b"Shape", b"ReduceMean"])
def test_a_network_that_gives_no_vectors_is_refused(tmp_path: Path, operator: bytes) -> None:
    """Logarithms of nothing, whole numbers, and one number in all."""
    path = tmp_path / "net.onnx"
    output = value_info("y", ["a"]) if operator == b"Shape" else value_info("y", [1, "d"])
    node = field(1, b"x") + field(2, b"y") + field(4, operator)
    inside = value_info("x", [1, 3, SIDE, SIDE])
    graph = field(1, node) + field(2, b"g") + field(11, inside) + field(12, output)
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(2, 13)))
    with pytest.raises(WeightsError, match=r"net\.onnx: "):
        ArcFace(str(path))


@pytest.mark.parametrize(
    "fact", ['"mean": NaN', '"std": Infinity', '"std": [1, NaN, 1]', '"mean": 1' + "0" * 400]
)
def test_facts_that_are_not_finite_are_refused(tmp_path: Path, fact: str) -> None:
    path = tmp_path / "net.onnx"
    path.with_name("net.onnx.json").write_text(f"{{{fact}}}")
    with pytest.raises(WeightsError, match=r"net\.onnx\.json: (mean|std): "):
        read_facts(path)
