import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tiny_dataset import clip_in, write

from infra.storage import FolderStorage
from model.camera import RADIUS, hflip, orbit
from pipelines import camera_files
from pipelines.camera_files import find_cameras
from pipelines.check_cameras import check_cameras
from stages.cameras import at_distance, encode
from stages.rotations import rotation_from_euler

WORKFLOW = """\
storage:
  root: {root}
source:
  use: stages.sources.folder:Folder
  location: videos
stages:
  - use: stages.shots:SplitShots
train:
  variant: model.config:tiny
profiles:
  other:
    storage.root: {other}
"""


def clip(frames: int = 20, swing: float = 25.0) -> np.ndarray:
    """[T, 25]: a camera that goes round the head."""
    return np.stack([orbit(swing * np.sin(t / 6), 5.0).encode() for t in range(frames)]).astype(np.float32)


def fault(folder: Path, cameras: np.ndarray) -> str:
    np.save(folder / "cameras.npy", cameras)
    answer, _ = check_cameras([str(folder / "cameras.npy")])
    return answer["fault"]


def test_a_sound_clip_has_no_fault(tmp_path: Path) -> None:
    assert fault(tmp_path, clip()) == ""
    assert fault(tmp_path, hflip(clip())) == ""


def test_a_published_label_passes(tmp_path: Path) -> None:
    """EG3D's issue 65: (0.00152, -0.01205, 2.69997), seen from the front."""
    label = encode(np.diag([1.0, -1, -1])[None], np.array([[0.00152, -0.01205, 2.69997]]))
    assert fault(tmp_path, label) == ""


@pytest.mark.parametrize("mode", ["orig", "cor"])
def test_both_ways_to_measure_the_distance_pass(tmp_path: Path, mode: str) -> None:
    rotations = rotation_from_euler(np.linspace(-40, 40, 30), 5.0, 0.0)
    positions = np.array([0, 0.006, 0.161]) - 2.7 * rotations[:, :, 2]
    assert fault(tmp_path, encode(rotations, at_distance(mode, positions))) == ""


def broken(name: str) -> np.ndarray:
    cameras = clip().astype(np.float64)
    one = cameras[7]
    pose = one[:16].reshape(4, 4)
    if name == "finite":
        one[3] = np.nan
    elif name == "orthonormal":
        pose[0, 0] *= 1.01
    elif name == "mirrors":
        pose[:3, 0] *= -1
    elif name == "0 0 0 1":
        pose[3, 0] = 0.5
    elif name == "distance":
        pose[:3, 3] *= 3.0 / RADIUS
    elif name == "looks past":
        pose[:3, :3] = pose[:3, :3] @ rotation_from_euler(8, 0, 0) @ np.diag([1, -1, -1])
    elif name == "one before":
        one[:] = orbit(-60.0, 5.0).encode()
    elif name == "divide pixels":
        one[16], one[20] = 4.2647 * 512, 4.2647 * 512
    elif name == "divide intrinsics":
        one[16:] *= 512
        one[24] = 1
    elif name == "below 1":
        one[16] = one[20] = -4.2647
    elif name == "square pixels":
        one[20] = 3.0
    return cameras


@pytest.mark.parametrize(
    "name",
    ["finite", "orthonormal", "mirrors", "0 0 0 1", "distance", "looks past", "one before", "divide pixels",
     "divide intrinsics", "below 1", "square pixels"],
)  # fmt: skip
def test_every_fault_is_named_with_its_camera(tmp_path: Path, name: str) -> None:
    found = fault(tmp_path, broken(name))
    assert "camera 7 " in found
    assert name in found


def test_the_first_of_several_faults_is_named(tmp_path: Path) -> None:
    cameras = broken("distance")
    cameras[3, 0] = np.inf
    assert "camera 3 " in fault(tmp_path, cameras)
    cameras[3] = cameras[2]
    assert "camera 7 " in fault(tmp_path, cameras)


