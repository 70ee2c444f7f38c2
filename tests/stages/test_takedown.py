"""Who is meant by a takedown list, and which lists cannot be followed."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.takedown import Takedown, read_takedown

ID = "-7TMJtnhiPM"
FORMS = [
    f"https://www.youtube.com/watch?v={ID}",
    f"http://youtube.com/watch?feature=x&v={ID}&t=10s#top",
    f"https://m.youtube.com/watch?v={ID}",
    f"https://music.youtube.com/watch?v={ID}",
    f"https://youtu.be/{ID}?si=abc",
    f"https://www.youtube.com/shorts/{ID}",
    f"https://www.youtube-nocookie.com/embed/{ID}",
    f"https://www.youtube.com/live/{ID}?feature=share",
]


def listed(tmp_path: Path, text: str | bytes, name: str = "list.txt") -> Takedown:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_takedown(path)


SHORT = [f"youtu.be/{ID}", f"www.youtube.com/watch?v={ID}", ID, f"youtube:{ID}"]


@pytest.mark.parametrize("form", [*FORMS, *SHORT])
@pytest.mark.parametrize("kind", ["", "video:", "url:"])
def test_every_form_of_a_youtube_address_means_the_id(form: str, kind: str, tmp_path: Path) -> None:
    if kind and form in (ID, f"youtube:{ID}"):
        kind = "video:"
    takedown = listed(tmp_path, f"{kind}{form}\n")
    for source in [*FORMS, f"youtube:{ID}"]:
        assert takedown.find(sources=[source]), source
    assert not takedown.find(sources=["https://youtu.be/_mjZ87sK6cA"])
    assert list(takedown.videos()) == [f"youtube:{ID}"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "# why\n\nvideo:-a_1 # asked\r\nidentity: Grace Hopper\nclip:c-1\nhttps://x.example/v.mp4\n_b\n"),
        ("a.txt", "\ufeffVIDEO:-a_1\nidentity:Grace Hopper\nclip:c-1\nurl:http://X.example/v.mp4#t=1\nvideo:_b"),
        (
            "a.csv",
            "video,identity,clip,url,date\n-a_1,,,,2026\n,Grace Hopper,,,\n,,c-1,,\n"
            ",,,https://x.example/v.mp4,\n_b,,,,",
        ),
        ("a.csv", "kind,id\nvideo,-a_1\nidentity,Grace Hopper\nclip,c-1\nurl,https://x.example/v.mp4\nvideo,_b\n"),
        ("a.csv", "video:-a_1,note\nidentity:Grace Hopper,\"more, notes\"\nclip:c-1\nhttps://x.example/v.mp4\n_b\n"),
        (
            "a.tsv",
            "Kind\tId\nvideo\t-a_1\nidentity\tGrace Hopper\nclip\tc-1\n"
            "url\thttps://x.example/v.mp4\nvideo\t_b\n",
        ),
        ("a.jsonl", '{"video": "-a_1", "identity": "Grace Hopper"}\n"clip:c-1"\n"https://x.example/v.mp4"\n"_b"\n'),
    ],
)
def test_every_form_of_file_says_the_same(name: str, text: str, tmp_path: Path) -> None:
    takedown = listed(tmp_path, text, name)
    assert len(takedown.entries) == 5
    assert takedown.find(sources=["-a_1.mp4"])
    assert takedown.find(sources=["_b.mp4"])
    assert takedown.find(identity="Grace Hopper")
    assert takedown.find(unit="c-1")
    assert takedown.find(sources=["https://x.example/v.mp4"])
    assert not takedown.find(unit="c-2", identity="Grace", sources=["https://x.example/w.mp4", "a.mp4"])


def test_a_kind_means_that_kind_only_and_a_bare_id_any(tmp_path: Path) -> None:
    assert not listed(tmp_path, "identity:p1").find(unit="p1", sources=["p1.mp4"])
    assert not listed(tmp_path, "video:p1").find(unit="p1", identity="p1")
    assert not listed(tmp_path, "clip:p1").find(identity="p1", sources=["p1.mp4"])
    bare = listed(tmp_path, "p1")
    assert bare.find(unit="p1")
    assert bare.find(identity="p1")
    assert bare.find(sources=["sub/p1.mp4"])
    assert not bare.find(unit="p1_a", identity="p11", sources=["p1_a.mp4", "p11.mp4", "https://x.example/p1.mp4"])


def test_a_clip_means_what_was_cut_from_it(tmp_path: Path) -> None:
    takedown = listed(tmp_path, "clip:urls-x-0001")
    assert takedown.find(unit="urls-x-0001_0000040")
    assert takedown.find(unit="urls-x-0001_0000040_0012")
    assert not takedown.find(unit="urls-x-0001_a")
    assert not takedown.find(unit="urls-x-00012_0000040")


def test_names_of_files_hold_ids(tmp_path: Path) -> None:
    takedown = listed(tmp_path, f"video:{ID}\nvideo:sub/a.mp4")
    for source in (f"id1/{ID}/00001.mp4", f"{ID}.mp4", f"id1#{ID}#00001.mp4", "sub/a.mp4"):
        assert takedown.find(sources=[source]), source
    assert not takedown.find(sources=["other/a.mp4"])


def test_addresses_are_equal_up_to_scheme_fragment_and_secrets(tmp_path: Path) -> None:
    takedown = listed(tmp_path, "https://me:pw@X.example:8000/a/v.mp4?n=1&token=abc#t")
    assert takedown.find(sources=["http://x.example:8000/a/v.mp4?n=1"])
    assert not takedown.find(sources=["http://x.example:8000/a/v.mp4?n=2"])


def test_order_form_and_comments_do_not_change_the_digest(tmp_path: Path) -> None:
    one = listed(tmp_path, f"video:{ID}\nidentity:p1\n")
    two = listed(tmp_path, f'{{"identity": "p1"}}\n{{"url": "https://youtu.be/{ID}"}}\n', "b.jsonl")
    assert one.digest == two.digest
    assert one.digest != listed(tmp_path, "identity:p1").digest
    assert not listed(tmp_path, "# nobody yet\n")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "video:x\nperson:y", r":2: no kind 'person'; write video:, url:, identity:, clip:"),
        ("a.txt", "video:", ":1: the id is empty"),
        ("a.txt", "x\n\ntwo words", ":3: 'two words' holds a blank"),
        ("a.txt", "url:ftp://x.example/v.mp4", ":1: .* is no http address"),
        ("a.txt", "url:abc", ":1: 'abc' is no http address"),
        ("a.txt", "https://www.youtube.com/@somebody", ":1: .* address of no video"),
        ("a.txt", b"x\n\xff\xfe\n", ":2: is not UTF-8"),
        ("a.txt", "x" * 3000, ":1: the id is empty, too long"),
        ("a.txt", "a\x00b", ":1: .* control characters"),
        ("a.csv", "video,identity\nx,y,z\n", ":2: more values than columns"),
        ("a.csv", "video,note\nx,\n,hm\n", ":3: none of video, url"),
        ("a.csv", 'video\n"x\n', "is no sound csv"),
        ("a.csv", "kind,id\nplace,x\n", ":2: no kind 'place'"),
        ("a.jsonl", '{"video": "x"}\n{"video": ', ":2: is no complete json"),
        ("a.jsonl", '{"name": "x"}', ":1: names nothing"),
        ("a.jsonl", "17", ":1: names nothing"),
    ],
)
def test_a_list_that_cannot_be_followed_is_refused_in_one_line(
    name: str, text: str | bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        listed(tmp_path, text, name)
    assert "\n" not in str(refused.value)
    assert str(tmp_path / name) in str(refused.value)


def test_a_missing_list_is_no_empty_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"policy.takedown: cannot read .*gone.txt"):
        read_takedown(tmp_path / "gone.txt")


@pytest.mark.parametrize(
    "entry", [f"video:{ID}\u200b", f"{ID}\u2060", "identity:Grace\u202eHopper", "clip:a\ufeff"]
)
def test_an_entry_with_what_cannot_be_seen_is_refused(entry: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"list\.txt:1: .*cannot be seen"):
        listed(tmp_path, f"{entry}\n")


def test_a_name_may_hold_joiners(tmp_path: Path) -> None:
    assert listed(tmp_path, "identity:می‌رود\n").find(identity="می‌رود")


@pytest.mark.parametrize("row", ['{"video": ' + "9" * 5000 + "}", "[" * 100_000, '{"identity": "\\ud800"}'])
def test_json_that_cannot_be_followed_is_refused_with_its_line(row: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"list\.jsonl:2: "):
        listed(tmp_path, f'{{"video": "{ID}"}}\n{row}\n', "list.jsonl")
