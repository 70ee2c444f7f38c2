"""`pv3d status --watch`: the status again and again until the run ends, for a terminal or as plain lines."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.live import Live as Screen
from rich.text import Text

from infra import interrupts
from pipelines.rates import how_far
from pipelines.status import Answer, check_units, look, told_of, workflow_status
from pipelines.workflow import Workflow

log = logging.getLogger(__name__)

_SHARE = 20                                  # of this time at most one part goes into reading records again


def status(workflow: Workflow, units: str = "all", every_s: float | None = None) -> Answer:
    """`pv3d status`; with `every_s` not before the run that is going on has ended, or Ctrl-C."""
    check_units(units)
    if every_s is not None:
        if not every_s > 0:
            raise ValueError(f"--every {every_s:g}: give the seconds from one look to the next")
        try:
            _watch(workflow, every_s, Console(stderr=True))
        except KeyboardInterrupt:
            if interrupts.last() != signal.SIGINT:
                raise
    return workflow_status(workflow, units)


def _watch(workflow: Workflow, every_s: float, console: Console) -> None:
    """Returns when no run is going on. The records are read less often the more there are."""
    with _shown(console) as show:
        due_s, found = 0.0, None
        while True:
            begun_s = time.monotonic()
            if found is None or begun_s >= due_s:
                found = look(workflow, "0")
                due_s = begun_s + _SHARE * (time.monotonic() - begun_s)
            answer, text = told_of(workflow, found)
            if answer["run"] is None or not answer["run"]["alive"]:
                return
            show(answer, text)
            time.sleep(max(0.0, begun_s + every_s - time.monotonic()))


@contextlib.contextmanager
def _shown(console: Console) -> Iterator[Callable[[dict[str, Any], str], None]]:
    if console.is_terminal:
        with Screen(console=console, transient=True, auto_refresh=False) as screen:
            yield lambda _, text: screen.update(_fitting(text), refresh=True)
        return
    said: dict[str, int] = {}

    def say(answer: dict[str, Any], _: str) -> None:
        for name, done, text in _plain(answer):
            if said.get(name) != done:
                log.info("%s: %s", name, text)
                said[name] = done

    yield say


def _fitting(text: str) -> Text:
    """A line of the table stays one line, however narrow the terminal."""
    return Text(text, no_wrap=True, overflow="ellipsis")


def _plain(answer: dict[str, Any]) -> Iterator[tuple[str, int, str]]:
    """What is going on: name, units done and what to say once they have changed."""
    run, training = answer["run"], answer["training"]
    phase = run["phase"]
    for name, one in run["stages"].items():
        if one["done"] and phase == "data":
            yield name, one["done"], how_far(one["done"], one["to_come"], one["per_s_now"], one["eta_s"])
    if phase == "train" and training:
        training = answer["other_training"] or training      # that told later
        yield phase, training["step"], f"{training['step']} of {training['steps']}"
    elif phase not in ("", "data"):
        yield phase, 0, "under way"
