"""The commands that show a model: generate and mesh, and what begins with an inverted picture or video."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipelines.cli_parts import Answer, answers, marks, numbers, seed_list, span, tracked

MOST_FRAMES = 1000                           # of a clip, which is in memory as a whole
FRAMES = click.option(
    "--frames", type=click.IntRange(1, MOST_FRAMES), help="16, or all that the model's window holds."
)
PSI = click.option(
    "--psi", default=1.0, show_default=True, help="Truncation: below 1 the faces are more alike."
)


def takes_camera(default: str) -> Callable[..., Any]:
    """Adds --camera, --yaw, --pitch."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option("--pitch", type=float, metavar="DEG", help="Up and down: how far, or where."),
            click.option("--yaw", type=float, metavar="DEG", help="To either side: how far, or where."),
            click.option(
                "--camera", default=default, show_default=True, metavar="PATH",
                help="still, orbit, nod, figure-eight, or cameras: FILE, or STORE#CLIP of a dataset.",
            ),
        ):  # fmt: skip
            command = option(command)
        return command

    return add


def writes_clips(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --out, --kinds, --views, --format."""
    for option in (
        click.option("--format", "how", type=click.Choice(["mp4", "png"]), default="mp4", show_default=True),
        click.option("--views", metavar="DEG,...", help="Side by side, turned so far: -30,0,30."),
        click.option(
            "--kinds", default="image", show_default=True, metavar="LIST", help="Of image, depth, normals."
        ),
        click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR"),
    ):  # fmt: skip
        command = option(command)
    return command


def _answer(files: list[Path], **more: Any) -> Answer:
    names = [str(path) for path in files]
    return {"files": names, **more}, "\n".join(names)


@click.command(
    epilog="""\b
    Examples:
      pv3d generate models:/pv3d@candidate --seeds 0-3 --out samples
      pv3d generate runs/demo --camera orbit --kinds image,depth,normals --out turn
      pv3d generate runs/demo --seeds 0-15 --grid 4 --psi 0.7 --out grid
      pv3d generate runs/demo --views=-30,0,30 --frames 50 --span 0:1 --format png --out views
    """
)
@click.argument("model", metavar="[MODEL]", required=False)
@click.option("--seeds", default="0", show_default=True, metavar="LIST", help="Such as 0-3 or 1,5,9.")
@FRAMES
@click.option("--span", metavar="A:B", help="Times from A to B in [0, 1], any number of --frames.")
@PSI
@takes_camera("still")
@click.option(
    "--mapping", type=click.Choice(["first", "front"]), default="first", show_default=True,
    help="Whose camera the mapping network sees.",
)
@click.option("--grid", type=click.IntRange(1), metavar="COLUMNS", help="All seeds in one picture.")
@writes_clips
@marks
@tracked
@answers
def generate(model: str | None, seeds: str, **chosen: Any) -> Answer:
    """Write what a model makes of seeds: mp4 files or PNG frames, the same pixels every time.

    Without a MODEL it is the one that ships with pv3d."""
    from pipelines.generate import generate as write

    chosen["span"] = span(chosen["span"])
    chosen["yaws"] = numbers("--views", chosen.pop("views"))
    return _answer(write(model, seeds=seed_list(seeds), **chosen))


@click.command(
    epilog="""\b
    Examples:
      pv3d mesh models:/pv3d@candidate --out head.glb
      pv3d mesh runs/demo --seed 3 --frames 16 --level 5 --out clip.ply
      pv3d mesh runs/demo --latent me.safetensors --resolution 256 --out me.obj
    """
)
@click.argument("model", metavar="[MODEL]", required=False)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--latent", metavar="FILE", help="In place of a seed: what `pv3d invert` wrote.")
@click.option("--time", default=0.0, show_default=True, help="In [0, 1].")
@click.option("--frames", type=click.IntRange(1), metavar="N", help="A mesh of each: OUT-0000 and on.")
@PSI
@click.option("--level", default=10.0, show_default=True, help="Density of the surface.")
@click.option("--box", type=float, metavar="SIDE", help="World units; what rays see unless given.")
@click.option("--resolution", default=128, show_default=True, help="Points per side of the grid.")
@click.option("--chunk", default=1 << 18, show_default=True, help="Points at once: what bounds the memory.")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FILE", help="PLY, OBJ, GLB.")
@tracked
@answers
def mesh(model: str | None, out: Path, **chosen: Any) -> Answer:
    """Write the surface of a portrait, with normals and colours.

    Without a MODEL it is that of the latent, or the one that ships with pv3d."""
    from pipelines.meshes import write_meshes

    return _answer(write_meshes(model, out, **chosen))


@click.command(
    epilog="""\b
    Examples:
      pv3d invert portrait.jpg --model models:/pv3d@candidate --out me
      pv3d invert talk.mp4 --model runs/demo --frames 16 --start 2.5 --out talk
    """
)
@click.argument("source", metavar="IMAGE|VIDEO", type=click.Path(path_type=Path))
@click.option("--model", metavar="MODEL", help="As `pv3d generate` takes it.")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="NAME", help="Of the latent.")
@click.option("--frames", type=click.IntRange(2, MOST_FRAMES), help="Of a video; 16, say.")
@click.option("--start", "start_s", default=0.0, show_default=True, metavar="SECONDS", help="In a video.")
@click.option("--face", type=click.IntRange(1), metavar="N", help="Of several, the N-th largest.")
@click.option("--steps", type=click.IntRange(1), help="Of the optimiser; 500 unless given.")
@click.option("--rate", "learning_rate", type=float, help="Of its learning; 0.05 unless given.")
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Frames per step; 4 unless given.")
@click.option(
    "--perceptual", type=click.Path(path_type=Path), metavar="FILE",
    help="A TorchScript network for the loss, in place of LPIPS's (pv3d weights).",
)
@click.option("--restart", is_flag=True, help="Forget where an earlier one was stopped.")
@tracked
@answers
def invert(source: Path, out: Path, **chosen: Any) -> Answer:
    """Find the latent of a portrait, or of a video of one; goes on where it was stopped."""
    from pipelines.invert import invert as find

    told = find(source, out, **chosen)
    frames = "a picture" if told["frames"] == 1 else f"{told['frames']} frames"
    text = f"{told['latent']}  {frames}, {told['psnr']:.2f} dB (the mean face: "
    text += f"{told['mean_latent_psnr']:.2f} dB) in {told['seconds']:.0f} s, perceptual loss: {told['loss']}"
    return told, text


def takes_latent(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds LATENT and --model."""
    for option in (
        click.option("--model", metavar="MODEL", help="The one that it was inverted with unless given."),
        click.argument("latent", metavar="LATENT", type=click.Path(path_type=Path)),
    ):
        command = option(command)
    return command


SAVE = click.option(
    "--save", type=click.Path(path_type=Path), metavar="NAME", help="Also write the new latent."
)


def _shown(chosen: dict[str, Any]) -> Any:
    """Takes what `writes_clips`, `takes_camera` and SAVE added out of `chosen`."""
    from pipelines.generate import kinds_of
    from pipelines.motions import Shown

    names = ("out", "camera", "yaw", "pitch", "how", "save", "marking")
    yaws, kinds = numbers("--views", chosen.pop("views")), kinds_of(chosen.pop("kinds"))
    return Shown(yaws=yaws, kinds=kinds, **{name: chosen.pop(name) for name in names})


def shows_latent(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what animate, edit and transfer share: the camera, what is written, and marks."""
    for option in (answers, tracked, marks, SAVE, writes_clips, takes_camera("own")):
        command = option(command)
    return command


@click.command(epilog="Example: pv3d animate me.safetensors --seeds 0-3 --camera orbit --out moving")
@takes_latent
@click.option("--seeds", default="0", show_default=True, metavar="LIST", help="Of the motion.")
@FRAMES
@shows_latent
def animate(latent: Path, seeds: str, **chosen: Any) -> Answer:
    """Move an inverted portrait by sampled motion, seen from anywhere."""
    from pipelines.motions import animate as move

    shown, listed = _shown(chosen), seed_list(seeds)
    if shown.save and len(listed) > 1:
        raise ValueError(f"--save, --seeds {seeds}: one latent is written; give one seed")
    return _answer(move(latent, shown, seeds=listed, **chosen))


@click.command(epilog="\b\nExample:\n  pv3d edit talk.safetensors --scale 0.5 --views=-30,0,30 --out calmer")
@takes_latent
@click.option("--scale", type=float, metavar="K", help="Its motion K times as strong; 0 stands still.")
@click.option("--seed", type=click.IntRange(0), help="In place of its motion, that of a seed.")
@shows_latent
def edit(latent: Path, **chosen: Any) -> Answer:
    """Change the motion of an inverted video: scaled, or sampled anew."""
    from pipelines.motions import edit as change

    return _answer(change(latent, _shown(chosen), **chosen))


@click.command(epilog="\b\nExample:\n  pv3d transfer me.safetensors --driving talk.safetensors --out as_talk")
@takes_latent
@click.option("--driving", required=True, type=click.Path(path_type=Path), metavar="LATENT")
@shows_latent
def transfer(latent: Path, **chosen: Any) -> Answer:
    """Put the motion of one inverted video on another portrait."""
    from pipelines.motions import transfer as drive

    return _answer(drive(latent, _shown(chosen), **chosen))


@click.command(epilog="Example: pv3d reconstruct me.safetensors --out compare")
@takes_latent
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR")
@marks
@tracked
@answers
def reconstruct(latent: Path, out: Path, **chosen: Any) -> Answer:
    """Write what was inverted beside what the model makes of it, and measure how near it is."""
    from pipelines.reconstruct import reconstruct as compare

    told = compare(latent, out, **chosen)
    figures = [f"{name} {told[name]:g}" for name in ("l1", "psnr", "ssim", "lpips") if told[name] is not None]
    missing = [f"{name}: not computed, {why}" for name, why in told.get("not_computed", {}).items()]
    return told, "\n".join([*told["files"], ", ".join(figures), *missing])


COMMANDS: tuple[click.Command, ...] = (
    generate, mesh, invert, animate, reconstruct, edit, transfer,
)  # fmt: skip
