"""Downloads from a real server on this machine: what goes wrong there, and what we make of it."""

import contextlib
import http.server
import importlib.util
import json
import logging
import re
import threading
import time

import numpy as np
import pytest

pytest.importorskip("yt_dlp", reason="yt-dlp is not installed")
av = pytest.importorskip("av", reason="PyAV is not installed")

from disks import small_disk  # noqa: E402

from infra.storage import FolderStorage, StorageError  # noqa: E402
from stages import ytdlp  # noqa: E402
from stages.base import Drop, Rejected  # noqa: E402
from stages.download import Download, merge, store_name  # noqa: E402
from stages.sources.lists import unit  # noqa: E402
from stages.video import frame_times, read_frames  # noqa: E402
from stages.web import Unreachable  # noqa: E402

FPS, COUNT = 25, 1500                        # a minute, its frames numbered in binary columns
needs_ffmpeg = pytest.mark.skipif(not ytdlp.find_ffmpeg(), reason="no ffmpeg; pip install imageio-ffmpeg")


def numbered(n):
    bits = np.repeat([(n >> b & 1) * 219 + 16 for b in range(11)], 5)
    return np.broadcast_to(np.pad(bits, (0, 9))[None, :, None], (64, 64, 3)).astype(np.uint8)


def number_of(frame):
    return sum(int(frame[32, b * 5 + 2, 0] > 120) << b for b in range(11))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Bytes of one video as mp4 (H.264) and as webm (VP9), key frames every 3 s."""
    made = {}
    for ext, codec, options in [
        ("mp4", "libx264", {"x264-params": "scenecut=0:threads=1", "crf": "16", "preset": "veryfast"}),
        ("webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0"}),
    ]:
        path = tmp_path_factory.mktemp("videos") / f"v.{ext}"
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=FPS, options={"g": "75", **options})
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            for n in range(COUNT):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(n).copy(), format="rgb24")))
            container.mux(stream.encode(None))
        made[ext] = path.read_bytes()
    return made


class Server(http.server.ThreadingHTTPServer):
    """Serves /<script>/<name>.<ext>; the script says what each request of that path gets, the last one stays.

    ok · 429 … any status · later (429 with Retry-After: 1) · short (half of the promised bytes) ·
    slow (trickles) · stall (stops) · loop (redirects to itself) · file (redirects to a file of this
    machine) · text (words instead of a video)
    """

    daemon_threads = True

    def __init__(self, videos):
        super().__init__(("127.0.0.1", 0), Handler)
        self.videos = videos
        self.requests = []                           # (path, Range header)
        self.times = []                              # of each, in seconds
        self.stop = threading.Event()

    def url(self, script, name="v.mp4"):
        return f"http://127.0.0.1:{self.server_port}/{script}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def handle(self):
        with contextlib.suppress(ConnectionError, TimeoutError):   # yt-dlp closes early, and often
            super().handle()

    def do_GET(self):
        path = self.path.split("?")[0]
        script = path.split("/")[1].split("-")
        seen = sum(1 for asked, _ in self.server.requests if asked == path)
        self.server.requests.append((path, self.headers.get("Range")))
        self.server.times.append(time.monotonic())
        what = script[min(seen, len(script) - 1)]
        if what == "loop" or what == "file":
            target = self.path if what == "loop" else "file:///etc/passwd"
            return self.answer(302, headers={"Location": target})
        if what == "text":
            words = b"these are words, and no video at all" * 50
            return self.answer(200, words, {"Content-Type": "video/mp4"})
        if what == "later":
            return self.answer(429, b"no", {"Retry-After": "1"})
        if what.isdigit():
            return self.answer(int(what), b"no")
        return self.video(what, path.rsplit(".", 1)[-1])

    do_HEAD = do_GET  # noqa: N815

    def video(self, what, ext):
        data = self.server.videos[ext]
        span = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start = int(span[1]) if span else 0
        end = int(span[2]) if span and span[2] else len(data) - 1
        headers = {"Content-Type": f"video/{ext}", "Accept-Ranges": "bytes"}
        if span:
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        self.answer(206 if span else 200, data[start:end + 1], headers, what)

    def answer(self, status, body=b"", headers=None, what="ok"):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if what == "short":
            self.wfile.write(body[:len(body) // 2])
            self.close_connection = True
        elif what == "stall":
            self.wfile.write(body[:2000])
            self.wfile.flush()
            self.server.stop.wait(20)
            self.close_connection = True
        elif what == "slow":
            for at in range(0, len(body), 200):
                self.wfile.write(body[at:at + 200])
                self.wfile.flush()
                if self.server.stop.wait(0.05):
                    break
        else:
            self.wfile.write(body)


@pytest.fixture
def server(videos):
    server = Server(videos)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def store(tmp_path):
    return FolderStorage(tmp_path / "store")


@pytest.fixture
def stage(tmp_path, store, request):
    def make(**settings):
        quick = {
            "requests_per_minute": 0.0, "backoff_s": 0.02, "pause_s": 0.2, "retries": 0, "attempts": 3,
            "socket_timeout_s": 2.0, "work": str(tmp_path / "work"), "egress": request.node.name[:60],
        }
        made = Download(**{**quick, **settings})
        made.setup(store)
        return made
    return make


def listed(url, *spans):
    return unit("t", "v", url, [{"key": str(n), **span} for n, span in enumerate(spans)])


def one(stage, url, *spans):
    (clip,) = stage.process(listed(url, *spans))
    return clip


def works(tmp_path):
    """What lies in the work folder, but locks and caches."""
    return [p for p in (tmp_path / "work").rglob("*") if p.is_file() and "lock-" not in p.name]


def test_a_video_comes_whole_and_is_asked_for_once(server, stage, store, videos, tmp_path):
    clip = one(stage(), server.url("ok"))
    key = clip.video.removeprefix("store:")
    assert clip.video.startswith("store:videos/")
    assert key.endswith("/whole.mp4")
    assert store.read(key) == videos["mp4"]
    assert clip.fingerprint.startswith("sha256:")
    asked = len(server.requests)
    assert one(stage(), server.url("ok")).digest() == clip.digest()
    assert len(server.requests) == asked
    assert works(tmp_path) == []


def test_a_file_that_is_here_already_passes_unchanged(stage):
    for video in ("/data/a.mp4", "store:demo/videos/a.mp4"):
        clip = listed("https://example.org/v.mp4")
        clip.video = video
        assert [c.digest() for c in stage().process(clip)] == [clip.digest()]


@pytest.mark.parametrize("script", ["503-ok", "403-ok", "ok-500-502-ok", "ok-short-ok"])
def test_what_passes_is_tried_again(server, stage, store, videos, script):
    clip = one(stage(), server.url(script))
    assert store.read(clip.video.removeprefix("store:")) == videos["mp4"]


def test_a_download_that_broke_off_is_continued_where_it_stopped(server, stage, store, videos):
    clip = one(stage(), server.url("ok-short-ok"))
    assert store.read(clip.video.removeprefix("store:")) == videos["mp4"]
    resumed = [int(asked.split("=")[1].split("-")[0]) for _, asked in server.requests if asked]
    assert max(resumed, default=0) > len(videos["mp4"]) // 4


def test_a_download_is_continued_by_the_next_run(server, stage, store, videos, tmp_path):
    with pytest.raises(Unreachable):
        one(stage(attempts=1), server.url("ok-short-ok"))
    assert sum(p.stat().st_size for p in works(tmp_path) if p.suffix == ".part") > len(videos["mp4"]) // 4
    one(stage(attempts=1), server.url("ok-short-ok"))
    assert any(asked and not asked.startswith("bytes=0-") for _, asked in server.requests)


@pytest.mark.parametrize(
    ("script", "reason"),
    [("404", "gone: not found"), ("410", "gone: not found"), ("loop", "gone: redirects in a circle"),
     ("401", "gated: login or payment"), ("451", "regional: not available here")],
)
def test_what_is_gone_for_good_is_rejected_at_once(server, stage, tmp_path, script, reason):
    with pytest.raises(Drop) as drop:
        one(stage(), server.url(script))
    assert not isinstance(drop.value, Unreachable)
    assert drop.value.reason == reason
    assert len({path for path, _ in server.requests}) == 1
    assert works(tmp_path) == []


@pytest.mark.parametrize(
    ("script", "reason"), [("500", "http 5xx"), ("403", "http 403"), ("ok-short", "incomplete")]
)
def test_what_does_not_pass_is_failed_and_not_rejected(server, stage, script, reason):
    with pytest.raises(Unreachable) as failed:
        one(stage(attempts=2), server.url(script))
    assert (failed.value.reason, failed.value.state) == (reason, "failed")


def test_an_address_that_nobody_answers_is_failed(stage):
    with pytest.raises(Unreachable, match="network"):
        one(stage(attempts=1), "http://127.0.0.1:9/v.mp4")


def test_a_throttled_worker_pauses_and_goes_on(server, stage, store, videos):
    started = time.monotonic()
    clip = one(stage(pause_s=0.5), server.url("429-ok"))
    assert time.monotonic() - started >= 0.5
    assert store.read(clip.video.removeprefix("store:")) == videos["mp4"]


def test_a_site_is_left_alone_for_as_long_as_it_asks(server, stage):
    one(stage(pause_s=0.01), server.url("later-ok"))
    assert 1.0 <= server.times[-1] - server.times[0] < 8.0


def test_all_turns_of_a_video_together_wait_no_longer_than_the_setting(server, stage):
    with pytest.raises(Unreachable, match="throttled"):
        one(stage(attempts=9, pause_s=0.3, longest_pause_s=0.3, longest_wait_s=1.0), server.url("429"))
    assert server.times[-1] - server.times[0] < 8.0
    assert len(server.requests) < 8


def test_another_format_is_downloaded_anew(server, stage, store):
    url = server.url("ok")
    one(stage(), url)
    asked = len(server.requests)
    one(stage(), url)
    assert len(server.requests) == asked
    one(stage(format="best"), url)
    assert len(server.requests) > asked


def test_one_throttled_worker_makes_the_others_wait(server, stage):
    with pytest.raises(Unreachable):
        one(stage(attempts=1, pause_s=300), server.url("429", "a.mp4"))
    asked = len(server.requests)
    with pytest.raises(Unreachable, match="throttled"):
        one(stage(pause_s=300, longest_wait_s=1.0), server.url("ok", "b.mp4"))
    assert len(server.requests) == asked


def test_a_server_that_stalls_or_crawls_does_not_hold_a_worker(server, stage):
    with pytest.raises(Unreachable, match="timeout"):
        one(stage(attempts=1, socket_timeout_s=0.5), server.url("ok-stall"))
    started = time.monotonic()
    with pytest.raises(Unreachable, match="too slow"):
        one(stage(attempts=1, attempt_s=1.0), server.url("ok-slow", "b.mp4"))
    assert time.monotonic() - started < 10


def test_two_lists_that_name_one_video_share_its_download(server, stage, store):
    made = stage()
    clips = []
    workers = [
        threading.Thread(target=lambda: clips.append(one(made, server.url("ok-ok-404"), {"start_s": 1.0})))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len({clip.video for clip in clips}) == 1
    assert len(clips) == 3


def test_a_video_beyond_the_size_limit_is_rejected(server, stage, tmp_path):
    with pytest.raises(Drop, match="too large"):
        one(stage(maximum_bytes=1000), server.url("ok"))
    assert works(tmp_path) == []


def test_words_that_call_themselves_a_video_are_not_kept(server, stage, store):
    with pytest.raises(Unreachable, match="incomplete"):
        one(stage(attempts=1), server.url("text"))
    assert list(store.list("videos")) == []


def test_a_redirect_never_leads_to_a_file_of_this_machine(server, stage, store):
    with pytest.raises(Drop):
        one(stage(attempts=1), server.url("file"))
    assert list(store.list("videos")) == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/v.mp4", "gopher://127.0.0.1/"])
def test_other_schemes_are_refused_even_past_the_list(stage, url):
    clip = listed("https://example.org/v.mp4")
    clip.video = url
    with pytest.raises(Drop, match="refused url"):
        list(stage().process(clip))


def test_ids_and_titles_never_become_paths(server, stage, store):
    clip = one(stage(), server.url("ok", "..%2F..%2Fetc%2F-rf%20%25(id)s.mp4"))
    assert re.fullmatch(r"videos/[A-Za-z0-9_-]+/whole\.mp4", clip.video.removeprefix("store:"))
    assert all(key.startswith("videos/") for key in store.list())
    assert store_name("youtube:aaaaaaaaaaa") != store_name("youtube:AAAAAAAAAAA")


# --- sections --------------------------------------------------------------------------------------------


def test_wanted_parts_become_few_padded_sections():
    at = [{"start_s": 47.0, "end_s": 55.2}, {"start_s": 0.4, "end_s": 3.0}, {"start_s": 20.0, "end_s": 26.5}]
    assert merge(at) == [(0.0, 57.0)]
    assert merge([{"start_s": 100.0, "end_s": 102.0}, {"start_s": 300.5, "end_s": 301.0}]) == [
        (99.0, 103.0), (299.0, 302.0),
    ]
    assert merge([*at, {"start_s": 3.0}]) == [] == merge([])


@needs_ffmpeg
@pytest.mark.parametrize("ext", ["mp4", "webm"])
def test_only_the_wanted_seconds_come_and_keep_the_times_of_the_source(server, stage, store, videos, ext):
    url = server.url("ok", f"v.{ext}")
    wanted = {"start_s": 7.013, "end_s": 9.0}, {"start_s": 45.5, "end_s": 47.0}
    clips = list(stage().process(listed(url, *wanted)))
    assert [c.id for c in clips] == ["t-v-at6", "t-v-at44"]
    assert {c.listed["unit"] for c in clips} == {"t-v"}
    assert [[s["key"] for s in c.listed["spans"]] for c in clips] == [["0"], ["1"]]
    for clip in clips:
        (span,) = clip.listed["spans"]
        with store.local(clip.video.removeprefix("store:")) as path:
            assert path.stat().st_size < len(videos[ext]) / 2
            wanted = np.arange(span["start_s"], span["end_s"], 1 / FPS)
            numbers = [number_of(frame) for frame in read_frames(path, list(wanted))]
        assert np.abs(np.array(numbers) - wanted * FPS).max() <= 0.5 + 1e-6
    asked = len(server.requests)
    assert [c.digest() for c in stage().process(listed(url, {"start_s": 7.5, "end_s": 8.0}))]
    assert len(server.requests) == asked             # it lies in a section that is here


@needs_ffmpeg
def test_a_part_that_is_asked_for_later_is_added(server, stage, store):
    one(stage(), server.url("ok"), {"start_s": 5.0, "end_s": 7.0})
    clips = list(stage().process(
        listed(server.url("ok"), {"start_s": 5.0, "end_s": 7.0}, {"start_s": 40.0, "end_s": 41.0})
    ))
    assert len({c.video for c in clips}) == 2
    (index,) = [json.loads(store.read(key)) for key in store.list("videos") if key.endswith("index.json")]
    assert [(f["start_s"], f["end_s"]) for f in index["files"]] == [(4.0, 8.0), (39.0, 42.0)]


@needs_ffmpeg
def test_a_part_that_runs_beyond_the_end_is_still_a_section(server, stage, store):
    clip = one(stage(), server.url("ok"), {"start_s": 57.0, "end_s": 59.9})
    with store.local(clip.video.removeprefix("store:")) as path:
        assert frame_times(path)[-1] == pytest.approx((COUNT - 1) / FPS, abs=0.05)


@needs_ffmpeg
def test_a_part_beyond_the_end_brings_the_whole_video_for_the_cut_to_judge(server, stage):
    spans = {"start_s": 2.0, "end_s": 4.0}, {"start_s": 70.0, "end_s": 75.0}
    assert one(stage(attempts=1), server.url("ok"), *spans).video.endswith("/whole.mp4")


@needs_ffmpeg
def test_a_site_that_cannot_seek_gives_the_whole_video(server, stage, monkeypatch):
    from stages import download

    monkeypatch.setattr(download, "reaches", lambda path, section: False)
    assert one(stage(), server.url("ok"), {"start_s": 7.0, "end_s": 9.0}).video.endswith("/whole.mp4")


def test_without_ffmpeg_the_whole_video_comes(server, stage, monkeypatch):
    monkeypatch.setattr(ytdlp, "find_ffmpeg", lambda: "")
    assert one(stage(), server.url("ok"), {"start_s": 7.0, "end_s": 9.0}).video.endswith("/whole.mp4")


def test_a_whole_video_that_is_here_serves_its_parts(server, stage):
    whole = one(stage(sections=False), server.url("ok"), {"start_s": 1.0, "end_s": 2.0})
    asked = len(server.requests)
    assert one(stage(), server.url("ok"), {"start_s": 30.0, "end_s": 33.0}).video == whole.video
    assert len(server.requests) == asked


# --- rows that the list could not use ---------------------------------------------------------------------


def test_rejected_parts_are_accounted_for_and_the_others_go_on(server, stage):
    bad, good = {"error": "bad row", "detail": "list.csv:7"}, {"start_s": 1.0, "end_s": 2.0}
    rejected, clip = stage(sections=False).process(listed(server.url("ok"), bad, good))
    assert isinstance(rejected, Rejected)
    assert (rejected.reason, rejected.clip.id) == ("bad row", "t-v-0")
    assert [s["key"] for s in clip.listed["spans"]] == ["1"]
    (only,) = stage().process(listed("https://example.org/never", bad))
    assert isinstance(only, Rejected)


# --- secrets ----------------------------------------------------------------------------------------------


def test_secrets_reach_no_message_no_record_and_no_file(server, stage, store, caplog, monkeypatch, tmp_path):
    monkeypatch.setenv("TEST_PROXY", "http://anna:hunter2secret@127.0.0.1:9")
    cookies = tmp_path / "cookies.txt"
    row = ["127.0.0.1", "FALSE", "/", "FALSE", "2147483647", "session", "c00kiesecret"]
    cookies.write_text("# Netscape HTTP Cookie File\n" + "\t".join(row) + "\n")
    before = cookies.read_bytes()
    made = stage(attempts=2, proxy="env:TEST_PROXY", cookies=str(cookies))
    with caplog.at_level(logging.DEBUG), pytest.raises(Unreachable) as failed:
        one(made, server.url("ok", "v.mp4?token=q5secret"))
    said = caplog.text + str(failed.value)
    assert "attempt 1" in said
    for secret in ("hunter2secret", "c00kiesecret", "q5secret", "anna:"):
        assert secret not in said
    assert str(tmp_path) not in str(failed.value)
    assert cookies.read_bytes() == before
    assert not list((tmp_path / "work").rglob("cookies.txt"))
    with caplog.at_level(logging.DEBUG):
        one(stage(cookies=str(cookies)), server.url("ok"))
    assert "c00kiesecret" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"proxy": "http://anna:pw@host:1"}, "proxy: holds a password"),
        ({"proxy": "host:1"}, "proxy: is no URL"), ({"proxy": "env:NO_SUCH_PROXY"}, "NO_SUCH_PROXY"),
        ({"cookies": "/no/such/file"}, "cookies: /no/such"),
        ({"attempts": 0}, "attempts"), ({"burst": 0}, "burst"), ({"requests_per_minute": -1.0}, "per_minute"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(stage, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        stage(**settings)
    assert "\n" not in str(error.value)
    assert "anna" not in str(error.value)


def test_a_full_disk_stops_the_run_and_blames_no_video(server, stage, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ytdlp, "fetch", full)
    with pytest.raises(StorageError, match="disk is full"):
        one(stage(), server.url("ok"))


@pytest.mark.parametrize("part", [False, pytest.param(True, marks=needs_ffmpeg)])
@pytest.mark.parametrize("pages", [0, 6])
def test_a_work_folder_without_room_stops_the_run_and_the_next_one_goes_on(
    server, stage, store, tmp_path, part, pages
):
    spans = [{"start_s": 20.0, "end_s": 40.0}] if part else []
    with small_disk(tmp_path / "disk") as disk:
        made = stage(work=str(disk.path / "work"))
        disk.leave(pages)
        with pytest.raises(StorageError) as error:
            one(made, server.url("ok"), *spans)
        assert str(error.value).startswith("stage Download: ")
        assert f"; make room or permit it below {disk.path}/work, or give another as " in str(error.value)
        assert "\n" not in str(error.value)
        assert list(store.list("videos")) == []
        disk.free()
        assert store.exists(one(made, server.url("ok"), *spans).video.removeprefix("store:"))


def test_a_bug_of_ours_stops_the_run_and_one_of_an_extractor_does_not(server, stage, monkeypatch):
    from yt_dlp.extractor.generic import GenericIE

    def ours(*args, **kwargs):
        return {}["nothing"]

    theirs = dict(vars(GenericIE))["_real_extract"].__globals__
    with monkeypatch.context() as patch:
        patch.setattr(ytdlp, "fetch", ours)
        with pytest.raises(KeyError):
            one(stage(), server.url("ok"))
    assert theirs["urllib"]                          # a name that its code needs
    monkeypatch.setitem(theirs, "urllib", None)
    with pytest.raises(Unreachable, match="unknown error"):
        one(stage(attempts=1), server.url("ok"))


def test_a_store_that_is_full_stops_the_run(server, stage, store, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    made = stage()
    monkeypatch.setattr(store, "upload", full)
    with pytest.raises(StorageError, match="No space left"):
        one(made, server.url("ok"))


def test_a_format_that_no_video_has_stops_the_run(server, stage):
    with pytest.raises(StorageError, match="format"):
        one(stage(format="no-such-format"), server.url("ok"))


def test_a_video_without_the_format_that_others_have_is_rejected(server, stage):
    download = stage(format="b[ext=mp4]")
    one(download, server.url("ok"))
    with pytest.raises(Drop, match="no such format") as caught:
        one(download, server.url("ok", "v.webm"))
    assert not isinstance(caught.value, Unreachable)


def test_the_missing_javascript_runtime_is_explained_once(stage, caplog, monkeypatch):
    from stages import web

    def gone(*args, **kwargs):
        raise OSError("HTTP Error 404: gone")

    monkeypatch.setattr(web, "_explained", set())
    monkeypatch.setattr(ytdlp, "javascript", lambda: "no JavaScript runtime; pip install deno")
    monkeypatch.setattr(ytdlp, "fetch", gone)
    made = stage()
    for _ in range(3):
        with pytest.raises(Drop):
            one(made, "https://www.youtube.com/watch?v=_mjZ87sK6cA")
    assert caplog.text.count("JavaScript") == 1


def test_what_is_said_of_javascript_names_a_cure():
    why = ytdlp.javascript()
    assert why == "" or "pip install" in why
    assert importlib.util.find_spec("yt_dlp_ejs") is not None or "yt-dlp-ejs" in why


def test_the_name_of_a_download_holds_nothing_that_signs_its_address() -> None:
    name = store_name("https://example.org/talk.mp4?X-Amz-Signature=geheim")
    assert "talk-mp4" in name
    assert "geheim" not in name
    assert name != store_name("https://example.org/talk.mp4?X-Amz-Signature=andere")


@pytest.mark.parametrize(
    "setting",
    [{"attempts": 0}, {"attempts": 10**6}, {"backoff_s": -1.0}, {"socket_timeout_s": 0.0},
     {"attempt_s": -1.0}, {"maximum_bytes": 0}, {"bytes_per_s": -1},
     {"retries": -1}, {"sleep_requests_s": -1.0}],
)
def test_settings_that_make_no_sense_are_refused_by_name(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(setting))}: "):
        Download(**setting)
