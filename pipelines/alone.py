"""Run one stage on one unit in a process of its own, so that its death is known by name.

Ray only says that a worker is gone. A unit whose worker died is therefore tried once more like this, and the
signal or the time limit becomes the reason of its failure.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path

from infra.storage import StorageError
from pipelines.ledger import ClipFile, Output, encode_clips
from pipelines.work import ChainSpec, Piece, SetupError, StageBugError
from stages.clip import Clip


def run_alone(spec: ChainSpec, clip: Clip, stage: int, timeout_s: float) -> Piece | str:
    """The piece, or why the process ended without one: "crashed: SIGSEGV", "timed out"."""
    with tempfile.TemporaryDirectory(prefix="pv3d-alone-") as folder:
        Path(folder, "spec.json").write_text(json.dumps({"spec": asdict(spec), "stage": stage}))
        Path(folder, "clip.npz").write_bytes(encode_clips([clip]))
        command = [sys.executable, "-c", "from pipelines.alone import main; main()", folder]
        # The child leaves when its end of the pipe closes, so it never outlives a killed worker.
        with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
            try:
                status = child.wait(timeout_s)
            except subprocess.TimeoutExpired:
                child.kill()
                return "timed out"
        if status < 0:
            return f"crashed: {signal.Signals(-status).name}"
        answer = Path(folder, "piece.json")
        if status != 0 or not answer.exists():
            return f"crashed: exit status {status}"
        return _read(answer, Path(folder, "out.npz"))


def _read(answer: Path, clips: Path) -> Piece:
    values = json.loads(answer.read_text())
    if "bug" in values:
        raise StageBugError(*values["bug"])
    if "setup" in values:
        raise SetupError(values["setup"])
    if "storage" in values:
        raise StorageError(values["storage"])
    values["outputs"] = [Output(**out) for out in values["outputs"]]
    held = ClipFile(clips.read_bytes())
    return Piece(**{**values, "clips": [held.clip(row) for row in range(len(held))]})


def main() -> None:
    """Entry of the child process."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    folder = sys.argv[1]
    values = json.loads(Path(folder, "spec.json").read_text())
    fields = values["spec"]
    spec = ChainSpec(
        stages=tuple((use, settings) for use, settings in fields["stages"]),
        names=tuple(fields["names"]),
        root=fields["root"],
        options=fields["options"],
        sys_path=tuple(fields["sys_path"]),
    )
    clip = ClipFile(Path(folder, "clip.npz").read_bytes()).clip(0)
    answer: dict[str, object]
    try:
        (piece,) = spec.build().run(clip, values["stage"], values["stage"])
        Path(folder, "out.npz").write_bytes(encode_clips(piece.clips))
        piece.clips = []
        answer = asdict(piece)
    except StageBugError as error:
        answer = {"bug": list(error.args)}
    except SetupError as error:
        answer = {"setup": str(error)}
    except StorageError as error:
        answer = {"storage": str(error)}
    Path(folder, "piece.json").write_text(json.dumps(answer))


def _leave_with_parent() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock would stand in the way of the interpreter's end
        pass
    os._exit(1)
