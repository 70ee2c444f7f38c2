"""The bench of the whole data half: its second opinion finds what it looks for, and its figures follow."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipelines.benches import inspection, videos
from pipelines.benches.manifest import read
from stages.backends import Detection
from stages.clip import Clip

pytest.importorskip("cv2")
SIDE = 96


def scene(seed: int, count: int, speed: float = 1.0) -> list[np.ndarray]:
    """A texture that glides; uint8 [96, 96, 3]."""
    coarse = np.random.default_rng(seed).integers(30, 220, (12, 40, 3)).astype(np.uint8)
    picture = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    return [np.ascontiguousarray(picture[:, (at := round(speed * n)):at + SIDE]) for n in range(count)]


def clip_of(path: Path, frames: int, box: tuple[float, ...] = (20, 20, 60, 60), start: int = 0) -> Clip:
    times_s = (start + np.arange(frames)) / 25
    boxes = np.tile(np.array(box, np.float32), (frames, 1))
    return Clip("v_0", path.name, str(path), fps=25.0, frame_times_s=times_s, face_boxes=boxes)


def always(*boxes: tuple[float, float, float, float], score: float = 0.9):
    """A detector that sees these boxes of the whole frame, whatever part of it is shown."""
    return lambda frame: [Detection(box, score) for box in boxes]


def test_a_cut_is_found_where_it_is_and_motion_is_none() -> None:
    assert inspection.cut_inside(scene(0, 60) + scene(1, 60)) == "cut inside: at frame 60 of 120"
    assert inspection.cut_inside(scene(0, 100, speed=2.0)) == ""
    flash = scene(0, 100)
    flash[50] = 255 - flash[50]
    assert inspection.cut_inside(flash) == ""


def test_a_picture_that_stands_for_a_second_is_frozen() -> None:
    moving = scene(0, 60, speed=0.5)
    assert inspection.frozen(moving, 25) == ""
    assert inspection.frozen([*moving, *[moving[-1]] * 30], 25).startswith("frozen: from frame 59")
    assert inspection.frozen([*moving, *[moving[-1]] * 15], 25) == ""


def test_a_face_may_be_missing_for_five_frames(tmp_path: Path) -> None:
    frames = scene(0, 60)
    clip = clip_of(tmp_path / "v", 60, (0, 0, 96, 96))
    for gap, wrong in ((5, False), (9, True)):
        unseen = [frames[i] for i in range(20, 20 + gap)]

        def detect(picture: np.ndarray, unseen: list[np.ndarray] = unseen) -> list[Detection]:
            hidden = any(np.array_equal(picture, one) for one in unseen)
            return [] if hidden else [Detection((0, 0, 96, 96), 0.9)]

        assert bool(inspection.lost(frames, clip, detect)) == wrong, gap


def test_two_faces_of_like_size_are_a_fault_and_a_small_one_is_none(tmp_path: Path) -> None:
    frames, clip = scene(0, 60), clip_of(tmp_path / "v", 60)
    assert inspection.two(frames, clip, always((10, 10, 40, 40), (60, 10, 90, 40)))
    assert not inspection.two(frames, clip, always((10, 10, 40, 40), (60, 10, 70, 20)))
    assert not inspection.two(frames, clip, always((10, 10, 40, 40)))


def test_a_clip_is_judged_by_the_frames_of_its_own_times(tmp_path: Path) -> None:
    from stages.video import write_video

    path = tmp_path / "v.mp4"
    write_video(path, [*scene(0, 60), *scene(1, 60)], 25)
    face = always((20, 20, 60, 60))
    box = (20.0, 20.0, 60.0, 60.0)
    assert inspection.faults(path, clip_of(path, 60, box), face) == []
    assert inspection.faults(path, clip_of(path, 60, box, start=60), face) == []
    assert inspection.faults(path, clip_of(path, 100, box), face) == ["cut inside: at frame 60 of 100"]
    assert inspection.faults(path, clip_of(path, 40, box), face) == ["too short: 40 frames"]
    (fault,) = inspection.faults(path, clip_of(path, 60, box, start=80), face)
    assert fault.startswith("undecodable")


def test_the_manifest_tells_who_is_alone_and_what_decodes(tmp_path: Path) -> None:
    rows = [
        ("a", "talk", "p1", "100", "100"), ("b", "neg", "p1+p2", "100", "80"), ("c", "neg", "none", "0", "0"),
        ("d", "talk", "p2", "", ""),
    ]
    lines = ["file,kind,identity,frames_header,frames_decoded"]
    for name, *values in rows:
        (tmp_path / f"{name}.mp4").write_bytes(b"x")
        lines.append(",".join([f"{name}.mp4", *values]))
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    listed = read(tmp_path)
    assert [row.one_person for row in listed] == [True, False, False, True]
    assert [row.decodes for row in listed] == [True, False, False, True]


def test_figures_count_videos_and_people(tmp_path: Path) -> None:
    lines = ["file,kind,identity"]
    listed = [("a", "talk", "p1"), ("b", "talk", "p1"), ("c", "raw", "p2"), ("d", "neg", "p3")]
    for name, kind, identity in listed:
        (tmp_path / f"{name}.mp4").write_bytes(b"x")
        lines.append(f"{name}.mp4,{kind},{identity}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    rows = {row.name: row for row in read(tmp_path)}

    def clip(source: str, number: int, identity: str) -> Clip:
        return Clip(f"{source}_{number}", source, f"{source}.mp4", identity=identity)

    reached = [clip("a", 0, ""), clip("a", 1, ""), clip("b", 0, ""), clip("d", 0, "")]
    split = [clip("a", 0, "x"), clip("a", 1, "x"), clip("b", 0, "y"), clip("d", 0, "z")]
    figures = videos.Found(rows, reached, split, {}).figures()
    assert figures == {
        "videos": 4, "good_videos": 3, "clips": 4, "kept": 4,
        "kept_good_clips_fraction": pytest.approx(2 / 3), "negatives_kept": 1,
        "over_two_per_identity": 1,                      # p1 has three, though the balance sees two people
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_real_videos_of_every_kind(
    tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short ones: some of those that are wanted, and all that are not."""
    with (shared_data / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    small = [r for r in rows if int(r["width"]) * int(r["height"]) * int(r["frames_decoded"]) < 2.5e7]
    wanted = [r for r in small if r["kind"] != "neg" and int(r["frames_decoded"]) >= 75][:3]
    chosen = wanted + [r for r in small if r["kind"] == "neg"]
    if len({r["kind"] == "neg" for r in chosen}) < 2:
        pytest.skip("the folder has no short videos of both kinds")
    (tmp_path / "videos").mkdir()
    for row in chosen:
        shutil.copy(shared_data / row["file"], tmp_path / "videos")      # a link would leave the folder
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(chosen)
    monkeypatch.setenv("PV3D_WEIGHTS", str(shared_data / "weights"))
    told: list[str] = []
    answer = videos.run(tmp_path, root=str(tmp_path / "store"), in_process=1, progress=told.append)
    figures = answer["figures"]
    assert figures["videos"] == len(chosen)
    assert figures["bad_clips_kept"] == 0, told
    assert figures["over_two_per_identity"] == 0
    assert figures["kept_good_clips_fraction"] > 0.6, told
    assert Counter(line.split()[0] for line in told)["neg"] == len(chosen) - len(wanted)
