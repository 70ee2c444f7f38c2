"""What the errors of a download mean, and how they are told without secrets."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

Kind = Literal["gone", "gated", "regional", "throttled", "transient", "ours"]


@dataclass(frozen=True)
class Failure:
    """What an error means. `reason` is short and is counted."""

    kind: Kind
    reason: str


NO_FORMAT = "the format setting fits no format"
FULL, UNWRITABLE = OF_DISK = ("the disk is full", "cannot write")

# In order, on text in small letters with straight apostrophes; the first that is found decides.
SIGNS: tuple[tuple[str, Kind, str], ...] = (
    (r"no space left|disk quota exceeded", "ours", FULL),
    # Not by words: a server may say "permission denied" as well.
    (r"unable to open for writing|unable to create directory|\[errno (13|30)\]", "ours", UNWRITABLE),
    (r"unable to write data", "ours", UNWRITABLE),
    # ffmpeg ends with 256 less the system's number: of a full disk, a quota, and places it may not write.
    (r"ffmpeg exited with code (228|134)\b", "ours", FULL),
    (r"ffmpeg exited with code (226|229|243)\b", "ours", UNWRITABLE),
    (r"requested format is not available", "ours", NO_FORMAT),
    (r"ffmpeg (is not installed|could not be found)|ffmpeg not found", "ours",
     "ffmpeg is missing; pip install imageio-ffmpeg"),
    (r"no supported javascript runtime|yt-dlp-ejs.*(missing|not (installed|found))", "ours",
     "YouTube needs a JavaScript runtime; pip install 'yt-dlp[default,deno]'"),
    (r"http error 407|proxy authentication required", "ours", "the proxy wants a password"),
    (r"netscape format cookies|cookies? file|failed to load cookies", "ours",
     "the cookies file cannot be read"),
    (r"http error 429|too many requests", "throttled", "throttled: 429"),
    (r"not a bot|captcha", "throttled", "throttled: bot check"),
    (r"\bip (address )?is (likely being |currently )?blocked", "throttled", "throttled: address blocked"),
    (r"content isn't available, try again later|rate-limited by youtube", "throttled",
     "throttled: session limited"),
    (r"http error 451|in your country|from your location|geo.?restrict", "regional",
     "regional: not available here"),
    (r"confirm your age|age.restricted|inappropriate for some users", "gated", "gated: age check"),
    (r"members.only|join this channel|members on level", "gated", "gated: members only"),
    (r"premieres in|premiere will begin|live event will begin|not currently live|not (yet )?started|"
     r"not available yet", "gated", "gated: not shown yet"),
    (r"http error 40[12]|requires payment|purchase|login required|account.{0,20}required|registered users|"
     r"premium members|subscri(be to|ption)|video is paid|password.protected|video password", "gated",
     "gated: login or payment"),
    (r"\bdrm\b", "gone", "gone: DRM"),
    (r"private video|video is private", "gone", "gone: private"),
    (r"account.{0,60}terminated|account has been (closed|suspended)", "gone", "gone: account terminated"),
    (r"copyright", "gone", "gone: copyright claim"),
    (r"has been removed|(been|was) deleted|removed by the (uploader|user)|no longer available", "gone",
     "gone: removed"),
    (r"video unavailable|(video|recording) is (unavailable|not available)|video .{0,40}does not exist|"
     r"(livestream|live stream|live event|broadcast) has ended|playback on other websites", "gone",
     "gone: unavailable"),
    (r"(sign|log|logged) ?in\b", "gated", "gated: login or payment"),
    (r"http error 4(04|10)", "gone", "gone: not found"),
    (r"redirect loop|too many redirects|infinite loop", "gone", "gone: redirects in a circle"),
    (r"unsupported url|no suitable extractor|is not a valid url", "gone", "gone: no video at this address"),
    (r"http error 403", "transient", "http 403"),
    (r"http error 5\d\d", "transient", "http 5xx"),
    (r"timed? ?out|timeout", "transient", "timeout"),
    (r"content too short|incomplete ?read|bytes read|did not get any data|end of file", "transient",
     "incomplete"),
    (r"proxy", "transient", "proxy"),
    (r"name or service not known|temporary failure in name resolution|failed to resolve|connection|network"
     r"|ssl|certificate|unreachable|reset by peer", "transient", "network"),
    (r"ffmpeg exited", "transient", "ffmpeg failed"),
    (r"http error (\d+)", "transient", "http error"),
)
NAMES: Mapping[str, Failure] = {
    "GeoRestrictedError": Failure("regional", "regional: not available here"),
    "UserNotLive": Failure("gated", "gated: not shown yet"),
    "ContentTooShortError": Failure("transient", "incomplete"),
    "IncompleteRead": Failure("transient", "incomplete"),
    "ProxyError": Failure("transient", "proxy"),
    "UnsupportedError": Failure("gone", "gone: no video at this address"),
}


def classify(error: BaseException | str) -> Failure:
    """What to do about an error of a download; unknown ones are worth another try."""
    if isinstance(error, str):
        return _by_text(error) or Failure("transient", "unknown error")
    chain = list(_chain(error))
    for one in chain:
        if isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT):
            return Failure("ours", FULL)
        if isinstance(one, OSError) and one.errno in (errno.EROFS, errno.EFBIG):
            return Failure("ours", UNWRITABLE)
    found = [failure for one in chain if (failure := _by_text(str(one)))]
    # What a page says in words beats the status it came with.
    worded = [failure for failure in found if failure.kind != "transient"]
    named = [NAMES[type(one).__name__] for one in chain if type(one).__name__ in NAMES]
    return next(iter([*worded, *named, *found]), Failure("transient", "unknown error"))


def _by_text(text: str) -> Failure | None:
    plain = text.replace("’", "'").replace("`", "'").lower()
    return next((Failure(kind, reason) for sign, kind, reason in SIGNS if re.search(sign, plain)), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from; yt-dlp keeps causes in `exc_info` and `cause`."""
    waiting: list[Any] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop(0)
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        info = getattr(one, "exc_info", None)
        causes = [info[1] if isinstance(info, tuple) and len(info) > 1 else None, getattr(one, "cause", None)]
        waiting += [*causes, one.__cause__]


def retry_after(error: BaseException) -> float | None:
    """For how many seconds a server asked us to stay away (`Retry-After`); None when it did not say."""
    for one in _chain(error):
        headers = getattr(getattr(one, "response", None), "headers", None)
        if headers is None or not (said := headers.get("Retry-After")):
            continue
        if re.fullmatch(r"\d{1,6}", said.strip()):
            return float(said)
        with contextlib.suppress(ValueError):
            date = parsedate_to_datetime(said)
            date = date if date.tzinfo else date.replace(tzinfo=UTC)
            return max((date - datetime.now(UTC)).total_seconds(), 0.0)
    return None


def scrub(text: str, secrets: Sequence[str] = (), folder: str = "") -> str:
    """One line of `text` without secrets, passwords in URLs, signed queries, and paths of this machine."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    for secret in sorted((s for s in secrets if len(s) > 2), key=len, reverse=True):
        text = text.replace(secret, "***")
    text = re.sub(r"(\w+://)[^/\s@'\"]+@", r"\1***@", text)
    text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\")]+", r"\1?***", text)
    if folder:
        text = text.replace(folder, "<work>")
    text = re.sub(r"; please report this issue on .*|\(caused by .*", "", " ".join(text.split()))
    return text.removeprefix("ERROR: ")[:300]
