"""`pv3d import`: a checkpoint of the authors becomes a folder that `pv3d generate` and training accept."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any


def import_official(checkpoint: Path, out: Path) -> tuple[dict[str, Any], str]:
    """Read an official `.ckpt`, executing nothing of it, and write safetensors and checkpoint.json to `out`.

    Returns a summary and a report of what was assumed and what is left over. Raises ValueError when the file
    is no such checkpoint, when a name or shape is not as expected, or when `out` exists, which is then left
    alone.
    """
    if out.exists():
        raise ValueError(f"--out {out}: exists already; name a folder that does not")
    from infra import checkpoints
    from infra.storage import FolderStorage, StorageError
    from model.config import to_dict
    from model.official import read_official

    read = read_official(checkpoint)
    card = {
        "variant": to_dict(read.variant), "samples": read.samples, "dataset": None,
        "imported_from": checkpoint.name, "left_over": read.left_over, "assumed": read.assumed,
    }  # fmt: skip
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the rename at the end is atomic: all of it is there, or nothing.
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".import-") as folder:
            saved = checkpoints.save(FolderStorage(folder), "new", read.step, read.networks, card, keep=1)
            Path(folder, saved.key).rename(out)
    except OSError as error:
        raise StorageError(f"--out {out}: cannot be written ({error.strerror})") from None
    summary = {
        "checkpoint": str(out), "step": read.step, "left_over": read.left_over, "assumed": read.assumed,
    }  # fmt: skip
    return summary, f"{read.report()}\nimported to {out}: pv3d generate {out} --seeds 0-3 --out clips"
