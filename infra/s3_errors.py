"""What goes wrong with S3: what passes when one waits, and what cures the rest."""

from __future__ import annotations

import logging
import random
import re
import time
from typing import Any

from boto3.exceptions import Boto3Error
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ResponseStreamingError,
    SSLError,
)
from botocore.parsers import ResponseParserError

log = logging.getLogger(__name__)

ERRORS = (ClientError, BotoCoreError, Boto3Error, ResponseParserError)
GONE_UPLOAD = ("NoSuchUpload", "InvalidPart")
NOT_THERE = ("404", "NoSuchKey", "NotFound", "NoSuchUpload")

# The last three: a body that broke off, once or again and again, and half a document.
_LOST = (ConnectionError, HTTPClientError, IncompleteReadError, Boto3Error, ResponseParserError)
_AGAIN = ("ConditionalRequestConflict", "OperationAborted", "ConcurrentModification", "409")
_BUSY = ("SlowDown", "RequestTimeout", "Throttling", "TooManyRequests", "429")
_JITTER = random.SystemRandom()              # whoever seeds the global one gets what they expect of it

_CURES = {
    "AccessDenied": "permit it to these credentials",
    "403": "permit it to these credentials",
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID or storage.s3.profile",
    "InvalidToken": "check AWS_SESSION_TOKEN or storage.s3.profile",
    "ExpiredToken": "get new credentials",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY or storage.s3.profile",
    "RequestTimeTooSkewed": "set the clock of this machine",
    "AuthorizationHeaderMalformed": "set storage.s3.region to the bucket's",
    "PermanentRedirect": "set storage.s3.region to the bucket's",
    "301": "set storage.s3.region to the bucket's",
    "InvalidBucketName": "write s3://bucket/prefix",
    "NoSuchBucket": "create the bucket first",
    "QuotaExceeded": "make room",
    "KMS.NotFoundException": "check storage.s3.kms_key",
    "InvalidArgument": "check storage.s3.encryption and storage.s3.kms_key",
}
_CURES_HERE = {
    "CredentialsError": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or storage.s3.profile",
    "CredentialRetrievalError": "check storage.s3.profile",
    "ProfileNotFound": "check storage.s3.profile",
    "ConfigParseError": "mend this file",
    "TokenLoadError": "sign in (aws sso login)",
    "SSOTokenError": "sign in (aws sso login)",
    "RegionError": "check storage.s3.region",
    "SSLError": "let AWS_CA_BUNDLE name the certificates to trust",
}


def check_whole(response_dict: dict[str, Any], operation_model: Any, **more: Any) -> None:
    """For boto3's event before-parse. Raises ResponseStreamingError for an answer that was cut short.

    boto3 takes half a header for a whole one, and nothing at all for an empty list.
    """
    headers, body = response_dict["headers"], response_dict["body"]
    method, length = operation_model.http["method"], headers.get("content-length")
    if method not in ("GET", "POST") or response_dict["status_code"] in (204, 304):
        return                               # their status says all that they have to say
    if not isinstance(body, bytes):          # checked against the length while it is read
        cut = length is None and "transfer-encoding" not in headers
    else:
        cut = not body if length is None else len(body) != int(length)
    if cut:
        raise ResponseStreamingError(error="the answer was cut short")


def code_of(error: Exception) -> str:
    """What the server calls it: "NoSuchKey", or the HTTP status where there is no more; "" for no answer."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def reason_of(error: Exception) -> str:
    """In some words, without a password that an address may hold."""
    if isinstance(error, ResponseParserError):
        return "half an answer"
    text = " ".join(str(error).split()).rstrip(".")
    if "Failed to parse" in text:            # urllib3 cites a part of it, which may hold a password
        return "the address of the server, or of a proxy, cannot be read"
    return code_of(error) or re.sub(r"//\S*@", "//", text)[:300]


def cure_of(error: Exception) -> str:
    """What the user can do about it."""
    if isinstance(error, ClientError):
        return _CURES.get(code_of(error), "see the log of the server")
    kind = type(error).__name__
    found = (cure for name, cure in _CURES_HERE.items() if kind.endswith(name))
    return next(found, "check storage.s3.endpoint and the network")


def tried_again(error: Exception) -> bool:
    """Whether boto3 had sent the request before."""
    return isinstance(error, ClientError) and error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0


def passes(error: Exception) -> bool:
    """Whether the same request may be answered otherwise when it is sent again."""
    if isinstance(error, ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = code_of(error)
        return code.startswith(_BUSY) or code in _AGAIN or (status >= 500 and status != 501)
    return isinstance(error, _LOST) and not isinstance(error, SSLError)


class Waiting:
    """Pauses between tries: exponential, with jitter, for many workers lose a server at the same moment."""

    def __init__(self, what: str, most_s: float) -> None:
        self._what = what
        self._most_s = most_s
        self._began: float | None = None
        self._number = 0

    def pause(self, error: Exception) -> bool:
        """Wait before another try; False, at once, when there was time enough."""
        now = time.monotonic()
        if self._began is None:
            self._began = now
        left_s = self._began + self._most_s - now
        if left_s <= 0:
            return False
        if self._number == 2:                # what ends by itself in a second is nobody's concern
            reason = code_of(error) or type(error).__name__
            log.warning("%s (%s); trying again for up to %.0f s", self._what, reason, left_s)
        time.sleep(min(left_s, _JITTER.uniform(0, min(10.0, 0.2 * 2**self._number))))
        self._number += 1
        return True
