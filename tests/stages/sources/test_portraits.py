import dataclasses
import hashlib
import json

import numpy as np
import pytest

from infra.read_only import read_only
from model.camera import check_cameras
from stages.cameras import encode, euler_degrees
from stages.sources import portraits
from stages.sources.folder import Folder
from stages.sources.portraits import EILEEN_COLLINS, GRACE_HOPPER, SCENES, Scene

QUICK = Scene(GRACE_HOPPER, 160, 128, 6, 0.8, (0.5, 0.45), 12, 5, 6, 0.5, 0.0, (0.1,), 5)


@pytest.fixture
def quick(monkeypatch) -> Scene:
    """One small video instead of the demo's six."""
    monkeypatch.setattr(portraits, "SCENES", {"quick": QUICK})
    return QUICK


def test_rendering_twice_gives_the_same_bytes(quick: Scene, store) -> None:
    first = list(Folder("demo:portraits").clips(store))
    data = {key: store.read(key) for key in store.list()}
    for key in data:
        store.delete(key)
    assert list(Folder("demo:portraits").clips(store)) == first
    assert {key: store.read(key) for key in store.list()} == data


def test_a_second_listing_renders_nothing(quick: Scene, store, monkeypatch) -> None:
    first = list(portraits.clips(store))
    monkeypatch.setattr(portraits, "render", None)
    assert list(portraits.clips(store)) == first


def test_who_must_change_nothing_lists_without_rendering_until_records_need_the_fingerprint(
    quick: Scene, store, monkeypatch
) -> None:
    (seen,) = portraits.clips(read_only(store))
    assert list(store.list()) == []
    store.write("ledger/SplitShots/a.jsonl", b"")
    (compared,) = portraits.clips(read_only(store))
    assert list(store.list()) == ["ledger/SplitShots/a.jsonl"]
    (made,) = portraits.clips(store)
    assert (seen.copy(fingerprint=made.fingerprint), compared, seen.fingerprint) == (made, made, "")
    gone = dataclasses.replace(QUICK, portrait=dataclasses.replace(GRACE_HOPPER, path="none.jpg"))
    monkeypatch.setattr(portraits, "SCENES", {"gone": gone})
    store.delete("ledger/SplitShots/a.jsonl")
    with pytest.raises(ValueError, match=r"none\.jpg of the package matplotlib"):
        list(portraits.clips(read_only(store)))


def test_a_damaged_or_older_video_is_rendered_again(quick: Scene, store) -> None:
    (clip,) = portraits.clips(store)
    store.write("demo/videos/quick.mp4", b"half")
    assert next(portraits.clips(store)).fingerprint == clip.fingerprint
    truth = portraits.read_truth(store, "quick")
    store.write("demo/truth/quick.json", json.dumps({**truth, "render": 0}).encode())
    assert next(portraits.clips(store)).fingerprint == clip.fingerprint
    assert portraits.read_truth(store, "quick") == truth


def test_a_clip_names_its_video_in_the_store_and_no_identity(quick: Scene, store) -> None:
    (clip,) = portraits.clips(store)
    assert clip.video == "store:demo/videos/quick.mp4"
    assert clip.fingerprint == hashlib.sha256(store.read("demo/videos/quick.mp4")).hexdigest()
    assert clip.identity == ""
    assert "public domain" in clip.licence


def test_the_video_is_an_ordinary_one(quick: Scene, store) -> None:
    from stages.video import probe, resolve

    (clip,) = portraits.clips(store)
    with resolve(store, clip.video) as path:
        info = probe(path)
    assert (info.width, info.height, info.fps, info.frame_count) == (160, 128, 25.0, 6)


def test_true_cameras_pass_the_validator_and_are_the_angles_of_the_scene(quick: Scene, store) -> None:
    list(portraits.clips(store))
    truth = portraits.read_truth(store, "quick")
    cameras = np.array(truth["cameras"])
    assert cameras.shape == (6, 25)
    check_cameras(cameras, tolerance=1e-5, radius=2.7)
    views = [view for view, _ in portraits.shots(quick)]
    yaw, pitch, roll = euler_degrees(cameras)
    np.testing.assert_allclose(yaw, [view.yaw_deg for view in views], atol=1e-3)
    np.testing.assert_allclose(pitch, [view.pitch_deg for view in views], atol=1e-3)
    np.testing.assert_allclose(roll, [view.roll_deg for view in views], atol=1e-3)


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
def test_scenes_stay_within_what_was_photographed(scene: Scene) -> None:
    """Nothing beyond the picture's border is ever seen, so no mirrored or smeared edge is."""
    relief = portraits.load(scene.portrait)
    height, width = relief.texture.shape[:2]
    for view, _ in portraits.shots(scene)[::5]:
        source = relief.texture_map(view, scene.width, scene.height)
        assert source.min() > -1
        assert source[..., 0].max() < width
        assert source[..., 1].max() < height


