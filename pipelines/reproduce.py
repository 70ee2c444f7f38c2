"""`pv3d reproduce`: a checkpoint of the paper's authors under the paper's protocol, by both definitions.

The protocol: 5,000 generated videos of 16 frames for FVD, 1,000 for ID, Chamfer distance and warping error.
Cameras and real videos come from the dataset in the store of the workflow. What was measured is kept there,
and not measured again; a figure whose network or data are missing says so and has no number.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.evaluate import Subject
    from pipelines.workflow import Workflow

DATASETS = {"voxceleb": "VoxCeleb", "celebvhq": "CelebV-HQ", "talkinghead": "TalkingHead-1KH"}
METRICS = tuple(f"stages.metrics.{name}" for name in ("fvd", "identity", "chamfer", "warping"))
MODES = ("paper", "official")
PROTOCOL = {"videos": 5000, "clips": 1000, "frames": 16, "h264": True}


def reproduce(workflow: Workflow, name: str, checkpoint: Path) -> tuple[dict[str, Any], str]:
    """Our figures of an official checkpoint, or of the folder of an imported one, in both modes.

    Raises ValueError when the store has no dataset, and for what is no checkpoint.
    """
    from infra.words import many
    from pipelines.evaluate import Makers, figures
    from stages.shards import open_dataset
    from stages.versions import latest_version

    store = workflow.store()
    version = latest_version(store)
    if version is None:
        raise ValueError(
            f"{store.root}: no dataset, whose cameras and held-out people are needed; prepare "
            f"{DATASETS[name]} first (docs/reproduce.md)"
        )
    found = {}
    both = workflow.evaluate.model_copy(update={"metrics": METRICS})
    with _subject(checkpoint) as subject, Makers(store, subject, both) as makers:
        for mode in MODES:
            settings = both.model_copy(update={"mode": mode})
            found[mode] = figures(store, settings, subject, makers=makers)["metrics"]
    settings = workflow.evaluate
    departs = [
        f"evaluate.{key} is {getattr(settings, key)}, not {value}"
        for key, value in PROTOCOL.items() if getattr(settings, key) != value
    ]  # fmt: skip
    samples = open_dataset(store, version).samples
    train = sum(one.split == "train" for one in samples)
    clips = {"train": train, "held_out": len(samples) - train}
    answer = {
        "dataset": {"name": name, "version": version, "clips": clips}, "checkpoint": str(checkpoint),
        "modes": found, "not_the_protocol": departs,
    }  # fmt: skip
    taken = f"{many(train, 'clip')} to train on, {clips['held_out']:,} of held-out people"
    title = f"{checkpoint.name} on {DATASETS[name]}, dataset {version}: {taken}"
    return answer, table(title, found, departs)


@contextmanager
def _subject(checkpoint: Path) -> Iterator[Subject]:
    """The weights of an official file, imported while the context lasts, or of an imported folder."""
    from infra.checkpoints import CARD, open_checkpoint
    from infra.paths import expanded
    from infra.storage import FolderStorage
    from pipelines.evaluate import of
    from pipelines.import_official import import_official

    path = expanded(str(checkpoint))
    with tempfile.TemporaryDirectory(prefix="pv3d-reproduce-") as folder:
        if path.is_dir() and not (path / CARD).is_file():
            raise ValueError(f"--checkpoint {checkpoint}: a folder without {CARD}; give an official .ckpt")
        if not path.is_dir():
            if not path.is_file():
                raise ValueError(f"--checkpoint {checkpoint}: no such file; give an official .ckpt")
            import_official(path, Path(folder, "imported"))
            path = Path(folder, "imported")
        yield of(open_checkpoint(FolderStorage(path.resolve().parent), path.name))


def table(title: str, found: dict[str, dict[str, dict[str, Any]]], departs: list[str]) -> str:
    """Rows of figures, a column for each mode, and below why one is missing or not the protocol's."""
    names = list(dict.fromkeys(figure for values in found.values() for figure in values))
    lines = [title, f"{'':<24}{'paper':<34}{'official':<34}".rstrip()]
    for figure in names:
        cells = [_cell(found[mode].get(figure)) for mode in MODES]
        lines.append(f"{figure:<24}{cells[0]:<34}{cells[1]:<34}".rstrip())
    reasons = {
        f"{figure}: {value['reason'] or value['note']}"
        for values in found.values() for figure, value in values.items() if value["reason"] or value["note"]
    }  # fmt: skip
    return "\n".join([*lines, *sorted(reasons), *(f"not the paper's protocol: {text}" for text in departs)])


def _cell(value: dict[str, Any] | None) -> str:
    if value is None or value["value"] is None:
        return "not computed"
    interval = value["interval"]
    between = f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else ""
    return f"{value['value']:.4g}{between} of {value['samples']}"
