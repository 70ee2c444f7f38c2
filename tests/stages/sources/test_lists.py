"""What all lists share: names, parts, boxes."""

import math

import pytest

from stages.base import Drop
from stages.sources.lists import box_at, parts, safe_name, span_clip, unit


def test_names_are_safe_and_never_collide():
    raw = ["a", "-a", "_a", "a b", "a/b", "../a", "ä", "a" * 100, "a" * 101, "", "%(id)s", "a\nb"]
    names = [safe_name(name) for name in raw]
    assert len(set(names)) == len(raw)
    assert all(name and len(name) <= 64 and all(c.isascii() and (c.isalnum() or c in "-_") for c in name)
               for name in names)
    assert names[:3] == raw[:3]


def test_a_video_without_parts_is_one_part():
    clip = unit("t", "v", "https://example.org/v.mp4", [])
    assert [(part.id, start, end) for part, start, end in parts(clip)] == [("t-v", -math.inf, math.inf)]


def test_parts_carry_their_own_row_and_ids_that_do_not_depend_on_the_download():
    spans = [{"key": "a", "start_s": 2.0, "end_s": 5.0, "identity": "p"}, {"key": "b", "end_s": 9.0}]
    clip = unit("t", "v", "https://example.org/v.mp4", spans, "CC0")
    divided = clip.copy(id="t-v-at1", listed={**clip.listed, "unit": "t-v"})
    for one in (clip, divided):
        (a, *first), (b, *second) = parts(one)
        assert (a.id, b.id, a.identity, b.identity, a.licence) == ("t-v-a", "t-v-b", "p", "", "CC0")
        assert (first, second) == ([2.0, 5.0], [-math.inf, 9.0])
        assert a.listed["span"] == spans[0]
        assert "spans" not in a.listed
    assert span_clip(clip, spans[0]).digest() == span_clip(divided, spans[0]).digest()


def test_a_chunk_that_was_not_located_is_rejected_with_the_cure():
    clip = unit("t", "v", "https://example.org/v.mp4", [{"key": "a", "chunk": 0, "frames": [0, 9]}])
    with pytest.raises(Drop, match="LocateChunks"):
        parts(clip)


def test_a_box_is_between_its_listed_times_and_constant_outside():
    span = {"start_s": 10.0, "boxes": [[0.0, 0.0, 0.0, 0.2, 0.2], [4.0, 0.4, 0.0, 0.6, 0.2]]}
    lefts = [box_at(span, t, 100, 50)[0] for t in (9.0, 10.0, 11.0, 13.0, 14.0, 20.0)]
    assert lefts == pytest.approx([0, 0, 10, 30, 40, 40])
    assert box_at({"start_s": 1.0}, 2.0, 100, 50) is None
