"""`pv3d weights`: the table of `infra.weights` for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from infra import weights
from infra.weights import find as find_weights

if TYPE_CHECKING:
    from pipelines.workflow import Step

__all__ = ["check_steps", "fetch", "find_weights", "table", "verify"]

Answer = tuple[dict[str, Any], str]


def check_steps(steps: Sequence[Step]) -> None:
    """Raise WeightsError, naming all weight files that stages ask for and that are not on this machine."""
    from stages.backends import weight_files

    weights.require_all([name for step in steps for name in weight_files(step.stage)])


def table() -> Answer:
    """Every file: present or missing, source, licence, sha256. Nothing is read or checked."""
    rows, lines = [], []
    for known in weights.FILES:
        path = weights.find(known.name)
        rows.append(
            {
                "name": known.name, "file": known.file, "use": known.use, "source": known.source,
                "url": known.url, "licence": known.licence, "sha256": known.sha256, "size": known.size,
                "pinned": bool(known.sha256), "path": str(path) if path else None,
            }
        )  # fmt: skip
        lines += [
            f"{known.name:<15} {path or 'missing'}",
            f"    {known.file}: {known.use}",
            f"    source   {known.source}",
            f"    licence  {known.licence}",
            f"    sha256   {known.sha256 or 'not pinned: fetch asks for --sha256'}",
        ]
    lines.append("looked for in " + ", then ".join(str(folder) for folder in weights.folders()))
    return {"weights": rows, "folders": [str(folder) for folder in weights.folders()]}, "\n".join(lines)


def fetch(name: str, sha256: str | None) -> Answer:
    """Download one file. Raises WeightsError."""
    path = weights.fetch(name, sha256)
    return {"name": name, "path": str(path)}, f"{name}: {path}"


def verify(names: Sequence[str]) -> Answer:
    """Check the files that are present, or those named. Raises WeightsError for a wrong or missing one."""
    rows, lines = [], []
    for known in [weights.entry(name) for name in names] or list(weights.FILES):
        path = weights.find(known.name)
        if path is None:
            if names:
                weights.require(known.name)
            state = "missing"
        else:
            weights.check(path, known)
            state = "ok" if known.sha256 else "not pinned"
        rows.append({"name": known.name, "state": state, "path": str(path) if path else None})
        lines.append(f"{known.name:<15} {state}")
    return {"weights": rows}, "\n".join(lines)
