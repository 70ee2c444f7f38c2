import cv2
import numpy as np
import pytest

from infra.weights import entry
from model.camera import canonical_camera, orbit
from stages.metrics import Evaluation, MultiView, load
from stages.metrics.identity import ARCFACE, compute, frame_landmarks, has_face, video_similarity

CAMERAS = np.stack([c.encode() for c in (canonical_camera(), orbit(30), orbit(30), canonical_camera())])


def video(images: np.ndarray) -> MultiView:
    blank = np.zeros((4, 4, 4), np.float32)
    return MultiView(
        images=images,
        depth=blank,
        opacity=blank,
        points=np.zeros((4, 4, 4, 3), np.float32),
        cameras=CAMERAS,
        times=np.zeros(4, np.float32),
    )


def portrait(size: int) -> np.ndarray:
    """The public-domain portrait of scikit-image, cropped so that its eyes and mouth lie where the camera
    says."""
    skimage_data = pytest.importorskip("skimage.data")
    dlib = pytest.importorskip("stages.backends.dlib")
    photo = skimage_data.astronaut()
    faces = dlib.DlibFaces()
    found = faces.landmarks(photo, faces.detect(photo)[0].box)
    stable = np.arange(17, 48)
    target = frame_landmarks(CAMERAS[0], size)
    matrix, _ = cv2.estimateAffinePartial2D(found[stable], target[stable], method=cv2.LMEDS)
    return cv2.warpAffine(photo, matrix, (size, size), flags=cv2.INTER_AREA)


class FirstPixel:
    """An identity backend whose embedding is the frame's first pixel."""

    name = "first_pixel"

    def embed(self, face: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        vector = face[0, 0].astype(np.float32)
        return vector / np.linalg.norm(vector)


def test_the_mean_is_over_all_six_pairs() -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    images[:2, 0, 0], images[2:, 0, 0] = (255, 0, 0), (0, 255, 0)  # two pairs agree, four are orthogonal
    assert video_similarity(video(images), FirstPixel()) == pytest.approx(2 / 6)


def test_landmarks_of_the_front_camera_are_upright_centred_and_symmetric() -> None:
    points = frame_landmarks(CAMERAS[0], 512)
    assert points.shape == (68, 2)
    centre = 511 / 2
    np.testing.assert_allclose(points[[0, 36, 48], 0] - centre, centre - points[[16, 45, 54], 0], atol=0.01)
    assert points[8, 1] > points[33, 1] > points[27, 1]  # chin below nose below its ridge
    assert ((points > 0) & (points < 512)).all()


def test_landmarks_of_the_side_camera_turn_with_the_face() -> None:
    front, side = frame_landmarks(CAMERAS[0], 512), frame_landmarks(CAMERAS[1], 512)
    nose_off_eyes = [p[30, 0] - p[[36, 45], 0].mean() for p in (front, side)]
    assert abs(nose_off_eyes[0]) < 1 < 20 < abs(nose_off_eyes[1])


def test_a_portrait_is_found_and_is_itself_and_noise_is_not_found() -> None:
    image = portrait(64)
    noise = np.random.default_rng(0).integers(0, 255, image.shape).astype(np.uint8)
    values = compute(Evaluation(views=[video(np.stack([image] * 2 + [noise] * 2))], bin_size=1.0))
    assert values["faces_found/dlib"].value == pytest.approx(0.5)
    assert values["id/dlib"].value < 0.99
    same = compute(Evaluation(views=[video(np.stack([image] * 4))], bin_size=1.0))["id/dlib"].value
    assert same > values["id/dlib"].value


def test_the_papers_id_is_not_computed_without_its_weights() -> None:
    pytest.importorskip("dlib")
    values = load("stages.metrics.identity")(Evaluation(views=[], bin_size=1.0))
    assert values["id"].value is None
    assert entry(ARCFACE).file in values["id"].reason
    assert "weights list" in values["id"].reason


def test_a_dark_frame_has_no_face() -> None:
    dlib = pytest.importorskip("stages.backends.dlib")
    assert not has_face(np.zeros((64, 64, 3), np.uint8), dlib.DlibFaces())
