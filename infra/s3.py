"""The store on S3 and what speaks like it, through boto3.

Commits rest on one call alone, a single put with `If-None-Match: *`: servers agree on nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ResponseStreamingError,
)

from infra.storage import Storage, StorageError, check_key

T = TypeVar("T")

_MULTIPART_BYTES = 16 << 20
_TRIES = 6
# What the network does to an answer that was under way; boto3 retries requests, but not a body half read.
_LOST = (ConnectionError, HTTPClientError, IncompleteReadError, ResponseStreamingError)


@dataclass(frozen=True, slots=True)
class Object:
    """One object of a bucket; `etag` changes with its content."""

    name: str
    bytes: int
    etag: str


class S3Storage(Storage):
    """A bucket and prefix. Credentials come from the usual AWS places and are never logged."""

    def __init__(
        self,
        root: str,
        *,
        endpoint: str | None = None,
        region: str | None = None,
        addressing: str = "auto",
        profile: str | None = None,
        setting: str = "storage.root",
    ) -> None:
        self._setting = setting              # what error messages name
        bucket, _, prefix = root.removeprefix("s3://").partition("/")
        if not bucket:
            raise ValueError(f"{setting}: {root!r} names no bucket; write s3://bucket/prefix")
        self.root = root.rstrip("/")
        self.bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        config = Config(
            retries={"mode": "standard", "max_attempts": 5},
            connect_timeout=10,
            read_timeout=60,
            s3={"addressing_style": addressing},  # type: ignore[arg-type]
            request_checksum_calculation="when_required",  # newer checksums are unknown to many servers
            response_checksum_validation="when_required",
        )
        with self._plain_errors("open"):
            session = boto3.Session(profile_name=profile, region_name=region)
            self._client: Any = session.client("s3", endpoint_url=endpoint, config=config)

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    @contextlib.contextmanager
    def _plain_errors(self, what: str) -> Iterator[None]:
        """Turn boto3's exceptions into FileNotFoundError or a StorageError of one line."""
        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in ("404", "NoSuchKey", "NotFound"):
                raise FileNotFoundError(f"{self.root}: {what}") from None
            cure = _CURES.get(code, "see the log of the server")
            raise StorageError(f"{self._setting}: {self.root}: cannot {what} ({code}); {cure}") from None
        except BotoCoreError as error:
            reason = " ".join(str(error).split())
            raise StorageError(f"{self._setting}: {self.root}: cannot {what} ({reason})") from None

    def _persist(self, what: str, call: Callable[[], T]) -> T:
        """Repeat what only reads or replaces when its answer was lost."""
        with self._plain_errors(what):
            for number in range(_TRIES):
                try:
                    return call()
                except _LOST:
                    if number == _TRIES - 1:
                        raise
                    _pause(number)
        raise AssertionError("unreachable")

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
        if len(data) > _MULTIPART_BYTES:
            call = functools.partial(self._client.upload_fileobj, Bucket=self.bucket, Key=self._name(key))
            self._persist(f"write {key}", lambda: call(io.BytesIO(data)))
        else:
            self._persist(f"write {key}", lambda: self._put(key, data))

    def _put(self, key: str, data: bytes, **options: str) -> None:
        self._client.put_object(Bucket=self.bucket, Key=self._name(key), Body=data, **options)

    def create(self, key: str, data: bytes) -> bool:
        """One winner among several writers. An answer that was lost is settled by reading back."""
        for number in range(_TRIES):
            with self._plain_errors(f"create {key}"):
                try:
                    self._put(key, data, IfNoneMatch="*")
                except ClientError as error:
                    code = error.response["Error"]["Code"]
                    if code in ("PreconditionFailed", "412"):
                        # After a retry inside boto3 the object may be our own, its answer lost.
                        retried = error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0
                        return retried and self.read(key) == data
                    if code not in ("ConditionalRequestConflict", "409"):
                        raise
                except _LOST:
                    if self.exists(key):
                        return self.read(key) == data
                else:
                    return True
            _pause(number)
        raise StorageError(f"{self._setting}: {self.root}: cannot create {key}; the server gives no answer")

    def upload(self, key: str, path: Path) -> None:
        call = self._client.upload_file
        self._persist(f"upload {key}", lambda: call(str(path), self.bucket, self._name(key)))

    def local(self, key: str) -> contextlib.AbstractContextManager[Path]:
        return self.fetched(check_key(key))

    @contextlib.contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        """As `local`, of an object whose name need not be one of our keys."""
        handle, path = tempfile.mkstemp(prefix="pv3d-", suffix=Path(name).suffix[:16])
        os.close(handle)
        try:
            call = self._client.download_file
            self._persist(f"read {name}", lambda: call(self.bucket, self._prefix + name, path))
            yield Path(path)
        finally:
            Path(path).unlink(missing_ok=True)

    def url(self, name: str) -> str:
        return f"s3://{self.bucket}/{self._prefix}{name}"

    def objects(self) -> Iterator[Object]:
        """Everything below the root, whoever put it there, page by page."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self._prefix
        )
        with self._plain_errors("list it"):
            for page in pages:
                for entry in page.get("Contents", []):
                    name = entry["Key"].removeprefix(self._prefix)
                    yield Object(name, int(entry["Size"]), str(entry.get("ETag", "")).strip('"'))

    def list(self, prefix: str = "") -> Iterator[str]:
        base = self._prefix + (f"{check_key(prefix)}/" if prefix else "")
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=base)
        with self._plain_errors(f"list {prefix or 'everything'}"):
            for page in pages:
                for entry in page.get("Contents", []):
                    yield entry["Key"].removeprefix(self._prefix)

    def _head(self, key: str) -> dict[str, Any]:
        call = functools.partial(self._client.head_object, Bucket=self.bucket, Key=self._name(key))
        head: dict[str, Any] = self._persist(f"look up {key}", call)
        return head

    def exists(self, key: str) -> bool:
        try:
            self._head(key)
        except FileNotFoundError:
            return False
        return True

    def size(self, key: str) -> int:
        return int(self._head(key)["ContentLength"])

    def delete(self, key: str) -> None:
        call = functools.partial(self._client.delete_object, Bucket=self.bucket, Key=self._name(key))
        self._persist(f"delete {key}", call)

    def check_writable(self) -> None:
        try:
            self.write(".writable", b"")
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


_CURES = {
    "AccessDenied": "permit it to these credentials",
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID or storage.s3.profile",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY or storage.s3.profile",
    "NoSuchBucket": "create the bucket first",
    "QuotaExceeded": "make room",
}


def _pause(number: int) -> None:
    """Exponential, with jitter: many workers lose a server at the same moment."""
    time.sleep(random.uniform(0, min(10.0, 0.2 * 2**number)))
