"""What docs/lists.md says can be typed as it stands there."""

import dataclasses
import importlib
import re
from pathlib import Path

import pytest

from pipelines.settings import StepSettings
from pipelines.workflow import load
from stages.download import Download

TEXT = (Path(__file__).parent.parent / "docs" / "lists.md").read_text()


def test_the_example_is_a_workflow(tmp_path):
    (example,) = re.findall(r"```yaml\n(source:.*?)```", TEXT, re.DOTALL)
    path = tmp_path / "workflow.yaml"
    rest = f"storage: {{root: {tmp_path}}}\ntrain: {{variant: model.config:tiny}}\n"
    path.write_text(rest + example)
    workflow = load(path)
    assert [step.name for step in workflow.steps][:4] == [
        "ProbeVideos", "KeepBestClips", "Download", "LocateChunks"
    ]  # fmt: skip
    pauses = workflow.steps[2]
    assert (pauses.name, pauses.timeout_s) == ("Download", 14400.0)      # longer than any pause


@pytest.mark.parametrize(
    ("setting", "redone", "barred_again"),
    [("requests_per_minute=1.0", False, False), ("keep_videos=false", False, False),
     ("work=/tmp/w", False, False), ("cookies=c.txt", False, True), ("proxy=http://h:1", False, True),
     ("format=best", True, True), ("sections=false", True, True), ("maximum_bytes=9", True, True)],
)  # fmt: skip
def test_only_the_settings_that_are_told_redo_a_download(tmp_path, setting, redone, barred_again):
    path = tmp_path / "workflow.yaml"
    path.write_text(
        f"storage: {{root: {tmp_path}}}\nsource: {{use: 'stages.sources.urls:Urls', location: l.csv}}\n"
        "stages: [{use: 'stages.download:Download'}]\ntrain: {variant: model.config:tiny}\n"
    )
    (before,), (after,) = load(path).steps, load(path, None, [f"stages.Download.{setting}"]).steps
    assert (before.key != after.key, before.barred_key != after.barred_key) == (redone, barred_again)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`(stages\.[\w.]+:\w+)`", TEXT))))
def test_every_class_that_is_named_is_there(path):
    module, _, name = path.partition(":")
    assert dataclasses.is_dataclass(getattr(importlib.import_module(module), name))


def test_every_setting_of_the_table_exists_and_none_is_left_out():
    table = TEXT.split("| setting of `ProbeVideos` and `Download`")[1].split("\n\n")[0]
    told = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    known = {field.name for field in dataclasses.fields(Download)}
    assert told - known <= set(StepSettings.model_fields)
    assert known - told == {"work"}                      # told below the table
    assert "`work`" in TEXT
