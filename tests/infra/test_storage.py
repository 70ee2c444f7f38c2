import errno
import os
import stat
import tempfile
import threading
import time
import uuid
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ReadTimeoutError

from infra.storage import FolderStorage, StorageError, fault_of_place, open_storage

moto = pytest.importorskip("moto")


@pytest.fixture(params=["folder", "s3", pytest.param("ceph", marks=pytest.mark.s3)])
def any_store(request, tmp_path, monkeypatch):
    """An empty store: a folder, a prefix of what stands in for S3, a prefix of a real server of it."""
    if request.param == "folder":
        yield FolderStorage(tmp_path / "store")
        return
    if request.param == "ceph":
        server = request.getfixturevalue("rgw")
        yield open_storage(f"s3://pv3d-test/{uuid.uuid4().hex}", endpoint=server.endpoint, addressing="path")
        return
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with moto.mock_aws():
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield open_storage("s3://bucket/runs/one")


def test_what_is_written_is_read_back(any_store):
    any_store.write("a/b.txt", b"one")
    any_store.write("a/b.txt", b"two")
    assert any_store.read("a/b.txt") == b"two"
    assert any_store.read_range("a/b.txt", 1, 2) == b"wo"
    assert any_store.size("a/b.txt") == 3
    with any_store.local("a/b.txt") as path:
        assert path.read_bytes() == b"two"


@pytest.mark.parametrize("name", ["copy of x.jsonl", "x (copy).npz", "ü.json", "a\x1b[31m"])
def test_files_of_others_are_left_alone_with_one_warning(tmp_path, caplog, name):
    store = FolderStorage(tmp_path)
    store.write("ledger/Mark/x.jsonl", b"one")
    for number in range(2):
        (tmp_path / "ledger/Mark" / f"{number}{name}").write_text("")
    for _ in range(2):
        assert list(store.list("ledger")) == ["ledger/Mark/x.jsonl"]
        assert [entry.key for entry in store.entries()] == ["ledger/Mark/x.jsonl"]
    (warned,) = caplog.messages
    assert warned.startswith("ledger/Mark/")
    assert "\x1b" not in warned
    assert len(list((tmp_path / "ledger/Mark").iterdir())) == 3


