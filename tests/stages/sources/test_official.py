"""The authors' folder as a list: what is in it, whatever somebody wrote there."""

import json
import os
from pathlib import Path

import pytest

from infra.storage import FolderStorage, check_key
from stages.base import Drop
from stages.clip import Clip
from stages.sources import lists
from stages.sources.official import Official, camera_file


def make(folder: Path, *names: str, listed: str | None = None) -> Path:
    """A folder of empty files in the authors' layout."""
    for name in names:
        for path in (folder / "recrop_faces" / name, folder / "smoothed_camera2world" / Path(name).name):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".json" if "camera" in str(path) else ".mp4").write_bytes(b"x")
    (folder / "voxceleb.list").write_text("".join(f"{n}\n" for n in names) if listed is None else listed)
    return folder


def listed(folder: Path, store: FolderStorage, **settings: str) -> list[Clip]:
    return list(Official(location=str(folder), **settings).clips(store))


def errors(clips: list[Clip]) -> dict[str, str]:
    """Reason of each row that cannot be used, by its line."""
    found = {}
    for clip in clips:
        try:
            assert not list(lists.refuse(clip))
        except Drop as drop:
            found[clip.source] = drop.reason
    return found


def test_every_row_is_a_unit_with_its_video_and_cameras(tmp_path: Path, store) -> None:
    names = ["id10001#9KfXzr2QHvQ#001.mp4", "b.mp4", "deeper/c.mp4", "-9KfXzr2QHvQ.mp4"]
    clips = listed(make(tmp_path / "v", *names), store, licence="CC BY 4.0")
    assert [clip.source for clip in clips] == [f"recrop_faces/{name}" for name in names]
    assert len({clip.id for clip in clips}) == len(names)
    for clip, name in zip(clips, names, strict=True):
        check_key(clip.id)
        assert not errors([clip])
        assert Path(clip.video) == tmp_path / "v" / "recrop_faces" / name
        assert camera_file(clip) == tmp_path / "v" / "smoothed_camera2world" / f"{Path(name).stem}.json"
        assert clip.licence == "CC BY 4.0"
        assert str(tmp_path) not in json.dumps(clip.listed)


def test_a_pattern_finds_the_person_in_the_name(tmp_path: Path, store) -> None:
    folder = make(tmp_path / "v", "id10001#a.mp4", "id10002#b.mp4", "c.mp4")
    clips = listed(folder, store, people=r"^(id\d+)")
    assert [clip.identity for clip in clips] == ["id10001", "id10002", ""]


def test_provenance_of_an_export_goes_before_the_settings(tmp_path: Path, store) -> None:
    folder = make(tmp_path / "v", "a.mp4", "b.mp4")
    (folder / "provenance").mkdir()
    known = {"identity": "ann", "licence": "CC0", "source": "https://x.test/a", "crop_size": 512}
    (folder / "provenance" / "a.json").write_text(json.dumps(known))
    a, b = listed(folder, store, people="(.)", licence="unclear")
    assert (a.identity, a.licence, a.source) == ("ann", "CC0", "https://x.test/a")
    assert (b.identity, b.licence, b.source) == ("b", "unclear", "recrop_faces/b.mp4")
    assert "crop_size" not in a.listed["provenance"]


def test_the_fingerprint_changes_with_the_video_and_with_the_cameras(tmp_path: Path, store) -> None:
    folder = make(tmp_path / "v", "a.mp4")
    seen = {listed(folder, store)[0].fingerprint}
    for path in ("recrop_faces/a.mp4", "smoothed_camera2world/a.json"):
        (folder / path).write_bytes(b"longer")
        seen.add(listed(folder, store)[0].fingerprint)
    assert len(seen) == 3


