"""What docs/cluster.md says can be typed as it stands there."""

import re
from pathlib import Path

import yaml
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.schedule import ScheduleSettings
from pipelines.workflow import load

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "cluster.md").read_text()


def test_the_example_can_be_deployed(tmp_path, monkeypatch):
    (example,) = re.findall(r"```yaml\n(schedule:.*?)```", TEXT, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("workflow.yaml").write_text((ROOT / "workflow.yaml").read_text() + example)
    changes = {
        "storage.root": "s3://b/p", "storage.tracking": "http://mlflow:5000", "source.location": "s3://b/videos"
    }  # fmt: skip
    options = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    result = CliRunner().invoke(main, ["deploy", *options])
    assert result.exit_code == 0, result.output
    kinds = [one["kind"] for one in yaml.safe_load_all(result.stdout)]
    assert kinds[-1] == "CronJob"
    schedule = load("workflow.yaml").schedule
    assert schedule is not None
    assert schedule.workers[0].custom == {"egress": 2}


def test_the_settings_and_metrics_it_names_exist():
    named = set(re.findall(r"`(start_within_s|idle_s|retries|deadline_s|service_account)`", TEXT))
    assert named <= set(ScheduleSettings.model_fields)
    source = (ROOT / "pipelines" / "metrics.py").read_text()
    for metric in set(re.findall(r"ray_(pv3d_\w+?)_total", TEXT)):
        assert f'"{metric}"' in source


def test_links_lead_somewhere():
    for link in re.findall(r"\]\((\w+\.md)\)", TEXT):
        assert (ROOT / "docs" / link).exists()
