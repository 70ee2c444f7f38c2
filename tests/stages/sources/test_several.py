"""Several lists at once: what is listed twice is done once, and two faces of one moment both stay."""

import random
import time

import pytest

from infra import scratch
from infra.storage import FolderStorage
from stages.clip import Clip
from stages.sources.folder import Folder
from stages.sources.lists import refuse, unit
from stages.sources.several import Several, mark_duplicates
from stages.sources.urls import Urls
from stages.sources.voxceleb import VoxCeleb


class Listed:
    def __init__(self, name, *spans, url="https://youtu.be/_mjZ87sK6cA"):
        self.unit = (name, url, [{"key": str(n), **span} for n, span in enumerate(spans)])

    def clips(self, store):
        name, url, spans = self.unit
        yield unit(name, "v", url, spans)


def errors(*sources):
    """Per list, per part: the error, or empty."""
    clips = list(mark_duplicates(Several(list(sources)).clips(None)))
    return [[s.get("error", "") for s in c.listed.get("spans", [c.listed])] for c in clips]


def at(start, end, box=None):
    return {"start_s": start, "end_s": end} | ({"boxes": [[0.0, *box]]} if box else {})


def test_parts_that_overlap_in_time_are_kept_once_and_name_the_first():
    sources = Listed("a", at(0, 10)), Listed("b", at(9, 20), at(30, 40))
    assert errors(*sources) == [[""], ["duplicate", ""]]
    second = list(mark_duplicates(Several(list(sources)).clips(None)))[1]
    assert second.listed["spans"][0]["detail"] == "same as a-v-0"


def test_parts_that_touch_are_two():
    assert errors(Listed("a", at(0, 10)), Listed("b", at(10, 20))) == [[""], [""]]


def test_two_faces_of_one_moment_are_two_and_one_face_in_two_kinds_of_box_is_one():
    left, right, head = (0.1, 0.2, 0.3, 0.5), (0.6, 0.2, 0.8, 0.5), (0.05, 0.1, 0.4, 0.7)
    assert errors(Listed("a", at(0, 10, left)), Listed("b", at(0, 10, right), at(5, 9, head))) == [
        [""], ["", "duplicate"],
    ]


def test_another_video_is_no_duplicate():
    other = "https://youtu.be/-7TMJtnhiPM"
    assert errors(Listed("a", at(0, 9)), Listed("b", at(0, 9), url=other)) == [[""], [""]]


def test_a_whole_video_overlaps_with_its_parts():
    assert errors(Listed("a"), Listed("b", at(3, 9))) == [[""], ["duplicate"]]
    assert errors(Listed("a", at(3, 9)), Listed("b")) == [[""], ["duplicate"]]


@pytest.mark.parametrize(
    ("chunk", "frames", "expected"), [(0, [50, 90], "duplicate"), (0, [100, 200], ""), (1, [0, 100], "")]
)
def test_chunks_that_are_not_located_yet_are_compared_by_their_frames(chunk, frames, expected):
    first = {"chunk": 0, "frames": [0, 100], "boxes": [[0, 0.1, 0.1, 0.5, 0.5]]}
    second = {**first, "chunk": chunk, "frames": frames}
    assert errors(Listed("a", first), Listed("b", second)) == [[""], [expected]]


def test_a_video_of_very_many_parts_is_quick():
    parts = [at(3.0 * n, 3.0 * n + 3.0) for n in range(20_000)]
    started = time.monotonic()
    found = errors(Listed("a", *parts), Listed("b", *parts[::100]))
    assert time.monotonic() - started < 20
    assert set(found[0]) == {""}
    assert set(found[1]) == {"duplicate"}


def test_a_part_that_was_rejected_does_not_push_out_a_good_one():
    assert errors(Listed("a", {**at(0, 9), "error": "bad row"}), Listed("b", at(0, 9))) == [["bad row"], [""]]


def test_units_of_one_id_get_ids_of_their_own():
    clips = list(Several([Listed("a", at(0, 1)), Listed("a", at(2, 3)), Listed("a", at(4, 5))]).clips(None))
    assert [c.id for c in clips] == ["a-v", "a-v-2", "a-v-3"]


def test_rows_that_one_list_names_twice_are_accounted_for(tmp_path):
    path = tmp_path / "list.csv"
    row = "https://example.org/v.mp4,{},{}\n"
    path.write_text("url,start,end\n" + row.format(0, 5) + row.format(0, 5) + row.format(5, 9))
    source = Urls(str(path))
    (clip,) = mark_duplicates(source.clips(None), source.names_once)
    assert [span.get("error", "") for span in clip.listed["spans"]] == ["", "duplicate", ""]
    assert [other.listed for other in mark_duplicates(source.clips(None))] == [clip.listed]
    kept = clip.copy()
    assert [out.reason for out in refuse(kept)] == ["duplicate"]
    assert len(kept.listed["spans"]) == 2


def test_a_file_of_two_folders_is_done_once(tmp_path):
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "a.mp4").write_bytes(b"x")
    folders = [Folder(str(tmp_path)), Folder(str(tmp_path / "deeper"))]
    store = FolderStorage(tmp_path / "store")
    first, second = mark_duplicates(Several(folders).clips(store))
    assert "error" not in first.listed
    assert (second.listed["error"], second.listed["detail"]) == ("duplicate", f"same as {first.id}")
    assert first.id != second.id


def test_an_utterance_of_two_trees_is_done_once(tmp_path):
    text = "Reference : \t_mjZ87sK6cA\n\nFRAME \tX \tY \tW \tH \n000010 \t0.1 \t0.1 \t0.4 \t0.7 \n"
    for tree in ("one", "two"):
        folder = tmp_path / "txt" / tree / "id00017" / "_mjZ87sK6cA"
        folder.mkdir(parents=True)
        (folder / "00001.txt").write_text(text)
    (clip,) = mark_duplicates(VoxCeleb(str(tmp_path / "txt"), 2, splits=["train", "held-out"]).clips(None))
    assert [span.get("error", "") for span in clip.listed["spans"]] == ["", "duplicate"]
    assert len({span["key"] for span in clip.listed["spans"]}) == 2


def test_what_is_a_duplicate_does_not_depend_on_how_much_is_in_memory(monkeypatch):
    random_ = random.Random(0)
    clips = []
    for number in range(400):
        start = random_.randrange(100)
        left = random_.choice([0.0, 0.5])
        box = [0.0, left, 0.1, left + 0.4, 0.9]
        span = {"key": "k", "start_s": start, "end_s": start + 5.0, "boxes": [box]}
        listed = {"source_id": f"youtube:{random_.randrange(40)}", "spans": [span]}
        clips.append(Clip(f"c{number}", "s", f"v{number}", listed=listed if number % 3 else {}))
        clips.append(Clip(f"f{number}", "s", f"file {random_.randrange(300)}"))
    plain = [clip.listed for clip in mark_duplicates(clips)]
    monkeypatch.setattr(scratch, "HELD", 2)
    monkeypatch.setattr(scratch, "_FLUSHED", 8)
    assert [clip.listed for clip in mark_duplicates(clips)] == plain
    assert 50 < str(plain).count("duplicate") < 700
