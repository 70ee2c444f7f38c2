from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tiny_registry import workflow_at, write_checkpoint

from pipelines.evaluate import newest_checkpoint
from pipelines.model_card import model_card
from stages.shards import commit_dataset


def figure(value: float, note: str = "") -> dict[str, Any]:
    return {"value": value, "unit": "u", "direction": "higher", "samples": 8, "interval": None,
            "reason": "", "note": note}  # fmt: skip


def test_a_card_says_which_figures_say_nothing_and_nothing_that_the_training_did_not_do(
    tmp_path: Path,
) -> None:
    workflow = workflow_at(tmp_path, "sqlite:///none.db", "register.alias=newest")
    commit_dataset(workflow.store(), [])
    write_checkpoint(workflow, 24, 0)
    metrics = {"id/dlib": figure(0.99, "by dlib"), "faces_found/dlib": figure(0.0)}
    evaluation = {"settings": {"clips": 8, "mode": "paper", "seed": 0}, "metrics": metrics}
    card = model_card(workflow, newest_checkpoint(workflow), {}, evaluation)
    assert "`id/dlib`: faces found in 0 of 32 frames: says nothing; by dlib.\n" in card
    assert "\n\n| recipe | |\n" in card           # right below a text it is no table
    assert "| updates |" not in card              # the variant's, not the training's
    assert "models:/pv3d@newest" in card
    assert "implementation). This version is update 24 of `tiny`" in card  # MLflow breaks lines where we do
