import json
import logging
import os
import re
from pathlib import Path

import pytest

from infra.storage import FolderStorage, StorageError, check_key
from stages.base import Drop
from stages.clip import Clip
from stages.sources.folder import Folder, unit_ids
from stages.sources.several import mark_duplicates


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def listed(folder: Path, store, **settings) -> list[str]:
    return [clip.source for clip in Folder(location=str(folder), **settings).clips(store)]


def test_lists_videos_of_all_subfolders_sorted_and_nothing_else(tmp_path: Path, store) -> None:
    make(tmp_path / "v", "b.MP4", "a/z.mov", "notes.txt", ".hidden.mp4", ".git/x.mp4", "c.webm", "a/b.mkv")
    assert listed(tmp_path / "v", store) == ["a/b.mkv", "a/z.mov", "b.MP4", "c.webm"]


def test_a_clip_says_where_it_is_and_decodes_nothing(tmp_path: Path, store) -> None:
    make(tmp_path / "v", "talk 1.mp4")
    (clip,) = Folder(location=str(tmp_path / "v"), licence="CC BY 4.0", dataset="ours").clips(store)
    assert (clip.id, clip.source, clip.licence, clip.dataset) == ("talk-1", "talk 1.mp4", "CC BY 4.0", "ours")
    assert Path(clip.video).is_absolute()
    assert Path(clip.video).read_bytes() == b"x"
    assert not clip.is_cut
    json.dumps(clip.to_record()[0])


def test_a_name_that_is_no_text_is_told_as_one_and_the_file_is_found(tmp_path: Path, store) -> None:
    folder = make(tmp_path / "v", os.fsdecode(b"bad\xff.mp4"), "good.mp4")
    bad, good = mark_duplicates(Folder(location=str(folder)).clips(store))
    assert (bad.source, good.source) == ("bad\\udcff.mp4", "good.mp4")
    assert bad.source.encode()
    assert Path(bad.video).read_bytes() == b"x"
    assert Clip.from_record(*bad.to_record()).digest() == bad.digest()


def test_the_fingerprint_changes_with_the_file(tmp_path: Path, store) -> None:
    folder = make(tmp_path / "v", "a.mp4")
    (before,) = Folder(location=str(folder)).clips(store)
    (again,) = Folder(location=str(folder)).clips(store)
    (folder / "a.mp4").write_bytes(b"other")
    (after,) = Folder(location=str(folder)).clips(store)
    assert before.digest() == again.digest() != after.digest()


def test_ids_are_safe_and_different_even_where_case_is_ignored() -> None:
    names = ["p.mp4", "p.mov", "P.avi", "a/b.mp4", "a-b.mp4", "día.mp4", "视频.mp4", "_x-.mp4", "one.two.mp4"]
    ids = unit_ids(names)
    assert len({unit.casefold() for unit in ids}) == len(names)
    for unit in ids:
        check_key(unit)
        assert "." not in unit


def test_ids_do_not_depend_on_the_order_of_listing() -> None:
    names = ["p.mp4", "p.mov", "q.mp4"]
    assert dict(zip(names, unit_ids(names), strict=True)) == dict(
        zip(names[::-1], unit_ids(names[::-1]), strict=True)
    )


def test_a_relative_location_is_taken_from_the_working_folder(tmp_path: Path, store, monkeypatch) -> None:
    make(tmp_path / "v", "a.mp4")
    monkeypatch.chdir(tmp_path)
    assert listed(Path("v"), store) == ["a.mp4"]


def test_other_suffixes_can_be_named(tmp_path: Path, store) -> None:
    make(tmp_path / "v", "a.mp4", "b.TS")
    assert listed(tmp_path / "v", store, extensions=[".ts"]) == ["b.TS"]


def test_links_do_not_lead_out_of_the_folder(tmp_path: Path, store, caplog) -> None:
    make(tmp_path / "other", "secret.mp4")
    folder = make(tmp_path / "v", "a.mp4", "sub/b.mp4")
    (folder / "inside.mp4").symlink_to(folder / "sub" / "b.mp4")
    (folder / "outside.mp4").symlink_to(tmp_path / "other" / "secret.mp4")
    (folder / "nowhere.mp4").symlink_to(folder / "gone.mp4")
    (folder / "loop").symlink_to(folder)
    (folder / "circle.mp4").symlink_to("circle.mp4")
    with caplog.at_level(logging.WARNING):
        assert listed(folder, store) == ["a.mp4", "inside.mp4", "sub/b.mp4"]
    passed_over = {Path(str(r.args[0]).split()[0]).name for r in caplog.records}
    assert passed_over == {"outside.mp4", "nowhere.mp4", "loop", "circle.mp4"}


def test_links_that_are_passed_over_are_told_once_and_counted_beyond_the_first(
    tmp_path: Path, store, caplog
) -> None:
    folder = make(tmp_path / "v", "a.mp4")
    for number in range(8):
        (folder / f"l{number}.mp4").symlink_to("gone.mp4")
    for _ in range(2):
        assert listed(folder, store) == ["a.mp4"]
    assert len(caplog.records) == 6
    assert caplog.records[-1].getMessage().startswith("3 more links")


def test_unreadable_files_are_listed_for_the_stages_to_reject(tmp_path: Path, store) -> None:
    folder = make(tmp_path / "v", "text.mp4")
    (folder / "empty.mp4").touch()
    (folder / "empty.mp4").chmod(0)
    assert listed(folder, store) == ["empty.mp4", "text.mp4"]


