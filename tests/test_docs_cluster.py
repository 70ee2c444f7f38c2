"""What docs/cluster.md says can be typed as it stands there."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from people_store import PeopleStore

from pipelines.cli import main
from pipelines.runner import prepare
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


def test_the_settings_it_names_exist():
    named = set(re.findall(r"`(start_within_s|idle_s|retries|deadline_s|service_account)`", TEXT))
    assert named <= set(ScheduleSettings.model_fields)


def exported():
    """Our metrics, by the names that Prometheus sees: Ray ends those of counters with _total."""
    source = (ROOT / "pipelines" / "metrics.py").read_text()
    found = re.findall(r'(Counter|Gauge)\(\s*"(pv3d_\w+)"', source)
    return {f"ray_{name}{'_total' if kind == 'Counter' else ''}" for kind, name in found}


def rays():
    """Metrics that the panels which come with Ray show."""
    ray = pytest.importorskip("ray")
    panels = (Path(ray.__file__).parent / "dashboard/modules/metrics/dashboards").glob("*.py")
    return {name for path in panels for name in re.findall(r"ray_\w+", path.read_text())}


def named(text):
    """Metrics in a query."""
    return set(re.findall(r"\bray_\w+", text))


def test_the_dashboard_shows_metrics_that_exist_and_all_of_ours():
    board = json.loads((ROOT / "infra" / "grafana.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    shown = set().union(*map(named, queries))
    assert shown <= exported() | rays()
    assert shown >= exported()
    (variable,) = [one for one in board["templating"]["list"] if one["type"] == "query"]
    assert named(variable["definition"]) <= rays()
    for query in queries:
        selectors = re.findall(r"ray_\w+(\{[^}]*\})?", query)
        assert all('namespace=~"$namespace"' in selector for selector in selectors), query
        assert query.count("(") == query.count(")")
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in board["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))     # no panel covers another
    assert max(x for x, _ in cells) < 24


@pytest.mark.skipif(shutil.which("jq") is None, reason="no jq here")
def test_its_commands_for_the_cost_of_a_run_give_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    people = PeopleStore(tmp_path)
    prepare(people.load(), in_process=True)
    answer = CliRunner().invoke(main, ["run", str(people.path), "--dry-run", "--json"])
    plan = json.loads(answer.stdout)["estimate"]
    Path("plan.json").write_text(answer.stdout)
    commands = [shlex.split(line, comments=True) for line in TEXT.splitlines() if line.startswith("jq ")]
    table, hours, gigabytes = (subprocess.check_output(one, text=True) for one in commands)
    assert [line.split("\t")[0] for line in table.splitlines()] == list(plan)
    assert float(gigabytes) == pytest.approx(sum(stage["bytes"] for stage in plan.values()) / 1e9)
    spent = sum(stage["from_units"] * (stage["seconds_each"] or 0) for stage in plan.values())
    assert float(hours) == pytest.approx(spent / 3600)


def test_the_queries_in_the_text_name_metrics_that_exist():
    assert named(TEXT) <= exported() | rays()
    assert named(TEXT) >= exported()


def test_links_lead_somewhere():
    for link in re.findall(r"\]\((\w+\.md)\)", TEXT):
        assert (ROOT / "docs" / link).exists()
