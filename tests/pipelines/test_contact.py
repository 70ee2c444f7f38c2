import base64
from pathlib import Path

import cv2
import numpy as np
import pytest

from infra.storage import FolderStorage
from pipelines.contact import SIDE, aligned, data_uri, fit, from_source, spread, strip
from stages.clip import Clip

pytest.importorskip("av")
from stages.video import write_video


def ramp(frames: int, width: int = 96) -> np.ndarray:
    """Frame i is i * 8 grey throughout."""
    return np.arange(frames, dtype=np.uint8)[:, None, None, None] * 8 * np.ones((1, 64, width, 3), np.uint8)


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    path = tmp_path / "ramp.mp4"
    write_video(path, ramp(30), 25.0)
    times = np.arange(5, 30) / 25
    return Clip(id="c", source="s", video=str(path), fps=25.0, frame_times_s=times)


@pytest.fixture
def store(tmp_path: Path) -> FolderStorage:
    return FolderStorage(tmp_path / "store")


def test_frames_are_spread_from_the_first_of_the_clip_to_its_last(clip: Clip, store: FolderStorage) -> None:
    levels = [picture.mean() / 8 for picture in from_source(store, clip, 3)]
    np.testing.assert_allclose(levels, [5, 17, 29], atol=0.5)


def test_the_face_box_is_drawn_where_it_is(clip: Clip, store: FolderStorage) -> None:
    plain = from_source(store, clip, 1)[0]
    boxed = from_source(store, clip.copy(face_boxes=np.tile(np.float32([16, 16, 48, 48]), (25, 1))), 1)[0]
    changed = np.argwhere((plain != boxed).any(-1))
    np.testing.assert_array_equal(changed.min(0), [24, 24])  # 64 px of the source are 96 of the thumbnail
    np.testing.assert_array_equal(changed.max(0), [72, 72])


def test_a_file_that_cannot_be_decoded_has_no_picture(tmp_path: Path, store: FolderStorage) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    assert strip(store, Clip(id="c", source="s", video=str(tmp_path / "text.mp4"))) == ""
    assert strip(store, Clip(id="c", source="s", video="store:absent.mp4")) == ""


def test_aligned_frames_are_taken_when_the_store_has_them(clip: Clip, store: FolderStorage) -> None:
    assert aligned(store, clip.copy(aligned="aligned/absent.tar"), 2) == []
    assert len(from_source(store, clip.copy(aligned="aligned/absent.tar"), 2)) == 2


def test_a_strip_is_one_small_picture(clip: Clip, store: FolderStorage) -> None:
    uri = strip(store, clip)
    kind, _, data = uri.partition(",")
    assert kind == "data:image/webp;base64"
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (SIDE, 6 * round(96 * SIDE / 64), 3)
    assert len(uri) < 20_000


def test_a_strip_keeps_its_colours() -> None:
    red = np.zeros((SIDE, SIDE, 3), np.uint8)
    red[..., 0] = 250
    data = base64.b64decode(data_uri(red).partition(",")[2])
    back = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert back[..., 0].mean() > 230
    assert back[..., 1:].mean() < 20


@pytest.mark.parametrize(("count", "frames", "expected"), [(10, 2, [0, 9]), (3, 6, [0, 1, 2]), (1, 6, [0])])
def test_indices_are_spread(count: int, frames: int, expected: list[int]) -> None:
    assert spread(count, frames) == expected


def test_a_panorama_is_not_wider_than_twice_its_height() -> None:
    assert fit(np.zeros((10, 100, 3), np.uint8), 96).shape == (96, 192, 3)
