"""A workflow of `tiny_people` into real shards, in a folder or on S3, and what a run of it leaves."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.storage import FolderStorage, Storage
from pipelines.ledger import Ledger
from pipelines.workflow import Workflow, load

_WORKFLOW = """\
storage: {{root: "{root}", s3: {{addressing: path, patience_s: 120}}}}
source: {{use: "tiny_people:People", count: {count}}}
stages:
  - use: tiny_people:Fetch
  - use: tiny_people:Cut
  - use: tiny_people:Frames
  - use: tiny_people:Two
  - {{use: "stages.shards:WriteShards", buckets: {buckets}}}
train: {{variant: "model.config:tiny"}}
"""
STAGES = ("Fetch", "Cut", "Frames", "Two", "WriteShards")


def workflow_file(folder: Path, root: str | Path, count: int = 6, buckets: int = 8) -> Path:
    """Write the workflow for a store at `root`; any number of them fit into one folder."""
    path = folder.resolve() / f"workflow-{uuid.uuid4().hex}.yaml"
    path.write_text(_WORKFLOW.format(root=root, count=count, buckets=buckets))
    return path


def contents(store: Storage, *folders: str) -> dict[str, bytes]:
    """What the folders hold; without a name, all but the leases."""
    keys = [key for folder in folders or ("",) for key in store.list(folder)]
    return {key: store.read(key) for key in keys if not key.startswith("lease/")}


def outcomes(store: Storage, stages: Sequence[str] = STAGES) -> dict[str, dict[str, tuple[Any, ...]]]:
    """By stage and unit: how it ended, after how many attempts, and what came out of it."""
    ledger = Ledger(store)
    return {
        stage: {
            one.unit: (
                one.state, one.reason, one.attempts, [(out.id, out.digest, out.state) for out in one.outputs]
            )
            for one in ledger.records(stage)
        }
        for stage in stages
    }


class PeopleStore:
    """A folder with the workflow and its store."""

    def __init__(self, folder: Path, buckets: int = 8) -> None:
        folder.mkdir(exist_ok=True)
        self.root = folder / "store"
        self.path = workflow_file(folder, self.root, buckets=buckets)
        self.store = FolderStorage(self.root)

    def load(self, *changes: str) -> Workflow:
        return load(self.path, None, changes)
