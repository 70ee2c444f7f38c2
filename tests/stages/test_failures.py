"""What sites and yt-dlp say, and what we make of it: every row of the table, by text and by exception."""

import errno

import pytest

from stages.failures import classify, retry_after, scrub

SAID = [
    ("ERROR: [youtube] x: Private video. Sign in if you've been granted access", "gone", "private"),
    ("Video unavailable. This video is private", "gone", "private"),
    ("Video unavailable", "gone", "unavailable"),
    ("This video is not available", "gone", "unavailable"),
    ("Video unavailable. This video has been removed by the uploader", "gone", "removed"),
    ("This video has been removed for violating YouTube’s policy on hate speech.", "gone", "removed"),
    ("This video is no longer available because the YouTube account associated with this video has been "
     "terminated.", "gone", "terminated"),
    ("Video unavailable. This video is no longer available due to a copyright claim by Somebody", "gone",
     "copyright"),
    ("HTTP Error 404: Not Found", "gone", "not found"),
    ("HTTP Error 410: Gone", "gone", "not found"),
    ("HTTP Error 302: Found (redirect loop detected)", "gone", "circle"),
    ("Unsupported URL: https://example.org/", "gone", "no video"),
    ("Join this channel to get access to members-only content like this video", "gated", "members"),
    ("This video is available to this channel's members on level: Gold", "gated", "members"),
    ("Sign in to confirm your age. This video may be inappropriate for some users.", "gated", "age"),
    ("Premieres in 3 hours", "gated", "not shown yet"),
    ("This live event will begin in a few moments.", "gated", "not shown yet"),
    ("The channel is not currently live", "gated", "not shown yet"),
    ("HTTP Error 401: Unauthorized", "gated", "login"),
    ("This video is only available to Music Premium members", "gated", "login"),
    ("This video requires a subscription", "gated", "login"),
    ("You need to log in to access this content", "gated", "login"),
    ("This livestream has not yet started", "gated", "not shown yet"),
    ("This video is DRM protected", "gone", "DRM"),
    ("This live stream recording is not available.", "gone", "unavailable"),
    ("Video was deleted", "gone", "removed"),
    ("The uploader has not made this video available in your country", "regional", "not available here"),
    ("This video contains content from X, who has blocked it in your country on copyright grounds",
     "regional", "here"),
    ("HTTP Error 451: Unavailable For Legal Reasons", "regional", "here"),
    ("HTTP Error 429: Too Many Requests", "throttled", "429"),
    ("Sign in to confirm you're not a bot. Use --cookies-from-browser or --cookies", "throttled", "bot"),
    ("Sign in to confirm you’re not a bot", "throttled", "bot"),
    ("Video unavailable. This content isn’t available, try again later. The current session has been "
     "rate-limited by YouTube for up to an hour.", "throttled", "session"),
    ("Sign in to confirm you’re not a bot. YouTube is requiring a captcha challenge before playback",
     "throttled", "bot"),
    ("All player responses are invalid. Your IP is likely being blocked by Youtube", "throttled", "address"),
    ("unable to download video data: HTTP Error 403: Forbidden", "transient", "403"),
    ("HTTP Error 403: Permission denied", "transient", "403"),
    ("HTTP Error 500: Internal Server Error", "transient", "5xx"),
    ("HTTP Error 503: Service Unavailable", "transient", "5xx"),
    ("HTTP Error 400: Bad Request", "transient", "http error"),
    ("The read operation timed out", "transient", "timeout"),
    ("content too short (expected 100 bytes and served 50)", "transient", "incomplete"),
    ("3000 bytes read, 7000 more expected", "transient", "incomplete"),
    ("Did not get any data blocks", "transient", "incomplete"),
    ("Unable to connect to proxy", "transient", "proxy"),
    ("[Errno -3] Temporary failure in name resolution", "transient", "network"),
    ("[Errno 104] Connection reset by peer", "transient", "network"),
    ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "transient", "network"),
    ("ffmpeg exited with code 1", "transient", "ffmpeg"),
    ("An extractor error has occurred.", "transient", "unknown"),
    ("Requested format is not available. Use --list-formats for a list", "ours", "format"),
    ("You have requested downloading the video partially, but ffmpeg is not installed. Aborting", "ours",
     "ffmpeg"),
    ("unable to write data: [Errno 28] No space left on device", "ours", "disk"),
    ("unable to open for writing: [Errno 13] Permission denied: 'x'", "ours", "write"),
    ("No supported JavaScript runtime could be found.", "ours", "JavaScript"),
    ("HTTP Error 407: Proxy Authentication Required", "ours", "proxy"),
    ("'/c.txt' does not look like a Netscape format cookies file", "ours", "cookies"),
]