def test_pictures_in_any_order_are_no_neighbours(tmp_path: Path) -> None:
    labels = [[f"{i:05d}.png", c.tolist()] for i, c in enumerate(clip(swing=60)[::-7])]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    with zipfile.ZipFile(tmp_path / "eg3d.zip", "w") as archive:
        archive.write(tmp_path / "dataset.json", "dataset.json")
    for path in (tmp_path / "dataset.json", tmp_path, tmp_path / "eg3d.zip"):
        answer, _ = check_cameras([str(path)])
        assert (answer["fault"], answer["cameras"]) == ("", len(labels))


def test_the_authors_files_are_read_each_as_a_clip(tmp_path: Path) -> None:
    folder = tmp_path / "smoothed_camera2world"
    folder.mkdir()
    for name, cameras in (("a", clip()), ("b", broken("distance"))):
        rows = [[f"{i:04d}.png", c.tolist()] for i, c in enumerate(cameras)]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    answer, table = check_cameras([str(tmp_path)])
    assert [row["fault"] == "" for row in answer["files"]] == [True, False]
    assert answer["faults"] == 1
    assert answer["files"][1]["worst"]["distance_max"] == pytest.approx(3.0, abs=1e-3)
    assert "b.json" in answer["fault"]
    assert len(table.splitlines()) == 4  # a head line, two clips, a fault


def test_of_many_sound_clips_the_first_are_shown_and_of_faults_all(tmp_path: Path) -> None:
    for i in range(130):
        np.save(tmp_path / f"{i:03d}.npy", broken("distance") if i in (3, 129) else clip(2))
    answer, table = check_cameras([str(tmp_path)])
    lines = table.splitlines()
    assert len(answer["files"]) == 130
    assert len(lines) == 1 + 100 + 2 * 2 + 1
    assert "129.npy" in table
    assert "28 more" in lines[-1]


def test_a_shard_is_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "00000-abc.tar", "w") as tar:
        for name in ("one", "two"):
            buffer = io.BytesIO()
            np.save(buffer, clip())
            member = tarfile.TarInfo(f"{name}.cameras.npy")
            member.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(member, buffer)
    (tmp_path / "00000-abc.index.json").write_text('{"schema": 1, "members": []}')
    assert len(list(find_cameras(str(tmp_path)))) == 2
    found = list(find_cameras(str(tmp_path / "00000-abc.tar")))
    assert [cameras.name.split()[-1] for cameras in found] == ["one", "two"]
    np.testing.assert_allclose(found[1].numbers, clip())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npy", b"no array"), ("a.json", b"{"), ("a.json", b'{"labels": null}'), ("a.json", b"[[1, 2]]"),
        ("a.json", b"[]"), ("a.json", b'{"rows": []}'), ("a.zip", b"no zip"), ("a.tar", b"no tar"),
    ],
)  # fmt: skip
def test_a_broken_file_is_a_fault_among_others(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    np.save(tmp_path / "good.npy", clip())
    answer, _ = check_cameras([str(tmp_path / name), str(tmp_path / "good.npy")])
    assert "cannot be read" in answer["fault"]
    assert answer["faults"] == 1
    assert answer["cameras"] == 20


def test_an_array_of_another_shape_or_of_objects_is_a_fault(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 16)))
    np.save(tmp_path / "b.npy", np.array([{}, {}]), allow_pickle=True)
    answer, _ = check_cameras([str(tmp_path)])
    assert answer["faults"] == 2
    assert "(3, 16)" in answer["fault"]


@pytest.mark.parametrize("name", ["none.npy", "notes.txt", "empty"])
def test_what_can_hold_no_cameras_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=name):
        check_cameras([str(tmp_path / name)])


