"""The model card of a registered version: Markdown, from the checkpoint, the dataset and the evaluation."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infra.checkpoints import Checkpoint
    from pipelines.workflow import Workflow
    from stages.dataset import Dataset, Sample

FACTS_SHOWN = 60  # of licences and of collections; more are counted

BIAS = (
    "The training clips are not balanced: whoever films and uploads videos decided which ages, skin tones, "
    "genders, languages, poses, light and cameras occur, and how often. The generator repeats that. Faces of "
    "groups that are rare in the clips come out rarely, and less well; figures below are means over what the "
    "model likes to make and do not show it. Nobody has measured this version per group: do so before it is "
    "used for anything about people."
)
FORBIDDEN = (
    "Making or changing a video of a real person without their consent: animating their portrait, "
    "reconstructing or editing their footage, putting words or acts upon them.",
    "Deceiving anybody: presenting generated video as a recording, in news, evidence, identification, "
    "advertising or conversation.",
    "Harassing, defaming or sexualising people; anything illegal where it is made or shown.",
    "Getting past checks of identity or liveness, and judging people by what the model makes of them.",
)


def model_card(
    workflow: Workflow, checkpoint: Checkpoint, tags: dict[str, str], evaluation: dict[str, Any] | None
) -> str:
    """The card, which travels with the version. `evaluation`: as `pipelines.evaluate` stores it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from pipelines.evaluate import doubts

    environment = Environment(
        loader=PackageLoader("pipelines", "."), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    page: str = environment.get_template("model_card.md.j2").render(
        name=workflow.register.name,
        alias=workflow.register.alias,
        tags=tags,
        data=data_facts(dataset_of(workflow, checkpoint)),
        training=training_facts(checkpoint),
        evaluation=evaluation,
        doubts=doubts(evaluation["metrics"]) if evaluation else {},
        gate={name: rule.model_dump(exclude_defaults=True) for name, rule in workflow.register.gate.items()},
        bias=BIAS,
        forbidden=FORBIDDEN,
    )
    return page


def dataset_of(workflow: Workflow, checkpoint: Checkpoint) -> Dataset:
    """The version that the checkpoint was trained on; the latest for one that does not say."""
    from stages.dataset import open_dataset

    return open_dataset(workflow.store(), checkpoint.card.get("dataset"))


def data_facts(dataset: Dataset) -> dict[str, Any]:
    """Counts of the training clips, as the card shows them."""
    trained = [sample for sample in dataset.samples if sample.split == "train"]
    frames = sum(sample.frame_count for sample in trained)
    people = Counter(sample.identity for sample in trained)
    return {
        "version": dataset.version,
        "clips": len(trained),
        "held_out": len(dataset.samples) - len(trained),
        "people": len(people),
        "most_of_one": max(people.values(), default=0),
        "frames": frames,
        "minutes": round(sum(sample.frame_count / sample.fps for sample in trained) / 60, 1),
        "size": dataset.size,
        "fps": dataset.fps,
        "licences": _counted(Counter(_said(sample) for sample in trained)),
    }


def _said(sample: Sample) -> str:
    return " ".join(sample.licence.replace("|", "/").split()) or "not stated"


def _counted(counts: Counter[str]) -> list[tuple[str, int]]:
    shown = counts.most_common(FACTS_SHOWN)
    rest = sum(counts.values()) - sum(count for _, count in shown)
    return [*shown, (f"{len(counts) - len(shown)} others", rest)] if rest else shown


def training_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Settings of the training, flat, by their dotted names."""
    card = checkpoint.card
    variant = card["variant"]
    settings = card.get("settings", {})
    told = ("workers", "accumulate", "precision", "zero_stage", "seed", "init")
    return {
        "variant": variant["name"],
        "step": checkpoint.step,
        "videos": card.get("samples"),
        "checkpoint": checkpoint.key,
        "settings": {name: settings[name] for name in told if settings.get(name) is not None},
        "model": _flat("", variant["model"]),
        # `updates` are the recipe's own, whatever `train.steps` asked for.
        "recipe": {k: v for k, v in _flat("", variant["recipe"]).items() if k != "updates"},
    }


def _flat(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(_flat(f"{prefix}{name}.", value) if isinstance(value, dict) else {prefix + name: value})
    return flat
