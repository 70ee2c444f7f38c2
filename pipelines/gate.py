"""The gate of the registry: which version is `champion`, on which evidence, and how it was decided.

    register.gate         rules by the names of figures; all must hold
    candidate             the alias of the newest version
    champion              the alias of the version in use; moved here and nowhere else

What was decided, and why, stays with the versions as tags: `gate` and `gate.<time>`; the champions, in their
order, are a tag of the registered model: `champion.history`.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from infra.json_values import parsed
from infra.tracking import shown
from pipelines.document import did_you_mean

if TYPE_CHECKING:
    from pipelines.settings import EvaluateSettings, GateRule
    from pipelines.workflow import Workflow
    from stages.dataset import Dataset

log = logging.getLogger(__name__)

CHAMPION = "champion"
HISTORY = "champion.history"
ROLLED_BACK = "rolled_back"
TAG_LENGTH = 5000  # of a registry's tag

Figures = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Finding:
    """One rule, and whether it holds."""

    holds: bool
    why: str


@dataclass(frozen=True)
class Decision:
    """What the gate says of a version."""

    name: str
    version: int
    accepted: bool
    findings: tuple[Finding, ...]
    champion: int | None
    """The version that is champion now, after the decision."""

    @property
    def reasons(self) -> list[str]:
        """Of a refusal those that fail, else all."""
        return [found.why for found in self.findings if found.holds == self.accepted]

    @property
    def text(self) -> str:
        said = "accepted" if self.accepted else "refused"
        return f"{said}: {'; '.join(self.reasons)}"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "version": self.version, "accepted": self.accepted, "reasons": self.reasons,
            "champion": self.champion,
        }  # fmt: skip


# --- the rules ----------------------------------------------------------------------------------------------


def judge(
    rules: Mapping[str, GateRule], figures: Figures, others: Mapping[str, tuple[int, Figures] | None]
) -> list[Finding]:
    """Each rule on its figure. `others`: version and figures of the aliases that rules name, None where no
    version has the alias. What was not computed fails its rule."""
    found: list[Finding] = []
    for name, rule in rules.items():
        found += _of_rule(name, rule, figures, others)
    return found


def _of_rule(
    name: str, rule: GateRule, figures: Figures, others: Mapping[str, tuple[int, Figures] | None]
) -> list[Finding]:
    from pipelines.evaluate import called

    name = called(name, figures)
    fault = _fault(name, figures)
    if fault:
        return [Finding(False, fault)]
    value, direction = float(figures[name]["value"]), figures[name]["direction"]
    said, found = f"{name} {value:.4g}", []
    if rule.max is not None:
        found.append(_limit(said, value <= rule.max, f"max {rule.max:g}", "above"))
    if rule.min is not None:
        found.append(_limit(said, value >= rule.min, f"min {rule.min:g}", "below"))
    if rule.not_worse_than is not None:
        other = others[rule.not_worse_than]
        found.append(_compared(name, said, value, direction, rule, other))
    return found


def _fault(name: str, figures: Figures) -> str:
    """Why a figure decides nothing, "" when it does."""
    from pipelines.evaluate import doubts

    if name not in figures:
        return f"{name} was not evaluated{did_you_mean(name, figures)}"
    if figures[name]["value"] is None:
        return f"{name} was not computed ({figures[name]['reason']})"
    doubt = doubts({key: dict(value) for key, value in figures.items()}).get(name, "")
    return f"{name}: {doubt}" if doubt.endswith("nothing") else ""


def _limit(said: str, holds: bool, limit: str, how: str) -> Finding:
    return Finding(holds, f"{said} keeps to {limit}" if holds else f"{said} is {how} {limit}")


def _compared(
    name: str, said: str, value: float, direction: str, rule: GateRule, other: tuple[int, Figures] | None
) -> Finding:
    if other is None:
        return Finding(True, f"{said}, and no version is {rule.not_worse_than} yet")
    version, figures = other
    who = f"{rule.not_worse_than} (version {version})"
    if fault := _fault(name, figures):
        return Finding(False, f"{said} cannot be compared: of the {who}, {fault}")
    theirs = float(figures[name]["value"])
    worse = (value - theirs) * (1 if direction == "lower" else -1)
    holds = worse <= rule.tolerance
    how = f"worse by {worse:.4g}" if worse > 0 else f"better by {-worse:.4g}" if worse < 0 else "equal"
    allowed = f", tolerance {rule.tolerance:g}" if worse > 0 else ""
    return Finding(holds, f"{said}, that of the {who} {theirs:.4g}: {how}{allowed}")


# --- the decision -------------------------------------------------------------------------------------------


def decide(
    workflow: Workflow, *, version: int | None = None, promote: bool = True, by_hand: bool = False
) -> Decision:
    """Judge a version (None: the one that `register.alias` names) by `register.gate`, record the decision
    with it, and make it champion when it is accepted and `promote` says so.

    A champion that was evaluated under other settings is evaluated under these first. A version that was
    rolled back becomes champion again only `by_hand`. Raises ValueError when there are no rules, no such
    version, or the registry is away.
    """
    from mlflow import MlflowClient

    from pipelines.models import answering, registry

    settings, tracking = workflow.register, workflow.storage.tracking
    if not settings.gate:
        raise ValueError("register.gate: has no rules, so nothing becomes champion; see docs/registry.md")
    with registry(tracking), answering(tracking):
        client = MlflowClient()
        found = _version(client, settings.name, settings.alias, version)
        number, champion = int(found.version), holder(client, settings.name, CHAMPION)
        if champion == number:
            why = (Finding(True, f"version {number} is the champion"),)
            return Decision(settings.name, number, True, why, champion)
        aliases = {rule.not_worse_than for rule in settings.gate.values() if rule.not_worse_than}
        others: dict[str, tuple[int, Figures] | None] = {}
        for alias in sorted(aliases):
            held = holder(client, settings.name, alias)
            others[alias] = None if held is None else (held, _figures(workflow, client, held))
        findings = judge(settings.gate, _figures(workflow, client, number), others)
        if ROLLED_BACK in found.tags and not by_hand:
            again = f"it was rolled back at {found.tags[ROLLED_BACK]}; `pv3d promote --version {number}` asks"
            findings.append(Finding(False, f"{again} the gate all the same"))
        accepted = all(finding.holds for finding in findings)
        decision = Decision(settings.name, number, accepted, tuple(findings), champion)
        _record(client, decision, found.tags)
        if accepted and promote:
            crown(client, settings.name, number, "gate")
            decision = Decision(settings.name, number, accepted, tuple(findings), number)
    log.info("gate: %s version %d %s", settings.name, number, decision.text)
    return decision


def out_of_reach(workflow: Workflow, dataset: Dataset | None = None) -> list[str]:
    """Rules that no version can keep, each with why: figures that will not be computed. To be told before a
    training. With the `dataset` also those that lack real videos."""
    from pipelines.evaluate_samples import held_out
    from stages import metrics

    settings, found = workflow.evaluate, []
    for name in workflow.register.gate:
        if "/" in name:                      # of a backend, or of a file that one named
            continue
        for path in settings.metrics:
            names = metrics.names_of(path) or ()
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in names):
                continue
            reason = _without_network(path, settings)
            compares = dataset is not None and metrics.sees_real(path) and not settings.statistics
            if not reason and compares and not held_out(dataset, settings.frames, settings.videos)[0]:
                reason = "the dataset has no clip of held-out people; set stages.WriteShards.held_out=0.1"
            found += [f"register.gate.{name}: {reason}"] if reason else []
    return found


def _without_network(path: str, settings: EvaluateSettings) -> str:
    """Why the metric at an import path computes nothing; "" when its network is here."""
    from infra.weights import find
    from stages import metrics
    from stages.metrics.networks import find_network, missing, state_dict

    for entry in metrics.weights_of(path):
        network = find_network(entry, settings.networks, find(entry))
        if network is None:
            return missing(entry)
        if state_dict(network.path):
            return f"weights file {network.path.name} holds no network; name an export of it"
    return ""


def _version(client: Any, name: str, alias: str, version: int | None) -> Any:
    """The registry's record. Raises ValueError, naming what there is."""
    versions = {int(v.version): v for v in client.search_model_versions(f"name = '{name}'")}
    if not versions:
        raise ValueError(f"register.name: nothing is registered as {name!r}; `pv3d run` registers")
    wanted = holder(client, name, alias) if version is None else version
    if wanted is None:
        raise ValueError(f"register.alias: no version of {name!r} is {alias!r}; name one with --version")
    if wanted not in versions:
        raise ValueError(f"--version {wanted}: {name!r} has the versions {_listed(sorted(versions))}")
    return client.get_model_version(name, str(wanted))


