"""Tell of an evaluation: a page with a sample video beside the result, and a run in MLflow below the
training's.

    evaluate/<step>-<key>.mp4     generated people from three sides, and their depth
    evaluate/<step>-<key>.html    the figures, their course over the training, the video
"""

from __future__ import annotations

import logging
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.storage import Storage
from pipelines.page import Figure, Section, render

if TYPE_CHECKING:
    from pipelines.evaluate import Subject

log = logging.getLogger(__name__)

FOLDER = "evaluate"  # of artifacts
VIDEO_BYTES = 8 << 20  # a larger one stays out of the page
OF = "pv3d.evaluation"  # tag of a run: which result it tells of
TOLD = ("mode", "seed", "clips", "videos", "frames")  # settings by which evaluations of one update differ
FRECHET = ("fvd", "fid", "kid")


def publish(
    store: Storage, name: str, result: dict[str, Any], subject: Subject, tracking: str, run: str | None
) -> None:
    """Write the page of a result (`name` is its key), and log all of it into MLflow, each once. `run`: the
    training's, None when it has none."""
    page = name.replace(".json", ".html")
    if not store.exists(page):
        if people := result["settings"].get("samples", 0):
            _write_video(store, name.replace(".json", ".mp4"), subject, people)
        store.write(page, _page(store, name, result).encode())
    if run is None:
        log.warning("the training has no MLflow run; the evaluation is in the store only")
    else:
        log_result(store, name, result, tracking, run)


def _write_video(store: Storage, key: str, subject: Subject, people: int) -> None:
    from pipelines.evaluate_samples import FPS, one_thread
    from pipelines.grid import Grid, grid_frames
    from pipelines.publish import PLAIN
    from pipelines.publish import publish as mark
    from stages.video import write_video

    with tempfile.TemporaryDirectory(prefix="pv3d-evaluate-") as folder:
        path = Path(folder, "sample.mp4")
        with one_thread():                   # several wait for each other beside other work: 80 s, not 2
            write_video(path, grid_frames(subject.open().generator, Grid(tuple(range(people)))), FPS)
        mark(path, marking=PLAIN)
        store.upload(key, path)


def _page(store: Storage, name: str, result: dict[str, Any]) -> str:
    video = name.replace(".json", ".mp4")
    settings = result["settings"]
    videos = f"{settings['clips']:,} from two sides"
    if any(figure.startswith(FRECHET) for figure in result["metrics"]):
        videos += f"; {settings['videos']:,} of {settings['frames']} frames for fvd, fid and kid"
    facts = [
        ("checkpoint", result["checkpoint"]),
        ("videos", videos),
        ("mode, seed", f"{settings['mode']}, {settings['seed']}"),
    ]
    columns = ("figure", "value", "95 % interval", "unit", "better", "videos", "note")
    sections = [
        Section(title="Figures", columns=columns, rows=rows(result)),
    ]
    if figures := courses(store, name, result):
        sections.append(Section(title="Over the training", text=_courses_text(result), figures=figures))
    if store.exists(video):
        sections.append(_samples(store, video))
    return render(f"evaluation of update {result['step']:,}", facts, sections)


