"""The store on S3: what its settings do, and what it makes of servers and networks that fail.

Each test runs against a server that stands in for one (moto), and against a real one (Ceph) where it is.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import threading
import time
import traceback
import uuid

import boto3
import pytest
from fault_proxy import FAULTS, FaultProxy

from infra import s3_errors
from infra.storage import StorageError, open_storage

pytest.importorskip("moto.server")

real = pytest.mark.s3
SHY = ("boto3", "botocore", "s3transfer", "urllib3")


@pytest.fixture
def server(s3):
    return s3


@pytest.fixture
def root():
    """A prefix of this test's own."""
    return f"s3://pv3d-test/{uuid.uuid4().hex[:12]}"


@pytest.fixture
def proxy(server):
    with FaultProxy(server.endpoint) as found:
        yield found


@pytest.fixture
def through(proxy, root):
    """The store, behind the proxy."""
    return open_storage(root, endpoint=proxy.endpoint, addressing="path", patience_s=20.0)


@pytest.fixture
def direct(server, root):
    """The same store, without the proxy between."""
    return open_storage(root, endpoint=server.endpoint, addressing="path")


def race(stores, key):
    """What each of the stores, at once, is told of its own bytes."""
    barrier, told = threading.Barrier(len(stores)), {}

    def one(number):
        barrier.wait()
        told[number] = stores[number].create(key, b"%d" % number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [told[number] for number in range(len(stores))]


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_one_of_sixteen_creators_wins_and_knows_it(server, root, rate):
    with FaultProxy(server.endpoint, rate=rate, seed=1) as proxy:
        stores = [open_storage(root, endpoint=proxy.endpoint, addressing="path") for _ in range(16)]
        for number in range(4):
            told = race(stores, f"k{number}")
            assert sum(told) == 1
            assert stores[0].read(f"k{number}") == b"%d" % told.index(True)
        assert rate == 0 or sum(count for fault, count in proxy.faults.items() if fault) >= 4


@pytest.mark.parametrize(
    "faults",
    [["reset"], ["reset after"], ["cut after"], ["500 after"], ["reset after"] * 4, ["503"] * 8,
     ["409"], ["409", "reset after", "409"]],
)  # fmt: skip
def test_a_create_whose_answer_was_lost_is_settled_by_reading_back(through, direct, proxy, faults):
    proxy.script.extend(faults)
    assert through.create("k", b"mine")
    assert direct.read("k") == b"mine"


@pytest.mark.parametrize("faults", [[], ["reset after"], ["503"] * 4, ["reset"] * 4])
def test_a_create_that_came_second_loses_whatever_happens_to_its_answer(through, direct, proxy, faults):
    assert direct.create("k", b"other")
    proxy.script.extend(faults)
    assert not through.create("k", b"mine")
    assert direct.read("k") == b"other"


def test_what_somebody_else_wrote_with_the_same_bytes_is_not_ones_own(through, direct):
    assert direct.create("k", b"same")
    assert not through.create("k", b"same")


@pytest.mark.parametrize("fault", FAULTS)
def test_every_call_survives_every_fault(through, direct, proxy, tmp_path, fault):
    file = tmp_path / "file"
    file.write_bytes(os.urandom(1 << 20))

    times = 2 if fault.startswith(("cut", "headless")) else 3        # boto3 itself tries the others thrice

    def again(call):
        proxy.script.extend([fault] * times)
        answer = call()
        assert len(proxy.script) < times     # half the header of an answer without a body is enough
        proxy.script.clear()
        return answer

    again(lambda: through.write("a/w", b"one"))
    again(lambda: through.upload("a/u", file))
    assert again(lambda: through.read("a/w")) == b"one"
    assert again(lambda: through.read_range("a/u", 1000, 50_000)) == file.read_bytes()[1000:51_000]
    assert again(lambda: list(through.list("a"))) == ["a/u", "a/w"]
    assert again(lambda: through.size("a/u")) == 1 << 20
    assert again(lambda: through.exists("a/w"))
    assert not again(lambda: through.exists("a/none"))
    with contextlib.ExitStack() as stack:
        assert again(lambda: stack.enter_context(through.local("a/u")).read_bytes()) == file.read_bytes()
    again(lambda: through.delete("a/w"))
    assert list(direct.list("a")) == ["a/u"]


def test_a_large_object_goes_up_in_parts_and_survives_faults(through, direct, proxy, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(os.urandom(33 << 20))
    through.check_writable()
    proxy.rate = 0.2
    through.upload("u", file)
    through.write("w", file.read_bytes()[: 17 << 20])
    with through.local("u") as path:
        assert path.read_bytes() == file.read_bytes()
    assert direct.read("w") == file.read_bytes()[: 17 << 20]
    assert proxy.requests >= 10


def test_a_list_of_more_than_a_page_is_whole(direct, monkeypatch):
    call = direct._client.list_objects_v2
    monkeypatch.setattr(direct._client, "list_objects_v2", lambda **options: call(MaxKeys=2, **options))
    names = [f"l/{number}" for number in range(5)]
    for name in names:
        direct.write(name, b"")
    assert list(direct.list("l")) == names
    assert [one.name for one in direct.objects()] == names


def test_an_outage_is_waited_for(through, proxy):
    through.write("k", b"before")
    proxy.outage(2.0)
    begun = time.monotonic()
    through.write("k", b"after")
    assert time.monotonic() - begun >= 1.5
    assert through.read("k") == b"after"


def test_an_outage_that_lasts_ends_in_one_line(proxy, root, caplog):
    store = open_storage(root, endpoint=proxy.endpoint, addressing="path", patience_s=2.0)
    store.write("k", b"")
    proxy.outage(30.0)
    begun = time.monotonic()
    with pytest.raises(StorageError, match=r"cannot read k \(.+\); check storage.s3.endpoint") as error:
        store.read("k")
    assert time.monotonic() - begun < 8
    assert "\n" not in str(error.value)
    assert "trying again for up to" in caplog.text


@pytest.mark.parametrize("encryption", ["AES256", "aws:kms"])
def test_objects_are_encrypted_as_the_settings_say(server, root, tmp_path, request, encryption):
    if encryption == "AES256" and "ceph" in request.node.name:
        pytest.skip("this server has no keys of its own before release 17")
    key = server.kms_key if encryption == "aws:kms" else None
    store = open_storage(
        root, endpoint=server.endpoint, addressing="path", encryption=encryption, kms_key=key
    )
    (tmp_path / "f").write_bytes(bytes(17 << 20))
    store.write("w", b"one")
    store.create("c", b"two")
    store.upload("u", tmp_path / "f")
    assert store.read("w") + store.read("c") == b"onetwo"
    client = boto3.Session().client("s3", endpoint_url=server.endpoint)
    prefix = root.rpartition("/")[2]
    for name in "wcu":
        head = client.head_object(Bucket="pv3d-test", Key=f"{prefix}/{name}")
        assert head["ServerSideEncryption"] == encryption
        assert head.get("SSEKMSKeyId", key) == key


def test_a_profile_gives_the_credentials(server, root, tmp_path, monkeypatch):
    key, secret = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    file = tmp_path / "credentials"
    file.write_text(f"[data]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    options = {"endpoint": server.endpoint, "addressing": "path"}
    open_storage(root, profile="data", **options).check_writable()
    with pytest.raises(StorageError, match=r"check storage.s3.profile"):
        open_storage(root, profile="nosuch", **options)
    with pytest.raises(StorageError, match=r"set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        open_storage(root, **options).check_writable()


def refusal(root, **options):
    """The one line that a store which cannot be written is refused with."""
    with pytest.raises(StorageError) as error:
        open_storage(root, **{"addressing": "path", **options}).check_writable()
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith("storage.")
    for secret in (os.environ.get("AWS_SECRET_ACCESS_KEY"), os.environ.get("AWS_SESSION_TOKEN")):
        assert not secret or secret not in text
    return text


def test_a_missing_bucket_is_one_line(server):
    text = refusal("s3://pv3d-nothere/x", endpoint=server.endpoint)
    assert "NoSuchBucket" in text
    assert "create the bucket" in text


@real
def test_wrong_credentials_are_one_line(rgw, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    assert "check AWS_SECRET_ACCESS_KEY" in refusal("s3://pv3d-test/x", endpoint=rgw.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "NOBODY")
    assert "check AWS_ACCESS_KEY_ID" in refusal("s3://pv3d-test/x", endpoint=rgw.endpoint)


@real
def test_somebody_elses_bucket_is_one_line(rgw, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", rgw.other_key)
    assert "(AccessDenied); permit it" in refusal("s3://pv3d-test/x", endpoint=rgw.endpoint)


@real
def test_a_clock_that_is_wrong_is_one_line(rgw, monkeypatch):
    import botocore.auth

    now = botocore.auth.get_current_datetime
    late = datetime.timedelta(hours=2)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *a, **o: now(*a, **o) + late)
    assert "set the clock" in refusal("s3://pv3d-test/x", endpoint=rgw.endpoint)


@pytest.mark.parametrize(
    ("endpoint", "cure"),
    [("http://127.0.0.1:1", "check storage.s3.endpoint"), ("http://nowhere.invalid", "storage.s3.endpoint"),
     ("nowhere", "storage.s3.endpoint"), ("http://user:hunter2@127.0.0.1:1", "storage.s3.endpoint")],
)  # fmt: skip
def test_a_server_that_cannot_be_reached_is_one_line(no_aws, monkeypatch, endpoint, cure):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "unheard-of")
    text = refusal("s3://pv3d-test/x", endpoint=endpoint, patience_s=0.2)
    assert cure in text
    assert "hunter2" not in text


@pytest.mark.parametrize("root", ["s3://", "s3://KEY:hunter2@bucket/x", "s3://a b/x"])
def test_what_is_no_name_of_a_bucket_is_refused_and_not_repeated(root):
    with pytest.raises(ValueError, match=r"write s3://bucket/prefix") as error:
        open_storage(root)
    assert "hunter2" not in str(error.value)


def test_a_full_disk_here_is_told_from_a_fault_of_the_server(direct, monkeypatch):
    direct.write("k", b"data")

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    for store in (direct, open_storage(direct.root, **direct.s3, cache_gb=1.0)):
        monkeypatch.setattr(store._client, "download_file", full)
        with pytest.raises(StorageError, match=r"No space left on device.*TMPDIR"), store.local("k"):
            pass


def test_no_log_holds_a_secret_even_when_all_is_logged(direct, caplog, monkeypatch):
    """Also when somebody asks the libraries for everything, by the names of their loggers."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-of-this-hour")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-this-hour")
    for name in ("", *SHY, *(name for name in logging.root.manager.loggerDict if name.startswith(SHY))):
        caplog.set_level(logging.DEBUG, name or None)
    with contextlib.suppress(StorageError):  # the real one knows no such secret
        open_storage(direct.root, **direct.s3).check_writable()
    assert {name.partition(".")[0] for name, *_ in caplog.record_tuples} >= {"botocore", "urllib3"}
    assert "of-this-hour" not in caplog.text
    assert "Credential=" not in caplog.text
    assert "Signature" not in caplog.text


@pytest.mark.parametrize(
    ("place", "password"),
    [("AWS_ENDPOINT_URL", "hunter2"), ("HTTP_PROXY", "hunter2"), ("HTTP_PROXY", "hunter2/with@signs")],
)
def test_no_message_and_no_traceback_holds_a_password_of_an_address(no_aws, monkeypatch, place, password):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-nobody")
    monkeypatch.setenv(place, f"http://user:{password}@127.0.0.1:1")
    endpoint = "http://nowhere.invalid" if place == "HTTP_PROXY" else None
    try:
        open_storage("s3://pv3d-test/x", endpoint=endpoint, patience_s=0.0).check_writable()
    except StorageError:
        said = traceback.format_exc()
    assert "hunter2" not in said
    assert "with@signs" not in said
    assert "secret-of-nobody" not in said


@pytest.mark.parametrize(("encryption", "key"), [("AES256", None), ("aws:kms", "key-7")])
def test_requests_are_addressed_signed_and_encrypted_as_the_settings_say(
    proxy, root, tmp_path, encryption, key
):
    """What the server is sent, also of an object in parts."""
    how = {"addressing": "path", "endpoint": proxy.endpoint, "region": "eu-west-3"}
    store = open_storage(root, encryption=encryption, kms_key=key, patience_s=0.0, **how)
    (tmp_path / "f").write_bytes(bytes(17 << 20))
    for call in (lambda: store.write("w", b""), lambda: store.create("c", b""),
                 lambda: store.upload("u", tmp_path / "f")):  # fmt: skip
        proxy.script.extend(["403"] * 9)     # whether the server would take it is another question
        with pytest.raises(StorageError, match="permit"):
            call()
    begun = [headers for method, path, headers in proxy.asked if method == "PUT" or "?uploads" in path]
    assert len(begun) == 3
    for headers in begun:
        assert headers["x-amz-server-side-encryption"] == encryption
        assert headers.get("x-amz-server-side-encryption-aws-kms-key-id") == key
        assert "/eu-west-3/s3/aws4_request" in headers["authorization"]
    assert {path.rpartition("/")[0] for _, path, _ in proxy.asked} == {f"/{root.removeprefix('s3://')}"}
    hosts = {}
    for addressing in ("path", "virtual"):
        one = open_storage("s3://faces/x", endpoint="https://s3.local", addressing=addressing)
        what = {"Bucket": one.bucket, "Key": "x/k"}
        hosts[addressing] = one._client.generate_presigned_url("get_object", what)
    assert hosts["path"].startswith("https://s3.local/faces/x/k?")
    assert hosts["virtual"].startswith("https://faces.s3.local/x/k?")


def test_pauses_between_tries_grow_and_are_random(monkeypatch):
    pauses = []
    monkeypatch.setattr(s3_errors.time, "sleep", pauses.append)
    tries = []
    for _ in range(40):
        pauses.clear()
        waiting = s3_errors.Waiting("x", 1000.0)
        assert all(waiting.pause(ConnectionError()) for _ in range(8))
        tries.append(list(pauses))
    for number, found in enumerate(zip(*tries, strict=True)):
        most = min(10.0, 0.2 * 2**number)
        assert 0 <= min(found) < 0.4 * most
        assert 0.6 * most < max(found) <= most
        assert len(set(found)) == len(found)


# --- copies that the processes of a machine share


@pytest.fixture
def shared(proxy, root):
    """Makes a store that shares copies, behind the proxy, as each process has one."""
    return lambda gb=1e-3: open_storage(root, endpoint=proxy.endpoint, addressing="path", cache_gb=gb)


def test_an_object_is_fetched_once_by_all_stores_of_a_machine(shared, direct, proxy, root):
    data = os.urandom(100_000)
    direct.write("videos/a.mp4", data)
    path = f"/{root.removeprefix('s3://')}/videos/a.mp4"
    for gb, times in [(1e-3, 1), (0.0, 4), (5e-5, 4)]:       # shared; not shared; larger than all the room
        proxy.sent.clear()
        for store in (shared(gb), shared(gb)):
            for _ in range(2):
                with store.local("videos/a.mp4") as copy:
                    assert copy.read_bytes() == data
        assert proxy.sent[path] == times * len(data)


def test_what_has_changed_is_fetched_again(shared, direct):
    store = shared()
    for data in (b"first", b"other", b"longer than both"):
        direct.write("k", data)
        with store.local("k") as copy:
            assert copy.read_bytes() == data
    direct.delete("k")
    with pytest.raises(FileNotFoundError), store.local("k"):
        pass


@pytest.mark.parametrize("times", [1, 9])
def test_what_changes_while_it_is_fetched_is_never_kept_under_another_name(
    shared, direct, monkeypatch, times
):
    store, changes = shared(), iter(range(times))
    direct.write("k", b"before")
    download = store._client.download_file

    def slow(*arguments, **options):
        for number in changes:
            direct.write("k", b"version %d" % number)
            break
        download(*arguments, **options)

    monkeypatch.setattr(store._client, "download_file", slow)
    with store.local("k") as copy:
        assert copy.read_bytes().startswith(b"version")
    for _ in changes:
        pass
    with shared().local("k") as copy:
        assert copy.read_bytes() == direct.read("k")


def test_a_copy_survives_every_fault(shared, direct, proxy):
    data = os.urandom(50_000)
    direct.write("k", data)
    store = shared()
    with store.local("k"):
        pass
    for fault in FAULTS:
        direct.write("k", data + fault.encode())
        proxy.script.extend([fault, "", "", fault, fault])
        with store.local("k") as copy:
            assert copy.read_bytes() == data + fault.encode()
