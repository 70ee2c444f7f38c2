"""Sound: none unless the workflow asks; then that of the clip's own seconds."""

from __future__ import annotations

import io
import json
import tarfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from infra.storage import Storage
from stages.audio import KeepAudio, flac, read_audio
from stages.base import Drop
from stages.clip import Clip
from stages.shards import WriteShards
from stages.video import read_all

RATE = 16_000


def tone(at_s: np.ndarray) -> np.ndarray:
    """A chirp, so that every moment sounds different; int16."""
    return (8000 * np.sin(2 * np.pi * (200 + 60 * at_s) * at_s)).astype(np.int16)


def with_sound(path: Path, seconds: float = 4.0, codec: str = "flac") -> Path:
    """A grey video with a mono chirp."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio = container.add_stream(codec, rate=RATE, layout="mono")
        for n in range(round(seconds * 25)):
            picture = np.full((64, 64, 3), 60 + n, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        for first in range(0, round(seconds * RATE), 1024):
            block = tone(np.arange(first, first + 1024) / RATE)[None]
            if audio.codec_context.format.name == "fltp":
                block = block.astype(np.float32) / 32768
            frame = av.AudioFrame.from_ndarray(block, format=audio.codec_context.format.name, layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, first, Fraction(1, RATE)
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    return path


def decoded(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        return np.concatenate([f.to_ndarray().ravel() for f in container.decode(audio=0)])


def clip_of(path: Path, start_s: float, frames: int) -> Clip:
    return Clip("v_1", path.name, str(path), fps=25.0, frame_times_s=start_s + np.arange(frames) / 25)


def test_the_sound_of_a_span_is_that_of_its_seconds(tmp_path: Path) -> None:
    path = with_sound(tmp_path / "v.mkv")
    found = read_audio(path, 1.2, 2.7)
    assert found is not None
    samples, rate = found
    assert (samples.shape, rate) == ((24_000, 1), RATE)
    assert np.abs(samples[:, 0].astype(int) - tone(1.2 + np.arange(24_000) / RATE)).max() <= 1


def test_lossy_sound_is_in_step_with_the_picture(tmp_path: Path) -> None:
    found = read_audio(with_sound(tmp_path / "v.mp4", codec="aac"), 1.0, 3.0)
    assert found is not None
    meant = tone(1.0 + np.arange(len(found[0])) / found[1]).astype(float)
    assert np.corrcoef(found[0][:, 0], meant)[0, 1] > 0.98


def test_what_the_file_does_not_hold_is_silent(tmp_path: Path) -> None:
    found = read_audio(with_sound(tmp_path / "v.mkv", seconds=2.0), 1.5, 3.5)
    assert found is not None
    assert len(found[0]) == 2 * RATE
    assert not found[0][round(0.6 * RATE):].any()
    assert found[0][:round(0.4 * RATE)].any()


def test_flac_gives_the_samples_back_and_equal_bytes() -> None:
    samples = np.stack([tone(np.arange(5000) / RATE)] * 2, axis=1)
    assert flac(samples, RATE) == flac(samples, RATE)
    np.testing.assert_array_equal(decoded(flac(samples, RATE)).reshape(-1, 2), samples)


def test_a_clip_gets_the_sound_of_its_own_frames(tmp_path: Path, store: Storage) -> None:
    stage = KeepAudio()
    stage.setup(store)
    (out,) = stage.process(clip_of(with_sound(tmp_path / "v.mkv"), 0.8, 50))
    sound = decoded(store.read(out.extra["audio"]))
    assert len(sound) == 2 * RATE
    assert np.abs(sound.astype(int) - tone(0.8 + np.arange(2 * RATE) / RATE)).max() <= 1


def test_videos_without_sound_pass_and_broken_sound_is_a_reason(tmp_path: Path, store: Storage) -> None:
    from stages.video import write_video

    stage = KeepAudio()
    stage.setup(store)
    write_video(tmp_path / "silent.mp4", (np.full((32, 32, 3), n, np.uint8) for n in range(60)), 25)
    (out,) = stage.process(clip_of(tmp_path / "silent.mp4", 0.0, 50))
    assert "audio" not in out.extra
    (tmp_path / "text.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(Drop, match="cannot decode the sound"):
        list(stage.process(clip_of(tmp_path / "text.mp4", 0.0, 50)))


def test_reading_pictures_reads_no_sound(tmp_path: Path) -> None:
    """Broken sound, all of it, is not even noticed."""
    path = with_sound(tmp_path / "v.mp4", codec="aac")
    whole = [picture for _, picture in read_all(path)]
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(audio=0) if p.size]
    data = bytearray(path.read_bytes())
    for at, size in places:
        data[at:at + size] = b"\xff" * size
    path.write_bytes(bytes(data))
    np.testing.assert_array_equal([picture for _, picture in read_all(path)], whole)


def test_samples_hold_sound_only_where_the_workflow_asked(tmp_path: Path, store: Storage) -> None:
    from tiny_clips import clip_in

    stage = WriteShards(buckets=1)
    stage.setup(store)
    asked = clip_in(store, "asked")
    store.write("aligned/asked-0.flac", flac(tone(np.arange(900) / RATE)[:, None], RATE))
    asked = asked.copy(extra={"audio": "aligned/asked-0.flac"})
    list(stage.process_group("00000", [asked, clip_in(store, "usual")]))
    (key,) = (key for key in store.list("shards") if key.endswith(".tar"))
    with tarfile.open(fileobj=io.BytesIO(store.read(key))) as tar:
        names = tar.getnames()
        said = json.load(tar.extractfile("asked.json"))
    assert [name for name in names if name.endswith("flac")] == ["asked.flac"]
    assert "usual.0000.jpg" in names
    assert "aligned/" not in json.dumps(said)
