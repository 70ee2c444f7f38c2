"""What MLflow is to be told reaches it once, also when its server comes late or goes away."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.outbox import Outbox
from infra.storage import FolderStorage
from infra.tracking import Run, open_run

KEY = "train/mine/unsent.json"


def outbox(store: FolderStorage, uri: str) -> Outbox:
    def open_here() -> Run:
        return open_run(store, "train/mine/mlflow.json", uri=uri, experiment="tried", name="mine")

    return Outbox(store, KEY, open_here)


def history(database: Path, store: FolderStorage) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{database}"
    run = open_run(store, "train/mine/mlflow.json", uri=uri, experiment="tried", name="mine")
    return [(m.step, m.value) for m in MlflowClient(uri).get_metric_history(run.id, "loss")]


@contextmanager
def server(database: Path, port: int) -> Iterator[None]:
    command = [
        sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{database}", "--serve-artifacts",
        "--artifacts-destination", str(database.parent / "artifacts"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
def test_a_server_that_comes_late_and_goes_is_told_everything_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the outbox has patience of its own
    store, database = FolderStorage(tmp_path / "store"), tmp_path / "mlflow.db"
    store.write("train/mine/samples/00000002.mp4", b"a video")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    box = outbox(store, f"http://127.0.0.1:{port}")
    box.metrics(1, {"loss": 0.5})
    assert not box.settle(2.0)
    assert store.exists(KEY)
    with server(database, port):
        box.metrics(2, {"loss": 0.25})
        box.file("train/mine/samples/00000002.mp4", "samples")
        assert box.settle(90.0, away_s=90.0)
        assert not store.exists(KEY)
    box.metrics(3, {"loss": 0.125})
    assert not box.settle(30.0)
    box.metrics(4, {"loss": 0.0625})
    box.close(1.0)
    assert history(database, store) == [(1, 0.5), (2, 0.25)]
    after = outbox(store, f"sqlite:///{database}")  # the next run, which is told of the same steps again
    after.metrics(4, {"loss": 9.0})
    after.metrics(5, {"loss": 0.03125})
    after.close(30.0)
    assert history(database, store) == [(step, 0.5**step) for step in range(1, 6)]
    assert not store.exists(KEY)
    assert [p.name for p in (tmp_path / "artifacts").rglob("*.mp4")] == ["00000002.mp4"]


def test_what_mlflow_refuses_is_a_bug_and_no_outage(tmp_path: Path) -> None:
    from mlflow.exceptions import MlflowException

    store = FolderStorage(tmp_path / "store")
    box = outbox(store, f"sqlite:///{tmp_path}/mlflow.db")
    box.metrics(1, {"no such name : %$": 1.0})
    with pytest.raises(MlflowException, match="Invalid value"):
        box.settle(30.0)


def test_a_damaged_list_of_what_was_kept_is_passed_over(tmp_path: Path) -> None:
    store = FolderStorage(tmp_path / "store")
    store.write(KEY, b'[{"kind": ')
    box = outbox(store, f"sqlite:///{tmp_path}/mlflow.db")
    box.metrics(1, {"loss": 1.0})
    box.close(30.0)
    assert history(tmp_path / "mlflow.db", store) == [(1, 1.0)]
