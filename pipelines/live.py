"""What a run tells while it goes on: one small object beside its lease, rewritten every few seconds.

    lease/<n>.progress.json    counts, rates and times left per stage, workers per pool; see `Live._content`

It is for people only. When the store does not take it the run goes on, and warns once.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from types import TracebackType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from infra.storage import Storage, StorageError
from pipelines.progress import Progress

log = logging.getLogger(__name__)

SCHEMA = 1
EVERY_S = 5.0
_FIRST_S = (1.0, 2.0, 3.0)                   # a short run is seen too


class Live:
    """Tells of a run that holds lease `number`, from a thread of its own, as long as the context lasts."""

    def __init__(self, store: Storage, number: int, asked: Mapping[str, str] | None = None) -> None:
        self.store, self.key = store, key_of(number)
        self.asked = dict(asked or {})       # hashes of settings, as of `pipelines.stage_keys.keys_asked`
        self.phase = "data"                  # then train, evaluate, register, report
        self.progress: Progress | None = None
        self._begun_s = time.monotonic()
        self._warned = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tell_on, name="live", daemon=True)

    def __enter__(self) -> Live:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(timeout=EVERY_S)
        if not self._thread.is_alive():      # else in a call that the store does not answer
            self._tell(ended="done" if kind is None else "stopped")

    def _tell_on(self) -> None:
        waits = iter(_FIRST_S)
        while not self._over.wait(next(waits, EVERY_S)):
            self._tell()

    def _tell(self, ended: str = "") -> None:
        try:
            self.store.write(self.key, json.dumps(self._content(ended)).encode())
        except (StorageError, OSError) as error:
            if not self._warned:
                log.warning("status cannot be told (%s); the run goes on", error)
            self._warned = True

    def _content(self, ended: str) -> dict[str, Any]:
        progress = self.progress
        return {
            "schema": SCHEMA,
            "at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            "seconds": round(time.monotonic() - self._begun_s, 1),
            "phase": self.phase,
            "ended": ended,
            "keys": self.asked,
            "listing": progress.listing if progress else True,
            "stages": {n: asdict(f) for n, f in progress.figures().items()} if progress else {},
            "workers": dict(progress.crew) if progress else {},
            "failures": progress.last_failures() if progress else [],
        }


def key_of(number: int) -> str:
    """Beside the lease, so that `pv3d gc` treats it as part of it."""
    return f"lease/{number:08d}.progress.json"


def read(store: Storage, number: int) -> dict[str, Any]:
    """What the run of a lease told last, nothing where it told nothing that this version knows."""
    try:
        return _Told.model_validate_json(store.read(key_of(number))).model_dump(by_alias=True)
    except (FileNotFoundError, ValueError):  # of pydantic, too
        return {}


_Count = Annotated[int, Field(ge=0, le=10**15)]
_Rate = Annotated[float, Field(ge=0, le=1e15), AfterValidator(lambda rate: rate if rate > 1e-9 else 0.0)]


_Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]          # becomes part of the key of an object


class _Part(BaseModel):
    """Of what another process wrote: nothing but what `pipelines.status` uses, of the type that it needs."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class _Stage(_Part):
    known: _Count = 0
    done: _Count = 0
    sent: _Count = 0
    per_s_now: _Rate = 0.0
    per_s: _Rate = 0.0


class _Pool(_Part):
    workers: _Count = 0
    busy: _Count = 0
    queued: _Count = 0


class _Failure(_Part):
    stage: str = ""
    unit: str = ""
    reason: str = ""


class _Told(_Part):
    version: Literal[1] = Field(alias="schema")      # SCHEMA
    at: str = ""
    phase: str = ""
    ended: str = ""
    listing: bool = True
    keys: dict[str, _Hash] = {}
    stages: dict[str, _Stage] = {}
    workers: dict[str, _Pool] = {}
    failures: list[_Failure] = []