def test_objects_of_others_are_left_alone(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with moto.mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        for key in ("one/", "one/lease/", "one/lease/my file.json", "one/lease/a.json"):
            client.put_object(Bucket="bucket", Key=key, Body=b"x")
        store = open_storage("s3://bucket/one")
        assert list(store.list("lease")) == ["lease/a.json"]
        assert [entry.key for entry in store.entries()] == ["lease/a.json"]


def test_a_missing_object_is_not_found(any_store):
    for call in (any_store.read, any_store.size):
        with pytest.raises(FileNotFoundError):
            call("none")
    with pytest.raises(FileNotFoundError), any_store.local("none"):
        pass
    assert not any_store.exists("none")
    any_store.delete("none")


def test_a_range_beyond_the_end_is_refused(any_store):
    any_store.write("k", b"12345")
    with pytest.raises(EOFError):
        any_store.read_range("k", 3, 4)
    with pytest.raises(EOFError):
        any_store.read_range("k", 9, 1)


def test_create_succeeds_for_one_of_many_writers(any_store):
    results = []
    threads = [
        threading.Thread(target=lambda i=i: results.append(any_store.create("k", b"%d" % i)))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 7 + [True]


def test_the_list_is_sorted_and_stays_below_its_prefix(any_store):
    for key in ("b/2", "b/1", "bb/1", "a"):
        any_store.write(key, b"")
    assert list(any_store.list("b")) == ["b/1", "b/2"]
    assert list(any_store.list()) == ["a", "b/1", "b/2", "bb/1"]
    assert list(any_store.list("none")) == []


def test_entries_tell_size_and_age(any_store):
    begun = time.time()
    any_store.write("b/1", b"one")
    any_store.write("c/1", b"")
    (entry,) = any_store.entries("b")
    assert (entry.key, entry.bytes) == ("b/1", 3)
    assert abs(entry.modified_s - begun) < 30
    assert [entry.key for entry in any_store.entries()] == ["b/1", "c/1"]


def test_many_are_deleted_at_once(any_store):
    keys = [f"a/{number:04d}" for number in range(30)]
    for key in keys:
        any_store.write(key, b"x")
    any_store.delete_all([*keys[:20], "a/none"])
    assert list(any_store.list()) == keys[20:]
    any_store.delete_all([])


def test_what_a_killed_writer_left_is_found_and_removed(tmp_path):
    store = FolderStorage(tmp_path / "store")
    store.write("a/b", b"whole")
    Path(tmp_path, "store", "a", ".tmp-1-ab").write_bytes(b"half")
    ((entry, remove),) = store.unfinished()
    assert (entry.key, entry.bytes) == ("a/.tmp-1-ab", 4)
    remove()
    assert [path.name for path in Path(tmp_path, "store", "a").iterdir()] == ["b"]


def test_a_file_is_uploaded(any_store, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(os.urandom(5 << 20))
    any_store.upload("big", file)
    assert any_store.read("big") == file.read_bytes()
    assert file.exists()


@pytest.mark.parametrize("key", ["../x", "/x", "a//b", "a/../b", "", "a b"])
def test_keys_that_could_leave_the_root_are_refused(any_store, key):
    with pytest.raises(ValueError, match="storage key"):
        any_store.write(key, b"")


def test_a_writable_store_is_left_as_it_was(any_store):
    any_store.check_writable()
    assert list(any_store.list()) == []


def test_files_get_the_mode_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        store = FolderStorage(tmp_path / "store")
        store.write("a", b"")
        store.create("b", b"")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(store.path(key).stat().st_mode) for key in ("a", "b")} == {0o640}


def test_a_root_below_a_file_cannot_be_written_and_says_so_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    store = FolderStorage(tmp_path / "file" / "store")
    message = r"storage.root: cannot write to .*file/store \(.+\); make room or permit it, or choose"
    with pytest.raises(StorageError, match=message) as error:
        store.check_writable()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG])
