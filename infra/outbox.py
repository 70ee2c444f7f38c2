"""What an MLflow run is to be told, in order, also while its server is away.

A thread delivers; the trainer never waits for it. What could not be delivered by a checkpoint is written to
the store with it, `<run>/unsent.json`, and delivered first after a restart, or by the next run.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from infra.json_values import parsed
from infra.storage import Storage, StorageError
from infra.tracking import Run

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 1.0
MOST_PAUSE_S = 60.0
BUGS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # of MLflow: ours, no outage

Entry = dict[str, Any]


class Outbox:
    """Entries are JSON, so that they can be kept. One thread delivers them; every method is the caller's."""

    def __init__(self, store: Storage, key: str, open_run: Callable[[], Run]) -> None:
        """`key`: where undelivered entries are kept. `open_run` is called in the thread until it succeeds."""
        self.store, self.key, self.run_id = store, key, ""
        self._open = open_run
        self._run: Run | None = None
        self._away = False
        self._entries: deque[Entry] = deque(_kept(store, key))
        self._changed = threading.Condition()
        self._ends = False
        self._bug: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    # --- for the trainer -----------------------------------------------------------------------------------

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._put(kind="metrics", step=step, values=dict(values), time=time.time())

    def file(self, key: str, folder: str) -> None:
        """An object of the store, as an artifact in `folder`."""
        self._put(kind="file", key=key, folder=folder)

    def text(self, text: str, name: str) -> None:
        self._put(kind="text", text=text, name=name)

    def tags(self, values: Mapping[str, str]) -> None:
        self._put(kind="tags", values=dict(values))

    def status(self, status: str) -> None:
        self._put(kind="status", status=status)

    def settle(self, patience_s: float, away_s: float = 0.0) -> bool:
        """Wait until all is delivered, `away_s` at most for a server that does not answer. False, and the
        rest kept in the store, when that takes too long."""

        def over() -> bool:
            away = self._away and time.monotonic() > begun + away_s
            return not self._entries or self._bug is not None or away

        begun = time.monotonic()
        with self._changed:
            while not over() and time.monotonic() < begun + patience_s:
                self._changed.wait(0.2)
            entries = list(self._entries)
        self._check()
        if entries:
            self.store.write(self.key, json.dumps(entries).encode())
        else:
            self.store.delete(self.key)
        return not entries

    def close(self, patience_s: float) -> None:
        """`settle`, and end the thread."""
        if not self.settle(patience_s, away_s=patience_s):
            log.warning("MLflow does not answer; what it is to be told is kept in %s/%s, and the next run "
                        "sends it", self.store.root, self.key)  # fmt: skip
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        self._thread.join(timeout=5.0)

    def _put(self, **entry: Any) -> None:
        self._check()
        with self._changed:
            self._entries.append(entry)
            self._changed.notify_all()

    def _check(self) -> None:
        if self._bug is not None:
            raise self._bug

    # --- the thread ----------------------------------------------------------------------------------------

    def _work(self) -> None:
        pause_s = 0.0
        while True:
            with self._changed:
                if pause_s:
                    self._changed.wait_for(lambda: self._ends, pause_s)
                else:
                    self._changed.wait_for(lambda: self._ends or self._entries)
                if self._ends:
                    return
                entry = self._entries[0]
            try:
                self._deliver(entry)
            except _outages() as error:
                if getattr(error, "error_code", "") in BUGS:
                    self._bug = error
                    with self._changed:
                        self._changed.notify_all()
                    return
                if not self._away:
                    log.warning("MLflow does not answer (%s); training goes on, and it is told later",
                                str(error).splitlines()[0][:200])  # fmt: skip
                pause_s = min(max(FIRST_PAUSE_S, 2 * pause_s), MOST_PAUSE_S)
                self._away = True
                continue
            if self._away:
                log.info("MLflow answers again")
            pause_s = 0.0
            with self._changed:
                self._away = False
                self._entries.popleft()
                self._changed.notify_all()

    def _deliver(self, entry: Entry) -> None:
        if self._run is None:
            self._run = self._open()
            self.run_id = self._run.id
        run, kind = self._run, entry["kind"]
        if kind == "metrics":
            run.log(entry["step"], entry["values"], entry["time"])
            run.flush()
        elif kind == "text":
            run.text(entry["text"], entry["name"])
        elif kind == "tags":
            run.tags(entry["values"])
        elif kind == "status":
            run.close(entry["status"])
        else:
            self._upload(run, entry)

    def _upload(self, run: Run, entry: Entry) -> None:
        with tempfile.TemporaryDirectory(prefix="pv3d-mlflow-") as folder:
            path = Path(folder, entry["key"].rpartition("/")[2])
            try:
                with self.store.local(entry["key"]) as local:
                    shutil.copyfile(local, path)
            except FileNotFoundError:
                log.warning("%s is gone; MLflow does not get it", entry["key"])
                return
            run.artifact(path, entry["folder"])


def _kept(store: Storage, key: str) -> list[Entry]:
    try:
        entries: list[Entry] = parsed(store.read(key))
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(key)
    except FileNotFoundError:
        return []
    except ValueError:
        log.warning("%s in %s is damaged; what MLflow was to be told then is lost", key, store.root)
        return []
    return entries


def _outages() -> tuple[type[Exception], ...]:
    """What talking to a server raises, or to the place of its artifacts."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException

    return (OSError, StorageError, MlflowException, Boto3Error, BotoCoreError, ClientError)
