import base64
import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from infra.storage import FolderStorage
from pipelines.contact import (
    GAP,
    SIDE,
    Look,
    aligned,
    data_uri,
    fit,
    from_source,
    look,
    moment,
    sheet,
    spread,
    with_moment,
)
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
    levels = [picture.mean() / 8 for picture in from_source(store, clip, 3).pictures]
    np.testing.assert_allclose(levels, [5, 17, 29], atol=0.5)


def test_the_face_box_is_drawn_where_it_is(clip: Clip, store: FolderStorage) -> None:
    plain = from_source(store, clip, 1).pictures[0]
    boxed = from_source(
        store, clip.copy(face_boxes=np.tile(np.float32([16, 16, 48, 48]), (25, 1))), 1
    ).pictures[0]
    changed = np.argwhere((plain != boxed).any(-1))
    np.testing.assert_array_equal(changed.min(0), [16 * SIDE // 64] * 2)
    np.testing.assert_array_equal(changed.max(0), [48 * SIDE // 64] * 2)


def test_a_file_that_cannot_be_decoded_says_why_there_is_no_picture(
    tmp_path: Path, store: FolderStorage
) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    for video, reason in (
        (str(tmp_path / "text.mp4"), "cannot decode"),
        (str(tmp_path / "absent.mp4"), "cannot decode"),
        ("store:absent.mp4", "video missing"),
    ):
        found = look(store, Clip(id="c", source="s", video=video))
        assert found.pictures == []
        assert found.note == f"no picture: {reason}"


def test_of_a_file_that_ends_early_what_can_be_decoded_is_shown(
    clip: Clip, tmp_path: Path, store: FolderStorage
) -> None:
    write_video(
        tmp_path / "noise.mp4", np.random.default_rng(0).integers(0, 255, (60, 64, 96, 3), np.uint8), 25.0
    )
    data = bytearray((tmp_path / "noise.mp4").read_bytes())
    middle = (data.index(b"mdat") + len(data)) // 2
    data[middle : middle + len(data) // 4] = bytes(len(data) // 4)
    (tmp_path / "noise.mp4").write_bytes(data)
    found = look(store, clip.copy(video=str(tmp_path / "noise.mp4"), frame_times_s=np.arange(60) / 25))
    assert 2 <= len(found.pictures) <= 6


def test_aligned_frames_are_taken_when_the_store_has_them(clip: Clip, store: FolderStorage) -> None:
    clip = clip.copy(aligned="aligned/a.tar")
    assert aligned(store, clip, 2) == []
    assert len(look(store, clip, frames=2).pictures) == 2
    store.write("aligned/a.tar", tar_of([np.full((32, 32, 3), 9 * i, np.uint8) for i in range(25)]))
    levels = [round(picture.mean() / 9) for picture in look(store, clip, frames=3).pictures]
    assert levels == [0, 12, 24]
    store.write("aligned/a.tar", b"no tar")
    assert len(look(store, clip, frames=2).pictures) == 2


def tar_of(pictures: list[np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for index, picture in enumerate(pictures):
            data = cv2.imencode(".jpg", picture)[1].tobytes()
            member = tarfile.TarInfo(f"{index:04d}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def test_the_frame_that_decided_is_shown_in_red(clip: Clip, store: FolderStorage) -> None:
    assert moment(clip, "12 frames in a row, from 0.40 s") == 10
    assert moment(clip, "a second one is seen for 0.8 s") is None
    assert moment(clip, "from 90.00 s") is None
    pictures = look(store, clip, at=10, frames=3).pictures
    assert [int(p[0, 0, 0]) - int(p[0, 0, 1]) > 100 for p in pictures] == [False, True, False]
    assert round(pictures[1][40:60, 40:60].mean() / 8) == 15  # frame 10 of the clip is frame 15 of the file


def test_of_a_clip_rejected_for_its_similarities_the_least_alike_frame_decided(clip: Clip) -> None:
    embeddings = np.tile(np.float32([1, 0]), (9, 1))
    embeddings[4] = (0, 1)
    clip = clip.copy(embeddings=embeddings, embedding_step=3)
    assert moment(clip, "1 of 9 frames are unlike the others", unlike=True) == 12
    assert moment(clip, "number 3 of 3 of somebody") is None


def test_a_sheet_is_one_small_picture_of_two_rows(clip: Clip, store: FolderStorage) -> None:
    whole = sheet(look(store, clip))
    width = round(96 * SIDE / 64)
    assert whole.shape == (2 * SIDE + GAP, 3 * width + 2 * GAP, 3)
    uri = data_uri(whole)
    kind, _, data = uri.partition(",")
    assert kind == "data:image/webp;base64"
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == whole.shape
    assert len(uri) < 20_000


def test_a_file_whose_frames_change_their_size_makes_a_sheet() -> None:
    pictures = [np.zeros((SIDE, width, 3), np.uint8) for width in (100, 80)]
    assert sheet(Look(pictures)).shape == (SIDE, 200 + GAP, 3)


def test_a_picture_keeps_its_colours() -> None:
    red = np.zeros((SIDE, SIDE, 3), np.uint8)
    red[..., 0] = 250
    data = base64.b64decode(data_uri(red).partition(",")[2])
    back = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert back[..., 0].mean() > 230
    assert back[..., 1:].mean() < 20


@pytest.mark.parametrize(("count", "frames", "expected"), [(10, 2, [0, 9]), (3, 6, [0, 1, 2]), (1, 6, [0])])
def test_indices_are_spread(count: int, frames: int, expected: list[int]) -> None:
    assert spread(count, frames) == expected


def test_the_nearest_index_gives_way_to_the_moment() -> None:
    assert with_moment([0, 5, 10], 6) == [0, 6, 10]
    assert with_moment([0, 5, 10], None) == [0, 5, 10]


def test_a_panorama_is_not_much_wider_than_high() -> None:
    assert fit(np.zeros((90, 900, 3), np.uint8), 90).shape == (90, 160, 3)
    assert fit(np.zeros((900, 90, 3), np.uint8), 90).shape == (90, 45, 3)
