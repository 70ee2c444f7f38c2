"""The commands around what a model makes: the page, what a file says of its making, a model as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipelines.cli_parts import Answer, answers, marks, tracked


@click.command(
    epilog="""\b
    Examples:
      pv3d view
      pv3d view models:/pv3d@candidate --open
      pv3d view runs/demo --port 0
    """
)
@click.argument("model", metavar="[MODEL]", required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0: any.")
@click.option("--open", "browser", is_flag=True, help="Open the page in the browser.")
@marks
@tracked
@answers
def view(model: str | None, **chosen: Any) -> Answer:
    """Turn, play and mix a model's portraits in the browser; the one that ships with pv3d unless named."""
    from pipelines.view import view as serve

    return serve(model, tell=click.echo, **chosen)


@click.command(epilog="Example: pv3d inspect samples/seed0000.mp4")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@answers
def inspect(file: Path) -> Answer:
    """Tell what a picture or video says of its making: content credentials, by whom, and metadata."""
    from pipelines.inspect_file import inspect_file

    return inspect_file(file)


@click.command(epilog="\b\nExample:\n  pv3d pack runs/demo --out portraits.safetensors --note 'profile demo'")
@click.argument("model", metavar="MODEL")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FILE")
@click.option("--note", default="", metavar="TEXT", help="How it was trained; kept in the file.")
@tracked
@answers
def pack(model: str, out: Path, **chosen: Any) -> Answer:
    """Write a model's averaged generator as one small file, in half precision."""
    from pipelines.packed import pack as write

    return write(model, out, **chosen)


COMMANDS: tuple[click.Command, ...] = (view, inspect, pack)
