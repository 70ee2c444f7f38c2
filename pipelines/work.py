"""What a worker does: run a unit through a chain of stages. The same code in every place that runs stages.

Everything that goes in is JSON and clips, so a worker on another machine rebuilds its stages by import path.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infra.storage import Storage, StorageError, fault_of_place, open_storage
from pipelines.construct import construct, import_path
from pipelines.document import Value
from pipelines.ledger import Output
from stages.base import Barred, Drop, GroupStage, LostInputError, Rejected, Stage, TryLater
from stages.clip import Clip, check_fields

MOST_OUTPUTS = 100_000                       # of one unit
_ID = re.compile(r"[A-Za-z0-9_-]+")
_END = object()
_strict_json = json.JSONEncoder(allow_nan=False).encode
AnyStage = Stage | GroupStage


@dataclass(frozen=True)
class ChainSpec:
    """What a worker needs to build its stages. JSON values only."""

    stages: tuple[tuple[str, dict[str, Any]], ...]      # import path, settings
    names: tuple[str, ...]
    root: str
    options: dict[str, Any]                             # of the storage
    sys_path: tuple[str, ...] = ()
    history: tuple[dict[str, Any], ...] = ()            # of group stages: see `GroupStage.follow`

    def build(self) -> Chain:
        """Import and construct the stages here."""
        sys.path.extend(folder for folder in self.sys_path if folder not in sys.path)
        stages = []
        for (use, settings), name in zip(self.stages, self.names, strict=True):
            cls = import_path(Value(use, "worker"), name)
            stages.append(construct(cls, _value(settings), name))
            if isinstance(stages[-1], GroupStage):
                stages[-1].follow(self.history)
        return Chain(stages, self.names, open_storage(self.root, **self.options))


def _value(data: Any) -> Value:
    if isinstance(data, dict):
        return Value({key: _value(item) for key, item in data.items()}, "worker")
    return Value([_value(item) for item in data] if isinstance(data, list) else data, "worker")


@dataclass
class Piece:
    """What one stage of a chain did to one unit."""

    stage: int                                          # position in the chain
    unit: str
    input: str                                          # digest
    state: str                                          # ok, rejected or failed
    reason: str = ""
    detail: str = ""
    again: bool = False                                 # failed, and the next run tries it again
    barred: bool = False                                # rejected for who asked
    seconds: float = 0.0
    outputs: list[Output] = field(default_factory=list)
    clips: list[Clip] = field(default_factory=list)     # of the outputs


class StageBugError(Exception):
    """A stage raised what it should not: arguments are stage, unit and the original traceback as text."""

    def __str__(self) -> str:
        stage, unit, trace = self.args
        return f"stage {stage} failed on {unit}; this is a bug of the stage\n{trace}"


class SetupError(ValueError):
    """A stage cannot start, for a reason that the user can cure."""


class OutOfMemoryError(Exception):
    """A stage asked for memory that there is not, on this machine or its GPU; the argument is what it got."""


class Chain:
    """Built stages, set up once. `exits`: a `sys.exit` may end this process, as it is a worker's."""

    def __init__(
        self, stages: Sequence[AnyStage], names: Sequence[str], store: Storage, exits: bool = True
    ) -> None:
        self.exits = exits
        self.stages = stages
        self.names = names
        self.store = store
        self._ready = [False] * len(stages)

    def setup(self, first: int = 0, last: int | None = None) -> None:
        """Set up the stages first..last. Raises SetupError for what a user can cure."""
        for index in range(first, len(self.stages) if last is None else last + 1):
            if not self._ready[index]:
                try:
                    self.stages[index].setup(self.store)
                except (ValueError, ImportError, StorageError) as error:
                    raise SetupError(f"stage {self.names[index]}: {error}") from error
                except SystemExit as error:
                    if self.exits:
                        raise
                    raise StageBugError(self.names[index], "setup", traceback.format_exc()) from error
                except OSError as error:
                    fault = fault_of_place(error)
                    if not fault and not isinstance(error, FileNotFoundError):
                        raise
                    raise SetupError(f"stage {self.names[index]}: {fault or error}") from error
                self._ready[index] = True

    def run(self, clip: Clip, first: int, last: int) -> list[Piece]:
        """Send a clip through the stages first..last, and what comes out of one through the next."""
        self.setup(first, last)
        pieces = []
        waiting = [(clip, first)]
        while waiting:
            unit, index = waiting.pop()
            stage = self.stages[index]
            assert isinstance(stage, Stage)
            piece = self._piece(index, unit, stage)
            pieces.append(piece)
            if index < last:
                kept = [c for c, out in zip(piece.clips, piece.outputs, strict=True) if out.state == "ok"]
                waiting.extend((c, index + 1) for c in kept)
        return pieces

    def _piece(self, index: int, clip: Clip, stage: Stage) -> Piece:
        piece = Piece(index, clip.id, clip.digest(), "ok")
        started = time.perf_counter()
        ids: set[str] = set()
        try:
            # A stage may set fields on what it received, which others still hold.
            for out in self._guarded(index, clip.id, lambda: stage.process(clip.copy())):
                self._append(piece, out)
                ids.add(piece.outputs[-1].id)
                if len(ids) < len(piece.outputs):
                    raise self._bug(piece, f"it yielded two clips of one id: {piece.outputs[-1].id}")
                if len(ids) > MOST_OUTPUTS:
                    raise self._bug(piece, f"it yielded more than {MOST_OUTPUTS} clips")
        except Drop as drop:
            piece.outputs, piece.clips = [], []
            if not _are_texts(drop.reason, drop.detail):
                problem = f"it raised {type(drop).__name__}({drop.reason!r}, {drop.detail!r}), not of texts"
                raise self._bug(piece, problem) from drop
            piece.state, piece.reason, piece.detail = drop.state, drop.reason, drop.detail
            piece.again, piece.barred = isinstance(drop, TryLater), isinstance(drop, Barred)
        else:
            if not piece.outputs:
                piece.state, piece.reason = "rejected", "nothing left"
            elif all(out.state == "rejected" for out in piece.outputs):
                piece.state, piece.reason = "rejected", piece.outputs[0].reason
        piece.seconds = time.perf_counter() - started
        return piece

    def run_group(self, group: str, clips: list[Clip]) -> list[Piece]:
        """Send a whole group through a group stage: one piece per clip, in the order of the clips."""
        self.setup(0, 0)
        stage = self.stages[0]
        assert isinstance(stage, GroupStage)
        started = time.perf_counter()
        pieces = {clip.id: Piece(0, clip.id, clip.digest(), "ok") for clip in clips}
        unit = f"group {group}"
        inputs = [clip.copy() for clip in clips]
        for out in self._of_group(unit, lambda: stage.process_group(group, inputs)):
            name = getattr(out.clip if isinstance(out, Rejected) else out, "id", None)
            if not isinstance(name, str) or name not in pieces or pieces[name].outputs:
                raise StageBugError(self.names[0], unit, f"it yielded {name!r}: no member, or twice")
            piece = pieces[name]
            self._append(piece, out)
            only = piece.outputs[0]
            piece.state, piece.reason, piece.detail = only.state, only.reason, only.detail
        for piece in pieces.values():
            if not piece.outputs:
                raise StageBugError(self.names[0], unit, f"it did not yield {piece.unit!r}")
            piece.seconds = (time.perf_counter() - started) / len(pieces)
        return list(pieces.values())

    def _of_group(
        self, unit: str, work: Callable[[], Iterator[Clip | Rejected]]
    ) -> Iterator[Clip | Rejected]:
        try:
            yield from self._guarded(0, unit, work)
        except Drop as drop:
            problem = f"it raised {drop!r:.200}; a group stage yields Rejected"
            raise StageBugError(self.names[0], unit, problem) from drop

    def _guarded(
        self, index: int, unit: str, work: Callable[[], Iterator[Clip | Rejected]]
    ) -> Iterator[Clip | Rejected]:
        """Run a stage's generator; what is neither Drop, a fault of the store or a disk nor a lack of memory
        is a bug, with its place."""
        outputs: Iterator[Clip | Rejected] | None = None
        while True:
            try:
                outputs = iter(work()) if outputs is None else outputs
                out: Any = next(outputs, _END)
            except (Drop, StorageError, LostInputError):
                raise
            except (Exception, GeneratorExit, SystemExit) as error:
                if self.exits and isinstance(error, SystemExit):
                    raise                    # also what a SIGTERM becomes in a worker of Ray
                if _lacks_memory(error):
                    raise OutOfMemoryError(str(error).partition("\n")[0][:200]) from error
                if isinstance(error, OSError) and (fault := fault_of_place(error)):
                    raise StorageError(f"stage {self.names[index]}: {fault}") from error
                raise StageBugError(self.names[index], unit, traceback.format_exc()) from error
            if out is _END:
                return
            yield out

    def _append(self, piece: Piece, out: Any) -> None:
        if isinstance(out, Rejected):
            clip, state, reason, detail = out.clip, "rejected", out.reason, out.detail
        else:
            clip, state, reason, detail = out, "ok", "", ""
        if not isinstance(clip, Clip):       # a stage of somebody's own may do anything
            raise self._bug(piece, f"it yielded {type(clip).__name__}, not a Clip or Rejected")
        try:
            _check(clip)
            if not _are_texts(reason, detail):
                raise ValueError(f"it is rejected for {reason!r}, {detail!r}, which are no texts")
            digest = clip.digest()
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            problem = f"it yielded {clip.id!r:.100}, which cannot be kept: {error}"
            raise self._bug(piece, problem) from error
        piece.outputs.append(Output(clip.id, digest, state, reason, detail, clip.identity))
        piece.clips.append(clip)

    def _bug(self, piece: Piece, problem: str) -> StageBugError:
        return StageBugError(self.names[piece.stage], piece.unit, problem)


def _check(clip: Clip) -> None:
    """Raises ValueError, TypeError or RecursionError for what cannot be written as JSON, or not as a key."""
    if not isinstance(clip.id, str) or not _ID.fullmatch(clip.id):
        raise ValueError("an id is of letters, digits, _ and -")
    if not isinstance(clip.identity, str):
        raise TypeError(f"identity is {clip.identity!r:.100}, not a text")
    check_fields(vars(clip))
    for name, value in vars(clip).items():
        if isinstance(value, dict) and value:
            try:
                _strict_json(value)
            except (ValueError, TypeError, RecursionError) as error:
                raise ValueError(f"{name} is no JSON ({error})") from error
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}")
        elif isinstance(value, np.ndarray) and value.dtype.hasobject:
            raise TypeError(f"{name} is an array of Python objects")


def _are_texts(reason: Any, detail: Any) -> bool:
    return isinstance(reason, str) and isinstance(detail, str)


def _lacks_memory(error: BaseException) -> bool:
    """As Python, NumPy, PyTorch (`torch.OutOfMemoryError`) and OpenCV (code -4) say it."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (getattr(error, "code", None) == -4 and type(error).__module__ == "cv2")
    )