def pv3d(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_prints_a_table_and_refuses_a_fault_with_status_2(tmp_path: Path) -> None:
    np.save(tmp_path / "good.npy", clip())
    np.save(tmp_path / "bad.npy", broken("mirrors"))
    answer = pv3d("check-cameras", tmp_path / "good.npy")
    assert (answer.returncode, answer.stderr) == (0, "")
    answer = pv3d("check-cameras", tmp_path / "good.npy", tmp_path / "bad.npy")
    assert answer.returncode == 2
    (line,) = answer.stderr.splitlines()
    assert line.startswith(f"pv3d: {tmp_path / 'bad.npy'}: camera 7 ")
    assert "good.npy" in answer.stdout
    answer = pv3d("check-cameras", "--json", tmp_path / "bad.npy")
    found = json.loads(answer.stdout.splitlines()[-1])
    assert (answer.returncode, found["faults"], found["files"][0]["cameras"]) == (2, 1, 20)


def zipped(path: Path, name: str, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"labels": [["a", [' + b"9" * 400 + b"]]]}", b"9" * 5000]
)
def test_json_that_cannot_be_read_is_a_fault(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "dataset.json").write_bytes(content)
    for path in (tmp_path / "dataset.json", zipped(tmp_path / "a.zip", "dataset.json", content)):
        answer, _ = check_cameras([str(path)])
        assert "cannot be read" in answer["fault"]


def test_archives_that_swell_are_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera_files, "MOST_BYTES", 10_000)
    answer, _ = check_cameras([str(zipped(tmp_path / "a.zip", "dataset.json", bytes(20_000)))])
    assert "more than 10,000 bytes" in answer["fault"]
    with tarfile.open(tmp_path / "large.tar", "w") as tar:
        member = tarfile.TarInfo("one.cameras.npy")
        member.size = 20_000
        tar.addfile(member, io.BytesIO(bytes(20_000)))
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("one.cameras.npy"))
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        member = tarfile.TarInfo("one.cameras.npy")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    for name in ("large", "packed", "link"):
        answer, _ = check_cameras([str(tmp_path / f"{name}.tar")])
        assert "cannot be read" in answer["fault"], name


def test_an_encrypted_zip_is_a_fault(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", "dataset.json", b"{}")
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    answer, _ = check_cameras([str(path)])
    assert "encrypted" in answer["fault"]


def test_a_pipe_is_no_file_of_cameras(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npy")
    with pytest.raises(ValueError, match="holds no cameras"):
        check_cameras([str(tmp_path / "a.npy")])


def test_a_workflow_is_read_with_the_profile_and_the_values_that_are_given(tmp_path: Path) -> None:
    store = FolderStorage(tmp_path / "other")
    write(store, [clip_in(store, "a1")])
    path = tmp_path / "workflow.yaml"
    path.write_text(WORKFLOW.format(root=tmp_path / "none", other=tmp_path / "other"))
    for chosen in (("--profile", "other"), ("--set", f"storage.root={tmp_path / 'other'}")):
        answer = pv3d("check-cameras", path, *chosen, "--json")
        assert json.loads(answer.stdout.splitlines()[-1])["cameras"] > 0, answer.stderr
    assert pv3d("check-cameras", path).returncode == 2
    np.save(tmp_path / "a.npy", clip())
    refused = pv3d("check-cameras", tmp_path / "a.npy", "--profile", "other")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "no PATH is one" in refused.stderr


def test_the_server_of_an_s3_path_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines import camera_files

    asked = []

    def open_storage(root: str, **options: object) -> None:
        asked.append((root, options))
        raise ValueError("seen")

    monkeypatch.setattr(camera_files, "open_storage", open_storage)
    with pytest.raises(ValueError, match="seen"):
        check_cameras(["s3://b/p"], overrides=("storage.s3.endpoint=http://h:9", "storage.s3.cache_gb=0"))
    ((root, options),) = asked
    assert (root, options["endpoint"], options["cache_gb"]) == ("s3://b/p", "http://h:9", 0)
    for wrong, said in (("storage.s3.endpoint=h", "http://host:port"), ("train.steps=1", "storage.s3")):
        with pytest.raises(ValueError, match=said) as refused:
            check_cameras(["s3://b/p"], overrides=(wrong,))
        assert "\n" not in str(refused.value)
