"""The whole of `pv3d run` where little is left to run."""

from pathlib import Path

import pytest

from pipelines.run import run_workflow
from pipelines.workflow import load

WORKFLOW = Path(__file__).parents[2] / "workflow.yaml"


def test_a_run_that_keeps_no_clip_says_why_and_writes_its_report(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "talk.mp4").write_text("no video")
    settings = {
        "source.location": videos, "storage.root": tmp_path / "store",
        "storage.tracking": f"sqlite:///{tmp_path}/mlflow.db",
    }  # fmt: skip
    workflow = load(WORKFLOW, "demo", [f"{key}={value}" for key, value in settings.items()])
    with pytest.raises(ValueError, match=r"cannot decode \(1\)") as refused:
        run_workflow(workflow, in_process=True)
    page = tmp_path / "store" / "report" / "index.html"
    assert str(page) in str(refused.value)
    assert "talk" in page.read_text()
