"""CelebV-HQ's json: the row as published, ids with every beginning, and files that are broken."""

import json

import pytest

from stages.base import Drop
from stages.sources.celebvhq import CelebVHQ
from stages.sources.lists import box_at, refuse

ROW = {
    "ytb_id": "M2Ohb0FAaJU", "duration": {"start_sec": 81.62, "end_sec": 86.17},
    "bbox": {"top": 0.0, "bottom": 0.8815, "left": 0.1964, "right": 0.6922},
    "attributes": {
        "appearance": [0, 0, 1], "action": [0, 0, 0], "emotion": {"sep_flag": False, "labels": "neutral"}
    },
    "version": "v0.1",
}


def listed(tmp_path, clips, text=None):
    path = tmp_path / "celebvhq_info.json"
    path.write_bytes((text or json.dumps({"meta_info": {}, "clips": clips}, indent=1)).encode())
    return CelebVHQ(str(path)).clips(None)


def test_the_published_row_keeps_its_seconds_its_box_and_its_attributes(tmp_path):
    (clip,) = listed(tmp_path, {"M2Ohb0FAaJU_1": ROW})
    (span,) = clip.listed["spans"]
    assert clip.video == "https://www.youtube.com/watch?v=M2Ohb0FAaJU"
    assert (clip.id, clip.listed["source_id"]) == ("celebvhq-M2Ohb0FAaJU", "youtube:M2Ohb0FAaJU")
    assert (span["key"], span["start_s"], span["end_s"]) == ("1", 81.62, 86.17)
    assert box_at(span, 83.0, 1000, 1000) == pytest.approx((196.4, 0.0, 692.2, 881.5))
    assert span["row"]["attributes"] == ROW["attributes"]
    assert "non-commercial" in clip.licence
    assert clip.digest()                             # JSON all through


@pytest.mark.parametrize("video_id", ["-7TMJtnhiPM", "_mjZ87sK6cA", "Y0L0_NxpXI_", "--Y9imYnfBw"])
@pytest.mark.parametrize("tail", ["1", "1_0"])
def test_ids_are_read_and_never_split_from_the_key(tmp_path, video_id, tail):
    (clip,) = listed(tmp_path, {f"{video_id}_{tail}": {**ROW, "ytb_id": video_id}})
    assert clip.video.endswith(f"watch?v={video_id}")
    assert clip.listed["spans"][0]["key"] == tail


def test_all_clips_of_a_video_are_one_unit_of_distinct_parts(tmp_path):
    rows = {f"M2Ohb0FAaJU_{n}": ROW for n in ("1_0", "1_1", "2")}
    clips = list(listed(tmp_path, rows | {"Y0L0sNxp2XI_1_0": {**ROW, "ytb_id": "Y0L0sNxp2XI"}}))
    assert [[s["key"] for s in c.listed["spans"]] for c in clips] == [["1_0", "1_1", "2"], ["1_0"]]


@pytest.mark.parametrize(
    "change",
    [
        {"ytb_id": "short"}, {"ytb_id": "../../etc/x"}, {"bbox": {}},
        {"duration": {"start_sec": 9, "end_sec": 3}}, {"duration": {"start_sec": "x", "end_sec": 3}},
        {"bbox": {"top": 0.9, "bottom": 0.1, "left": 0.2, "right": 0.3}},
    ],
)
def test_a_bad_row_becomes_a_unit_that_the_first_stage_rejects_and_the_others_live(tmp_path, change):
    bad, good = listed(tmp_path, {"x_1": {**ROW, "ytb_id": "Y0L0sNxp2XI", **change}, "M2Ohb0FAaJU_1": ROW})
    with pytest.raises(Drop, match="bad row"):
        list(refuse(bad))
    assert list(refuse(good)) == []


def test_a_truncated_file_is_one_line_with_file_and_line(tmp_path):
    whole = json.dumps({"clips": {"M2Ohb0FAaJU_1": ROW}}, indent=1)
    with pytest.raises(ValueError, match=r"celebvhq_info\.json:\d+: is no complete json") as error:
        list(listed(tmp_path, {}, text=whole[:-40]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[]", '{"clips": {}}', '{"videos": 3}'])
def test_another_json_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match="clips"):
        list(listed(tmp_path, {}, text=text))


def test_windows_line_ends_and_a_byte_order_mark_change_nothing(tmp_path):
    plain = list(listed(tmp_path, {"M2Ohb0FAaJU_1": ROW}))
    text = "\ufeff" + json.dumps({"clips": {"M2Ohb0FAaJU_1": ROW}}, indent=1).replace("\n", "\r\n")
    assert [c.digest() for c in listed(tmp_path, {}, text=text)] == [c.digest() for c in plain]


@pytest.mark.parametrize("value", ["NaN", '"\\ud800"', "[" * 50 + "]" * 50], ids=["nan", "text", "deep"])
def test_a_row_that_no_record_can_hold_is_rejected_alone(tmp_path, value):
    rows = json.dumps({"M2Ohb0FAaJU_1": ROW, "M2Ohb0FAaJU_2": {**ROW, "note": "VALUE"}})
    text = '{"clips": ' + rows.replace('"VALUE"', value) + "}"
    bad, good = listed(tmp_path, None, text)
    assert [span["key"] for span in good.listed["spans"]] == ["1"]
    with pytest.raises(Drop, match="bad row"):
        list(refuse(bad))


def test_a_key_that_is_no_text_is_rejected(tmp_path):
    (bad,) = listed(tmp_path, {"\ud800_1": ROW})
    with pytest.raises(Drop, match="bad row"):
        list(refuse(bad))
    assert bad.source.encode()


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 100_000])
def test_json_that_cannot_be_read_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match=r"celebvhq_info\.json:1: is no complete json"):
        list(listed(tmp_path, None, text))