@pytest.mark.parametrize("call", ["fsync", "replace", "link"])
def test_a_disk_that_is_full_or_broken_leaves_nothing_half_written(tmp_path, monkeypatch, code, call):
    store = FolderStorage(tmp_path / "store")
    store.write("a", b"old")
    (tmp_path / "source").write_bytes(b"new")

    def broken(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(*((Path, call) if call == "replace" else (os, call)), broken)
    message = rf"storage.root: cannot write \w below {store.root} \({os.strerror(code)}\); make room"
    writers = {
        "write": lambda: store.write("a", b"new"),
        "upload": lambda: store.upload("a", tmp_path / "source"),
        "create": lambda: store.create("b", b"new"),
    }
    for name, write in writers.items():
        if call == "fsync" or (call == "link") == (name == "create"):
            with pytest.raises(StorageError, match=message):
                write()
    assert store.read("a") == b"old"
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["a"]


def test_a_disk_that_cannot_be_read_is_one_line_and_no_missing_object(tmp_path, monkeypatch):
    store = FolderStorage(tmp_path / "store")
    store.write("a", b"old")

    def broken(*args, **kwargs):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for method in ("open", "stat", "unlink"):
        monkeypatch.setattr(Path, method, broken)
    calls = [store.read, store.size, store.exists, store.delete, lambda key: store.read_range(key, 0, 1)]
    for call in calls:
        with pytest.raises(StorageError, match=r"cannot (read|delete) a below .*\(Input/output error\)"):
            call("a")


def test_a_file_where_a_folder_should_be_is_one_line(tmp_path):
    store = FolderStorage(tmp_path / "store")
    store.write("a", b"")
    for write in (store.write, store.create):
        with pytest.raises(StorageError, match=r"cannot write a/b below .*\(Not a directory\)"):
            write("a/b", b"")


def test_other_kinds_of_root_are_refused():
    with pytest.raises(ValueError, match="neither a folder nor s3"):
        open_storage("gs://bucket")
    with pytest.raises(ValueError, match="names no bucket"):
        open_storage("s3://")


@pytest.fixture
def s3(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with moto.mock_aws():
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield open_storage("s3://bucket")


@pytest.mark.parametrize(("there", "wins"), [(b"mine", True), (b"other", False), (None, True)])
def test_a_create_whose_answer_was_lost_is_settled_by_reading_back(s3, monkeypatch, there, wins):
    send = s3._put
    lost = []

    def put(key, data, **options):
        if not lost:
            lost.append(key)
            if there is not None:
                send(key, there)
            raise ReadTimeoutError(endpoint_url="http://s3")
        send(key, data, **options)

    monkeypatch.setattr(s3, "_put", put)
    assert s3.create("k", b"mine") is wins
    assert s3.read("k") == (there or b"mine")


def test_a_body_that_breaks_off_is_read_again(s3, monkeypatch):
    s3.write("k", b"whole")
    get = s3._client.get_object
    calls = []

    class Broken:
        def read(self):
            from botocore.exceptions import ResponseStreamingError

            raise ResponseStreamingError(error="cut")

    def flaky(**options):
        calls.append(1)
        return {"Body": Broken()} if len(calls) == 1 else get(**options)

    monkeypatch.setattr(s3._client, "get_object", flaky)
    assert s3.read("k") == b"whole"


def test_a_missing_bucket_is_one_line(s3):
    other = open_storage("s3://nothere/x")
    with pytest.raises(StorageError, match=r"NoSuchBucket.*create the bucket"):
        other.check_writable()


def test_asking_whether_a_folder_can_be_written_leaves_no_folder_behind(tmp_path):
    FolderStorage(tmp_path / "a" / "b").check_writable()
    assert not (tmp_path / "a").exists()
    (tmp_path / "kept").mkdir()
    FolderStorage(tmp_path / "kept").check_writable()
    FolderStorage(tmp_path / "kept" / "new").check_writable()
    assert list(tmp_path.rglob("*")) == [tmp_path / "kept"]


@pytest.mark.parametrize(
    ("place", "cure"),
    [(None, "set TMPDIR to another folder"), ("/tmp/x", "set TMPDIR"), ("/srv/out", "choose another place")],
)  # fmt: skip
def test_a_fault_of_a_disk_names_place_cause_and_cure(monkeypatch, place, cure):
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    error = OSError(errno.EROFS, "Read-only file system", place)
    where = place or "a file below /tmp"
    message = f"cannot use {where} (Read-only file system); make room or permit it, or {cure}"
    assert fault_of_place(error).startswith(message)
    assert fault_of_place(PermissionError(errno.EACCES, "Permission denied", place)) == ""
    assert fault_of_place(FileNotFoundError(errno.ENOENT, "No such file", place)) == ""


@pytest.mark.parametrize("root", ["s3:/b/x", "s3:b/x", "S3:/b", "file:/x", "gs:/b/x", "~nobody-at-all/x"])
def test_what_only_looks_like_a_folder_makes_none(tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^storage.root: '.*(neither a folder nor|there is no user)"):
        open_storage(root)
    assert list(tmp_path.iterdir()) == []


def test_folders_have_any_other_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for root in ("a:b", "s3", "./~x", "x/s3:/y", f"file://{tmp_path}/z"):
        open_storage(root).write("k", b"1")
    assert (tmp_path / "s3" / "k").exists()


def test_links_in_a_circle_are_refused_in_one_line(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for root in (tmp_path / "a", tmp_path / "a" / "store"):
        with pytest.raises(StorageError, match=r"^storage.root: .* links in a circle; name another folder$"):
            open_storage(str(root))