def _listed(numbers: list[int]) -> str:
    shown = [str(number) for number in numbers]
    return ", ".join(shown if len(shown) < 12 else [*shown[:3], "...", *shown[-3:]])


def holder(client: Any, name: str, alias: str) -> int | None:
    """The version that has the alias, None when none has it."""
    held = client.get_registered_model(name).aliases.get(alias)
    return None if held is None else int(held)


def _figures(workflow: Workflow, client: Any, number: int) -> Figures:
    """The figures of a version under the workflow's settings: measured now unless that was done before."""
    from pipelines.evaluate import Subject, figures, model_key
    from pipelines.models import open_model

    name, tracking = workflow.register.name, workflow.storage.tracking
    tags = client.get_model_version(name, str(number)).tags
    if not {"ema", "step", "checkpoint"} <= tags.keys() or not re.fullmatch("[0-9]{1,15}", tags["step"]):
        raise ValueError(f"models:/{name}/{number}: was not registered by `pv3d run`; register it again")
    address = f"models:/{name}/{number}"
    model = tags.get("model") or model_key(open_model(address, tracking).generator.config)
    subject = Subject(
        tags["ema"], model, int(tags["step"]), tags["checkpoint"], lambda: open_model(address, tracking)
    )
    found: Figures = figures(workflow.store(), workflow.evaluate, subject)["metrics"]
    return found