def test_pipes_are_passed_over(tmp_path: Path, store) -> None:
    folder = make(tmp_path / "v", "a.mp4")
    os.mkfifo(folder / "pipe.mp4")
    assert listed(folder, store) == ["a.mp4"]


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("missing", "does not exist"),
        ("file.mp4", "is a file"),
        ("empty", "holds no video"),
        ("gs://bucket/videos", "no folder and no s3://"),
        ("demo:faces", "demo:portraits"),
    ],
)
def test_refuses_in_one_line_what_cannot_be_listed(
    tmp_path: Path, store, monkeypatch, location: str, message: str
) -> None:
    monkeypatch.chdir(make(tmp_path, "file.mp4", "empty/readme.txt"))
    with pytest.raises(ValueError, match=message) as refused:
        list(Folder(location=location).clips(store))
    assert str(refused.value).startswith("source.location: ")
    assert location in str(refused.value)
    assert "\n" not in str(refused.value)


# --- on S3 -----------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(monkeypatch):
    """An S3 client; objects of bucket "raw" are made with its `put`."""
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto")
    from infra import s3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3._bucket.cache_clear()
    with moto.mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="raw")
        yield lambda name, data=b"film": client.put_object(Bucket="raw", Key=name, Body=data)
    s3._bucket.cache_clear()


def test_a_prefix_of_a_bucket_is_a_folder_of_videos(bucket, store) -> None:
    for name in ("a.mp4", "deep er/ä b.MOV", "notes.txt", ".hidden/c.mp4", ""):
        bucket(f"films/{name}")
    bucket("other/d.mp4")
    clips = list(Folder("s3://raw/films/").clips(store))
    assert [clip.source for clip in clips] == ["a.mp4", "deep er/ä b.MOV"]
    assert [clip.video for clip in clips] == ["s3://raw/films/a.mp4", "s3://raw/films/deep er/ä b.MOV"]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", clip.id) for clip in clips)


def test_an_object_that_changes_is_another_video_and_one_that_does_not_is_the_same(bucket, store) -> None:
    bucket("a.mp4", b"one")
    bucket("b.mp4", b"one")
    before = list(Folder("s3://raw").clips(store))
    bucket("a.mp4", b"two")
    bucket("b.mp4", b"one")
    after = list(Folder("s3://raw").clips(store))
    assert [a.digest() == b.digest() for a, b in zip(before, after, strict=True)] == [False, True]


def test_stages_read_an_object_as_a_local_file(bucket, store, tmp_path, monkeypatch) -> None:
    pytest.importorskip("av")
    from stages.video import DecodeError, resolve

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    bucket("films/a b.mp4", b"film")
    (clip,) = Folder("s3://raw/films").clips(store)
    with resolve(store, clip.video) as path:
        assert path.read_bytes() == b"film"
        assert path.suffix == ".mp4"
    assert not path.exists()
    with pytest.raises(DecodeError, match="not there"), resolve(store, "s3://raw/films/gone.mp4"):
        pass


def test_many_pages_of_a_bucket_are_listed_whole(bucket, store) -> None:
    for n in range(1100):
        bucket(f"{n:04d}.mp4", b"")
    assert len(list(Folder("s3://raw").clips(store))) == 1100


@pytest.mark.parametrize(
    ("location", "message"),
    [("s3://none/films", "source.location.*NoSuchBucket"), ("s3://raw/empty", "holds no video"),
     ("s3:///films", "source.location.*names no bucket")],
)
def test_a_bucket_that_cannot_be_listed_is_one_line(bucket, store, location, message) -> None:
    with pytest.raises((ValueError, StorageError), match=message) as caught:
        list(Folder(location).clips(store))
    assert "\n" not in str(caught.value)


def test_a_video_on_s3_is_cut_as_one_of_a_folder(bucket, store, tmp_path) -> None:
    pytest.importorskip("av")
    pytest.importorskip("scenedetect")
    import numpy as np

    from stages.shots import SplitShots
    from stages.video import write_video

    write_video(tmp_path / "v.mp4", [np.full((64, 64, 3), 90 + n, np.uint8) for n in range(60)], 25.0)
    bucket("films/v.mp4", (tmp_path / "v.mp4").read_bytes())
    bucket("films/w.mp4", b"no film" * 99)
    stage = SplitShots()
    stage.setup(store)
    sound, broken = Folder("s3://raw/films").clips(store)
    (cut,) = stage.process(sound)
    assert (cut.frame_count, cut.width) == (60, 64)
    with pytest.raises(Drop):
        list(stage.process(broken))


def test_what_a_run_wrote_into_the_folder_is_no_source(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4", "runs/one/train/sample.mp4", "runs/one/videos/b.mp4", "runs/one-b/c.mp4")
    inside = FolderStorage(tmp_path / "runs" / "one")
    assert listed(tmp_path, inside) == ["a.mp4", "runs/one-b/c.mp4"]
    assert listed(tmp_path / "runs" / "one" / "videos", inside) == ["b.mp4"]
    assert listed(tmp_path / "runs" / "one", inside) == ["train/sample.mp4", "videos/b.mp4"]


def test_what_a_run_wrote_into_the_bucket_is_no_source(bucket) -> None:
    from infra.storage import open_storage

    bucket("a.mp4")
    bucket("out/train/sample.mp4")
    assert [clip.source for clip in Folder("s3://raw").clips(open_storage("s3://raw/out"))] == ["a.mp4"]
