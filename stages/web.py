"""What the stages that talk to video sites share: settings, manners, and when to try again."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import random
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar
from urllib.parse import urlsplit

from infra import egress
from infra.paths import expanded
from infra.storage import Storage, StorageError
from stages import ytdlp
from stages.base import ACCESS, PACE, Barred, Drop, Rejected, Stage, TryLater
from stages.clip import Clip
from stages.failures import NO_FORMAT, OF_DISK, Failure, classify, retry_after, scrub
from stages.smooth import check_not_negative
from stages.sources import lists

log = logging.getLogger(__name__)

T = TypeVar("T")

# What an extractor raises on a page that nobody foresaw; one page must not end a run.
UNFORESEEN = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, RuntimeError, TypeError,
    ValueError,
)
_explained: set[str] = set()
MOST_ATTEMPTS = 100              # the pause between them doubles


class Unreachable(TryLater):
    """The site did not give it now."""


@dataclass
class WebStage(Stage):
    """Settings of all stages that ask a site. Secrets come from the environment: `proxy: env:NAME`."""

    # yt-dlp's: the best without sound. HDR comes last, for its colours need a tone map that we do not have.
    format: str = "bv[dynamic_range=SDR]/bv*[dynamic_range=SDR]/b/bv*"
    format_sort: list[str] = field(default_factory=lambda: ["res", "fps"])
    maximum_bytes: int = 8 << 30
    # Path of a cookies file in Netscape's format.
    cookies: str = field(default="", metadata=ACCESS)
    # http, https or socks5 URL; with a password: env:NAME.
    proxy: str = field(default="", metadata=ACCESS)
    # Local address to leave from.
    source_address: str = field(default="", metadata=ACCESS)
    # What shares one limit: the cluster, each "node", or any name.
    egress: str = field(default="cluster", metadata=PACE)
    # Videos that are begun, of one egress; 0: no limit.
    requests_per_minute: float = field(default=20.0, metadata=PACE)
    burst: int = field(default=2, metadata=PACE)
    # After a throttling; doubles.
    pause_s: float = field(default=60.0, metadata=PACE)
    # YouTube's limit of a session lasts up to an hour.
    longest_pause_s: float = field(default=3600.0, metadata=PACE)
    # Of one video for its turns, all together; then it is failed.
    longest_wait_s: float = field(default=3600.0, metadata=PACE)
    # Of one video.
    attempts: int = field(default=5, metadata=PACE)
    # Before the second attempt; doubles, with jitter.
    backoff_s: float = field(default=5.0, metadata=PACE)
    # Of one request inside an attempt.
    retries: int = field(default=3, metadata=PACE)
    # Between the requests of one attempt.
    sleep_requests_s: float = field(default=0.0, metadata=PACE)
    socket_timeout_s: float = field(default=20.0, metadata=PACE)
    # Of one attempt.
    attempt_s: float = field(default=3600.0, metadata=PACE)
    # Limit of one download; 0: none.
    bytes_per_s: int = field(default=0, metadata=PACE)
    # A local folder for what is under way; default: a temporary one.
    work: str = field(default="", metadata=PACE)

    timeout_s: ClassVar[float] = 14400.0     # a site may ask for an hour's pause, and attempts are long

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= MOST_ATTEMPTS:
            raise ValueError(f"attempts: {self.attempts} is no number of tries; give 1 to {MOST_ATTEMPTS}")
        for name in ("socket_timeout_s", "attempt_s", "maximum_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} allows nothing; give more than 0")
        check_not_negative(
            longest_wait_s=self.longest_wait_s, backoff_s=self.backoff_s, retries=self.retries,
            sleep_requests_s=self.sleep_requests_s, bytes_per_s=self.bytes_per_s,
        )  # fmt: skip
        if "@" in self.proxy:
            raise ValueError("proxy: holds a password; put it into the environment and write env:NAME")
        if self.proxy and not re.match(r"env:\w+$|(https?|socks5h?)://[\w.-]+(:\d+)?/?$", self.proxy):
            raise ValueError("proxy: is no URL like http://host:port and no env:NAME")
        egress.Egress(self.requests_per_minute, self.burst, self.pause_s, self.longest_pause_s)

    def setup(self, store: Storage) -> None:
        """Raises ValueError for what the user can cure: no yt-dlp, no such cookies file or variable."""
        try:
            import yt_dlp  # noqa: F401
        except ImportError:
            raise ValueError("yt-dlp is not installed; pip install 'yt-dlp[default]'") from None
        self._store = store
        self._came = False                           # whether anything has, with these settings
        cookies = expanded(self.cookies) if self.cookies else None
        if cookies is not None and not cookies.is_file():
            raise ValueError(f"cookies: {self.cookies} is no file; export one in Netscape's format")
        proxy = self._proxy()
        self._options = ytdlp.Options(
            format=self.format, format_sort=tuple(self.format_sort), cookies=cookies, proxy=proxy,
            source_address=self.source_address, retries=self.retries, retry_sleep_s=min(self.backoff_s, 1.0),
            socket_timeout_s=self.socket_timeout_s, timeout_s=self.attempt_s,
            maximum_bytes=self.maximum_bytes, bytes_per_s=self.bytes_per_s,
            sleep_requests_s=self.sleep_requests_s,
        )
        self._secrets = self._options.secrets()
        self._work = ytdlp.private_folder(
            expanded(self.work) if self.work
            else Path(tempfile.gettempdir(), f"pv3d-downloads-{os.getuid()}")
        )
        way = urlsplit(proxy).hostname or self.source_address or "direct"
        scope = socket.gethostname() if self.egress == "node" else self.egress
        self._gate = egress.connect(
            f"{scope}-{way}", self.requests_per_minute, self.burst, self.pause_s, self.longest_pause_s
        )

    def process(self, clip: Clip) -> Iterator[Clip | Rejected]:
        """Reject what the list marked, and ask the site for what is left of it."""
        wanted = bool(clip.listed.get("spans"))
        yield from lists.refuse(clip)
        if not wanted or clip.listed["spans"]:
            yield from self.visit(clip)

    def visit(self, clip: Clip) -> Iterator[Clip | Rejected]:
        """As `process`, of a video of which something is wanted."""
        raise NotImplementedError

    def _proxy(self) -> str:
        if not self.proxy.startswith("env:"):
            return self.proxy
        name = self.proxy.removeprefix("env:")
        value = os.environ.get(name, "")
        if not re.match(r"(https?|socks5h?)://", value):
            raise ValueError(f"proxy: the variable {name} holds no proxy URL here; set it for all workers")
        return value

    @contextlib.contextmanager
    def _alone(self, source: str) -> Iterator[Path]:
        """A work folder for one video, which no other worker of this machine has now.

        Its name is a hash, so nothing of the list becomes a path.
        """
        name = hashlib.sha256(source.encode()).hexdigest()
        with (self._work / f"lock-{name[:3]}").open("w") as lock:    # some share one: no file per video stays
            fcntl.flock(lock, fcntl.LOCK_EX)
            folder = ytdlp.private_folder(self._work / name[:24])
            try:
                yield folder
            finally:
                with contextlib.suppress(OSError):               # something lies there to be continued
                    folder.rmdir()

    def _persist(self, url: str, action: Callable[[], T]) -> T:
        """Call `action` when it is our turn, and again after what passes.

        Raises Drop, Unreachable, or StorageError for what is wrong here.
        """
        from yt_dlp.utils import YoutubeDLError

        self._explain(url)
        waited = 0.0
        for attempt in range(1, self.attempts + 1):
            waited += self._wait(self.longest_wait_s - waited)
            try:
                result = action()
            except ytdlp.TooMuchError as error:
                failure, detail, wish = _limit(error), "a limit of the settings", None
            except Drop:
                self._gate.succeeded()
                raise
            except (YoutubeDLError, OSError, *UNFORESEEN) as error:
                if isinstance(error, UNFORESEEN) and not _of_ytdlp(error):
                    raise
                failure, detail = classify(error), scrub(str(error), self._secrets, str(self._work))
                wish = retry_after(error)
                if failure.reason == NO_FORMAT and ytdlp.YOUTUBE.match(url) and (why := ytdlp.javascript()):
                    failure = Failure("ours", f"YouTube gives no format without it: {why}")
            else:
                self._gate.succeeded()
                self._came = True
                return result
            log.info("%s: attempt %d: %s (%s)", scrub(url, self._secrets), attempt, failure.reason, detail)
            self._react(failure, detail, attempt, wish)
        raise Unreachable(failure.reason, detail)

    def _wait(self, longest_s: float) -> float:
        try:
            return egress.wait_for(self._gate, longest_s, time.sleep)
        except egress.CircuitOpenError as error:
            raise Unreachable("throttled", str(error)) from None

    def _react(self, failure: Failure, detail: str, attempt: int, wish: float | None) -> None:
        """Raise for what another attempt cannot change; otherwise sleep, or make everybody pause.

        `wish`: for how many seconds the server asked us to stay away.
        """
        if failure.reason == NO_FORMAT and self._came:
            raise Drop("no such format", detail)     # the setting fits others: it is the video's fault
        if failure.kind == "ours":
            raise StorageError(f"stage {self.name}: {failure.reason} ({detail}){self._cure(failure)}")
        if failure.kind == "throttled":
            self._gate.throttled(wish)
            return
        if failure.kind != "transient" or failure.reason.startswith("http"):
            self._gate.succeeded()                   # it answered, and did not ask for a pause
        if failure.kind in ("gated", "regional"):
            raise Barred(failure.reason, detail)
        if failure.kind != "transient":
            raise Drop(failure.reason, detail)
        if attempt < self.attempts:
            time.sleep(self.backoff_s * 2.0 ** (attempt - 1) * (0.5 + random.random()))

    def _cure(self, failure: Failure) -> str:
        if failure.reason not in OF_DISK:
            return ""
        return f"; make room or permit it below {self._work}, or give another as stages.{self.name}.work"

    def _explain(self, url: str) -> None:
        """Say once per process what YouTube lacks here."""
        if "youtube" not in _explained and ytdlp.YOUTUBE.match(url):
            _explained.add("youtube")
            if why := ytdlp.javascript():
                log.warning("YouTube will give few formats or none: %s", why)


def _of_ytdlp(error: BaseException) -> bool:
    """Whether an error was raised inside yt-dlp, rather than by us."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
        if str(trace.tb_frame.f_globals.get("__name__")).startswith("yt_dlp"):
            return True
    return False


def _limit(error: ytdlp.TooMuchError) -> Failure:
    return Failure("gone", "too large") if str(error) == "too large" else Failure("transient", str(error))
