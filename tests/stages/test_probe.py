"""Resolution before download, and the two best parts of a person."""

import http.server
import threading

import pytest

pytest.importorskip("yt_dlp", reason="yt-dlp is not installed")

from infra.storage import FolderStorage
from stages.base import Drop, Rejected
from stages.probe import KeepBestClips, ProbeVideos
from stages.sources.lists import unit

MASTER = """#EXTM3U
#EXT-X-STREAM-INF:BANDWIDTH=300000,RESOLUTION=640x360,FRAME-RATE=25
low.m3u8
#EXT-X-STREAM-INF:BANDWIDTH=900000,RESOLUTION=1920x1080,FRAME-RATE=25
high.m3u8
"""


@pytest.fixture
def site():
    """A site whose videos are HLS playlists that tell their sizes."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            asked.append(self.path)
            found = self.path.endswith("master.m3u8")
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/vnd.apple.mpegurl")
            self.end_headers()
            self.wfile.write(MASTER.encode() if found else b"")

        do_HEAD = do_GET  # noqa: N815

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def probe(tmp_path, **settings):
    stage = ProbeVideos(
        requests_per_minute=0.0, backoff_s=0.01, attempts=2, work=str(tmp_path / "work"), **settings
    )
    stage.setup(FolderStorage(tmp_path))
    return stage


def test_the_size_of_the_best_format_is_known_and_nothing_is_downloaded(site, tmp_path):
    url, asked = site
    (clip,) = probe(tmp_path).process(unit("t", "v", f"{url}/master.m3u8", []))
    assert (clip.width, clip.height) == (1920, 1080)
    assert clip.video == f"{url}/master.m3u8"
    assert {path.rsplit(".", 1)[-1] for path in asked} == {"m3u8"}       # playlists, no video


def test_a_video_that_is_gone_is_rejected_before_the_download(site, tmp_path):
    with pytest.raises(Drop, match="gone: not found"):
        list(probe(tmp_path).process(unit("t", "v", f"{site[0]}/nothing.mp4", [])))


def test_another_way_to_ask_can_be_put_in(tmp_path):
    stage = probe(tmp_path)
    stage.ask = lambda url, options, folder: {"width": 720, "height": 1280}
    (clip,) = stage.process(unit("t", "v", "https://example.org/v.mp4", []))
    assert (clip.width, clip.height) == (720, 1280)


def test_a_playlist_is_no_video(tmp_path):
    from stages.ytdlp import _single

    for info in (None, {"_type": "playlist", "entries": []}, {"_type": "url"}):
        with pytest.raises(Drop, match="no single video"):
            _single(info)
    with pytest.raises(Drop, match="not shown yet"):
        _single({"live_status": "is_live"})


def video(name, person, size, *seconds):
    spans = [{"key": str(n), "start_s": 10.0 * n, "end_s": 10.0 * n + s} for n, s in enumerate(seconds)]
    clip = unit("t", name, f"https://example.org/{name}.mp4", spans, identity=person)
    clip.width, clip.height = size
    return clip


def kept(clips, **settings):
    """{unit: keys} of what is kept, and the units that are rejected."""
    stage = KeepBestClips(**settings)
    groups = {}
    for clip in clips:
        groups.setdefault(stage.group(clip), []).append(clip)
    out = [o for group, members in groups.items() for o in stage.process_group(group, members)]
    assert sorted(o.clip.id if isinstance(o, Rejected) else o.id for o in out) == sorted(c.id for c in clips)
    good = {o.id[2:]: [s["key"] for s in o.listed["spans"]] for o in out if not isinstance(o, Rejected)}
    return good, sorted(o.clip.id[2:] for o in out if isinstance(o, Rejected))


LOW, MIDDLE, HIGH, TALL = (640, 360), (1280, 720), (1920, 1080), (1080, 1920)


def test_the_two_parts_of_highest_resolution_of_each_person_stay():
    clips = [video("a", "p1", MIDDLE, 5), video("b", "p1", HIGH, 5), video("c", "p1", LOW, 60),
             video("d", "p2", LOW, 5)]
    assert kept(clips) == ({"a": ["0"], "b": ["0"], "d": ["0"]}, ["c"])


def test_one_video_may_give_both():
    assert kept([video("a", "p", HIGH, 5, 9, 7), video("b", "p", LOW, 30)]) == ({"a": ["1", "2"]}, ["b"])


def test_among_equals_different_videos_come_first_and_then_long_parts():
    clips = [video("a", "p", HIGH, 5, 9), video("b", "p", TALL, 4)]
    assert kept(clips) == ({"a": ["1"], "b": ["0"]}, [])


def test_parts_too_short_do_not_count_and_a_whole_video_is_one_long_part():
    assert kept([video("a", "p", HIGH, 1.9), video("b", "p", LOW, 3)]) == ({"b": ["0"]}, ["a"])
    whole = video("a", "p", HIGH)
    assert [c.digest() for c in KeepBestClips().process_group("person p", [whole])] == [whole.digest()]


def test_people_without_a_label_are_not_chosen_from():
    clips = [video("a", "", HIGH, 5, 5, 5), video("b", "", LOW, 5)]
    assert kept(clips)[0] == {"a": ["0", "1", "2"], "b": ["0"]}


def test_the_order_of_the_list_does_not_matter():
    clips = [video(name, "p", HIGH, 5, 5) for name in "abcd"]
    assert kept(clips) == kept(clips[::-1]) == ({"a": ["0"], "b": ["0"]}, ["c", "d"])
