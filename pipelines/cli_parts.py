"""What commands share: `--json`, where models are registered, lists of numbers. Imports only click."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from infra import logs
from pipelines.lines import write_json

Answer = tuple[dict[str, Any], str]

MOST_SEEDS = 1_000_000
MOST_VIEWS = 32                              # side by side: more is wider than a video may be


@contextlib.contextmanager
def _told_on_stdout() -> Iterator[None]:
    """Raise StorageError for what is wrong with stdout, so that nobody takes it for a disk of ours."""
    from infra.storage import StorageError

    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())   # else it is refused at the end, too
        raise StorageError(f"cannot write to stdout ({error.strerror}); send it elsewhere") from error


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Libraries print where they like; with --json only the answer may reach stdout."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def answers(command: Callable[..., Answer]) -> Callable[..., None]:
    """Adds `--json`: the last line on stdout is then one object, and all else goes to stderr.

    An answer with a "fault" is given and then refused: that line on stderr, exit status 2.
    """

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object on the last line of stdout.")
    @functools.wraps(command)
    def run(*args: Any, as_json: bool, **options: Any) -> None:
        with _stdout_to_stderr() if as_json else contextlib.nullcontext():
            value, text = command(*args, **options)
        with _told_on_stdout():
            if as_json:
                write_json(value, sys.stdout)
            else:
                click.echo(logs.shown(text))
        if value.get("fault"):
            raise ValueError(value["fault"])

    return run


tracked = click.option(
    "--tracking", metavar="URI", envvar="MLFLOW_TRACKING_URI", show_envvar=True,
    default="sqlite:///runs/mlflow.db", show_default=True, help="Where the model is registered.",
)  # fmt: skip


def marks(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --no-credentials, --certificate, --private-key, and hands them on as `marking`."""

    @click.option("--no-credentials", is_flag=True, help="Mark what is made by plain metadata alone.")
    @click.option(
        "--certificate", type=click.Path(path_type=Path), metavar="PEM", envvar="PV3D_CERTIFICATE",
        show_envvar=True, help="Signs content credentials: a chain, leaf first; a local one unless given.",
    )
    @click.option(
        "--private-key", type=click.Path(path_type=Path), metavar="PEM", envvar="PV3D_PRIVATE_KEY",
        show_envvar=True, help="Of the certificate.",
    )  # fmt: skip
    @functools.wraps(command)
    def run(
        *args: Any, no_credentials: bool, certificate: Path | None, private_key: Path | None, **options: Any
    ) -> Any:
        from pipelines.publish import Marking

        marking = Marking(not no_credentials, certificate, private_key)
        return command(*args, marking=marking, **options)

    return run


def seed_list(text: str) -> list[int]:
    """"0-3,7" -> [0, 1, 2, 3, 7]."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not re.fullmatch("[0-9]{1,18}", first) or (dash and not re.fullmatch("[0-9]{1,18}", last)):
            raise ValueError(f"--seeds {text}: {part!r} is no seed; write 0-3 or 1,5,9")
        if len(seeds) + int(last or first) - int(first) >= MOST_SEEDS:
            raise ValueError(f"--seeds {text}: more than {MOST_SEEDS:,} videos; ask for fewer")
        seeds.extend(range(int(first), int(last or first) + 1))
    if not seeds:
        raise ValueError(f"--seeds {text}: holds no seed; write 0-3 or 1,5,9")
    return seeds


def numbers(option: str, text: str | None) -> tuple[float, ...]:
    """"-30,0,30" -> (-30.0, 0.0, 30.0); (0.0,) for nothing. Raises ValueError for what is no list."""
    try:
        found = tuple(float(part) for part in text.split(",")) if text else (0.0,)
    except ValueError:
        found = (float("nan"),)
    if not all(abs(number) <= 360 for number in found):
        raise ValueError(f"{option} {text}: write degrees such as -30,0,30")
    if len(found) > MOST_VIEWS:
        raise ValueError(f"{option}: {len(found)} numbers; {MOST_VIEWS} are the most")
    return found


def span(text: str | None) -> tuple[float, float] | None:
    """"0:0.5" -> (0.0, 0.5). Raises ValueError for what is no span."""
    if text is None:
        return None
    first, _, last = text.partition(":")
    try:
        return float(first), float(last)
    except ValueError:
        raise ValueError(f"--span {text}: write two times from 0 to 1, such as 0:0.5") from None
