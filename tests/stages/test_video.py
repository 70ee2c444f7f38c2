"""Video: frames by presentation time, upright, square pixels, equal bytes; one error for broken files."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from infra.storage import FolderStorage
from stages import pictures, video
from stages.base import Drop

WIDTH, HEIGHT = 96, 64


def picture(index: int) -> np.ndarray:
    """A gradient, with the index in the blue channel."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([32 + 2 * x, 32 + 3 * y, 0 * x + 4 * index % 256], -1).astype(np.uint8)


def index_of(frame: np.ndarray) -> int:
    return round(float(frame[..., 2].mean()) / 4)


def variable_rate(path: Path, times_ms: Sequence[int], aspect: Fraction | None = None) -> None:
    """A file whose i-th picture is presented at times_ms[i]."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for index, time_ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def written(path: Path, count: int = 50, fps: float = 25) -> Path:
    video.write_video(path, (picture(i) for i in range(count)), fps)
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp4")
    assert video.probe(path) == video.VideoInfo(WIDTH, HEIGHT, 25.0, 2.0, 50)
    np.testing.assert_allclose(video.frame_times(path), np.arange(50) / 25, atol=1e-6)
    read = list(video.read_all(path))
    np.testing.assert_allclose([t for t, _ in read], np.arange(50) / 25, atol=1e-6)
    error = np.array([frame.astype(int) - picture(index) for index, (_, frame) in enumerate(read)])
    assert np.abs(error).mean(axis=(1, 2, 3)).max() < 2
    assert np.abs(error.mean(axis=(0, 1, 2))).max() < 2, "a colour shifts"


def test_equal_frames_give_equal_bytes(tmp_path: Path) -> None:
    assert written(tmp_path / "a.mp4").read_bytes() == written(tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize(("width", "height"), [(176, 144), (160, 128), (400, 304)])
def test_equal_frames_give_equal_bytes_whatever_memory_held_before(
    tmp_path: Path, width: int, height: int
) -> None:
    random = np.random.default_rng(0)
    frames = [random.integers(0, 255, (height, width, 3), np.uint8) for _ in range(10)]
    made = set()
    for _ in range(5):
        dirt = [random.random(int(random.integers(1, 300_000))) for _ in range(5)]
        del dirt
        video.write_video(tmp_path / "a.mp4", frames, 25)
        made.add((tmp_path / "a.mp4").read_bytes())
    assert len(made) == 1


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="even"):
        video.write_video(tmp_path / "a.mp4", [np.zeros((31, 32, 3), np.uint8)], 25)
    with pytest.raises(ValueError, match="none given"):
        video.write_video(tmp_path / "a.mp4", [], 25)
    assert list(tmp_path.iterdir()) == []


def test_picks_frames_by_presentation_time_at_a_variable_rate(tmp_path: Path) -> None:
    times_ms = np.cumsum([0, 20, 20, 90, 10, 33, 33, 33, 120, 40, 40, 40, 15, 15, 15, 60])
    variable_rate(tmp_path / "v.mp4", times_ms.tolist())
    times_s = video.frame_times(tmp_path / "v.mp4")
    np.testing.assert_allclose(times_s, times_ms / 1000, atol=2e-3)
    wanted = np.arange(14) / 25
    frames = list(video.read_frames(tmp_path / "v.mp4", wanted))
    nearest = [int(np.abs(times_s - t).argmin()) for t in wanted]
    assert [index_of(f) for f in frames] == nearest


def test_a_seek_gives_the_frames_of_a_whole_decode(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp4", 60, fps=10)
    wanted = np.array([2.7, 2.75, 3.1, 5.9])
    whole = dict(video.read_all(path))
    times_s = np.array(list(whole))
    for t, frame in zip(wanted, video.read_frames(path, wanted), strict=True):
        np.testing.assert_array_equal(frame, whole[times_s[np.abs(times_s - t).argmin()]])


def test_rotation_is_applied(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp4", 3)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    clockwise = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    data[matrix:matrix + 36] = struct.pack(">9i", *clockwise)
    path.write_bytes(bytes(data))
    info = video.probe(path)
    assert (info.width, info.height) == (HEIGHT, WIDTH)
    _, frame = next(video.read_all(path))
    assert np.abs(frame.astype(int) - np.rot90(picture(0), -1)).mean() < 2


@pytest.mark.parametrize("degrees", [30, 45, 60, 135, 200, 300])
def test_a_crooked_rotation_is_rounded_to_quarter_turns(tmp_path: Path, degrees: int) -> None:
    path = written(tmp_path / "a.mp4", 3)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    cos, sin = (round((1 << 16) * f(np.deg2rad(degrees))) for f in (np.cos, np.sin))
    data[matrix:matrix + 36] = struct.pack(">9i", cos, sin, 0, -sin, cos, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))
    info = video.probe(path)
    _, frame = next(video.read_all(path))
    assert frame.shape == (info.height, info.width, 3)


def test_pixels_that_are_absurdly_wide_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variable_rate(tmp_path / "a.mp4", [0, 40, 80], aspect=Fraction(7, 1))
    monkeypatch.setattr(pictures, "MOST_PIXELS", 2 * WIDTH * HEIGHT)
    with pytest.raises(Drop, match="cannot decode: 672 x 64 px"):
        video.probe(tmp_path / "a.mp4")


def test_pixels_become_square(tmp_path: Path) -> None:
    variable_rate(tmp_path / "a.mp4", [0, 40, 80], aspect=Fraction(3, 2))
    info = video.probe(tmp_path / "a.mp4")
    assert (info.width, info.height) == (WIDTH * 3 // 2, HEIGHT)
    _, frame = next(video.read_all(tmp_path / "a.mp4"))
    assert frame.shape == (HEIGHT, WIDTH * 3 // 2, 3)


def test_scales_down_to_the_long_side(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp4", 2)
    assert next(video.read_all(path, 48))[1].shape == (32, 48, 3)
    assert next(video.read_all(path, 500))[1].shape == (HEIGHT, WIDTH, 3)


def test_a_file_that_ends_too_early_is_truncated(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp4")
    with pytest.raises(video.DecodeError) as caught:
        list(video.read_frames(path, [1.0, 3.0]))
    assert caught.value.reason == "truncated"


def test_times_must_ascend(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ascending"):
        list(video.read_frames(written(tmp_path / "a.mp4"), [1.0, 0.5]))


def test_a_cover_picture_is_not_the_video(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp4")
    both = tmp_path / "both.mkv"
    with av.open(str(path)) as source, av.open(str(both), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        stream = container.add_stream_from_template(source.streams.video[0])
        container.mux(cover.encode(av.VideoFrame(32, 32, "yuvj420p")))
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    assert len(list(video.read_all(both))) == 50
    assert (video.probe(both).width, video.probe(both).height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize(("width", "height"), [(2, 2), (16, 2000), (2000, 16), (98, 50)])
@pytest.mark.parametrize("long_side", [None, 24])
def test_any_shape_is_read(tmp_path: Path, width: int, height: int, long_side: int | None) -> None:
    grey = (np.full((height, width, 3), 90 + n, np.uint8) for n in range(5))
    video.write_video(tmp_path / "a.mp4", grey, 25)
    frames = [frame for _, frame in video.read_all(tmp_path / "a.mp4", long_side)]
    scale = min((long_side or 9999) / max(width, height), 1)
    shape = (max(round(height * scale), 1), max(round(width * scale), 1), 3)
    assert [frame.shape for frame in frames] == [shape] * 5
    for n, frame in enumerate(frames):
        assert np.abs(frame.astype(int) - 90 - n).max() <= 3


@pytest.mark.parametrize("size", [(640, 480), (200, 120)])
@pytest.mark.parametrize("colours", [(1, 1), (5, 1), (5, 2)])
def test_shrunk_pictures_have_the_colours_of_large_ones(
    tmp_path: Path, size: tuple[int, int], colours: tuple[int, int]
) -> None:
    """BT.709 or BT.601, limited or full range."""
    path = tmp_path / "a.mp4"
    y, x = np.mgrid[:size[1], :size[0]]
    shown = np.stack([40 + 170 * x / size[0], 200 - 150 * y / size[1], 60 + 0 * x], -1).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = colours
        for _ in range(3):
            source = av.VideoFrame.from_ndarray(shown, format="rgb24")
            frame = source.reformat(
                format="yuv420p", dst_colorspace=colours[0], src_color_range=2, dst_color_range=colours[1]
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    _, large = next(video.read_all(path))
    _, small = next(video.read_all(path, 64))
    height, width = small.shape[:2]
    wanted = cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(float) - wanted).mean() < 2
    assert np.abs(large.astype(float) - shown).mean() < 3


def broken_files(folder: Path) -> dict[str, Path]:
    good = written(folder / "good.mp4").read_bytes()
    contents = {
        "text": b"this is no video\n" * 50, "empty": b"", "head": good[:200], "no_media": good[:1500],
        "zeros": bytes(5000),
    }
    paths = {}
    for name, data in contents.items():
        paths[name] = folder / f"{name}.mp4"
        paths[name].write_bytes(data)
    sound = folder / "sound.wav"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    os.mkfifo(folder / "pipe.mp4")
    (folder / "folder.mp4").mkdir()
    others = {"sound": sound, "pipe": folder / "pipe.mp4", "folder": folder / "folder.mp4",
              "missing": folder / "missing.mp4"}
    return paths | others


@pytest.mark.timeout(60)
def test_broken_files_end_in_decode_error(tmp_path: Path) -> None:
    for name, path in broken_files(tmp_path).items():
        uses = (video.probe, lambda p: list(video.read_all(p)), lambda p: list(video.read_frames(p, [0.5])))
        for use in uses:
            with pytest.raises(video.DecodeError) as caught:
                use(path)
            assert caught.value.reason == "cannot decode", name
            assert "\n" not in caught.value.detail


@pytest.mark.timeout(120)
def test_mutants_end_in_frames_or_decode_error(tmp_path: Path) -> None:
    good = written(tmp_path / "good.mp4").read_bytes()
    random = np.random.default_rng(0)
    path = tmp_path / "mutant.mp4"
    for _ in range(60):
        data = bytearray(good)
        for at in random.integers(0, len(data), random.integers(1, 8)):
            data[at] ^= 1 << int(random.integers(8))
        path.write_bytes(bytes(data[:random.integers(len(data) // 4, len(data) + 1)]))
        try:
            for time, frame in video.read_all(path, 64):
                assert np.isfinite(time)
                assert frame.dtype == np.uint8
        except video.DecodeError:
            pass


def test_resolves_paths_and_keys(tmp_path: Path) -> None:
    store = FolderStorage(tmp_path)
    store.write("videos/a.mp4", b"x")
    with video.resolve(store, "store:videos/a.mp4") as path:
        assert path.read_bytes() == b"x"
    with video.resolve(store, str(tmp_path / "b.mp4")) as path:
        assert path == tmp_path / "b.mp4"
    with pytest.raises(Drop, match="is not there"), video.resolve(store, "store:videos/no.mp4"):
        pass
