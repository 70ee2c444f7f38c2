"""Listed parts through the stages: one file, opened once; the wanted seconds; each part with its own fate."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from infra.storage import FolderStorage, Storage
from stages import Clip, Rejected, decoder
from stages.shots import SplitShots
from stages.sources.lists import Span, box_at, unit
from stages.video import Reader, read_all, read_frames, write_video


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    return FolderStorage(tmp_path / "store")


def moving(seed: int, count: int) -> Iterator[np.ndarray]:
    """A texture that glides, so that its frames differ and none is a cut."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(30, 220, (24, 60, 3)).astype(np.uint8)
    picture = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    for n in range(count):
        n = min(n % 400, 400 - n % 400)
        yield np.ascontiguousarray(picture[:144, n:n + 192])


def timed(path: Path, times_ms: Sequence[int], key_every: int = 250) -> Path:
    """A file of x264's usual form, with B-frames, whose i-th picture is presented at times_ms[i]."""
    with av.open(str(path), "w") as container:
        # Its bytes depend on the threads: by default on the machine's cores.
        options = {"g": str(key_every), "sc_threshold": "0", "preset": "veryfast", "threads": "3"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 192, 144, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time_ms, picture in zip(times_ms, moving(1, len(times_ms)), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def encoded(path: Path, codec: str, count: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=CODECS[codec])
        stream.width, stream.height, stream.pix_fmt = 192, 144, "yuv420p"
        for picture in moving(1, count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def split(store: Storage, path: Path, *spans: Span, **settings: float) -> list[Clip | Rejected]:
    clip = unit("t", "v", "https://example.org/v.mp4", [{"key": str(n), **s} for n, s in enumerate(spans)])
    clip.video = str(path)
    stage = SplitShots(**settings)
    stage.setup(store)
    return list(stage.process(clip))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often a file was opened, a frame decoded, and one converted."""
    counts = dict.fromkeys(("opened", "decoded", "converted"), 0)

    def count(owner: Any, name: str, key: str, of: Any = lambda answer: 1) -> None:
        original = getattr(owner, name)

        def counting(*args: Any, **named: Any) -> Any:
            answer = original(*args, **named)
            counts[key] += of(answer)
            return answer

        monkeypatch.setattr(owner, name, counting)

    count(decoder, "_open", "opened")
    count(decoder, "picture_of", "converted")
    decode = decoder.Reader._decode

    def counting_decode(self: Any, packets: Any) -> Any:
        for one in decode(self, packets):
            counts["decoded"] += 1
            yield one

    monkeypatch.setattr(decoder.Reader, "_decode", counting_decode)
    return counts


def test_every_part_becomes_clips_of_its_own_seconds(tmp_path: Path, store: Storage) -> None:
    path = tmp_path / "v.mp4"
    write_video(path, [*moving(1, 150), *moving(2, 150)], 25)
    outputs = split(
        store, path, {"start_s": 0.4, "end_s": 3.0, "identity": "p"}, {"start_s": 3.0, "end_s": 9.0},
        {"start_s": 11.0, "end_s": 14.0}, {"start_s": 2.0, "end_s": 2.4}, {"error": "bad row"},
        {"start_s": 9.0},
    )
    clips = {c.id: c for c in outputs if isinstance(c, Clip)}
    assert sorted(clips) == ["t-v-0_0000400", "t-v-1_0003000", "t-v-1_0006000", "t-v-5_0009000"]  # cut at 6
    first = clips["t-v-0_0000400"].need("frame_times_s")
    assert first == pytest.approx(0.4 + np.arange(65) / 25)
    assert clips["t-v-0_0000400"].identity == "p"
    rejected = {o.clip.id: o.reason for o in outputs if isinstance(o, Rejected)}
    assert rejected == {"t-v-2": "truncated", "t-v-3_0002000": "too short", "t-v-4": "bad row"}


@pytest.mark.parametrize("fps_ref", [25.0, 29.97])
@pytest.mark.parametrize("source_fps", [25, 24, 30, 50])
def test_listed_frames_are_the_frames_presented_nearest_to_them(
    tmp_path: Path, store: Storage, source_fps: int, fps_ref: float
) -> None:
    times_ms = [round(1000 * n / source_fps) for n in range(12 * source_fps)]
    path = timed(tmp_path / "v.mp4", times_ms)
    ranges = [(7, 68), (101, 150), (151, 222)]
    spans = [
        {"start_s": a / fps_ref, "end_s": b / fps_ref, "frames": [a, b], "fps_ref": fps_ref}
        for a, b in ranges
    ]
    clips = split(store, path, *spans, minimum_frames=30)
    presented = np.array([t for t, _ in read_all(path)])
    for (first, end), clip in zip(ranges, clips, strict=True):
        assert isinstance(clip, Clip)
        wanted = first / fps_ref + np.arange(round((end - first) / fps_ref * 25)) / 25
        assert len(clip.need("frame_times_s")) == len(wanted)
        assert clip.need("frame_times_s") == pytest.approx(nearest(presented, wanted), abs=1e-6)


def nearest(presented: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """A tie goes to the earlier frame."""
    apart = np.abs(wanted[:, None] - presented)
    return presented[(apart <= apart.min(axis=1, keepdims=True) + 1e-8).argmax(axis=1)]


def test_a_variable_rate_is_honoured(tmp_path: Path, store: Storage) -> None:
    steps = np.tile([20, 60, 33, 41, 15, 90, 40, 17, 34], 30)
    times_ms = np.cumsum(steps) - steps[0]
    path = timed(tmp_path / "v.mp4", times_ms.tolist())
    (clip,) = split(store, path, {"start_s": 3.21, "end_s": 6.93})
    assert isinstance(clip, Clip)
    wanted = 3.21 + np.arange(93) / 25
    assert clip.need("frame_times_s") == pytest.approx(nearest(times_ms / 1000, wanted), abs=1e-6)
    # What later stages read by these times are these very pictures.
    pictures_by_time = {round(t, 6): picture for t, picture in read_all(path)}
    frames = read_frames(path, clip.need("frame_times_s"))
    for time, frame in zip(clip.need("frame_times_s"), frames, strict=True):
        np.testing.assert_array_equal(frame, pictures_by_time[round(float(time), 6)])


def test_boxes_of_a_turned_video_are_of_the_upright_frame(tmp_path: Path, store: Storage) -> None:
    path = timed(tmp_path / "v.mp4", range(0, 8000, 40))
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    data[matrix:matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))
    (clip,) = split(store, path, {"start_s": 2.0, "end_s": 6.0, "boxes": [[0.0, 0.1, 0.2, 0.5, 0.6]]})
    assert isinstance(clip, Clip)
    assert (clip.width, clip.height) == (144, 192)
    assert next(read_frames(path, clip.need("frame_times_s"))).shape == (192, 144, 3)
    box = box_at(clip.listed["span"], 3.0, clip.width, clip.height)
    assert box == pytest.approx((14.4, 38.4, 72.0, 115.2))


def test_a_file_is_opened_once_and_every_frame_is_looked_at_once(
    tmp_path: Path, store: Storage, counted: dict[str, int]
) -> None:
    path = timed(tmp_path / "v.mp4", range(0, 40_000, 40), key_every=50)
    counted.update(opened=0)
    overlapping = [(10.0, 14.0), (12.0, 16.0), (13.0, 15.0)]
    outputs = split(
        store, path, *({"start_s": a, "end_s": b} for a, b in [(30.1, 33.0), *overlapping, (16.5, 19.0)])
    )
    assert [type(o) for o in outputs] == [Clip] * 5
    assert counted["opened"] == 1
    margins = 2 * 3 * 2                                  # a frame or two around each of three runs
    assert counted["converted"] <= 25 * (6.0 + 2.5 + 2.9) + margins
    # Two seeks, each to a key frame 2 s before at most; 16.5 follows 16.0 without one.
    assert counted["decoded"] <= counted["converted"] + 2 * 50 + 25


def test_parts_before_and_after_a_broken_place_live_on(tmp_path: Path, store: Storage) -> None:
    path = timed(tmp_path / "v.mp4", range(0, 40_000, 40), key_every=50)
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.pts is not None and p.size]
        places = [(p.pos, p.size) for p in packets if 15 <= p.pts * p.time_base < 17]
    data = bytearray(path.read_bytes())
    for at, size in places:
        data[at:at + size] = b"\xff" * size
    path.write_bytes(bytes(data))
    spans = [(10.0, 13.0), (12.0, 18.0), (17.9, 25.0), (30.0, 33.0)]
    outputs = split(store, path, *({"start_s": a, "end_s": b} for a, b in spans))
    kept = {o.listed["span"]["key"] for o in outputs if isinstance(o, Clip)}
    assert {"0", "3"} <= kept
    second = [o.reason for o in outputs if isinstance(o, Rejected) and o.clip.id.startswith("t-v-1_")]
    assert second[0] == "damaged"


def test_damaged_pictures_are_cut_out_up_to_the_next_key_frame(tmp_path: Path, store: Storage) -> None:
    path = timed(tmp_path / "v.mp4", range(0, 10_000, 40), key_every=50)
    whole = {round(t, 3): picture for t, picture in read_all(path)}
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.pts is not None and p.size]
        later = [p for p in packets if p.pts * p.time_base > 4.5 and not p.is_keyframe]
        at, size = max((p.pos, p.size) for p in later if p.size == max(q.size for q in later))
    data = bytearray(path.read_bytes())
    noise = np.random.default_rng(0).integers(0, 256, size // 2, np.uint8).tobytes()
    data[at + size // 2:at + size // 2 + len(noise)] = noise
    path.write_bytes(bytes(data))
    stage = SplitShots()
    stage.setup(store)
    outputs = list(stage.process(Clip("v", "v.mp4", str(path))))
    assert [o.reason for o in outputs if isinstance(o, Rejected)][:1] == ["damaged"]
    clips = [o for o in outputs if isinstance(o, Clip)]
    assert len(clips) >= 1
    assert len({o.clip.id if isinstance(o, Rejected) else o.id for o in outputs}) == len(outputs)
    assert sum(clip.frame_count for clip in clips) > 150
    for clip in clips:
        for time, frame in zip(clip.frame_times_s, read_frames(path, clip.frame_times_s), strict=True):
            np.testing.assert_array_equal(frame, whole[round(float(time), 3)])


CODECS = {
    "libx264": {"x264-params": "open-gop=1:keyint=60:scenecut=0"},
    "libx265": {"x265-params": "open-gop=1:keyint=60:scenecut=0:log-level=error"},
    "mpeg2video": {"g": "30", "bf": "2", "b": "2000000"},
    "libvpx-vp9": {"g": "60", "deadline": "realtime", "cpu-used": "8"},
}


@pytest.mark.parametrize(("suffix", "codec"), [
    *((suffix, "") for suffix in ("mp4", "mkv", "ts", "avi", "flv")),
    ("mp4", "libx264"), ("ts", "libx264"), ("mp4", "libx265"), ("ts", "mpeg2video"), ("webm", "libvpx-vp9"),
])  # fmt: skip
def test_reads_in_any_order_give_the_frames_of_a_whole_decode(
    tmp_path: Path, suffix: str, codec: str
) -> None:
    """Also where there is no index, where frames on the way are left out, and where groups are open."""
    path = tmp_path / f"v.{suffix}"
    if not codec:
        timed(path, range(0, 20_000, 40), key_every=75)
    elif codec not in av.codecs_available:
        pytest.skip(f"no {codec} here")
    else:
        encoded(path, codec, 500)
    whole = dict(read_all(path))
    times = np.array(list(whole))
    origin = times[0]
    random = np.random.default_rng(0)
    places = [(a, a + random.uniform(0, 2)) for a in random.uniform(0, 19, 12)]
    with Reader(path) as reader:
        for a, b in [*sorted(places), *places, (0.0, 0.1)]:
            got = list(reader.read(origin + a, origin + b))
            assert [t for t, _ in got] == [t for t in times if origin + a - 1e-4 <= t < origin + b - 1e-4]
            for time, frame in got:
                np.testing.assert_array_equal(frame, whole[time])
    for (a, _), (b, _) in pairwise(sorted(places)):
        wanted = origin + np.array([a, b])
        for t, frame in zip(wanted, read_frames(path, wanted), strict=True):
            np.testing.assert_array_equal(frame, whole[times[np.abs(times - t).argmin()]])


def test_a_long_gap_before_a_wanted_time_is_no_matter(tmp_path: Path) -> None:
    """The frame that stands at a time may be presented long before it, and need not be a reference."""
    seen_ms = [*range(0, 4000, 40), *range(8000, 12_000, 40)]
    path = timed(tmp_path / "v.mp4", seen_ms)
    whole = dict(read_all(path))
    times = np.array(list(whole))
    for wanted in (3.99, 4.5, 5.9, 6.1, 7.9):
        (frame,) = read_frames(path, [wanted])
        np.testing.assert_array_equal(frame, whole[times[np.abs(times - wanted).argmin()]])
