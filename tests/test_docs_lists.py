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
