"""The whole of `pv3d run` where little is left to run."""

import re
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
