"""Lists of addresses: columns we know, columns we do not, rows and files that are broken."""

import json

import pytest

from stages.base import Drop
from stages.sources.lists import box_at, refuse, source_id, span_clip, youtube_url
from stages.sources.urls import Urls


def listed(tmp_path, content, name="list.csv", **settings):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(Urls(str(path), **settings).clips(None))


def test_a_list_of_bare_urls_is_enough(tmp_path):
    clips = listed(tmp_path, "url\nhttps://youtu.be/-7TMJtnhiPM\nhttps://example.org/a/b.mp4\n")
    assert [c.video for c in clips] == ["https://youtu.be/-7TMJtnhiPM", "https://example.org/a/b.mp4"]
    assert clips[0].id == "urls--7TMJtnhiPM"
    assert clips[1].id.startswith("urls-")
    assert all("start_s" not in s and "boxes" not in s for c in clips for s in c.listed["spans"])


def test_known_columns_are_used_and_unknown_ones_are_kept(tmp_path):
    (clip,) = listed(
        tmp_path,
        "url,start,end,box,identity,licence,colour\n"
        'https://example.org/v.mp4,1.5,9,"0.25,0.1,0.75,0.9",anna,CC-BY 4.0,green\n',
    )
    (span,) = clip.listed["spans"]
    assert (span["start_s"], span["end_s"], span["key"]) == (1.5, 9.0, "0001500")
    assert box_at(span, 3.0, 400, 200) == pytest.approx((100, 20, 300, 180))
    assert (clip.identity, clip.licence, span["row"]) == ("anna", "CC-BY 4.0", {"colour": "green"})
    part = span_clip(clip, span)
    assert (part.id, part.identity, part.licence) == (f"{clip.id}-0001500", "anna", "CC-BY 4.0")


def test_jsonl_says_the_same_as_csv(tmp_path):
    row = {"url": "https://example.org/v.mp4", "start": 1.5, "end": 9, "box": [0.25, 0.1, 0.75, 0.9]}
    (one,) = listed(tmp_path, json.dumps(row) + "\n\n", "list.jsonl")
    (two,) = listed(tmp_path, 'url,start,end,box\nhttps://example.org/v.mp4,1.5,9,"0.25,0.1,0.75,0.9"\n')
    drop = ("row_sha1",)
    assert [{k: v for k, v in c.listed["spans"][0].items() if k not in drop} for c in (one, two)] == [
        {
            "licence": "unknown", "box_kind": "unknown", "start_s": 1.5, "end_s": 9.0, "key": "0001500",
            "row": {}, "boxes": [[0.0, 0.25, 0.1, 0.75, 0.9]], "box_unit": "frame",
        }
    ] * 2


def test_rows_of_one_video_are_one_unit_whatever_form_its_address_has(tmp_path):
    urls = ["https://www.youtube.com/watch?v=_mjZ87sK6cA&t=3s", "https://youtu.be/_mjZ87sK6cA?si=x",
            "https://m.youtube.com/shorts/_mjZ87sK6cA", "http://youtube.com/embed/_mjZ87sK6cA"]
    (clip,) = listed(tmp_path, "url,start\n" + "".join(f"{u},{n}\n" for n, u in enumerate(urls)))
    assert clip.listed["source_id"] == "youtube:_mjZ87sK6cA"
    assert [s["key"] for s in clip.listed["spans"]] == ["0000000", "0001000", "0002000", "0003000"]


def test_parts_that_start_together_get_keys_of_their_own(tmp_path):
    (clip,) = listed(tmp_path, "url,start\n" + "https://example.org/v.mp4,2\n" * 3)
    assert [s["key"] for s in clip.listed["spans"]] == ["0002000", "0002000-1", "0002000-2"]


def test_windows_line_ends_a_mark_and_a_tab_change_nothing(tmp_path):
    plain = listed(tmp_path, "url,start\nhttps://example.org/v.mp4,2\n")
    for content, name in [
        ("\ufeffurl,start\r\nhttps://example.org/v.mp4,2\r\n", "list.csv"),
        ("url\tstart\nhttps://example.org/v.mp4\t2\n", "list.tsv"),
        ("url , start\nhttps://example.org/v.mp4,2", "list.csv"),
    ]:
        assert [c.digest() for c in listed(tmp_path, content, name)] == [c.digest() for c in plain]


@pytest.mark.parametrize(
    ("url", "reason"),
    [("file:///etc/passwd", "refused url"), ("ftp://example.org/v.mp4", "refused url"), ("", "bad row"),
     ("/etc/passwd", "refused url"), ("https://user:secret@example.org/v.mp4", "refused url"),
     ("javascript:alert(1)", "refused url"), ("https://", "refused url"), ("http://[::1", "bad row"),
     ("http://example.org:99999/v.mp4", "bad row"), ("-oProxyCommand=x", "refused url"),
     ("data:video/mp4;base64,AAAA", "refused url")],
)
def test_what_is_no_address_of_the_web_is_a_rejected_unit_that_names_its_line(tmp_path, url, reason):
    (bad, good) = listed(tmp_path, f'url,start\n"{url}",1\nhttps://example.org/v.mp4,2\n')
    with pytest.raises(Drop) as drop:
        list(refuse(bad))
    assert drop.value.reason == reason
    assert drop.value.detail.startswith("list.csv:2: ")
    assert "secret" not in str(bad.to_record())
    assert list(refuse(good)) == []


