"""The store on S3 and what speaks like it, through boto3.

Commits rest on one call alone, a single put with `If-None-Match: *`: servers agree on nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError, ResponseStreamingError

from infra.s3_copies import Copies
from infra.s3_errors import (
    ERRORS,
    GONE_UPLOAD,
    NOT_THERE,
    Waiting,
    check_whole,
    code_of,
    cure_of,
    passes,
    reason_of,
    tried_again,
)
from infra.storage import Entry, Storage, StorageError, check_key, is_key

T = TypeVar("T")

for _name in ("boto3", "botocore", "s3transfer"):
    logging.getLogger(_name).setLevel(logging.WARNING)
logging.getLogger("urllib3").setLevel(logging.ERROR)     # half an answer is our concern: `check_whole`


def _no_secret(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


# Whoever asks botocore for everything would get headers with session tokens, and answers that hold keys.
for _name in ("botocore.auth", "botocore.endpoint", "botocore.parsers"):
    logging.getLogger(_name).addFilter(_no_secret)

_PART_BYTES = 16 << 20                       # larger objects go up in parts of this size
_TRANSFER = TransferConfig(_PART_BYTES, multipart_chunksize=_PART_BYTES, max_concurrency=4)
_FIRST_S = 30.0                              # a server that has not answered yet is more likely misspelt
_START_S = 10.0
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")


@dataclass(frozen=True, slots=True)
class Object:
    """One object of a bucket; `etag` changes with its content."""

    name: str
    bytes: int
    etag: str


class S3Storage(Storage):
    """A bucket and prefix. Credentials come from the usual AWS places and are never logged.

    What failed for a reason that passes (no answer, half an answer, a server error, a conflict) is repeated
    for `patience_s`. With `cache_gb`, the processes of a machine share the copies that they fetch.
    """

    request_bytes = 1 << 19                  # some milliseconds of latency and of this machine's work

    def __init__(
        self,
        root: str,
        *,
        endpoint: str | None = None,
        region: str | None = None,
        addressing: str = "auto",
        profile: str | None = None,
        encryption: str | None = None,
        kms_key: str | None = None,
        patience_s: float = 300.0,
        cache_gb: float = 0.0,
        setting: str = "storage.root",
    ) -> None:
        self._setting = setting              # what error messages name
        bucket, _, prefix = root.removeprefix("s3://").partition("/")
        if not bucket:
            raise ValueError(f"{setting}: {root!r} names no bucket; write s3://bucket/prefix")
        if not _BUCKET.fullmatch(bucket):    # not repeated: it may hold a password
            raise ValueError(f"{setting}: what follows s3:// is no name of a bucket; write s3://bucket/prefix")
        self.root = root.rstrip("/")
        self.bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._patience_s = patience_s
        place = f"{endpoint or ''} {self.bucket}"
        self.cache_bytes = int(cache_gb * 1e9)
        self._copies = Copies(place, setting, self.cache_bytes, self._state, self._download)
        self._answered = False
        self._extra = {"ServerSideEncryption": encryption} if encryption else {}
        if kms_key:
            self._extra["SSEKMSKeyId"] = kms_key
        config = Config(
            retries={"mode": "standard", "max_attempts": 3},
            connect_timeout=5,
            read_timeout=60,
            s3={"addressing_style": addressing},  # type: ignore[arg-type]
            request_checksum_calculation="when_required",  # newer checksums are unknown to many servers
            response_checksum_validation="when_required",
        )
        with self._plain_errors("open"):
            session = boto3.Session(profile_name=profile, region_name=region)
            try:
                self._client: Any = session.client("s3", endpoint_url=endpoint, config=config)
            except ValueError:               # not repeated: it may hold a password
                raise StorageError("storage.s3.endpoint: no address; write https://host") from None
        self._client.meta.events.register("before-parse.s3", check_whole)

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    @contextlib.contextmanager
    def _plain_errors(self, what: str) -> Iterator[None]:
        """Turn boto3's exceptions into FileNotFoundError or a StorageError of one line."""
        try:
            yield
        except ERRORS as error:
            if code_of(error) in NOT_THERE:
                raise FileNotFoundError(f"{self.root}: {what}") from None
            cure = cure_of(error)
            raise StorageError(
                f"{self._setting}: {self.root}: cannot {what} ({reason_of(error)}); {cure}"
            ) from None

    def _persist(self, what: str, call: Callable[[], T], most_s: float | None = None) -> T:
        """Repeat what only reads or replaces until it is answered."""
        waiting = self._waiting(what, most_s)
        with self._plain_errors(what):
            while True:
                try:
                    answer = call()
                except ERRORS as error:
                    self._answered |= isinstance(error, ClientError)
                    if not (passes(error) and waiting.pause(error)):
                        raise
                else:
                    self._answered = True
                    return answer

    def _waiting(self, what: str, most_s: float | None = None) -> Waiting:
        patience_s = self._patience_s if self._answered else min(self._patience_s, _FIRST_S)
        seconds = patience_s if most_s is None else min(most_s, patience_s)
        return Waiting(f"{self.root}: cannot {what}", seconds)

    def read(self, key: str) -> bytes:
        return self._get(key)

    def _get(self, key: str, **options: str) -> bytes:
        def call() -> bytes:
            answer = self._client.get_object(Bucket=self.bucket, Key=self._name(key), **options)
            data: bytes = answer["Body"].read()
            return data

        return self._persist(f"read {key}", call)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        if length == 0:
            return b""
        try:
            data = self._get(key, Range=f"bytes={start}-{start + length - 1}")
        except StorageError as error:
            if "InvalidRange" not in str(error):
                raise
            data = b""
        if len(data) != length:
            raise EOFError(f"{key}: {length} bytes wanted at {start}, {len(data)} are there")
        return data

    def write(self, key: str, data: bytes) -> None:
        self._write(key, data)

    def _write(self, key: str, data: bytes, most_s: float | None = None) -> None:
        def call() -> None:
            if len(data) > _PART_BYTES:
                self._send(io.BytesIO(data), key)
            else:
                self._put(key, data)

        self._persist(f"write {key}", call, most_s)

    def _put(self, key: str, data: bytes, **options: str) -> None:
        options = {**self._extra, **options}
        self._client.put_object(Bucket=self.bucket, Key=self._name(key), Body=data, **options)

    def _send(self, file: Any, key: str) -> None:
        """In parts when it is large."""
        name = self._name(key)
        try:
            self._client.upload_fileobj(file, self.bucket, name, ExtraArgs=self._extra, Config=_TRANSFER)
        except ClientError as error:
            if code_of(error) not in GONE_UPLOAD:
                raise
            # It was completed, its answer lost, and completed again; or somebody gave it up for us.
            raise ResponseStreamingError(error="the upload is gone") from None

    def create(self, key: str, data: bytes) -> bool:
        """One winner among writers of different bytes. An answer that was lost is settled by reading back."""
        what = f"create {key}"
        waiting, sent = self._waiting(what), False
        with self._plain_errors(what):
            while True:
                try:
                    self._put(key, data, IfNoneMatch="*")
                    self._answered = True
                    return True
                except ERRORS as error:
                    if code_of(error) in ("PreconditionFailed", "412"):
                        # After a second try, here or in boto3, it may be our own, whose answer was lost.
                        return (sent or tried_again(error)) and self._holds(key, data)
                    if not (passes(error) and waiting.pause(error)):
                        raise
                    sent = True

    def _holds(self, key: str, data: bytes) -> bool:
        try:
            return self.read(key) == data
        except FileNotFoundError:
            return False

    def upload(self, key: str, path: Path) -> None:
        def call() -> None:
            with path.open("rb") as file:
                self._send(file, key)

        self._persist(f"upload {key}", call)

    def local(self, key: str) -> contextlib.AbstractContextManager[Path]:
        return self.fetched(check_key(key))

    def fetched(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """As `local`, of an object whose name need not be one of our keys."""
        return self._copies.fetched(self._prefix + name)

    def _state(self, name: str) -> tuple[int, str]:
        head = self._head(name)
        return int(head["ContentLength"]), str(head.get("ETag", "")).strip('"')

    def _download(self, name: str, path: Path) -> None:
        call = functools.partial(self._client.download_file, self.bucket, name, str(path))
        self._persist(f"read {name.removeprefix(self._prefix)}", functools.partial(call, Config=_TRANSFER))

    def url(self, name: str) -> str:
        return f"s3://{self.bucket}/{self._prefix}{name}"

    def objects(self) -> Iterator[Object]:
        """Everything below the root, whoever put it there, page by page."""
        for entry in self._entries(self._prefix, "list it"):
            name = entry["Key"].removeprefix(self._prefix)
            yield Object(name, int(entry["Size"]), str(entry.get("ETag", "")).strip('"'))

    def list(self, prefix: str = "") -> Iterator[str]:
        base = self._prefix + (f"{check_key(prefix)}/" if prefix else "")
        for entry in self._entries(base, f"list {prefix or 'everything'}"):
            key = entry["Key"].removeprefix(self._prefix)
            if is_key(key, self.root):
                yield key

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        base = self._prefix + (f"{check_key(prefix)}/" if prefix else "")
        for entry in self._entries(base, f"list {prefix or 'everything'}"):
            key = entry["Key"].removeprefix(self._prefix)
            if is_key(key, self.root):
                yield Entry(key, int(entry["Size"]), entry["LastModified"].timestamp())

    def unfinished(self) -> Iterator[tuple[Entry, Callable[[], None]]]:
        """Uploads in parts that were neither completed nor given up; they cost as objects do."""
        call = functools.partial(self._client.list_multipart_uploads, Bucket=self.bucket, Prefix=self._prefix)
        while True:
            page = self._persist("list uploads", call)
            for upload in page.get("Uploads", []):
                which = {"Bucket": self.bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                try:
                    parts = self._persist("list parts", functools.partial(self._client.list_parts, **which))
                except FileNotFoundError:    # finished by now
                    continue
                size = sum(int(part["Size"]) for part in parts.get("Parts", []))
                key = upload["Key"].removeprefix(self._prefix)
                yield Entry(key, size, upload["Initiated"].timestamp()), functools.partial(self._abort, which)
            if not page.get("IsTruncated"):
                return
            after = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
            call = functools.partial(call, **after)

    def _abort(self, which: dict[str, str]) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._persist("abort", functools.partial(self._client.abort_multipart_upload, **which))

    def _entries(self, base: str, what: str) -> Iterator[dict[str, Any]]:
        call = functools.partial(self._client.list_objects_v2, Bucket=self.bucket, Prefix=base)
        while True:
            page = self._persist(what, call)
            yield from page.get("Contents", [])
            if not page.get("IsTruncated"):
                return
            call = functools.partial(call, ContinuationToken=page["NextContinuationToken"])

    def _head(self, name: str) -> dict[str, Any]:
        def call() -> dict[str, Any]:
            head: dict[str, Any] = self._client.head_object(Bucket=self.bucket, Key=name)
            if "ContentLength" not in head:
                raise ResponseStreamingError(error="half a header")
            return head

        return self._persist(f"look up {name.removeprefix(self._prefix)}", call)

    def exists(self, key: str) -> bool:
        try:
            self._head(self._name(key))
        except FileNotFoundError:
            return False
        return True

    def size(self, key: str) -> int:
        return int(self._head(self._name(key))["ContentLength"])

    def delete(self, key: str) -> None:
        call = functools.partial(self._client.delete_object, Bucket=self.bucket, Key=self._name(key))
        self._persist(f"delete {key}", call)

    def delete_all(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), 1000):
            names = [{"Key": self._name(key)} for key in keys[start : start + 1000]]
            request = {"Objects": names, "Quiet": True}
            call = functools.partial(self._client.delete_objects, Bucket=self.bucket, Delete=request)
            for error in self._persist(f"delete {len(names)} objects", call).get("Errors", []):
                self.delete(error["Key"].removeprefix(self._prefix))   # tells why not

    def check_writable(self) -> None:
        try:
            self._write(".writable", b"", _START_S)
            self.delete(".writable")
        except FileNotFoundError:
            raise StorageError(f"{self._setting}: {self.root}: no such bucket; create it first") from None


def fetched(url: str, options: Mapping[str, Any]) -> contextlib.AbstractContextManager[Path]:
    """A local path of the object `s3://bucket/name` while the context lasts. Raises FileNotFoundError."""
    bucket, _, name = url.removeprefix("s3://").partition("/")
    return _bucket(bucket, tuple(sorted(options.items()))).fetched(name)


@functools.lru_cache(maxsize=8)
def _bucket(bucket: str, options: tuple[tuple[str, Any], ...]) -> S3Storage:
    return S3Storage(f"s3://{bucket}", **dict(options), setting="source.location")  # a client takes long
