import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines.benches.cameras import ANGLE, REFERENCE, angles, compare, measure, read_references, run
from pipelines.benches.manifest import Listed
from stages.cameras import encode
from stages.clip import Clip
from stages.deep3d import camera_from_network

RANDOM = np.random.default_rng(0)
SOURCE_FPS = 30.0
OFFSET = np.array([3.0, -2.0, 0.5])


def reference(rows: int = 240) -> np.ndarray:
    """[N, 3] degrees at 30 frames per second."""
    t = np.arange(rows) / SOURCE_FPS
    waves = [6 * np.sin(2.1 * t), 20 * np.sin(1.3 * t + 1), 5 * np.sin(1.7 * t + 2)]
    return np.stack(waves, axis=1) + RANDOM.normal(scale=0.05, size=(rows, 3))


def clip_of(track: np.ndarray, lag: int, first: int = 0, end: int | None = None, name: str = "a") -> Clip:
    """A clip at 25 frames per second whose cameras turn as the reference does, off by a constant."""
    end = len(track) if end is None else end
    times_s = (first + np.arange(0, end - first, 6 / 5)) / SOURCE_FPS
    frames = np.rint(times_s * SOURCE_FPS).astype(int)
    turned = track[np.clip(frames - lag, 0, len(track) - 1)] + OFFSET
    rotations, positions = camera_from_network(np.deg2rad(turned), np.zeros((len(turned), 3)))
    return Clip(
        id=f"{name}_{first}", source=name, video=name, fps=25.0, frame_times_s=frames / SOURCE_FPS,
        cameras=encode(rotations, positions), crop_transforms=np.tile(np.eye(2, 3), (len(turned), 1, 1)),
    )  # fmt: skip


TIMES = np.arange(240) / SOURCE_FPS


def test_angles_are_those_of_the_reference() -> None:
    track = reference()
    clip = clip_of(track, 0)
    frames = np.rint(clip.frame_times_s * SOURCE_FPS).astype(int)
    np.testing.assert_allclose(angles(clip), track[frames] + OFFSET, atol=1e-4)


def test_a_turned_crop_does_not_change_the_angles() -> None:
    """The crop stands upright; the reference saw the frame as it was held."""
    turn = np.deg2rad(20)
    rotation, position = camera_from_network(np.deg2rad([[0.0, 0.0, -20.0]]), np.zeros((1, 3)))
    upright, _ = camera_from_network(np.zeros((1, 3)), np.zeros((1, 3)))
    transform = np.array([[[np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0]]])
    clip = clip_of(reference(), 0)
    held = clip.copy(cameras=encode(rotation, position), crop_transforms=np.eye(2, 3)[None])
    cropped = clip.copy(cameras=encode(upright, position), crop_transforms=transform)
    np.testing.assert_allclose(np.abs(angles(cropped)), np.abs(angles(held)), atol=1e-4)


@pytest.mark.parametrize("lag", [-2, 0, 3])
def test_the_lag_is_found_and_a_constant_is_no_error(lag: int) -> None:
    track = reference()
    found = compare([clip_of(track, lag)], TIMES, track)
    assert found is not None
    assert found.lag == lag
    np.testing.assert_allclose(found.error_deg, 0, atol=1e-3)
    np.testing.assert_allclose(found.jitter_ratio, 1, atol=1e-3)


def test_the_parts_of_a_video_share_lag_and_constant() -> None:
    track = reference()
    parts = [clip_of(track, 2, 0, 120), clip_of(track, 2, 120)]
    found = compare(parts, TIMES, track)
    assert found is not None
    assert found.lag == 2
    np.testing.assert_allclose(found.error_deg, 0, atol=1e-3)
    other = clip_of(track + 4, 2, 120)
    found = compare([parts[0], other], TIMES, track)
    assert found is not None
    assert found.error_deg.min() > 1.5


def test_a_reference_that_ends_early_is_compared_as_far_as_it_goes() -> None:
    track = reference()
    found = compare([clip_of(track, 0)], TIMES, track[:200])
    assert found is not None
    np.testing.assert_allclose(found.error_deg, 0, atol=1e-3)
    assert found.seconds == pytest.approx(200 / SOURCE_FPS, abs=0.1)
    assert compare([clip_of(track, 0)], TIMES, track[:4]) is None


def test_errors_and_jitter_are_measured() -> None:
    track = reference()
    wrong = track + 2 * np.sign(np.sin(np.arange(240) / 20))[:, None] * (0, 1, 0)
    found = compare([clip_of(wrong, 0)], TIMES, track)
    assert found is not None
    np.testing.assert_allclose(found.error_deg, (0, 2, 0), atol=0.1)
    shaken = track + RANDOM.normal(scale=0.5, size=track.shape)
    found = compare([clip_of(shaken, 0)], TIMES, track)
    assert found is not None
    assert found.jitter_ratio.min() > 3


def test_a_video_without_cameras_is_missing(tmp_path: Path) -> None:
    from stages.video import write_video

    track, path = reference(), tmp_path / "a.mp4"
    write_video(path, [np.zeros((32, 32, 3), np.uint8)] * 240, SOURCE_FPS)
    rows = [Listed(name, path, "talk", "p", False) for name in ("a", "b")]
    figures = measure([clip_of(track, 1)], rows, {"a": track, "b": track, "gone": track})
    assert figures["clips_missing"] == 2
    assert figures["mae_worst_deg"] < 0.01
    assert figures["seconds_share"] == pytest.approx(0.5, abs=0.02)


def test_a_folder_without_a_reference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"deep3d_coefficients\.npz"):
        read_references(tmp_path)


@pytest.mark.slow
def test_a_folder_of_a_few_real_videos_reaches_the_figures(
    shared_data: Path, tmp_path: Path, monkeypatch
) -> None:
    """The shortest ones, in a folder of their own, through the stages."""
    pytest.importorskip("mediapipe")
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("PV3D_WEIGHTS", str(shared_data / "weights"))
    references = read_references(shared_data)
    with (shared_data / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if Path(row["file"]).stem in references]
    rows = sorted(rows, key=lambda row: float(row["duration_s"]))[:3]
    for row in rows:
        target = tmp_path / row["file"]
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(shared_data / row["file"], target)
    with (tmp_path / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    (tmp_path / REFERENCE).parent.mkdir()
    names = [Path(row["file"]).stem for row in rows]
    np.savez(tmp_path / REFERENCE, **{name + ANGLE: np.deg2rad(references[name]) for name in names})
    figures = run(tmp_path, root=str(tmp_path / "store"), in_process=1)["figures"]
    assert figures["clips_missing"] == 0
    assert figures["mae_mean_deg"] <= 1.2
    assert figures["mae_worst_deg"] <= 2.5
    assert figures["jitter_ratio"] <= 1.0
