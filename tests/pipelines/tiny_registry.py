"""A training on nothing whose checkpoints are what a test says, and an MLflow to register them in."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from infra.checkpoints import save
from infra.tracking import open_run
from model.config import tiny, to_dict, with_changes
from model.generator import Generator
from pipelines.checkpoints import EMA
from pipelines.evaluate import training
from pipelines.workflow import Workflow, load
from stages.shards import commit_dataset

TEXT = """
storage: {{root: "{root}/store", tracking: "{tracking}"}}
source: {{use: "stages.sources.folder:Folder", location: "{root}"}}
stages: [{{use: "stages.shots:SplitShots"}}]
train: {{variant: "model.config:tiny", steps: 24}}
evaluate:
  {{metrics: [stages.metrics.chamfer, stages.metrics.warping, stages.metrics.fvd], clips: 2, samples: 0}}
register: {{gate: {gate}}}
"""


def generator(seed: int) -> Generator:
    """Untrained, but dense enough that rays end at a surface."""
    torch.manual_seed(seed)
    made = Generator(tiny().model)
    with torch.no_grad():
        made.decoder.net[2].bias[0] += 20
    return made


def write_checkpoint(workflow: Workflow, step: int, seed: int) -> None:
    variant = replace(tiny(), model=with_changes(tiny().model, workflow.train.model))
    weights, card = generator(seed).state_dict(), {"variant": to_dict(variant)}
    save(workflow.store(), training(workflow).checkpoints, step, {EMA: weights}, card, keep=9)


def workflow_at(folder: Path, tracking: str, *changes: str, gate: str = "{}") -> Workflow:
    """A workflow in `folder`, where it has trained nothing yet."""
    path = folder / "workflow.yaml"
    path.write_text(TEXT.format(root=folder, tracking=tracking, gate=gate))
    return load(path, None, changes)


def begin(workflow: Workflow) -> None:
    """An empty dataset and an MLflow run."""
    commit_dataset(workflow.store(), [])
    uri, key = workflow.storage.tracking, training(workflow).tracking_key
    open_run(workflow.store(), key, uri=uri, experiment="t", name="t").close()


def database_at(folder: Path, empty: Path) -> str:
    shutil.copy(empty, folder / "mlflow.db")
    return f"sqlite:///{folder}/mlflow.db"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def answering(command: list[str], port: int, path: str, **options: object) -> Iterator[str]:
    """Run a server of ours until the context ends; its address, once it answers at `path`."""
    log = Path(str(options["cwd"]), f"server-{port}.log")  # a pipe that nobody reads would fill, and block it
    how = {"stderr": subprocess.STDOUT, "start_new_session": True, **options}
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, **how) as server:
        try:
            address, until = f"http://127.0.0.1:{port}", time.monotonic() + 120
            while True:
                try:
                    urllib.request.urlopen(address + path, timeout=5).close()
                    break
                except OSError:
                    assert server.poll() is None, log.read_text()
                    assert time.monotonic() < until, f"{command} does not answer"
                    time.sleep(0.2)
            yield address
        finally:
            os.killpg(server.pid, signal.SIGKILL)


@contextlib.contextmanager
def mlflow_server(folder: Path, empty: Path) -> Iterator[str]:
    """A real tracking server with a database of its own, which hands artifacts on."""
    store, port = database_at(folder, empty), free_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--artifacts-destination",
        str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    with answering(command, port, "/health", cwd=folder) as address:
        yield address
