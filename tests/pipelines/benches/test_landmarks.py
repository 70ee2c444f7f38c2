from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest

from pipelines.benches.landmarks import eye_distance, jitter, run
from stages.video import write_video

pytest.importorskip("dlib")

RANDOM = np.random.default_rng(0)


def face(count: int) -> np.ndarray:
    """[T, 68, 2]: eyes 40 px apart, outer corners 60, all of it moving evenly."""
    points = np.zeros((68, 2))
    points[36:42, 0], points[42:48, 0] = -20, 20
    points[36, 0], points[45, 0] = -30, 30
    points[37, 0], points[46, 0] = -10, 10
    return points + 3.0 * np.arange(count)[:, None, None]


def test_distances_are_between_the_centres_of_the_eyes() -> None:
    np.testing.assert_allclose(eye_distance(face(4)), 40)


def test_jitter_is_no_movement_and_a_share_of_the_face() -> None:
    assert jitter(face(20)) == pytest.approx(0, abs=1e-9)
    noise = RANDOM.normal(size=(20, 68, 2))
    shaken = jitter(face(20) + noise)
    assert shaken > 0.01
    assert jitter(2 * (face(20) + noise)) == pytest.approx(shaken)
    outlier = face(20) + noise
    outlier[7, :30] += 500
    assert jitter(outlier) < 1.5 * shaken, "a few points that jump do not count"


def test_measures_the_good_clips_of_a_folder(tmp_path: Path) -> None:
    grace = cv2.imread(str(Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")))[..., ::-1]
    frames = [np.ascontiguousarray(grace[40:440, 2 * n:400 + 2 * n]) for n in range(16)]
    write_video(tmp_path / "videos" / "a.mp4", frames, 25)
    write_video(tmp_path / "videos" / "b.mp4", [np.full_like(f, 128) for f in frames], 25)
    (tmp_path / "videos" / "d.mp4").write_text("no video")
    names = {"a": "talk", "b": "raw", "c": "neg", "d": "talk"}
    rows = [f"videos/{name}.mp4,{kind},p{name}" for name, kind in names.items()]
    (tmp_path / "manifest.csv").write_text("\n".join(["file,kind,identity", *rows]))
    lines: list[str] = []
    found = run(tmp_path, frames=12, progress=lines.append)
    figures = found["figures"]
    assert (figures["clips"], figures["clips_missing"]) == (1, 2)
    assert 0.1 < figures["stage_over_models"] < 1.5
    assert 0 < figures["detector_share"] < 1
    assert figures["every_k_change_pct"] < 5
    assert figures["jitter_after_over_before"] < 1
    assert figures["frames_per_second"] > 0
    assert found["backend"] in lines[0]


def test_a_folder_without_good_clips_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("file,kind,identity\nvideos/c.mp4,neg,p3\n")
    with pytest.raises(ValueError, match=r"manifest.csv has no good clip"):
        run(tmp_path)