def test_scenes_are_long_enough_to_train_on_and_small_enough_for_a_landmark_model() -> None:
    for scene in SCENES.values():
        assert scene.frames >= 48
        views = [view for view, _ in portraits.shots(scene)]
        assert max(abs(view.yaw_deg) for view in views) <= 20
        assert max(abs(view.pitch_deg) for view in views) <= 8
        assert any(expression.blink > 0.8 for _, expression in portraits.shots(scene))
        assert any(expression.mouth > 2 for _, expression in portraits.shots(scene))


def test_the_surface_is_seen_where_the_camera_projects_it() -> None:
    """Filmed from where the portrait was taken, every landmark comes back to its place."""
    from stages.sources.relief import _cell

    relief = portraits.load(EILEEN_COLLINS)
    view = dataclasses.replace(portraits.shots(SCENES["eileen-collins-1"])[10][0], roll_deg=6.0)
    source = relief.texture_map(view, 512, 640)
    seen = view.project(relief._surface)
    for landmark in relief.landmarks[17:48:3]:
        column, row = np.rint(_cell(landmark)).astype(int)
        x, y = np.rint(seen[row, column]).astype(int)
        where = (np.array([column, row]) + 0.5) * 4 - 0.5 - 200
        np.testing.assert_allclose(source[y, x], where, atol=1.5)


def test_turning_right_shows_the_side_that_a_positive_yaw_means() -> None:
    """With positive yaw the nose moves to the left of the eyes, as `stages.cameras` says."""
    from stages.sources.relief import _cell

    relief = portraits.load(GRACE_HOPPER)
    view = portraits.shots(SCENES["grace-hopper-1"])[0][0]
    shift = []
    for yaw in (-15.0, 15.0):
        seen = dataclasses.replace(view, yaw_deg=yaw, roll_deg=0.0).project(relief._surface)
        cells = np.rint(_cell(relief.landmarks[[30, 36, 45]])).astype(int)
        nose, left, right = seen[cells[:, 1], cells[:, 0], 0]
        shift.append(nose - (left + right) / 2)
    assert shift[1] < shift[0] - 10


def test_a_missing_package_is_one_clear_line(store) -> None:
    gone = dataclasses.replace(GRACE_HOPPER, package="no_such_package")
    with pytest.raises(ValueError, match=r"demo:portraits needs .*install pv3d-pipeline\[data\]"):
        portraits.load(gone)


def test_errors_are_told_for_clips_of_the_demo_only(quick: Scene, store) -> None:
    (clip,) = portraits.clips(store)
    true = np.array(portraits.read_truth(store, "quick")["cameras"], np.float32)
    upright = np.tile(np.eye(2, 3), (6, 1, 1))
    clip = clip.copy(frame_times_s=np.arange(6) / 25, cameras=true, crop_transforms=upright)
    assert portraits.pose_errors(store, clip) == pytest.approx({"yaw": 0, "pitch": 0, "roll": 0}, abs=1e-3)
    assert portraits.pose_errors(store, clip.copy(video="/videos/quick.mp4")) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eileen-collins-2", "grace-hopper-2"])
def test_estimated_angles_follow_the_true_camera(name: str, store, monkeypatch) -> None:
    pytest.importorskip("dlib")
    from stages.cameras import FitCameras
    from stages.crop import AlignCrop
    from stages.faces import FollowFace
    from stages.shots import SplitShots
    from stages.smooth import SmoothLandmarks

    monkeypatch.setattr(portraits, "SCENES", {name: SCENES[name]})
    clips = list(portraits.clips(store))
    for stage in (SplitShots(), FollowFace(), SmoothLandmarks(), AlignCrop(size=128), FitCameras()):
        stage.setup(store)
        clips = [out for clip in clips for out in stage.process(clip)]
    (clip,) = clips
    assert clip.frame_count == SCENES[name].frames
    errors = portraits.pose_errors(store, clip)
    assert errors is not None
    assert max(errors.values()) <= 3.0, errors


def test_encode_is_what_the_truth_file_holds() -> None:
    cameras = portraits.true_cameras(QUICK)
    from stages.sources.relief import truth

    rotation, position = truth(portraits.shots(QUICK)[0][0])
    np.testing.assert_allclose(cameras[0], encode(rotation, position), atol=1e-6)
