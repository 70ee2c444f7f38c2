"""One MLflow run per training, whatever restarts: opened by its stored id, no step logged twice."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import sqlite3
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from infra.json_values import read_text
from infra.storage import Storage

log = logging.getLogger(__name__)

BATCH = 1000  # MLflow's limit of metrics per call
_SCHEMES = ("databricks", "databricks-uc", "uc", "file")
_DATABASES = ("postgresql", "mysql", "mssql")
PARAM_LENGTH = 6000  # of a parameter's value
LOGGED_UNTIL = "pv3d.logged_until"  # tag: the last update whose metrics are there


class Run:
    """A run of the tracking server. Metrics are buffered; `flush` sends them."""

    def __init__(self, client: Any, run_id: str) -> None:
        self.client, self.id = client, run_id
        tags = client.get_run(run_id).data.tags
        self._logged_until = int(tags.get(LOGGED_UNTIL, -1))  # before a restart: not to be logged again
        self._waiting: list[Any] = []

    def log(self, step: int, values: Mapping[str, float], at: float | None = None) -> None:
        """Metrics of an update, at a time in seconds since 1970 (None: now). A step that was logged before a
        restart is left as it is."""
        from mlflow.entities import Metric

        if step > self._logged_until:
            now = int((time.time() if at is None else at) * 1000)
            self._waiting += [Metric(name, float(value), now, step) for name, value in values.items()]

    def flush(self) -> None:
        from mlflow.entities import RunTag

        if not self._waiting:
            return
        self._waiting.sort(key=lambda metric: metric.step)
        for at in range(0, len(self._waiting), BATCH):
            batch = self._waiting[at : at + BATCH]
            until = RunTag(LOGGED_UNTIL, str(batch[-1].step))
            self.client.log_batch(self.id, metrics=batch, tags=[until])
        self._logged_until, self._waiting = self._waiting[-1].step, []

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters that are not yet set. One that has changed since is kept as tag `changed.<name>`."""
        from mlflow.entities import Param, RunTag

        known = self.client.get_run(self.id).data.params
        texts = {name: str(value)[:PARAM_LENGTH] for name, value in values.items()}
        new = [Param(name, text) for name, text in texts.items() if name not in known]
        changed = [RunTag(f"changed.{n}", t) for n, t in texts.items() if n in known and known[n] != t]
        for at in range(0, len(new), 100):
            self.client.log_batch(self.id, params=new[at : at + 100], tags=[])
        if changed:
            self.client.log_batch(self.id, tags=changed)

    def tags(self, values: Mapping[str, str]) -> None:
        for name, value in values.items():
            self.client.set_tag(self.id, name, value)

    def dataset(self, *, name: str, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        """Log what the run trains on as its dataset input, once."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = self.client.get_run(self.id).inputs.dataset_inputs
        if any(i.dataset.digest == digest for i in inputs):
            return
        entity = Dataset(
            name=name, digest=digest, source_type="local" if "://" not in source else source.split("://")[0],
            source=json.dumps({"uri": source}), schema=None, profile=json.dumps(profile),
        )  # fmt: skip
        self.client.log_inputs(self.id, [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])])

    def artifact(self, path: Path, folder: str) -> None:
        self.client.log_artifact(self.id, str(path), folder)

    def text(self, text: str, name: str) -> None:
        self.client.log_text(self.id, text, name)

    def close(self, status: str = "FINISHED") -> None:
        self.flush()
        self.client.set_terminated(self.id, status)


def open_run(store: Storage, key: str, *, uri: str, experiment: str, name: str) -> Run:
    """The run whose id is in the store under `key`; a new one, remembered there, when there is none."""
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    # Its own patience would be minutes per call; whoever calls tries again, or says that it is away.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    _quiet()
    prepare_database(uri)
    client = MlflowClient(uri)
    try:
        known = read_text(store, key, "run_id")
        info = client.get_run(known).info
        if info.lifecycle_stage == "active":
            client.update_run(known, status="RUNNING")
            return Run(client, known)
        log.warning("MLflow run %s was deleted; starting another", known)
    except FileNotFoundError:
        pass
    except MlflowException as error:
        log.warning("MLflow run of %s is not at %s (%s); starting another", key, shown(uri), error.error_code)
    found = client.get_experiment_by_name(experiment)
    folder = artifact_folder(uri)
    experiment_id = found.experiment_id if found else client.create_experiment(experiment, folder)
    tags = {"mlflow.source.name": "pv3d", "mlflow.version": mlflow.__version__}
    run = client.create_run(experiment_id, run_name=name, tags=tags)
    store.write(key, json.dumps({"run_id": run.info.run_id, "tracking": shown(uri)}).encode())
    return Run(client, str(run.info.run_id))


def prepare_database(uri: str) -> None:
    """Make a new sqlite database whole or not at all: MLflow cannot use one whose making was interrupted."""
    from mlflow.tracking import MlflowClient

    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)  # sqlite itself does not
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=path.parent) as folder:
        MlflowClient(f"sqlite:///{folder}/new.db").search_experiments()
        with contextlib.suppress(FileExistsError):  # of another who was first
            os.link(f"{folder}/new.db", path)


def _quiet() -> None:
    """MLflow tells of each database that it makes, and logs what it raises with its traceback."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def shown(uri: str) -> str:
    """An address without the password that it may hold."""
    return re.sub(r"(://[^/\s:@]*):[^/\s]*@", r"\1@", uri)


def check_tracking(uri: str) -> None:
    """Raise ValueError unless a tracking server or a database can be at `uri`. Makes nothing; MLflow itself
    would try for minutes."""
    scheme = uri.partition(":")[0].partition("+")[0]
    _quiet()
    if scheme == "sqlite":
        _check_database(uri, Path(uri.partition(":///")[2].partition("?")[0]))
    elif scheme in ("http", "https"):
        _check_server(uri)
    elif scheme in _DATABASES:
        _check_driver(uri)
    elif scheme not in _SCHEMES:
        raise ValueError(
            f"storage.tracking: {shown(uri)} is no address of MLflow; write sqlite:///FILE or http://HOST"
        )


def _check_driver(uri: str) -> None:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        make_url(uri).get_dialect().import_dbapi()
    except ImportError as error:
        raise ValueError(f"storage.tracking: {shown(uri)}: needs a driver ({error}); install it") from None
    except (SQLAlchemyError, ValueError) as error:
        cause = str(error).splitlines()[0][:120]
        raise ValueError(f"storage.tracking: {shown(uri)}: is no address of a database ({cause})") from None


def _check_database(uri: str, path: Path) -> None:
    try:
        if path.exists():
            with path.open("rb") as file:
                head = file.read(16)
            if head not in (b"", b"SQLite format 3\0"):
                raise ValueError(f"storage.tracking: {uri}: the file is no SQLite database; name another")
            with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as made:
                made.execute("SELECT name FROM sqlite_master").fetchall()
            return
        folder = next(parent for parent in path.absolute().parents if parent.exists())
    except OSError as error:
        raise ValueError(f"storage.tracking: {uri}: cannot be read ({error.strerror})") from None
    except sqlite3.OperationalError:         # such as locked: MLflow waits
        return
    except sqlite3.DatabaseError as error:
        raise ValueError(f"storage.tracking: {uri}: is damaged ({error}); bring it back") from None
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"storage.tracking: {uri}: nothing can be made in {folder}; name another place")


def _check_server(uri: str) -> None:
    try:
        place = urlsplit(uri)
        port = place.port or (443 if place.scheme == "https" else 80)
        socket.create_connection((place.hostname or "", port), timeout=5).close()
    except (OSError, OverflowError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise ValueError(
            f"storage.tracking: {shown(uri)}: nothing answers ({cause}); start the server"
        ) from None


def artifact_folder(uri: str) -> str | None:
    """Artifacts of an embedded database lie beside it, not in the working folder. None: a server chooses."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()
