"""What did not come is told in kinds: for good, with other settings, the next time."""

import pytest

from pipelines.losses import as_json, losses
from pipelines.plan import describe_plan
from pipelines.status import Unit, workflow_status


def unit(reason, state="rejected", detail="", again=False):
    return Unit("v", None, "Download", state, reason, "", detail, again)


def test_each_reason_is_counted_in_its_kind_and_in_the_order_of_hope():
    found = losses([
        unit("throttled", "failed", again=True), unit("gone: private"), unit("gone: removed"),
        unit("gone: private"), unit("gated: age check"), unit("regional: not available here"),
        unit("bad row", detail="list.csv:3: the url is empty"), unit("refused url", detail="list.csv:9: ftp"),
        unit("duplicate"), unit("no face"), unit("crashed: SIGSEGV", "failed"), unit("", "ok"),
    ])  # fmt: skip
    assert {loss.kind: dict(loss.reasons) for loss in found} == {
        "gone": {"private": 2, "removed": 1},
        "gated": {"age check": 1},
        "regional": {"not available here": 1},
        "later": {"throttled": 1},
        "bad row": {"bad row": 1, "refused url": 1},
        "duplicate": {"duplicate": 1},
    }
    assert list(as_json(found)) == [loss.kind for loss in found]


def test_a_kind_is_told_with_its_reasons_and_bad_rows_with_their_place():
    (gone, rows) = losses([unit("gone: private"), unit("bad row", detail="list.csv:3: the url is empty")])
    assert gone.text.split() == ["1", "gone", "for", "good", "private", "(1)"]
    assert "list.csv:3" in rows.text


def test_rows_are_told_in_the_order_of_the_list():
    (rows,) = losses([unit("bad row", detail=f"list.csv:{line}: empty") for line in (10, 9, 100, 2)])
    assert [one.detail.split(":")[1] for one in rows.units] == ["2", "9", "10", "100"]
    assert "list.csv:2" in rows.text
    assert "list.csv:100" not in rows.text


def test_nothing_lost_is_nothing_said():
    assert losses([unit("", "ok"), unit("too short")]) == []


@pytest.mark.parametrize("arrive", [False, True])
def test_status_tells_what_the_next_run_tries_again(tiny, arrive):
    from pipelines.runner import prepare

    workflow = tiny.load("stages.Mark.later=[v01-0]")
    prepare(workflow, in_process=True)
    if arrive:
        (tiny.root / "there").touch()
        prepare(workflow, in_process=True)
    answer, text = workflow_status(workflow)
    assert ("later" in answer["losses"]) is not arrive
    assert ("the next run tries again" in text) is not arrive
    plan, _ = describe_plan(workflow, None)
    assert plan["stages"]["Mark"]["todo"] == (0 if arrive else 1)
