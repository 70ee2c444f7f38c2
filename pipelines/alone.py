"""Run one stage on one unit in a process of its own, so that its death is known by name.

Ray only says that a worker is gone. A unit whose worker died is therefore tried once more like this, and the
signal, the lack of memory or the time limit becomes the reason of its failure. What a stage started ends with
it.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import json
import os
import re
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infra.storage import StorageError, fault_of_place
from pipelines.ledger import ClipFile, Output, encode_clips
from pipelines.work import ChainSpec, OutOfMemoryError, Piece, SetupError, StageBugError
from stages.base import LostInputError
from stages.clip import Clip

NO_DISK = os.EX_IOERR            # how the child ends that cannot write its answer
SETUP_S = 900.0                  # to start and to load models, which no unit is to blame for
_LAST_WORDS_S = 5.0
_FRAME = re.compile(r'^  File "(.+)", line (\d+) in (.+)$', re.MULTILINE)
_COMMAND = "from pipelines.alone import main; main()"


@dataclass(frozen=True)
class Death:
    """Why a unit has no outcome: "crashed: SIGSEGV", "timed out", "out of memory"; and where in the code."""

    reason: str
    detail: str = ""


def run_alone(
    spec: ChainSpec, clips: Sequence[Clip], stage: int, group: str | None, timeout_s: float
) -> list[Piece] | Death:
    """The pieces of one unit, or of one group, at one stage of the chain; or why there are none.

    Raises StorageError when the disk for temporary files is full or broken: no unit is to blame for that.
    """
    try:
        return _run_alone(spec, clips, stage, group, timeout_s)
    except OSError as error:
        if fault := fault_of_place(error):
            raise StorageError(f"stage {spec.names[stage]}: {fault}") from error
        raise


def _run_alone(
    spec: ChainSpec, clips: Sequence[Clip], stage: int, group: str | None, timeout_s: float
) -> list[Piece] | Death:
    with tempfile.TemporaryDirectory(prefix="pv3d-alone-") as folder:
        Path(folder, "in.npz").write_bytes(encode_clips(clips))
        ready, told = os.pipe()
        job = {"spec": asdict(spec), "stage": stage, "group": group, "ready": told, "timeout_s": timeout_s}
        Path(folder, "job.json").write_text(json.dumps(job))
        killed_before = _killed_for_memory()
        # The child leaves when its end of stdin closes, so it does not outlive a killed worker.
        child = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, folder], stdin=subprocess.PIPE, pass_fds=[told], process_group=0
        )
        try:
            os.close(told)
            status = _wait(child, ready, timeout_s)
        finally:
            os.close(ready)
            _kill_group(child)
        trace = _read_text(Path(folder, "trace.txt"))
        if status is None:
            return Death("timed out", _place(trace))
        if status == -signal.SIGKILL and _killed_for_memory() > killed_before:
            return Death("out of memory", "the system killed it")
        if status < 0:
            return Death(f"crashed: {signal.Signals(-status).name}", _place(trace))
        answer = Path(folder, "answer.json")
        if status == NO_DISK:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder)
        if status != 0 or not answer.exists():
            return Death(f"crashed: exit status {status}")
        return _read(answer, Path(folder, "out.npz"))


def _wait(child: subprocess.Popen[bytes], ready: int, timeout_s: float) -> int | None:
    """The exit status; None for a child that took too long, after it was asked where it is."""
    started = bool(select.select([ready], [], [], max(SETUP_S, timeout_s))[0])
    with contextlib.suppress(subprocess.TimeoutExpired):
        return child.wait(timeout_s if started else 0)
    child.send_signal(signal.SIGABRT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_LAST_WORDS_S)
    return None


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """The child, and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert child.stdin is not None
    child.stdin.close()


def _killed_for_memory() -> int:
    """How many processes the kernel has killed for want of memory since it started; 0 if it does not say."""
    found = re.search(r"^oom_kill (\d+)$", _read_text(Path("/proc/vmstat")), re.MULTILINE)
    return int(found.group(1)) if found else 0


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _place(trace: str) -> str:
    """"decoder.py:88 in _decode": the innermost call in a traceback of faulthandler that is no library's."""
    current = trace.partition("Current thread")[2].partition("\n\n")[0]
    frames = [(path, line, name) for path, line, name in _FRAME.findall(current or trace)]
    libraries = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))
    own = [frame for frame in frames if not frame[0].startswith(libraries) and Path(frame[0]).is_absolute()]
    for path, line, name in (own or frames)[:1]:
        return f"{Path(path).name}:{line} in {name}"
    return ""


def _read(answer: Path, clips: Path) -> list[Piece] | Death:
    values = json.loads(answer.read_text())
    if "death" in values:
        return Death(*values["death"])
    if "bug" in values:
        raise StageBugError(*values["bug"])
    if "setup" in values:
        raise SetupError(values["setup"])
    if "lost" in values:
        raise LostInputError(*values["lost"])
    if "storage" in values:
        raise StorageError(values["storage"])
    held = ClipFile(clips.read_bytes())
    pieces, row = [], 0
    for piece in values["pieces"]:
        outputs = [Output(**out) for out in piece["outputs"]]
        out_clips = [held.clip(row + number) for number in range(len(outputs))]
        row += len(outputs)
        pieces.append(Piece(**{**piece, "outputs": outputs, "clips": out_clips}))
    return pieces


def main() -> None:
    """Entry of the child process."""
    try:
        _main(Path(sys.argv[1]))
    except OSError as error:
        if not fault_of_place(error):
            raise
        os._exit(NO_DISK)


def _main(folder: Path) -> None:
    with (folder / "trace.txt").open("w") as trace:
        faulthandler.enable(trace)               # of a crash, and of the SIGABRT at the time limit
        threading.Thread(target=_leave_with_parent, daemon=True).start()
        job = json.loads((folder / "job.json").read_text())
        (folder / "answer.json").write_text(json.dumps(_answer(job, folder)))
    sys.stdout.flush()
    os._exit(0)                                  # whatever threads a library has left


def _answer(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    fields = job["spec"]
    spec = ChainSpec(
        stages=tuple((use, settings) for use, settings in fields["stages"]),
        names=tuple(fields["names"]),
        root=fields["root"],
        options=fields["options"],
        sys_path=tuple(fields["sys_path"]),
        history=tuple(fields["history"]),
    )
    held = ClipFile((folder / "in.npz").read_bytes())
    clips = [held.clip(row) for row in range(len(held))]
    stage = job["stage"]
    try:
        chain = spec.build()
        chain.setup(stage, stage)
        os.write(job["ready"], b"r")
        # Should the worker be gone and this hang: the parent ends it sooner.
        faulthandler.dump_traceback_later(job["timeout_s"] + 60.0, exit=True)
        if job["group"] is None:
            pieces = chain.run(clips[0], stage, stage)
        else:
            pieces = chain.run_group(job["group"], clips)
    except OutOfMemoryError as error:
        return {"death": ["out of memory", str(error)]}
    except StageBugError as error:
        return {"bug": list(error.args)}
    except SetupError as error:
        return {"setup": str(error)}
    except LostInputError as error:
        return {"lost": list(error.args)}
    except StorageError as error:
        return {"storage": str(error)}
    (folder / "out.npz").write_bytes(encode_clips([clip for piece in pieces for clip in piece.clips]))
    for piece in pieces:
        piece.clips = []
    return {"pieces": [asdict(piece) for piece in pieces]}


def _leave_with_parent() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock would stand in the way of the interpreter's end
        pass
    os.killpg(0, signal.SIGKILL)
