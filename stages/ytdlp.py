"""yt-dlp as a library: what it is told, what it is kept from, and what its errors mean.

Nothing of a title or an id becomes a path; only http and https are spoken (a redirect may still lead to an
address of the local network: run workers where that is harmless). Proxy passwords and cookies stay out of
messages. ffmpeg, which fetches sections, sees the proxy in its environment, and on its command line such
cookies as belong to the host that serves the video.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.base import Barred, Drop
from stages.failures import scrub

log = logging.getLogger(__name__)

Section = tuple[float, float]    # s of the source: first and last that are needed

RETRIED = ("http", "fragment", "file_access", "extractor")
NAME = "-%(section_start|0)d-%(section_end|0)d"
PROTOCOLS = "http,https,httpproxy,tls,tcp,crypto"            # of ffmpeg: a playlist must not name files here
YOUTUBE = re.compile(r"https?://([\w-]+\.)*(youtube\.com|youtu\.be|youtube-nocookie\.com)/")


class TooMuchError(Exception):
    """A download grew beyond a limit of ours; the message is the reason."""


class _Log:
    """yt-dlp's messages, without secrets, for those who debug."""

    def __init__(self, clean: Callable[[str], str]) -> None:
        self._clean = clean

    def debug(self, message: str) -> None:
        log.debug("%s", self._clean(message))

    info = warning = error = debug


def find_ffmpeg() -> str:
    """An ffmpeg: that of the PyPI package imageio-ffmpeg, else one on the PATH, else empty."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return str(get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        return shutil.which("ffmpeg") or ""


def javascript() -> str:
    """Why YouTube will not work well here, or empty: it needs a JavaScript runtime, and yt-dlp's scripts."""
    import importlib.util

    from yt_dlp.globals import supported_js_runtimes

    if importlib.util.find_spec("yt_dlp_ejs") is None:
        return "yt-dlp-ejs is not installed; pip install 'yt-dlp[default,deno]'"
    found = {name: cls().info for name, cls in supported_js_runtimes.value.items()}
    if any(info and info.supported for info in found.values()):
        return ""
    old = ", ".join(f"{name} {info.version} is too old" for name, info in found.items() if info)
    return f"no JavaScript runtime{f' ({old})' if old else ''}; pip install deno"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What one download is told. Times in s, sizes in bytes."""

    format: str
    format_sort: tuple[str, ...] = ()
    cookies: Path | None = None              # Netscape format; only a copy is touched
    proxy: str = ""
    source_address: str = ""
    retries: int = 3                         # of one request, inside one attempt
    retry_sleep_s: float = 1.0
    socket_timeout_s: float = 20.0
    timeout_s: float = 3600.0
    maximum_bytes: int = 8 << 30
    bytes_per_s: int = 0
    sleep_requests_s: float = 0.0

    def secrets(self) -> list[str]:
        """Strings that no message may hold."""
        found = [self.proxy, *re.findall(r"://([^/@]+)@", self.proxy)]
        found += [piece for pair in found[1:] for piece in pair.split(":")]
        if self.cookies is not None and self.cookies.is_file():
            rows = self.cookies.read_text(errors="replace").splitlines()
            found += [row.split("\t")[6].strip() for row in rows if row.count("\t") == 6]
        return [secret for secret in found if secret]


@dataclass(frozen=True)
class Fetched:
    """A file that came: the section of the source that it holds, or None for all of it."""

    path: Path
    ext: str
    section: Section | None


def metadata(url: str, options: Options, folder: Path) -> dict[str, Any]:
    """What a site says of a video and its best format: `width`, `height`, `fps`, `duration` and more.

    Downloads nothing. Raises what yt-dlp raises; `classify` knows what it means. Raises Drop for what is no
    single video.
    """
    with _client(options, folder) as client:
        return _single(client.extract_info(url, download=False))


def fetch(
    url: str, options: Options, folder: Path, sections: Sequence[Section] = (), ffmpeg: str = ""
) -> list[Fetched]:
    """Download a video into `folder`: all of it, or with `sections` those and little around them.

    Files keep the time stamps of the source. What an interrupted call left is continued. Raises as
    `metadata`.
    """
    extra: dict[str, Any] = {"outtmpl": {"default": str(folder / "whole").replace("%", "%%")}}
    if sections and ffmpeg:
        # Without -copyts a section starts at 0, or at whatever key frame comes before it.
        stall = str(int(options.socket_timeout_s * 1e6))
        limit = str(options.maximum_bytes)
        extra |= {
            "outtmpl": {"default": str(folder / "section").replace("%", "%%") + NAME},
            "download_ranges": lambda info, _: _ranges(sections, info.get("duration")),
            "external_downloader_args": {
                "ffmpeg_i": ["-rw_timeout", stall, "-protocol_whitelist", PROTOCOLS],
                "ffmpeg_o": ["-copyts", "-an", "-fs", limit],
            },
        }
        _use_ffmpeg(ffmpeg)
    if ffmpeg:
        extra["ffmpeg_location"] = ffmpeg
    with _client(options, folder, **extra) as client:
        info = _single(client.extract_info(url, download=True))
    files = []
    for got in info.get("requested_downloads") or []:
        number = got.get("section_number")
        ext = str(got.get("ext") or "")
        section = sections[number] if number is not None else None
        ext = ext if re.fullmatch(r"[a-z0-9]{1,5}", ext) else "bin"
        files.append(Fetched(Path(got["filepath"]), ext, section))
    if not files or not all(file.path.is_file() and file.path.stat().st_size for file in files):
        raise OSError("did not get any data")
    return files


def _ranges(sections: Sequence[Section], duration: float | None) -> list[dict[str, Any]]:
    """yt-dlp's form of the sections; everything at once when they are most of the video, or beyond it."""
    wanted = sum(end - start for start, end in sections)
    if duration and (wanted > 0.5 * duration or sections[-1][0] >= duration):
        return [{}]
    return [{"start_time": start, "end_time": end, "index": n} for n, (start, end) in enumerate(sections)]


