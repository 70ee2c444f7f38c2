import json
import math

import pytest

from pipelines.records import Output, Record, from_lines, to_line

OUT = Output("v01-0", "c" * 64, at=(0, 10, 5, 20))
RECORD = Record("v01", "v01.mp4", "key", "input", "ok", seconds=1.5, attempts=2, outputs=[OUT])
SOUND = json.loads(to_line(RECORD))


def line(of_output=None, **changes):
    outputs = changes.pop("outputs", [{**SOUND["outputs"][0], **(of_output or {})}])
    return json.dumps({**SOUND, "outputs": outputs, **changes})


def test_what_was_written_is_read():
    assert from_lines([to_line(RECORD)] * 2, ["s", "s"])[1].outputs[0].at == [0, 10, 5, 20]
    assert from_lines([], []) == []


@pytest.mark.parametrize("changes", [
    {"state": "weird"}, {"state": [1]}, {"state": None}, {"seconds": "x"}, {"seconds": math.nan},
    {"seconds": math.inf}, {"seconds": -1.0}, {"seconds": True}, {"attempts": "x"}, {"attempts": 10**40},
    {"reason": {}}, {"reason": None}, {"detail": 5}, {"again": "x"}, {"source": 5}, {"key": [1]},
    {"input": 5},
    {"outputs": "abc"}, {"outputs": {}}, {"outputs": None}, {"outputs": [1]}, {"outputs": [{}]}, {"group": 5},
    {"members": [1]}, {"unit": 5}, {"unit": "a b"}, {"unit": ""}, {"unit": "a\nb"}, {"foo": 1},
])  # fmt: skip
def test_a_record_of_wrong_values_is_damaged(changes):
    with pytest.raises(ValueError, match=r"^[^\n]{5,100}$"):
        from_lines([line(), line(**changes)], ["s", "s"])


@pytest.mark.parametrize("changes", [
    {"id": 5}, {"id": "../../x"}, {"id": "a\nb"}, {"id": [1]}, {"id": None}, {"id": "ä"}, {"digest": 5},
    {"state": "weird"}, {"state": [1]}, {"reason": {}}, {"identity": 5}, {"clip": "abc"}, {"clip": None},
    {"at": "abcd"}, {"at": [1]}, {"at": [-5, 10, 0, 0]}, {"at": [2**63, 10, 0, 0]}, {"at": [1.5, 2, 0, 0]},
    {"at": {"a": 1}}, {"at": [[], 1, 2, 3]}, {"at": [1, 2, 3, 4, 5]},
])  # fmt: skip
def test_a_clip_of_wrong_values_is_damaged(changes):
    with pytest.raises((ValueError, TypeError)):
        from_lines([line(), line(changes)], ["s", "s"])


def test_half_a_character_is_shown_as_a_question_mark():
    (record,) = from_lines([line(source="\ud800x \U0001f600", detail="\udcff")], ["s"])
    assert (record.source, record.detail) == ("?x \U0001f600", "?")
