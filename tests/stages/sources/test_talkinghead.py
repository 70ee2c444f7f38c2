"""TalkingHead-1KH: tubes as published, and chunks as ffmpeg's own segmenter cuts them."""

import importlib.util
import os
import subprocess

import numpy as np
import pytest

from infra.storage import FolderStorage
from stages.base import Drop, Rejected
from stages.sources.lists import box_at, refuse
from stages.sources.several import mark_duplicates
from stages.sources.talkinghead import LocateChunks, TalkingHead, chunk_starts, key_times, nominal

ROWS = [
    "--Y9imYnfBw_0000, 720, 1280, 0, 271, 504, 63, 792, 351",
    "-7TMJtnhiPM_0000, 720, 1280, 1202, 1607, 345, 26, 857, 538",
    "1lSejjfNHpw_0075, 1080, 1920, 0, 728, 671, 47, 1471, 847",
]


def listed(tmp_path, rows, ids=None, part="train"):
    (tmp_path / f"{part}_video_tubes.txt").write_bytes("\r\n".join([*rows, ""]).encode())
    if ids is not None:
        (tmp_path / f"{part}_video_ids.txt").write_text("\n".join(ids))
    return list(TalkingHead(str(tmp_path), part).clips(None))


def test_the_published_rows_keep_their_ids_their_inclusive_end_and_their_box(tmp_path):
    clips = listed(tmp_path, ROWS)
    assert [c.source[-11:] for c in clips] == ["--Y9imYnfBw", "-7TMJtnhiPM", "1lSejjfNHpw"]
    spans = [c.listed["spans"][0] for c in clips]
    assert [(s["chunk"], s["frames"]) for s in spans] == [(0, [0, 272]), (0, [1202, 1608]), (75, [0, 729])]
    assert spans[0]["key"] == "0000_S0_E271_L504_T63_R792_B351"
    assert box_at(spans[0], 1.0, 1280, 720) == pytest.approx((504, 63, 792, 351), abs=0.01)
    assert box_at(spans[2], 1.0, 960, 540) == pytest.approx((335.5, 23.5, 735.5, 423.5), abs=0.01)
    assert all("start_s" not in span for span in spans)
    assert {c.licence for c in clips} == {"CC BY 3.0"}


def test_several_faces_of_one_moment_are_parts_of_one_video(tmp_path):
    second = ROWS[0].replace("504, 63, 792, 351", "32, 64, 320, 352")
    (clip,) = mark_duplicates(listed(tmp_path, [ROWS[0], second, ROWS[0]]))
    assert [span.get("error", "") for span in clip.listed["spans"]] == ["", "", "duplicate"]
    assert len({span["key"] for span in clip.listed["spans"]}) == 3


@pytest.mark.parametrize(
    "row",
    ["--Y9imYnfBw_0000, 720, 1280, 0, 271, 504, 63, 792", "x_0000, 720, 1280, 0, 271, 504, 63, 792, 351",
     ROWS[0].replace("271", "-1"), ROWS[0].replace("792", "100"), ROWS[0].replace("720", "0"),
     ROWS[0].replace("63", "y"), ROWS[0].replace("_0000", "0000")],
)
def test_a_bad_row_is_a_rejected_unit_that_names_its_line(tmp_path, row):
    bad, good = listed(tmp_path, [ROWS[1], row])
    assert bad.listed["detail"].startswith("train_video_tubes.txt:2: ")
    assert list(refuse(good)) == []


def test_ids_without_a_tube_are_accounted_for(tmp_path):
    clips = listed(tmp_path, ROWS[:1], ids=["--Y9imYnfBw", "_bcdefghij0"])
    assert [c.listed.get("error") for c in clips] == [None, "nothing wanted"]
    with pytest.raises(ValueError, match=r"small_video_tubes\.txt"):
        list(TalkingHead(str(tmp_path), "small").clips(None))
    with pytest.raises(ValueError, match="part"):
        TalkingHead(str(tmp_path), "test")


@pytest.mark.parametrize(
    ("keys", "starts"),
    [
        ([0, 5, 10, 15, 20, 25], [0, 10, 20]),
        ([0, 7, 14, 21, 28], [0, 14, 21]),               # late by up to a gap, and never further behind
        ([0, 35, 36, 37, 39], [0, 35, 36, 37]),          # after a long gap every key frame starts a chunk
        ([2, 7, 12, 13, 22], [2, 12, 22]),               # counted from where the file starts
        ([0], [0]), ([], []),
    ],
)
def test_chunks_start_at_the_first_key_frame_after_their_time(keys, starts):
    assert chunk_starts(keys, 10.0) == starts