def _samples(store: Storage, video: str) -> Section:
    from pipelines.contact import inline

    text = "One column per person: from the front, from 30° to either side, and depth (near is bright)."
    if store.size(video) > VIDEO_BYTES:
        return Section(title="Samples", text=f"{text} See {video}.")
    return Section(title="Samples", text=text, video=inline(store.read(video), "video/mp4"))


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The figures of a result as texts: name, value, interval, unit, direction, videos, note."""
    from pipelines.evaluate import doubts

    doubt, found = doubts(result["metrics"]), []
    for name, value in result["metrics"].items():
        if value["value"] is None:
            found.append([name, "not computed", "", value["unit"], value["direction"], "", value["reason"]])
            continue
        between = value["interval"]
        interval = f"{between[0]:.4g} to {between[1]:.4g}" if between else ""
        note = "; ".join(text for text in (doubt.get(name, ""), value["note"]) if text)
        found.append(
            [name, f"{value['value']:.4g}", interval, value["unit"], value["direction"],
             str(value["samples"]), note]
        )  # fmt: skip
    return found


def _courses_text(result: dict[str, Any]) -> str:
    return f"Earlier checkpoints of {result['checkpoint'].rpartition('/checkpoints')[0]}, same settings."


def courses(store: Storage, name: str, result: dict[str, Any]) -> list[Figure]:
    """Each figure over the updates of its training, up to this one, as far as evaluated likewise."""
    from pipelines import svg
    from pipelines.evaluate import NEUTRAL, PREFIX, doubts, read_result

    def likewise(one: dict[str, Any]) -> bool:
        settings = [{k: v for k, v in x["settings"].items() if k not in NEUTRAL} for x in (one, result)]
        folders = [x["checkpoint"].rpartition("/")[0] for x in (one, result)]
        return settings[0] == settings[1] and folders[0] == folders[1] and one["step"] <= result["step"]

    keys = sorted(key for key in store.list(PREFIX) if key.endswith(".json") and key != name)
    others = []
    for key in keys:
        try:
            one = read_result(store, key)
        except ValueError as error:          # no reason to have no page
            log.warning("%s", error)
            continue
        others += [one] if likewise(one) else []
    made, doubt = [], doubts(result["metrics"])
    for figure, value in result["metrics"].items():
        course = {one["step"]: one["metrics"].get(figure, {}).get("value") for one in [*others, result]}
        points = [(float(step), float(y)) for step, y in sorted(course.items()) if y is not None]
        if len(points) > 1:
            caption = f"last {points[-1][1]:.4g} {value['unit']}; {value['direction']} is better"
            caption += f"; {doubt[figure]}" if figure in doubt else ""
            drawn = svg.line(points, name="update", label=f"{figure} over updates: {caption}")
            made.append(Figure(figure, drawn, caption))
    return made


# --- MLflow -------------------------------------------------------------------------------------------------


def log_result(store: Storage, name: str, result: dict[str, Any], tracking: str, run: str) -> None:
    """Figures as `eval/<name>` (`eval/official/<name>` in that mode) of the training's run, at the
    checkpoint's step, once; a run below it with figures, video and page; the json with both."""
    from mlflow import MlflowClient

    from pipelines.models import answering

    client, artifact = MlflowClient(tracking), name.rpartition("/")[2]
    given = {plain(k): value["value"] for k, value in result["metrics"].items() if value["value"] is not None}
    with answering(tracking):
        if any(file.path.endswith(artifact) for file in client.list_artifacts(run, FOLDER)):
            return
        child = child_of(client, run, OF, artifact, f"evaluate {result['step']}")
        for key in TOLD:
            client.log_param(child, key, result["settings"][key])
        for key, value in given.items():
            client.log_metric(child, key, value, step=result["step"])
        for suffix, folder in ((".mp4", "samples"), (".html", "")):
            if store.exists(key := name.replace(".json", suffix)):
                with store.local(key) as path:
                    _send(client, child, path, key.rpartition("/")[2], folder)
        client.log_dict(child, result, artifact)
        client.set_terminated(child)
        course = "eval" if result["settings"]["mode"] == "paper" else f"eval/{result['settings']['mode']}"
        for key, value in given.items():     # one curve must not mix figures that are not comparable
            client.log_metric(run, f"{course}/{key}", value, step=result["step"])
        client.log_dict(run, result, f"{FOLDER}/{artifact}")


def plain(name: str) -> str:
    """The name of a figure as MLflow takes it: some bear the name of a file."""
    return re.sub(r"[^A-Za-z0-9_. :/-]", "_", name)


def log_failure(tracking: str, run: str, step: int, error: str) -> None:
    """A run below the training's that says why an evaluation failed."""
    from mlflow import MlflowClient

    from pipelines.models import answering

    client = MlflowClient(tracking)
    with answering(tracking):
        child = child_of(client, run, OF, f"{step:08d}", f"evaluate {step}")
        client.set_tag(child, "pv3d.failure", error[:5000])
        client.set_terminated(child, "FAILED")


def child_of(client: Any, run: str, tag: str, value: str, title: str) -> str:
    """The id of the run below `run` with this tag: that of an earlier try, or a new one."""
    experiment = client.get_run(run).info.experiment_id
    quoted = value.replace("'", "")
    tried = client.search_runs(
        [experiment], f"tags.`mlflow.parentRunId` = '{run}' and tags.`{tag}` = '{quoted}'", max_results=1
    )
    if tried:
        return str(tried[0].info.run_id)
    tags = {"mlflow.parentRunId": run, "mlflow.source.name": "pv3d", tag: quoted}
    return str(client.create_run(experiment, run_name=title, tags=tags).info.run_id)


def _send(client: Any, run: str, path: Path, name: str, folder: str) -> None:
    """Log a file under its own name: one that was fetched has another."""
    if path.name == name:
        client.log_artifact(run, str(path), folder or None)
        return
    with tempfile.TemporaryDirectory(prefix="pv3d-log-") as made:
        named = Path(made, name)
        named.write_bytes(path.read_bytes())
        client.log_artifact(run, str(named), folder or None)
