"""The whole of `pv3d run` where little is left to run."""

import re
import threading
from pathlib import Path

import pytest

from pipelines.run import run_workflow
from pipelines.workflow import load

WORKFLOW = Path(__file__).parents[2] / "workflow.yaml"


@pytest.mark.parametrize("until", [None, "SplitShots"])
def test_a_run_that_keeps_no_clip_says_why_and_writes_its_report(tmp_path, until):
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "talk.mp4").write_text("no video")
    settings = {
        "source.location": videos, "storage.root": tmp_path / "store",
        "storage.tracking": f"sqlite:///{tmp_path}/mlflow.db",
    }  # fmt: skip
    workflow = load(WORKFLOW, "demo", [f"{key}={value}" for key, value in settings.items()])
    answer, table = run_workflow(workflow, until=until, in_process=True)
    page = tmp_path / "store" / "report" / "index.html"
    where = "out of SplitShots" if until else "left to train on"
    assert re.fullmatch(rf"no clip (came|is) {where}: cannot decode \(1\); .*{page}", answer["fault"])
    assert "rejected at SplitShots: cannot decode" in table
    assert "talk" in page.read_text()


def test_a_run_until_a_data_stage_ends_with_a_report_where_it_did_something(tiny):
    page = tiny.root / "report" / "index.html"
    answer, table = run_workflow(tiny.load(), until="Mark", in_process=True)
    assert answer["report"] == str(page)
    assert f"report      {page}" in table
    written = page.stat().st_mtime_ns
    answer, table = run_workflow(tiny.load(), until="Mark", in_process=True)
    assert "report" not in answer
    assert "report      " not in table
    assert page.stat().st_mtime_ns == written
    run_workflow(tiny.load("stages.Mark.value=7"), until="Mark", in_process=True)
    assert page.stat().st_mtime_ns > written
    page.unlink()
    assert run_workflow(tiny.load("stages.Mark.value=7"), until="Mark", in_process=True)[0]["report"]


def test_waiting_for_the_store_is_told_apart_from_the_run(tiny):
    from infra.lease import acquire

    threading.Timer(2.0, acquire(tiny.store, "pv3d gc").release).start()
    answer, table = run_workflow(tiny.load(), until="Mark", in_process=True, wait=True)
    assert answer["waited_s"] > 1
    assert re.search(r"took +\d+ s, after \d+ s of waiting for the store$", table)


def test_an_unknown_stage_is_told_the_known_ones_in_the_order_of_the_run(tiny):
    with pytest.raises(ValueError, match=r"known: Cut, .*Keep, Write, train, evaluate, register$"):
        run_workflow(tiny.load(), until="Foo")


def test_a_source_that_lists_nothing_is_told_so(tiny):
    answer, _ = run_workflow(tiny.load("source.count=0"), until="Write", in_process=True)
    assert answer["fault"].startswith("no clip came out of Write: nothing was listed; the report")


def test_a_run_whose_report_cannot_be_made_is_done_all_the_same(tiny, monkeypatch, caplog):
    from pipelines import report

    def refuse(workflow):
        raise ValueError("camera 0 has no rotation")

    monkeypatch.setattr(report, "report", refuse)
    answer, _ = run_workflow(tiny.load(), until="Mark", in_process=True)
    assert answer["kept"]
    assert "report" not in answer
    assert "no report: camera 0 has no rotation" in caplog.text