def encode(path, count, keys, fps=25, faces=None):
    """Frames that carry their number in binary columns, or pictures of one's own; key frames at `keys`."""
    import av

    with av.open(str(path), "w") as container:
        fixed = "scenecut=0:threads=1:sliced-threads=0"
        options = {"g": "9999", "x264-params": fixed, "crf": "10", "preset": "veryfast"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        height, width = faces(0).shape[:2] if faces else (64, 64)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for n in range(count):
            frame = av.VideoFrame.from_ndarray(faces(n) if faces else numbered(n), format="rgb24")
            frame.pict_type = 1 if n in keys else 0      # I or any
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def numbered(n):
    bits = np.repeat([(n >> b & 1) * 219 + 16 for b in range(10)], 6)
    return np.broadcast_to(np.pad(bits, (0, 4))[None, :, None], (64, 64, 3)).astype(np.uint8).copy()


def number_of(frame):
    return sum(int(frame[32, b * 6 + 3, 0] > 120) << b for b in range(10))


@pytest.mark.parametrize("keys", [{0, 30, 60, 90, 120, 150, 180}, {0, 40, 130, 131, 132, 170}, {0}])
def test_chunks_are_those_that_the_segmenter_of_ffmpeg_cuts(tmp_path, keys):
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed").get_ffmpeg_exe()
    from stages.video import frame_times, read_all

    encode(tmp_path / "v.mp4", 200, keys)
    cut = [ffmpeg, "-loglevel", "error", "-i", "v.mp4", "-c", "copy", "-f", "segment", "-segment_time", "2",
           "c_%04d.mp4"]
    subprocess.run(cut, check=True, cwd=tmp_path)
    chunks = sorted(tmp_path.glob("c_*.mp4"))
    starts = chunk_starts(key_times(tmp_path / "v.mp4"), 2.0)
    times = frame_times(tmp_path / "v.mp4")
    assert len(starts) == len(chunks)
    for k, path in enumerate(chunks):
        numbers = [number_of(frame) for _, frame in read_all(path)]
        span = nominal({"chunk": k, "frames": [0, len(numbers)]}, times, starts)
        assert round(span["start_s"] * 25) == numbers[0]
        assert round(span["end_s"] * 25) == numbers[-1] + 1


def test_a_chunk_or_frame_that_the_video_no_longer_has_is_a_rejection():
    times = np.arange(100) / 25
    with pytest.raises(Drop, match="chunk 3 of 2"):
        nominal({"chunk": 3, "frames": [0, 9]}, times, [0.0, 2.0])
    with pytest.raises(Drop, match="frame 59 of chunk 1"):
        nominal({"chunk": 1, "frames": [0, 60]}, times, [0.0, 2.0])


def test_videos_without_chunks_pass_unchanged(tmp_path):
    (clip,) = listed(tmp_path, ROWS[:1])
    clip.listed["spans"] = [{"key": "a", "start_s": 1.0, "end_s": 2.0}]
    stage = LocateChunks(backend="")
    stage.setup(FolderStorage(tmp_path))
    assert [c.digest() for c in stage.process(clip)] == [clip.digest()]


@pytest.fixture(scope="module")
def portrait():
    """A public-domain portrait, about 300 px square with its face in the middle."""
    from pathlib import Path

    matplotlib = importlib.util.find_spec("matplotlib")
    pytest.importorskip("dlib", reason="dlib is not installed")
    if matplotlib is None or not importlib.util.find_spec("face_recognition_models"):
        pytest.skip("matplotlib's portrait or dlib's models are not installed")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from PIL import Image

    path = Path(matplotlib.submodule_search_locations[0]) / "mpl-data/sample_data/grace_hopper.jpg"
    picture = np.asarray(Image.open(path).convert("RGB"))
    return np.ascontiguousarray(picture[60:380, 110:430])


def locate(tmp_path, portrait, begins, frames, **settings):
    """A face that is there from frame `begins` on; the list says that it is at `frames` of chunk 0."""
    grey = np.full_like(portrait, 90)
    encode(tmp_path / "v.mp4", 150, {0, 50, 100}, faces=lambda n: portrait if n >= begins else grey)
    height, width = portrait.shape[:2]
    row = f"--Y9imYnfBw_0000, {height}, {width}, {frames[0]}, {frames[1]}, 0, 0, {width}, {height}"
    (clip,) = listed(tmp_path, [row])
    clip.video = str(tmp_path / "v.mp4")
    stage = LocateChunks(**settings)
    stage.setup(FolderStorage(tmp_path))
    return list(stage.process(clip))


def test_a_part_with_a_face_in_its_box_is_where_the_key_frames_say(tmp_path, portrait):
    (clip,) = locate(tmp_path, portrait, 20, (30, 59))
    (span,) = clip.listed["spans"]
    assert (span["start_s"], span["end_s"]) == pytest.approx((1.2, 2.4))
    assert "chunk_shift_s" not in span


def test_a_part_is_searched_nearby_and_its_shift_is_recorded(tmp_path, portrait):
    (clip,) = locate(tmp_path, portrait, 70, (30, 59))
    (span,) = clip.listed["spans"]
    assert 0.25 <= span["chunk_shift_s"] <= 2.0
    assert span["start_s"] == pytest.approx(1.2 + span["chunk_shift_s"])
    assert span["end_s"] - span["start_s"] == pytest.approx(1.2)


def test_a_part_without_a_face_anywhere_near_is_rejected(tmp_path, portrait):
    (out,) = locate(tmp_path, portrait, 150, (30, 59), search_s=0.5)
    assert isinstance(out, Rejected)
    assert out.reason == "no face in the listed box"
    assert out.clip.id.endswith("0000_S30_E59_L0_T0_R320_B320")


@pytest.mark.parametrize(
    "setting", [{"step_s": 0.0}, {"step_s": 1e-12}, {"looks": 0}, {"looks": 10**9}, {"search_s": -1.0}]
)
def test_a_search_without_end_or_beginning_is_refused(setting):
    with pytest.raises(ValueError, match=r"must be positive|is not 0 to"):
        LocateChunks(**setting)