def _use_ffmpeg(path: str) -> None:
    from yt_dlp.postprocessor.ffmpeg import FFmpegPostProcessor

    # `ffmpeg_location` does not reach the check that comes before a section; the command line sets this too.
    FFmpegPostProcessor._ffmpeg_location.set(path)


def _single(info: Any) -> dict[str, Any]:
    """One finished video, or Drop."""
    if not isinstance(info, dict) or info.get("_type") not in (None, "video"):
        raise Drop("gone: no single video", "the address is a playlist or a page of several videos")
    if info.get("live_status") in ("is_live", "is_upcoming", "post_live"):
        raise Barred("gated: not shown yet", str(info["live_status"]))
    return info


@contextlib.contextmanager
def _client(options: Options, folder: Path, **extra: Any) -> Iterator[Any]:
    from yt_dlp import YoutubeDL

    def pause(n: int) -> float:
        return float(min(options.retry_sleep_s * 2.0 ** (n - 1), 60.0))

    secrets = options.secrets()
    params: dict[str, Any] = {
        "format": options.format, "format_sort": list(options.format_sort),
        "quiet": True, "noprogress": True, "color": "never",
        "logger": _Log(lambda text: scrub(text, secrets, str(folder))),
        "cachedir": str(folder.parent / "cache"), "fixup": "never", "updatetime": False,
        # A playlist must neither be downloaded nor stand for one video.
        "noplaylist": True, "extract_flat": "in_playlist", "match_filter": _no_playlist,
        "enable_file_urls": False, "js_runtimes": {"deno": {}, "node": {}, "bun": {}, "quickjs": {}},
        "retries": options.retries, "fragment_retries": 10, "extractor_retries": 3, "file_access_retries": 3,
        "retry_sleep_functions": dict.fromkeys(RETRIED, pause),
        "skip_unavailable_fragments": False,
        "socket_timeout": options.socket_timeout_s, "progress_hooks": [_limits(options)],
        "sleep_interval_requests": options.sleep_requests_s,
    }
    optional = {
        "proxy": options.proxy, "source_address": options.source_address, "ratelimit": options.bytes_per_s,
    }
    params |= {name: value for name, value in optional.items() if value}
    private = folder / "cookies.txt"
    try:
        if options.cookies is not None:
            # yt-dlp writes the file when it ends, and several workers share it.
            private.touch(mode=0o600)
            shutil.copyfile(options.cookies, private)
            params["cookiefile"] = str(private)
        with YoutubeDL(params | extra) as client:
            yield client
    finally:
        private.unlink(missing_ok=True)


def _no_playlist(info: dict[str, Any], *, incomplete: bool = False) -> str | None:
    return "one of several videos" if info.get("playlist_index") else None


def _limits(options: Options) -> Callable[[dict[str, Any]], None]:
    """A progress hook that ends a download which is too large, or that crawls for ever."""
    started = time.monotonic()

    def check(progress: dict[str, Any]) -> None:
        size = max(progress.get("downloaded_bytes") or 0, progress.get("total_bytes") or 0)
        if size > options.maximum_bytes:
            raise TooMuchError("too large")
        if progress.get("status") == "downloading" and time.monotonic() - started > options.timeout_s:
            raise TooMuchError("timeout: too slow")

    return check


def private_folder(path: Path) -> Path:
    """A folder that only this user can read. Raises ValueError when somebody else owns it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.is_symlink() or path.stat().st_uid != os.getuid():
        raise ValueError(f"work: {path} belongs to somebody else; name another folder")
    return path