def _record(client: Any, decision: Decision, before: Mapping[str, str]) -> None:
    """The decision as tags of the version; one that is as the last one adds nothing."""
    text = decision.text[:TAG_LENGTH]
    if before.get("gate") == text:
        return
    version = str(decision.version)
    client.set_model_version_tag(decision.name, version, f"gate.{_now()}", text)
    client.set_model_version_tag(decision.name, version, "gate", text)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def told(workflow: Workflow, version: int | None, *, promote: bool) -> tuple[dict[str, Any], str]:
    """The decision by hand as an answer of the command line; a promotion that is refused is a fault."""
    decision = decide(workflow, version=version, promote=promote, by_hand=True)
    answer = decision.to_json()
    text = f"{decision.name} version {decision.version} {decision.text}"
    if promote and not decision.accepted:
        answer["fault"] = text
    champion = "none" if decision.champion is None else f"version {decision.champion}"
    return answer, f"{text}\nchampion: {champion}"


# --- the champion -------------------------------------------------------------------------------------------


def crown(client: Any, name: str, version: int, how: str) -> None:
    """Make a version champion. The history goes first: whoever finds the alias finds how it came there."""
    events = [*history(client, name), {"version": version, "at": _now(), "by": how}]
    while len(text := json.dumps(events)) > TAG_LENGTH:
        events = events[1:]
    client.set_registered_model_tag(name, HISTORY, text)
    client.set_registered_model_alias(name, CHAMPION, str(version))
    log.info("%s version %d is champion", name, version)


def history(client: Any, name: str) -> list[dict[str, Any]]:
    """Every change of the champion, oldest first: {"version", "at", "by": "gate" or "rollback"}."""
    text = client.get_registered_model(name).tags.get(HISTORY, "[]")
    try:
        return [{"version": int(e["version"]), "at": e["at"], "by": e["by"]} for e in parsed(text)]
    except (ValueError, TypeError, LookupError, OverflowError):
        raise ValueError(f"{name}: its tag {HISTORY} is damaged; delete the tag") from None


def before(events: list[dict[str, Any]], champion: int) -> list[int]:
    """The versions to go back to from `champion`, the nearest last: each roll-back takes one off."""
    stack: list[int] = []
    for event in events:
        version = int(event["version"])
        if event["by"] == "rollback" and version in stack:
            del stack[len(stack) - stack[::-1].index(version) :]
        else:
            stack.append(version)
    while champion in stack:
        del stack[stack.index(champion) :]
    return stack


def rollback(name: str, tracking: str) -> tuple[int, int]:
    """Give `champion` back to the version that had it before; returns the old and the new one.

    Raises ValueError when there is no champion, or none before it, and when the registry is away.
    """
    from mlflow import MlflowClient

    from pipelines.models import answering, registry

    with registry(tracking), answering(tracking):
        client = MlflowClient()
        versions = {int(v.version) for v in client.search_model_versions(f"name = '{name}'")}
        if not versions:
            raise ValueError(f"{name!r}: nothing is registered under this name at {shown(tracking)}")
        champion = holder(client, name, CHAMPION)
        if champion is None:
            raise ValueError(f"{name}: no version is champion; `pv3d promote` asks the gate")
        earlier = [one for one in before(history(client, name), champion) if one in versions]
        if not earlier:
            raise ValueError(f"{name}: version {champion} is the first champion; there is none to go back to")
        client.set_model_version_tag(name, str(champion), ROLLED_BACK, _now())
        crown(client, name, earlier[-1], "rollback")
    return champion, earlier[-1]
