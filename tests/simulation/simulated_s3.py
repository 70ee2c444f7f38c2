"""The client of boto3 that the real `S3Storage` talks to: the same objects, and errors as S3 gives them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from simulated_store import Line, Objects

T = TypeVar("T")

PREFIX = "run/"                              # of the keys in the bucket


class Client:
    """What boto3 makes for S3, as far as `S3Storage` uses it."""

    def __init__(self, line: Line, page: int) -> None:
        self._line, self._page = line, page
        self.meta = SimpleNamespace(events=SimpleNamespace(register=lambda *_: None))

    def _call(self, op: str, key: str, act: Callable[[], T], again: Callable[[], T] | None = None) -> T:
        return self._line.call(op, key, act, self._error, again)

    def _error(self, op: str, key: str, acted: bool) -> Exception:
        if acted:
            kinds = [_error("InternalError", 500), ReadTimeoutError(endpoint_url="simulated")]
        else:
            kinds = [_error("SlowDown", 503), EndpointConnectionError(endpoint_url="simulated")]
            if op == "create":
                kinds.append(_error("ConditionalRequestConflict", 409))
        return self._line.random.choice(kinds)

    @property
    def _objects(self) -> Objects:
        return self._line.objects

    def put_object(self, *, Bucket: str, Key: str, Body: bytes, IfNoneMatch: str = "") -> None:
        key = Key.removeprefix(PREFIX)

        def create(tries: int = 0) -> None:
            if not self._objects.put_new(key, Body):
                raise _error("PreconditionFailed", 412, tries)

        if IfNoneMatch:
            assert IfNoneMatch == "*"
            self._call("create", key, create, lambda: create(1))
        else:
            self._call("write", key, lambda: self._objects.put(key, Body))

    def upload_fileobj(self, file: Any, bucket: str, name: str, **_: Any) -> None:
        self.put_object(Bucket=bucket, Key=name, Body=file.read())

    def get_object(self, *, Bucket: str, Key: str, Range: str = "") -> dict[str, Any]:
        data = self._get(Key)
        if Range:
            first, _, last = Range.removeprefix("bytes=").partition("-")
            data = data[int(first) : int(last) + 1]
        return {"Body": SimpleNamespace(read=lambda: data)}

    def download_file(self, bucket: str, name: str, path: str, **_: Any) -> None:
        Path(path).write_bytes(self._get(name))

    def head_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:
        return {"ContentLength": len(self._get(Key, "exists"))}

    def _get(self, name: str, op: str = "read") -> bytes:
        key = name.removeprefix(PREFIX)

        def act() -> bytes:
            if key not in self._objects.held:
                raise _error("NoSuchKey", 404)
            return self._objects.held[key]

        return self._call(op, key, act)

    def list_objects_v2(self, *, Bucket: str, Prefix: str, ContinuationToken: str = "") -> dict[str, Any]:
        """Pages of an order that does not change, each as the store is then."""
        prefix = Prefix.removeprefix(PREFIX)

        def act() -> dict[str, Any]:
            keys = [key for key in self._objects.below(prefix) if key > ContinuationToken]
            page = keys[: self._page]
            rows = [
                {"Key": PREFIX + key, "Size": len(self._objects.held[key]),
                 "LastModified": datetime.fromtimestamp(int(self._objects.modified_s[key]), UTC)}
                for key in page
            ]  # fmt: skip
            more = len(keys) > len(page)
            return {"Contents": rows, "IsTruncated": more, "NextContinuationToken": page[-1] if more else ""}

        return self._call("list", prefix or ".", act)

    def delete_object(self, *, Bucket: str, Key: str) -> None:
        key = Key.removeprefix(PREFIX)
        self._call("delete", key, lambda: self._objects.delete(key))

    def delete_objects(self, *, Bucket: str, Delete: dict[str, Any]) -> dict[str, Any]:
        keys = [row["Key"].removeprefix(PREFIX) for row in Delete["Objects"]]

        def act() -> dict[str, Any]:
            for key in keys:
                self._objects.delete(key)
            return {}

        return self._call("delete", " ".join(keys), act)

    def list_multipart_uploads(self, **_: Any) -> dict[str, Any]:
        return {}


def _error(code: str, status: int, tries: int = 0) -> ClientError:
    metadata: Any = {"HTTPStatusCode": status, "RetryAttempts": tries}
    return ClientError({"Error": {"Code": code, "Message": code}, "ResponseMetadata": metadata}, "simulated")
