"""dlib's backends on the two portraits that ship inside matplotlib and scikit-image."""

from __future__ import annotations

from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
import skimage.data

from stages import backends

pytest.importorskip("dlib")


@pytest.fixture(scope="module")
def portraits() -> dict[str, np.ndarray]:
    grace = cv2.imread(str(Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")))
    return {"grace": cv2.cvtColor(grace, cv2.COLOR_BGR2RGB), "astronaut": skimage.data.astronaut()}


@pytest.fixture(scope="module")
def faces() -> backends.FaceBackend:
    return backends.load("stages.backends.dlib:DlibFaces")


@pytest.fixture(scope="module")
def identity() -> backends.IdentityBackend:
    return backends.load("stages.backends.dlib:DlibIdentity")


def test_believes_one_face_in_each_portrait(
    faces: backends.FaceBackend, portraits: dict[str, np.ndarray]
) -> None:
    for picture in portraits.values():
        seen = faces.detect(picture)
        assert [d.score for d in seen] == sorted((d.score for d in seen), reverse=True)
        assert sum(d.score >= faces.believe_above for d in seen) == 1, "a sleeve is no face"


def test_points_are_where_the_face_is(faces: backends.FaceBackend, portraits: dict[str, np.ndarray]) -> None:
    for picture in portraits.values():
        box = faces.detect(picture)[0].box
        points = faces.landmarks(picture, box)
        assert points.shape == (68, 2)
        assert points.dtype == np.float32
        parts = [(36, 42), (42, 48), (27, 36), (48, 68)]
        left_eye, right_eye, nose, mouth = (points[a:b].mean(axis=0) for a, b in parts)
        assert left_eye[0] < nose[0] < right_eye[0]
        assert left_eye[1] < nose[1] < mouth[1]
        np.testing.assert_allclose(faces.box(points), box, atol=0.2 * (box[2] - box[0]))


def test_points_follow_the_face_by_less_than_a_pixel(
    faces: backends.FaceBackend, portraits: dict[str, np.ndarray]
) -> None:
    picture = portraits["grace"]
    box = faces.detect(picture)[0].box
    small = cv2.resize(picture, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA)
    points = faces.landmarks(small, tuple(0.4 * v for v in box))
    assert np.abs(points - np.round(points)).mean() > 0.1, "whole pixels only"
    large = 0.4 * faces.landmarks(picture, box)
    assert np.median(np.linalg.norm(points - large, axis=1)) < 1.0


def test_tells_the_two_people_apart(
    faces: backends.FaceBackend, identity: backends.IdentityBackend, portraits: dict[str, np.ndarray]
) -> None:
    vectors = {}
    for name, picture in portraits.items():
        points = faces.landmarks(picture, faces.detect(picture)[0].box)
        mirrored = np.ascontiguousarray(picture[:, ::-1])
        again = faces.landmarks(mirrored, faces.detect(mirrored)[0].box)
        vectors[name] = np.stack([identity.embed(picture, points), identity.embed(mirrored, again)])
    np.testing.assert_allclose(np.linalg.norm(vectors["grace"], axis=1), 1, atol=1e-5)
    for one, own in vectors.items():
        for other, theirs in vectors.items():
            distance = float(np.linalg.norm(own[0] - theirs[1]))
            assert (distance < identity.same_cluster) == (one == other)
            assert (distance < identity.same_person) == (one == other)


def test_a_path_that_names_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no such class"):
        backends.find("stages.backends.dlib:DlibFace")
    with pytest.raises(ValueError, match="cannot import"):
        backends.find("stages.backends.dlibb:DlibFaces")
    with pytest.raises(ValueError, match="cannot import"):
        backends.find("")


def test_a_path_that_names_no_backend_is_refused() -> None:
    for path in (".dlib:DlibFaces", "os:"):
        with pytest.raises(ValueError, match=f"^backend: .*{path}"):
            backends.find(path)
    with pytest.raises(ValueError, match="is no class"):
        backends.load("os:abort")
    with pytest.raises(ValueError, match=r"has no start\(\)"):
        backends.load("stages.backends.dlib:DlibIdentity", needs=backends.FACE)
    with pytest.raises(ValueError, match=r"has no embed\(\)"):
        backends.load("stages.backends.dlib:DlibFaces", needs=backends.IDENTITY)
