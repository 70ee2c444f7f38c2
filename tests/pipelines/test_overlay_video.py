"""On a portrait of the demo, whose camera is known: what is drawn must lie on the face."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("cv2")

from model.camera import FOCAL
from pipelines.overlay_video import YELLOW, draw, project, write_overlays
from stages.affine import apply
from stages.cameras import FitCameras, at_distance, encode
from stages.clip import Clip
from stages.crop import AlignCrop
from stages.face_model import LANDMARKS, RIGID
from stages.rotations import rotation_from_euler
from stages.shards import WriteShards
from stages.sources import portraits
from stages.video import read_all, write_video

SIZE = 256


def landmarks_of(name: str) -> np.ndarray:
    """[T, 68, 2] px of the frame, where the renderer puts the portrait's own points."""
    from stages.sources.relief import _cell

    scene = portraits.SCENES[name]
    relief = portraits.load(scene.portrait)
    cells = np.rint(_cell(relief.landmarks)).astype(int)
    return np.stack([view.project(relief._surface)[cells[:, 1], cells[:, 0]]
                     for view, _ in portraits.shots(scene)])  # fmt: skip


@pytest.fixture
def portrait(store, monkeypatch) -> Clip:
    """Ten frames of a portrait in a dataset of one clip."""
    name = "eileen-collins-3"
    scene = dataclasses.replace(portraits.SCENES[name], frames=10)
    monkeypatch.setattr(portraits, "SCENES", {name: scene})
    (clip,) = portraits.clips(store)
    points = landmarks_of(name).astype(np.float32)
    boxes = np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)
    clip = clip.copy(
        fps=25.0, width=scene.width, height=scene.height, frame_times_s=np.arange(10) / 25, landmarks=points,
        smooth_landmarks=points, face_boxes=boxes, identity="eileen",
    )  # fmt: skip
    for stage in (AlignCrop(size=SIZE), FitCameras()):
        stage.setup(store)
        (clip,) = stage.process(clip)
    shards = WriteShards(buckets=1)
    shards.setup(store)
    kept = list(shards.process_group(shards.group(clip), [clip]))
    shards.finish(store, iter(kept))
    return kept[0]


@pytest.mark.parametrize("mode", ["orig", "cor"])
@pytest.mark.parametrize("yaw", [-30, 0, 20])
def test_the_face_is_drawn_where_the_crop_shows_it(mode: str, yaw: float) -> None:
    rotation = rotation_from_euler(yaw, 4, 0)
    position = np.array([0, 0.006, 0.161]) - 2.7 * rotation[:, 2]
    seen = (LANDMARKS - position) @ rotation
    true = FOCAL * SIZE * seen[:, :2] / seen[:, 2:] + (SIZE - 1) / 2
    drawn = project(encode(rotation, at_distance(mode, position)), LANDMARKS, SIZE)
    assert np.abs(drawn - true).max() < 0.025 * SIZE  # the direction of 2.7 is the origin's, not the crop's


def test_the_overlay_of_a_portrait_lies_on_its_face(portrait: Clip, store, tmp_path: Path) -> None:
    (file,) = write_overlays([str(store.root)], tmp_path / "out", 12)
    frames = [frame for _, frame in read_all(file)]
    assert len(frames) == 10
    assert frames[0].shape == (512, 512, 3)
    points = apply(portrait.crop_transforms, portrait.landmarks)
    for t in (0, 9):
        drawn = project(portrait.cameras[t], LANDMARKS[RIGID], SIZE)
        away = np.linalg.norm(drawn - points[t, RIGID], axis=-1)
        assert np.sqrt((away**2).mean()) < 0.02 * SIZE
        off = np.abs(frames[t].astype(int) - YELLOW).max(axis=-1)
        near = [off[y - 2 : y + 3, x - 2 : x + 3].min() for x, y in np.rint(2 * drawn + 0.5).astype(int)]
        assert np.mean(np.array(near) < 100) > 0.6  # axes and landmarks lie over some of it


def test_a_workflow_names_its_dataset(portrait: Clip, store, tmp_path: Path) -> None:
    from pipelines.check_cameras import check_cameras

    workflow = (Path(__file__).parents[2] / "workflow.yaml").read_text()
    (tmp_path / "own.yaml").write_text(workflow.replace("root: runs/pv3d", f"root: {store.root}"))
    answer, _ = check_cameras([str(tmp_path / "own.yaml"), str(store.root)])
    assert (answer["cameras"], answer["fault"]) == (20, "")


def test_a_wrong_camera_is_seen_to_be_wrong(portrait: Clip) -> None:
    points = apply(portrait.crop_transforms, portrait.landmarks)[0]
    position = portrait.cameras[0].reshape(-1)[[3, 7, 11]]
    rotation = portrait.cameras[0][:16].reshape(4, 4)[:3, :3].astype(np.float64)
    wrong = encode(rotation @ rotation_from_euler(0, 0, 15) @ np.diag([1, -1, -1]), position)
    away = [np.linalg.norm(project(c, LANDMARKS[RIGID], SIZE) - points[RIGID], axis=-1).mean()
            for c in (portrait.cameras[0], wrong)]  # fmt: skip
    assert away[1] > 3 * away[0]


def test_drawing_changes_no_frame_that_it_was_given() -> None:
    frame = np.full((64, 64, 3), 90, np.uint8)
    frame.setflags(write=False)
    camera = encode(rotation_from_euler(0, 0, 0), np.array([0, 0, 2.7]))
    assert draw(frame, camera, np.full((68, 2), 30.0)).shape == (512, 512, 3)
    assert (frame == 90).all()


def test_a_broken_camera_is_said_to_be_none() -> None:
    frame = np.full((64, 64, 3), 90, np.uint8)
    picture = draw(frame, np.full(25, np.nan, np.float32))
    assert (picture[:400] == 90).all()


def test_the_authors_layout_is_drawn_too(tmp_path: Path) -> None:
    for folder in ("recrop_faces", "smoothed_camera2world"):
        (tmp_path / folder).mkdir()
    write_video(tmp_path / "recrop_faces" / "a.mp4", [np.full((64, 64, 3), 90, np.uint8)] * 3, 25)
    camera = encode(rotation_from_euler(0, 0, 0), np.array([0, 0, 2.7]))
    rows = [[f"{i}.png", camera.tolist()] for i in range(3)]
    (tmp_path / "smoothed_camera2world" / "a.json").write_text(json.dumps(rows))
    (file,) = write_overlays([str(tmp_path)], tmp_path / "out", 12)
    assert len(list(read_all(file))) == 3


def test_eg3ds_layout_is_drawn_too(tmp_path: Path) -> None:
    import cv2

    (tmp_path / "00000").mkdir()
    camera = encode(rotation_from_euler(0, 0, 0), np.array([0, 0, 2.7])).tolist()
    names = [f"00000/{i}.png" for i in range(3)]
    for name in names:
        cv2.imwrite(str(tmp_path / name), np.full((64, 64, 3), 90, np.uint8))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [[name, camera] for name in names]}))
    (file,) = write_overlays([str(tmp_path)], tmp_path / "out", 12)
    assert len(list(read_all(file))) == 3
    (tmp_path / names[2]).unlink()
    with pytest.raises(ValueError, match=r"2\.png"):
        write_overlays([str(tmp_path)], tmp_path / "out", 12)


def test_cameras_without_pictures_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1, 25)))
    with pytest.raises(ValueError, match="--overlay"):
        write_overlays([str(tmp_path / "a.npy")], tmp_path / "out", 12)
