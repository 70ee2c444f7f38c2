"""The command `pv3d`. Imports only click, so that `--help` is quick; each command imports what it needs."""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from infra import logs
from infra.words import printable
from pipelines import cli_models, cli_show
from pipelines.cli_parts import Answer, answers, tracked

# What is wrong with a place that somebody named, wherever it shows first.
_OF_PLACES = {
    errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EPERM,
}

# Commands that begin again where they were stopped; what the others make is made anew.
_CONTINUE = {"run", "takedown", "gc", "export", "invert"}


class _Program(click.Group):
    """Turns a user's mistake into one line and exit status 2, SIGINT into 130 and SIGTERM into 143."""

    def invoke(self, ctx: click.Context) -> Any:
        from infra import interrupts  # these two import nothing heavy
        from infra.storage import StorageError, fault_of_place

        try:
            with interrupts.caught():
                return super().invoke(ctx)
        except (ValueError, StorageError) as error:
            if os.environ.get("PV3D_DEBUG"):
                traceback.print_exc()
            click.echo(f"pv3d: {printable(' '.join(str(error).split()), logs.LONGEST)}", err=True)
            ctx.exit(2)
        except OSError as error:
            what = fault_of_place(error)
            if error.errno in _OF_PLACES:
                what = f"{printable(error.filename or 'a file')!r}: {error.strerror}; choose another place"
            if not what or os.environ.get("PV3D_DEBUG"):
                raise
            click.echo(f"pv3d: {what}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            how = interrupts.last()
            what = "interrupted" if how == signal.SIGINT else f"ended by {how.name}"
            kept = "; what is done is kept, the same command continues"
            click.echo(f"pv3d: {what}{kept if ctx.invoked_subcommand in _CONTINUE else ''}", err=True)
            ctx.exit(128 + how)


def chooses(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `[--profile P] [--set key=value]...`."""
    profile = click.option("--profile", metavar="P", help="Use the values of this profile.")
    overrides = click.option(
        "--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Change one value."
    )
    return profile(overrides(command))


def _own_stages() -> None:
    """Find stages of one's own in this folder; last, so that they hide nothing."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


def takes_workflow(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `[WORKFLOW] [--profile P] [--set key=value]...` and hands the loaded workflow on."""

    @click.argument("path", metavar="[WORKFLOW]", default="workflow.yaml")
    @chooses
    @functools.wraps(command)
    def run(path: str, profile: str | None, overrides: tuple[str, ...], **options: Any) -> Any:
        from pipelines.workflow import load

        _own_stages()
        return command(load(path, profile, overrides), **options)

    return run


waits = click.option(
    "--wait", is_flag=True, help="Wait for the end of a run that has the store, instead of refusing."
)

@click.group(
    cls=_Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: pv3d run --profile demo",
)
@click.version_option(package_name="pv3d-pipeline", prog_name="pv3d")
def main() -> None:
    """From lists of talking-head videos to a trained, evaluated and registered PV3D model."""
    logs.start()


@main.command(epilog="Example: pv3d run --profile demo --set train.steps=48 --until AlignCrop")
@takes_workflow
@click.option("--until", metavar="STAGE", help="Stop after this stage, or after train, evaluate or register.")
@click.option("--dry-run", is_flag=True, help="Print what is done, to do and why, bytes, time; do nothing.")
@click.option("--ray-address", metavar="A", help="Join this Ray cluster instead of starting one here.")
@click.option("--in-process", is_flag=True, help="Run the data stages in this process, for debugging.")
@waits
@answers
def run(
    workflow: Any, until: str | None, dry_run: bool, ray_address: str | None, in_process: bool, wait: bool
) -> Answer:
    """Do the whole run, or the part of it that is not done yet."""
    from pipelines.run import check_until, describe_plan, run_workflow

    if in_process and ray_address:
        raise ValueError("--in-process, --ray-address: contradict each other; leave one out")
    if dry_run:
        check_until(workflow, until)
        return describe_plan(workflow, until)
    return run_workflow(
        workflow, until=until, ray_address=ray_address, in_process=in_process, wait=wait
    )


@main.command(epilog="Example: pv3d describe --profile demo")
@takes_workflow
@answers
def describe(workflow: Any) -> Answer:
    """Show the stages, what each reads, writes and needs, and every setting."""
    from pipelines.describe import describe_workflow

    return describe_workflow(workflow)


@main.command(epilog="Example: pv3d status --profile demo --watch")
@takes_workflow
@click.option("--watch", is_flag=True, help="Show it again and again until the run that is going on ends.")
@click.option("--every", default=2.0, show_default=True, metavar="SECONDS", help="How often, with --watch.")
@click.option(
    "--units", default="all", show_default=True, metavar="all|rejected|N",
    help="Which clips --json lists; rejected ones include those that failed.",
)  # fmt: skip
@answers
def status(workflow: Any, watch: bool, every: float, units: str) -> Answer:
    """Count ok, rejected, failed and to-do units per stage, with reasons, and tell how fast a run that is
    going on gets on; --json also lists every clip."""
    from pipelines.watch import status as tell

    return tell(workflow, units, every if watch else None)


@main.command(epilog="Example: pv3d takedown --set policy.takedown=takedown.txt --dry-run")
@takes_workflow
@click.option("--dry-run", is_flag=True, help="Tell what would be removed; change nothing.")
@waits
@answers
def takedown(workflow: Any, dry_run: bool, wait: bool) -> Answer:
    """Remove what the list of policy.takedown means: clips, shards, frames, downloads and records."""
    from pipelines.takedown import takedown as remove

    return remove(workflow, dry_run=dry_run, wait=wait)


@main.command(epilog="Example: pv3d gc --profile demo --dry-run")
@takes_workflow
@click.option("--dry-run", is_flag=True, help="Count what would be deleted; change nothing.")
@click.option("--grace", default="24h", show_default=True, metavar="TIME", help="Younger than this stays.")
@click.option("--keep", type=click.IntRange(1), metavar="N", help="Only the last N versions of the dataset.")
@waits
@answers
def gc(workflow: Any, **chosen: Any) -> Answer:
    """Delete what nothing in the store refers to any more: leftovers of killed runs and of old settings."""
    from pipelines.gc import gc as collect

    return collect(workflow, **chosen)


@main.command(epilog="Example: pv3d report --profile demo --out demo.html")
@takes_workflow
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="In place of the store's own.")
@answers
def report(workflow: Any, out: Path | None) -> Answer:
    """Write what is in the store now as one HTML page: also in the middle of a run, and of a store on S3."""
    from pipelines.report import report as write_report

    path = write_report(workflow, out)
    return {"report": path}, f"report  {path}"


@main.command(epilog="Example: pv3d evaluate --profile demo --set evaluate.workers=2")
@takes_workflow
@click.option("--checkpoint", metavar="KEY", help="Of the store, such as train/X/checkpoints/00001000.")
@answers
def evaluate(workflow: Any, checkpoint: str | None) -> Answer:
    """Measure the newest checkpoint of the training, or another, unless that was done."""
    from pipelines.evaluate import evaluate_now

    return evaluate_now(workflow, checkpoint)


@main.command(epilog="Example: pv3d ablate --profile demo --only 3a --set train.steps=200")
@click.argument("ablations", metavar="[ABLATIONS]", required=False, type=click.Path(path_type=Path))
@click.option("--workflow", "path", default="workflow.yaml", show_default=True, help="What rows change.")
@click.option("--size", default="small", show_default=True, metavar="S", help="small or paper.")
@click.option("--only", metavar="TABLE,...", help="Such as 2a,3c.")
@click.option("--ray-address", metavar="A", help="Join this Ray cluster instead of starting one here.")
@chooses
@answers
def ablate(ablations: Path | None, **chosen: Any) -> Answer:
    """Train, evaluate and print the rows of the paper's tables 2 and 3; goes on where it was stopped."""
    from pipelines.ablations import ablate as run_matrix

    _own_stages()
    return run_matrix(ablations, **chosen)


@main.command(epilog="Example: pv3d reproduce voxceleb --checkpoint model_300000.ckpt")
@click.argument("dataset", type=click.Choice(["voxceleb", "celebvhq", "talkinghead"]))
@takes_workflow
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), metavar="FILE")
@answers
def reproduce(workflow: Any, dataset: str, checkpoint: Path) -> Answer:
    """Measure a checkpoint of the paper's authors by the paper's protocol, in both definitions."""
    from pipelines.reproduce import reproduce as measure

    return measure(workflow, dataset, checkpoint)


@main.command(epilog="Example: pv3d analyse order --profile demo --count 500")
@click.argument("name", metavar="order|mixing|long", type=click.Choice(["order", "mixing", "long"]))
@takes_workflow
@click.option(
    "--count", type=click.IntRange(2), metavar="N", help="Camera sequences (3000), pairs (32) or people (16)."
)
@click.option("--checkpoint", metavar="KEY", help="Of the store, or a folder; the newest unless given.")
@click.option("--ray-address", metavar="A", help="long: train on this Ray cluster.")
@answers
def analyse(workflow: Any, **chosen: Any) -> Answer:
    """The paper's figures 7 and 8 and its 48-frame experiment, of one's own model, as a page of plots."""
    from pipelines.analyses import analyse as look

    return look(workflow, **chosen)


@main.command(epilog="Example: pv3d gate --profile demo --version 3")
@takes_workflow
@click.option("--version", type=click.IntRange(1), metavar="N", help="In place of the one of register.alias.")
@answers
def gate(workflow: Any, version: int | None) -> Answer:
    """Tell whether a registered version keeps the rules of register.gate, and why; changes no alias."""
    from pipelines.gate import told

    return told(workflow, version, promote=False)


@main.command(epilog="Example: pv3d promote --profile demo")
@takes_workflow
@click.option("--version", type=click.IntRange(1), metavar="N", help="In place of the one of register.alias.")
@answers
def promote(workflow: Any, version: int | None) -> Answer:
    """Make a registered version champion, if it keeps the rules of register.gate."""
    from pipelines.gate import told

    return told(workflow, version, promote=True)


@main.command(epilog="Example: pv3d rollback pv3d")
@click.argument("name", metavar="NAME")
@tracked
@answers
def rollback(name: str, tracking: str) -> Answer:
    """Give the alias champion of a registered model back to the version that had it before."""
    from pipelines.gate import rollback as back

    old, new = back(name, tracking)
    return {"name": name, "from": old, "to": new}, f"{name}: champion is version {new} again, no longer {old}"


@main.command(epilog="Example: pv3d replay --profile demo")
@takes_workflow
@click.option("--run", metavar="NAME", help="Of a training, below train/; that of the workflow unless given.")
@answers
def replay(workflow: Any, run: str | None) -> Answer:
    """Do the update again at which a training stopped for a number that was not finite."""
    from pipelines.replay import replay as again

    return again(workflow, run)


@main.command("import", epilog="Example: pv3d import model_300000.ckpt --out voxceleb")
@click.argument("checkpoint", metavar="CHECKPOINT", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR")
@answers
def import_checkpoint(checkpoint: Path, out: Path) -> Answer:
    """Turn a checkpoint of the paper's authors into one of ours; nothing in it is executed."""
    from pipelines.import_official import import_official

    return import_official(checkpoint, out)


@main.command(epilog="Example: pv3d export --format pv3d --out voxceleb_like")
@takes_workflow
@click.option("--format", "kind", required=True, type=click.Choice(["pv3d", "eg3d"]), help="Whose layout.")
@click.option("--out", required=True, metavar="DIR", help="A folder, or s3://bucket/prefix.")
@click.option("--dataset", metavar="VERSION", help="Of the shards; the latest unless given.")
@click.option("--split", default="train", show_default=True, help="Which clips: train, test or all.")
@click.option("--crf", type=click.IntRange(0, 51), help="pv3d: x264's rate factor; 18 unless given.")
@click.option("--every", default=0, type=click.IntRange(0), metavar="N", help="eg3d: every N-th frame only.")
@click.option("--per-clip", default=0, type=click.IntRange(0), metavar="N", help="eg3d: N frames of a clip.")
@click.option("--mirror", is_flag=True, help="eg3d: each image a second time, mirrored.")
@click.option("--workers", default=0, type=click.IntRange(0), help="Threads; as many as cores unless given.")
@click.option("--dry-run", is_flag=True, help="Count clips, frames and bytes; write nothing.")
@answers
def export(
    workflow: Any, kind: str, out: str, dataset: str | None, split: str, workers: int, dry_run: bool,
    **chosen: Any,
) -> Answer:
    """Write the dataset as the folder that the paper's authors' code, or EG3D's, trains from."""
    from pipelines.export import export as write_folder
    from pipelines.export import make_layout

    layout = make_layout(kind, **chosen)
    return write_folder(workflow, layout, out, version=dataset, split=split, workers=workers, dry_run=dry_run)


@main.command(epilog="Example: pv3d deploy workflow.yaml --out cluster --image registry.example/pv3d:1")
@takes_workflow
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Write DIR/<name>.yaml.")
@click.option("--image", metavar="I", help="In place of schedule.image.")
@click.option("--ray-cron-job", "alpha", is_flag=True, help="A RayCronJob (alpha) in place of a CronJob.")
@answers
def deploy(workflow: Any, out: Path | None, image: str | None, alpha: bool) -> Answer:
    """Render the run, and its schedule, for KubeRay; kubectl applies it."""
    from pipelines.deploy import deploy as render

    return render(workflow, out=out, image=image, alpha=alpha)


@main.command("check-cameras", epilog="Example: pv3d check-cameras runs/demo --overlay overlays")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--overlay", metavar="DIR", type=click.Path(path_type=Path), help="Write videos of them.")
@click.option("--clips", default=12, show_default=True, type=click.IntRange(1), help="Videos of a PATH.")
@chooses
@answers
def check_cameras(paths: tuple[str, ...], overlay: Path | None, clips: int, **chosen: Any) -> Answer:
    """Check all cameras of a storage.root, a workflow, a shard, an .npy, or PV3D's or EG3D's json."""
    from pipelines.check_cameras import check_cameras as check

    _own_stages()
    return check(paths, overlay, clips, **chosen)


@main.group(epilog="Example: pv3d weights list")
def weights() -> None:
    """Weight files that metrics and backends use: where from, under which licence, which sha256."""


@weights.command("list", epilog="Example: pv3d weights list --json")
@answers
def weights_list() -> Answer:
    """Show every weight file: present or missing, source, licence, sha256."""
    from pipelines.weights import table

    return table()


@weights.command("fetch", epilog="Example: pv3d weights fetch i3d")
@click.argument("name")
@click.option("--sha256", metavar="HEX", help="The checksum to insist on; needed where the table pins none.")
@answers
def weights_fetch(name: str, sha256: str | None) -> Answer:
    """Download one weight file into the cache and check it."""
    from pipelines.weights import fetch

    return fetch(name, sha256)


@weights.command("verify", epilog="Example: pv3d weights verify")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@answers
def weights_verify(names: tuple[str, ...]) -> Answer:
    """Check the sha256 of the weight files that are present."""
    from pipelines.weights import verify

    return verify(names)


@main.command(
    epilog="Example: pv3d bench cameras --json",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.argument("name", required=False, metavar="[NAME]")
@click.option("--data", metavar="DIR", help="Folder with manifest.csv, videos/, reference/ and weights/.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[--OPTION VALUE]...")
@answers
def bench(name: str | None, data: str | None, options: tuple[str, ...]) -> Answer:
    """Measure something on this machine, now. Without a NAME it lists the benches and their options."""
    from pipelines.bench import list_benches, run_bench

    return run_bench(name, data, options) if name not in (None, "list") else list_benches()


for _command in (*cli_models.COMMANDS, *cli_show.COMMANDS):
    main.add_command(_command)
