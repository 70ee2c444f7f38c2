"""What docs/reproduce.md says can be typed as it stands there."""

import re
from pathlib import Path

import pytest

from pipelines.reproduce import DATASETS, METRICS, PROTOCOL
from pipelines.workflow import load
from stages.shards import WriteShards

TEXT = (Path(__file__).parent.parent / "docs" / "reproduce.md").read_text()
VARIANTS = {"voxceleb": "voxceleb_512", "celebvhq": "celebvhq_512", "talkinghead": "talkinghead_512"}


@pytest.mark.parametrize("name", DATASETS)
def test_the_workflow_prepares_trains_and_measures_each_data_set_by_the_protocol(name, tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    path = tmp_path / "reproduce.yaml"
    path.write_text(example)
    workflow = load(path, name)
    assert workflow.source_use.startswith(f"stages.sources.{name}:")
    assert workflow.train.variant == f"model.config:{VARIANTS[name]}"
    assert set(workflow.evaluate.metrics) == set(METRICS)
    assert {key: getattr(workflow.evaluate, key) for key in PROTOCOL} == PROTOCOL
    last = workflow.steps[-1].stage
    assert isinstance(last, WriteShards)
    assert last.held_out > 0
