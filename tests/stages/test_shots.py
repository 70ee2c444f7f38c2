"""Shots: no clip holds a cut, and every file ends as clips or with a reason."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from infra.storage import Storage
from stages import video
from stages.base import Drop, Rejected
from stages.clip import Clip
from stages.shots import SplitShots

Picture = Callable[[int], np.ndarray]
SIZE = 96


def texture(seed: int, speed: float = 1.5) -> Picture:
    """A smooth random picture that wanders, as a scene does."""
    random = np.random.default_rng(seed)
    waves = random.uniform(0.02, 0.15, (12, 2)) * random.choice([-1, 1], (12, 2))
    weights = random.uniform(-1, 1, (12, 3))
    base = random.uniform(70, 180, 3)
    y, x = np.mgrid[:SIZE, :SIZE]

    def frame(index: int) -> np.ndarray:
        phase = (x + speed * index)[..., None] * waves[:, 0] + y[..., None] * waves[:, 1]
        return (base + 18 * np.sin(phase) @ weights).clip(0, 255).astype(np.uint8)

    return frame


def video_of(path: Path, *parts: tuple[Picture, int], fps: float = 25) -> Path:
    video.write_video(path, (picture(i) for picture, count in parts for i in range(count)), fps)
    return path


def split(store: Storage, path: Path, **settings: float) -> list[Clip | Rejected]:
    stage = SplitShots(**settings)
    stage.setup(store)
    return list(stage.process(Clip(id="v", source=path.name, video=str(path))))


def reasons(outputs: list[Clip | Rejected]) -> list[str]:
    return [o.reason if isinstance(o, Rejected) else "ok" for o in outputs]


def test_one_shot_is_one_clip_with_the_times_of_its_frames(tmp_path: Path, store: Storage) -> None:
    path = video_of(tmp_path / "a.mp4", (texture(0), 60))
    (clip,) = split(store, path)
    assert isinstance(clip, Clip)
    assert (clip.id, clip.fps, clip.width, clip.height) == ("v_0000000", 25.0, SIZE, SIZE)
    np.testing.assert_allclose(clip.frame_times_s, np.arange(60) / 25, atol=1e-6)


def test_cuts_where_the_picture_cuts(tmp_path: Path, store: Storage) -> None:
    path = video_of(tmp_path / "a.mp4", (texture(0), 60), (texture(1), 55), (texture(2), 70))
    clips = split(store, path)
    assert [c.id for c in clips] == ["v_0000000", "v_0002400", "v_0004600"]
    assert [c.frame_count for c in clips] == [60, 55, 70]


@pytest.mark.parametrize("at", [1, 2, 3, 97, 98, 99])
def test_a_cut_near_an_end_is_not_in_a_clip(tmp_path: Path, store: Storage, at: int) -> None:
    path = video_of(tmp_path / "a.mp4", (texture(0), at), (texture(1), 100 - at))
    outputs = split(store, path)
    (clip,) = [o for o in outputs if isinstance(o, Clip)]
    frames = np.round(np.array([clip.frame_times_s[0], clip.frame_times_s[-1]]) * 25).astype(int)
    assert (frames < at).all() or (frames >= at).all()


def test_a_jump_within_a_scene_is_a_cut_and_fast_motion_is_none(tmp_path: Path, store: Storage) -> None:
    """As where a pause was cut out of a speech: colours and light stay, the head is elsewhere."""
    scene = texture(3, speed=0.15)
    path = video_of(tmp_path / "a.mp4", (scene, 60), (lambda i: scene(i + 105), 60))
    assert [c.frame_count for c in split(store, path)] == [60, 60]
    start_and_stop = np.cumsum([0.15] * 50 + [1, 3, 5, 5, 3, 1] + [0.15] * 50) / 0.15
    path = tmp_path / "b.mp4"
    video.write_video(path, (scene(at) for at in start_and_stop), 25)
    assert [c.frame_count for c in split(store, path)] == [106]


def test_a_flash_is_no_cut(tmp_path: Path, store: Storage) -> None:
    scene = texture(0)
    path = tmp_path / "a.mp4"
    frames = (np.clip(scene(i).astype(int) + 90 * (i == 50), 0, 255).astype(np.uint8) for i in range(100))
    video.write_video(path, frames, 25)
    assert [c.frame_count for c in split(store, path)] == [100]


def test_black_frames_separate_clips(tmp_path: Path, store: Storage) -> None:
    black: Picture = lambda i: np.zeros((SIZE, SIZE, 3), np.uint8)  # noqa: E731
    path = video_of(tmp_path / "a.mp4", (texture(0), 50), (black, 10), (texture(0), 50))
    clips = [o for o in split(store, path) if isinstance(o, Clip)]
    assert [c.frame_count for c in clips] == [50, 50]
    assert clips[1].frame_times_s[0] == pytest.approx(60 / 25)
    with pytest.raises(Drop, match="black"):
        split(store, video_of(tmp_path / "b.mp4", (black, 60)))


def test_rejects_a_frozen_picture(tmp_path: Path, store: Storage) -> None:
    still = texture(0, speed=0)
    assert reasons(split(store, video_of(tmp_path / "a.mp4", (still, 60)))) == ["frozen"]


def test_a_frozen_stretch_is_cut_out(tmp_path: Path, store: Storage) -> None:
    moving = texture(0)
    path = tmp_path / "a.mp4"
    shown = [moving(min(i, 50) if i < 90 else i - 40) for i in range(150)]
    video.write_video(path, shown, 25)
    outputs = split(store, path)
    assert reasons(outputs) == ["ok", "frozen", "ok"]
    (before, after) = (o.need("frame_times_s") for o in outputs if isinstance(o, Clip))
    assert before[-1] <= 50 / 25
    assert 90 / 25 <= after[0] <= 92 / 25
    short_pause = [moving(min(i, 50) if i < 70 else i - 20) for i in range(150)]
    video.write_video(path, short_pause, 25)
    assert reasons(split(store, path)) == ["ok"]


def test_rejects_what_is_too_short(tmp_path: Path, store: Storage) -> None:
    assert reasons(split(store, video_of(tmp_path / "a.mp4", (texture(0), 47)))) == ["too short"]
    assert reasons(split(store, video_of(tmp_path / "b.mp4", (texture(0), 48)))) == ["ok"]
    # 50 source frames at 30 per second are 42 at 25.
    assert reasons(split(store, video_of(tmp_path / "c.mp4", (texture(0), 50), fps=30))) == ["too short"]


def test_rejects_a_low_frame_rate(tmp_path: Path, store: Storage) -> None:
    with pytest.raises(Drop, match="low frame rate"):
        split(store, video_of(tmp_path / "a.mp4", (texture(0), 60), fps=15))
    kept = split(store, video_of(tmp_path / "b.mp4", (texture(0), 60), fps=15), minimum_source_fps=10)
    assert [c.frame_count for c in kept] == [100]


def test_resamples_to_the_nearest_source_frame(tmp_path: Path, store: Storage) -> None:
    (clip,) = split(store, video_of(tmp_path / "a.mp4", (texture(0), 90), fps=30))
    assert clip.frame_count == 75
    assert np.abs(clip.frame_times_s - np.arange(75) / 25).max() <= 1 / 60 + 1e-6
    assert np.allclose((clip.frame_times_s * 30) % 1 % 1, 0, atol=1e-3)


def test_long_shots_become_consecutive_clips(tmp_path: Path, store: Storage) -> None:
    path = video_of(tmp_path / "a.mp4", (texture(0, speed=0.7), 260))
    clips = split(store, path, maximum_seconds=4.0)
    assert [c.frame_count for c in clips] == [87, 87, 86]
    times = np.concatenate([c.frame_times_s for c in clips])
    np.testing.assert_allclose(times, np.arange(260) / 25, atol=1e-6)
    assert len({c.id for c in clips}) == 3


def test_a_gap_in_time_separates_clips(tmp_path: Path, store: Storage) -> None:
    seen = [(i + (20 if i >= 60 else 0)) / 25 for i in range(120)]
    scene = texture(0)
    from stages.shot_changes import cuts, measure

    assert cuts(measure(((t, scene(i)) for i, t in enumerate(seen)), 4.0)) == [60]


def test_cuts_are_those_of_pyscenedetect() -> None:
    scenedetect = pytest.importorskip("scenedetect")
    from stages.shot_changes import adaptive_cuts, measure

    detector = scenedetect.AdaptiveDetector(min_scene_len=1)
    lengths = [30, 3, 40, 25, 2]
    shown = [texture(n, speed=2.0 + n)(i) for n, count in enumerate(lengths) for i in range(count)]
    theirs = []
    for i, picture in enumerate(shown):
        code = scenedetect.FrameTimecode(i, fps=25.0)
        theirs += detector.process_frame(code, np.ascontiguousarray(picture[..., ::-1]))
    ours = np.flatnonzero(adaptive_cuts(measure(((i / 25, p) for i, p in enumerate(shown)), 5.0).scores))
    assert list(ours) == [code.frame_num for code in theirs] != []


def test_a_file_cut_off_is_truncated_or_cannot_be_decoded(tmp_path: Path, store: Storage) -> None:
    data = video_of(tmp_path / "a.mp4", (texture(0), 100)).read_bytes()
    for share, reason in [(0.6, "truncated"), (0.02, "cannot decode"), (0.0, "cannot decode")]:
        path = tmp_path / "cut.mp4"
        path.write_bytes(data[:int(len(data) * share)])
        with pytest.raises(Drop) as caught:
            split(store, path)
        assert caught.value.reason == reason


def test_refuses_a_cap_below_two_clips() -> None:
    with pytest.raises(ValueError, match="maximum_seconds"):
        SplitShots(maximum_seconds=2.0)


@pytest.mark.timeout(300)
def test_real_videos_end_as_their_list_says(shared_data: Path, store: Storage) -> None:
    """Small files of every kind; what is expected follows from the list's own numbers and notes."""
    with (shared_data / "manifest.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if int(r["width"]) * int(r["height"]) <= 512 * 512]
    stage = SplitShots()
    whole = []
    for row in sorted(rows, key=lambda r: (r["kind"] != "neg", int(r["frames_decoded"])))[:16]:
        try:
            outputs = split(store, shared_data / row["file"])
        except Drop as drop:
            outputs, reason = [], drop.reason
        decoded, promised, fps = int(row["frames_decoded"]), int(row["frames_header"]), float(row["fps"])
        clips = [o for o in outputs if isinstance(o, Clip)]
        if decoded == 0:
            assert reason == "cannot decode", row["file"]
        elif decoded < 0.95 * promised:
            assert reason == "truncated", row["file"]
        elif fps < stage.minimum_source_fps:
            assert reason == "low frame rate", row["file"]
        elif decoded / fps * stage.fps < stage.minimum_frames or "STATIC" in row["note"]:
            assert not clips, row["file"]
        elif row["kind"] == "talk":
            whole.append(len(clips) == 1)
        if "CUT at frame 60" in row["note"]:
            assert [c.frame_count for c in clips] == [60, 60]
    assert np.mean(whole) > 0.7, "shots of talking heads fall apart"


@pytest.mark.parametrize(
    "setting", [{"fps": 0.0}, {"fps": 1e9}, {"minimum_frames": 0}, {"frozen_seconds": -1.0}]
)
def test_settings_that_make_no_sense_are_refused_by_name(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))}: "):
        SplitShots(**setting)


def test_shots_that_begin_in_one_millisecond_have_ids_of_their_own(tmp_path: Path, store: Storage) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (31, 64 * 96), np.uint8)
    frames = b"".join(b"FRAME\n" + row.tobytes() for row in noise)
    path = tmp_path / "fast.mp4"
    path.write_bytes(b"YUV4MPEG2 W64 H64 F1000000:1 C420\n" + frames)
    ids = [(out.clip if isinstance(out, Rejected) else out).id for out in split(store, path)]
    assert len(ids) > 5
    assert len(set(ids)) == len(ids)