@pytest.mark.parametrize(
    "name",
    [
        "../a.mp4", "/etc/passwd", "/etc/x.mp4", "x/../../a.mp4", "a//b.mp4", "./a.mp4", "a.avi", ".mp4/..",
        "a\\b.mp4", "a\x00.mp4", "a\x1b[31m.mp4", "x" * 5000 + ".mp4", "a.mp4.exe",
    ],
)
def test_a_row_that_is_no_path_in_the_folder_is_rejected_alone(name: str, tmp_path: Path, store) -> None:
    folder = make(tmp_path / "v", "ok.mp4", listed=f"{name}\nok.mp4\n")
    make(tmp_path, "a.mp4")                      # what an escape would find
    clips = listed(folder, store)
    assert errors(clips) == {"voxceleb.list:1": "bad row"}
    assert [clip.source for clip in clips if not errors([clip])] == ["recrop_faces/ok.mp4"]


def test_what_is_missing_twice_or_elsewhere_is_rejected_with_its_line(tmp_path: Path, store) -> None:
    folder = make(tmp_path / "v", "a.mp4", "b.mp4", "c.mp4", "x/same.mp4", "y/same.mp4", "out.mp4")
    (folder / "recrop_faces" / "a.mp4").unlink()
    (folder / "smoothed_camera2world" / "b.json").unlink()
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"secret")
    (folder / "recrop_faces" / "out.mp4").unlink()
    (folder / "recrop_faces" / "out.mp4").symlink_to(secret)
    with (folder / "voxceleb.list").open("a") as file:
        file.write("\r\n c.mp4 \r\n")
    assert errors(listed(folder, store)) == {
        "voxceleb.list:1": "no video", "voxceleb.list:2": "no cameras", "voxceleb.list:4": "bad row",
        "voxceleb.list:5": "bad row", "voxceleb.list:6": "no video", "voxceleb.list:8": "duplicate",
    }


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[]", b"{", b"\xff", b'{"identity": 3}', b'{"licence": ["x"]}', b'{"listed": NaN}',
        b'{"listed": 1e999}', b'{"source": "\\ud800"}',
        b'{"listed": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"source": "' + b"x" * 2000 + b'"}', b" " * (1 << 21) + b"{}", b'{"fps": ' + b"9" * 5000 + b"}",
    ],
)
def test_damaged_provenance_rejects_its_row(text: bytes, tmp_path: Path, store) -> None:
    folder = make(tmp_path / "v", "a.mp4", "b.mp4")
    (folder / "provenance").mkdir()
    (folder / "provenance" / "a.json").write_bytes(text)
    assert errors(listed(folder, store)) == {"voxceleb.list:1": "bad provenance"}


def test_what_is_no_such_folder_is_refused_in_one_line(tmp_path: Path, store) -> None:
    folder = make(tmp_path / "v", "a.mp4")
    (tmp_path / "empty").mkdir()
    make(tmp_path / "blank", "a.mp4", listed="\n \n")
    (make(tmp_path / "binary", "a.mp4") / "voxceleb.list").write_bytes(b"\xff\xfe\x00")
    for location, settings in [
        (tmp_path / "none", {}), (folder / "voxceleb.list", {}), (tmp_path / "empty", {}),
        (tmp_path / "blank", {}), (tmp_path / "binary", {}), (folder, {"list": "other.list"}),
        (folder, {"list": "."}), (folder, {"people": "("}), (folder, {"people": "id"}),
        (folder, {"dataset": "a b"}),
    ]:
        with pytest.raises(ValueError, match=r"\w+: ") as refused:
            listed(location, store, **settings)
        assert "\n" not in str(refused.value)


def test_a_folder_that_cannot_be_read_rejects_its_rows(tmp_path: Path, store) -> None:
    folder = make(tmp_path / "v", "a.mp4")
    (folder / "recrop_faces" / "a.mp4").unlink()
    (folder / "recrop_faces" / "a.mp4").symlink_to("a.mp4")
    os.mkfifo(folder / "recrop_faces" / "pipe.mp4")
    (folder / "smoothed_camera2world" / "pipe.json").write_text("[]")
    (folder / "voxceleb.list").write_text("a.mp4\npipe.mp4\n")
    assert set(errors(listed(folder, store)).values()) == {"no video"}