@pytest.mark.parametrize(
    "row",
    [
        "5,3,", "-1,3,", "x,3,", "nan,3,", '1,3,"0,0,1"', '1,3,"0.9,0,0.1,1"', '1,3,"100,100,200,200"',
        "1,3,,,,",
    ],
)
def test_a_row_that_makes_no_sense_is_a_rejected_unit(tmp_path, row):
    (bad,) = listed(tmp_path, f"url,start,end,box\nhttps://example.org/v.mp4,{row}\n")
    assert bad.listed["error"] == "bad row"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", "link,start\nx,1\n", r"list\.csv:1: no column 'url'"),
        ("list.csv", "", r"list\.csv:1: no column 'url'"),
        ("list.csv", 'url\n"https://example.org\n', r"list\.csv:2: is no sound csv"),
        ("list.csv", "url,start,start\n", r"list\.csv:1: two columns"),
        ("list.csv", b"url\nhttps://\xff\xfe\n", r"list\.csv:2: is not UTF-8"),
        ("list.jsonl", '{"url": "https://a.b/c"}\n{"url": "htt', r"list\.jsonl:2: is no complete json"),
        ("list.jsonl", '{"link": 3}\n', r"list\.jsonl:1: is no object with a"),
        ("list.jsonl", "[1]\n", r"list\.jsonl:1: is no object with a"),
        ("list.xlsx", "PK", "no .csv, .tsv or .jsonl"),
    ],
)
def test_a_file_that_is_no_such_list_is_one_line_with_file_and_line(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message) as error:
        listed(tmp_path, content, name)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="cannot read"):
        list(Urls(str(tmp_path / "nowhere.csv")).clips(None))


def test_names_of_lists_cannot_leave_the_folder():
    with pytest.raises(ValueError, match="dataset"):
        Urls("a.csv", dataset="../x")


def test_addresses_keep_their_ports_and_lose_their_fragments():
    assert source_id("http://Example.org:8080/a?b=c#t=3") == "http://example.org:8080/a?b=c"
    with pytest.raises(Drop):
        youtube_url("../../../etc")


def test_a_spreadsheet_may_separate_by_semicolons_and_break_lines_inside_quotes(tmp_path):
    rows = b'\xef\xbb\xbfurl;start;note\r\nhttps://example.org/v.mp4;1.5;"two\r\nlines; one cell"\r\n'
    (clip,) = listed(tmp_path, rows)
    (span,) = clip.listed["spans"]
    assert (span["start_s"], span["row"]) == (1.5, {"note": "two\nlines; one cell"})


def test_a_formula_is_text_and_as_an_address_it_is_refused(tmp_path):
    formula = '=HYPERLINK(""http://example.org/"")'
    good, bad = listed(tmp_path, f'url,note\n"{formula}",x\nhttps://example.org/v.mp4,"{formula}"\n')[::-1]
    assert good.listed["spans"][0]["row"]["note"] == '=HYPERLINK("http://example.org/")'
    assert bad.listed["error"] == "refused url"


@pytest.mark.parametrize(("encoding", "line"), [("utf-16", 1), ("latin-1", 3)])
def test_another_encoding_is_one_line_with_its_cure(tmp_path, encoding, line):
    text = "url,note\nhttps://example.org/a.mp4,x\nhttps://example.org/b.mp4,\u00e9\n"
    with pytest.raises(ValueError, match=rf"list.csv:{line}: is not UTF-8 text; save the list as UTF-8"):
        listed(tmp_path, text.encode(encoding))


@pytest.mark.parametrize("tail", [b'https://example.org/c.mp4,"open', b"https://example.org/c.mp4,\xff"])
def test_a_file_that_is_broken_further_down_is_refused_before_any_unit(tmp_path, tail):
    path = tmp_path / "list.csv"
    path.write_bytes(b"url,note\nnowhere,x\nhttps://example.org/a.mp4,x\n" + tail)
    with pytest.raises(ValueError, match=r"list\.csv:4"):
        next(Urls(str(path)).clips(None))


@pytest.mark.parametrize(
    "value", ["NaN", "-Infinity", "1e999", '"\\ud800"', "[" * 50 + "]" * 50],
    ids=["nan", "inf", "huge", "text", "deep"],
)
def test_a_row_that_no_record_can_hold_is_rejected_alone(tmp_path, value):
    rows = f'{{"url": "https://h.org/a.mp4"}}\n{{"url": "https://h.org/b.mp4", "note": {value}}}\n'
    bad, good = listed(tmp_path, rows, "list.jsonl")
    assert good.video == "https://h.org/a.mp4"
    with pytest.raises(Drop, match=r"bad row: list\.jsonl:2: a value cannot be kept"):
        list(refuse(bad))


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 100_000])
def test_json_that_cannot_be_read_is_refused_with_its_line(tmp_path, value):
    with pytest.raises(ValueError, match=r"list\.jsonl:2: is no complete json"):
        listed(tmp_path, f'{{"url": "https://example.org/a.mp4"}}\n{{"url": {value}}}\n', "list.jsonl")


def test_what_signs_an_address_is_not_in_the_name_of_the_video(tmp_path):
    (clip,) = listed(tmp_path, "url\nhttps://example.org/v.mp4?quality=high&X-Amz-Signature=geheim\n")
    assert clip.video.endswith("geheim")
    assert clip.source == "https://example.org/v.mp4?quality=high"
