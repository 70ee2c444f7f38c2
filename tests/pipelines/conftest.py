"""A workflow of tiny stages, and what they did."""

from pathlib import Path

import pytest

from infra.storage import FolderStorage
from pipelines.workflow import load

WORKFLOW = """\
storage:
  root: {root}
source:
  use: tiny_stages:Numbers
stages:
  - use: tiny_stages:Cut
  - use: tiny_stages:Mark
  - use: tiny_stages:Second
  - use: tiny_stages:Keep
  - use: tiny_stages:Write
train:
  variant: model.config:tiny
profiles:
  more:
    source.count: 6
"""


class Tiny:
    """Loads the tiny workflow with changes, and tells what its stages did since it was last asked."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "store"
        self.path = folder / "workflow.yaml"
        self.path.write_text(WORKFLOW.format(root=self.root))
        self.store = FolderStorage(self.root)

    def load(self, *changes: str):
        return load(self.path, None, changes)

    def calls(self) -> list[str]:
        log = self.root / "calls.log"
        lines = sorted(log.read_text().splitlines()) if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def output(self) -> dict[str, bytes]:
        return {key: self.store.read(key) for key in self.store.list("out")}


@pytest.fixture
def tiny(tmp_path) -> Tiny:
    return Tiny(tmp_path)


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory) -> Path:
    """An empty MLflow database; making one takes seconds, copying it does not."""
    mlflow = pytest.importorskip("mlflow")
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path
