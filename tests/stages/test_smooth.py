from pathlib import Path

import numpy as np
import pytest
import skimage.data

from stages.clip import Clip
from stages.smooth import SmoothLandmarks, low_pass

RANDOM = np.random.default_rng(0)


def _jitter(series: np.ndarray) -> float:
    return float(np.abs(np.diff(series, 2, axis=0)).mean())


def test_a_constant_stays_the_same() -> None:
    series = np.full((7, 3), 5.0)
    np.testing.assert_allclose(low_pass(series, 0.2, 25), series)


def test_jitter_falls() -> None:
    series = RANDOM.normal(size=(60, 2))
    assert _jitter(low_pass(series, 0.04, 25)) < 0.5 * _jitter(series)


def test_the_width_is_in_seconds() -> None:
    """The same movement, filmed at twice the rate, is filtered alike."""
    slow = np.sin(np.arange(0, 4, 1 / 25) * 9)
    fast = np.sin(np.arange(0, 4, 1 / 50) * 9)
    np.testing.assert_allclose(
        low_pass(slow, 0.1, 25)[10:-10], low_pass(fast, 0.1, 50)[::2][10:-10], atol=1e-3
    )


def test_a_filter_longer_than_the_clip_is_no_trouble() -> None:
    assert np.isfinite(low_pass(RANDOM.normal(size=(3, 2)), 2.0, 25)).all()


def test_the_stage_writes_a_new_array_and_leaves_the_old_one() -> None:
    landmarks = RANDOM.normal(size=(50, 68, 2)).astype(np.float32)
    landmarks.setflags(write=False)
    clip = Clip(id="a", source="a", video="a", fps=25.0, landmarks=landmarks)
    (smooth,) = SmoothLandmarks().process(clip)
    assert smooth.smooth_landmarks.dtype == np.float32
    assert smooth.smooth_landmarks.shape == (50, 68, 2)
    assert clip.smooth_landmarks is None
    assert _jitter(smooth.smooth_landmarks) < _jitter(landmarks)


def test_refuses_a_negative_width() -> None:
    with pytest.raises(ValueError, match="sigma_s: -1"):
        SmoothLandmarks(sigma_s=-1)


def test_a_mesh_is_filtered_alike_and_not_made_up() -> None:
    mesh = RANDOM.normal(size=(50, 90, 2)).astype(np.float32)
    clip = Clip(id="a", source="a", video="a", fps=25.0, landmarks=mesh[:, :68], mesh=mesh)
    (smooth,) = SmoothLandmarks().process(clip)
    assert smooth.smooth_mesh.dtype == np.float32
    np.testing.assert_array_equal(smooth.smooth_mesh[:, :68], smooth.smooth_landmarks)
    assert smooth.mesh is None, "megabytes, which only this stage reads"
    assert clip.mesh is mesh
    (without,) = SmoothLandmarks().process(clip.copy(mesh=None))
    assert without.smooth_mesh is None


WORKFLOW = """\
storage:
  root: {folder}/store
source:
  use: stages.sources.folder:Folder
  location: {folder}/videos
stages:
  - use: stages.shots:SplitShots
  - use: stages.faces:FollowFace
    minimum_frames: 4
  - use: stages.smooth:SmoothLandmarks
  - use: stages.crop:AlignCrop
    size: 64
train:
  variant: model.config:tiny
"""


def test_another_width_detects_nothing_again(tmp_path: Path) -> None:
    pytest.importorskip("dlib")
    from pipelines.runner import prepare
    from pipelines.workflow import load
    from stages.video import write_video

    astronaut = skimage.data.astronaut()
    frames = [np.roll(astronaut, 2 * n, axis=1)[:384, 64:448].copy() for n in range(50)]
    write_video(tmp_path / "videos" / "a.mp4", frames, 25)
    path = tmp_path / "workflow.yaml"
    path.write_text(WORKFLOW.format(folder=tmp_path))

    def redone(*changes: str) -> dict[str, int]:
        size = "stages.FollowFace.minimum_face_px=60"
        return prepare(load(path, None, [size, *changes]), in_process=True).redone

    assert redone() == {"SplitShots": 1, "FollowFace": 1, "SmoothLandmarks": 1, "AlignCrop": 1}
    assert redone("stages.SmoothLandmarks.sigma_s=0.08") == {
        "SplitShots": 0, "FollowFace": 0, "SmoothLandmarks": 1, "AlignCrop": 1,
    }  # fmt: skip