@pytest.mark.parametrize(("text", "kind", "reason"), SAID)
def test_every_message_has_its_kind_and_a_reason_that_can_be_counted(text, kind, reason):
    for said in (text, text.upper(), RuntimeError(text)):
        failure = classify(said)
        assert failure.kind == kind
        assert reason in failure.reason
        assert len(failure.reason) < 80


def test_yt_dlps_own_exceptions_are_known_however_deep_they_lie():
    utils = pytest.importorskip("yt_dlp.utils", reason="yt-dlp is not installed")
    from yt_dlp.networking.exceptions import IncompleteRead, ProxyError, TransportError

    def wrapped(inner):
        return utils.DownloadError("ERROR: it did not work", (type(inner), inner, None))

    for inner, kind, reason in [
        (utils.GeoRestrictedError("not here"), "regional", "regional"),
        (utils.UserNotLive(), "gated", "not shown"),
        (utils.ContentTooShortError(5, 9), "transient", "incomplete"),
        (IncompleteRead(3, 5), "transient", "incomplete"),
        (ProxyError("no"), "transient", "proxy"),
        (TransportError("timed out"), "transient", "timeout"),
        (utils.UnsupportedError("https://example.org"), "gone", "no video"),
        (OSError(errno.ENOSPC, "full"), "ours", "disk"),
        (utils.ExtractorError("x", cause=IncompleteRead(3, 5)), "transient", "incomplete"),
    ]:
        for error in (inner, wrapped(inner)):
            failure = classify(error)
            assert failure.kind == kind
            assert reason in failure.reason


def test_what_is_said_in_words_beats_the_status_it_came_with():
    inner = RuntimeError("HTTP Error 403: Forbidden")
    outer = RuntimeError("Sign in to confirm you’re not a bot")
    outer.__cause__ = inner
    assert classify(outer).kind == "throttled"


def test_a_chain_that_bites_its_tail_ends():
    one, two = RuntimeError("a"), RuntimeError("b")
    one.__cause__, two.__cause__ = two, one
    assert classify(one).kind == "transient"


def test_messages_lose_secrets_queries_colours_and_paths():
    text = (
        "\x1b[0;31mERROR:\x1b[0m cannot reach http://anna:pw@proxy:3128 for https://host/v.mp4?sig=abc&x=1 "
        "with tokenX\nin /tmp/w/f.part; please report this issue on https://example.org, filling out"
    )
    assert scrub(text, ["tokenX", ""], "/tmp/w") == (
        "cannot reach http://***@proxy:3128 for https://host/v.mp4?*** with *** in <work>/f.part"
    )


@pytest.mark.parametrize(
    ("said", "least", "most"),
    [("7", 7, 7), (" 120 ", 120, 120), ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0), ("soon", None, None),
     ("-5", None, None), ("", None, None)],
)
def test_the_wish_of_a_server_is_read_however_deep_it_lies(said, least, most):
    class AnswerError(Exception):
        response = type("Response", (), {"headers": {"Retry-After": said}})

    outer = RuntimeError("HTTP Error 429")
    outer.__cause__ = AnswerError()
    wish = retry_after(outer)
    assert wish is None if least is None else least <= wish <= most


def test_who_says_nothing_wishes_nothing():
    assert retry_after(RuntimeError("HTTP Error 429")) is None
