"""The report beyond the data stages, on S3 and in a browser."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("cv2")
pytest.importorskip("mlflow")

from tiny_report import Page, make_workflow, page

from pipelines.report import report
from pipelines.runner import prepare
from pipelines.workflow import Workflow, load
from stages.video import write_video


@pytest.fixture
def workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workflow:
    return make_workflow(tmp_path, monkeypatch)


def test_metrics_are_listed_with_their_value_or_the_reason(workflow: Workflow) -> None:
    value = {
        "value": 1.2345,
        "unit": "bins squared",
        "direction": "lower",
        "samples": 7,
        "interval": [1.0, 1.5],
        "mode": "paper",
        "reason": "",
        "note": "a note",
    }
    missing = value | {"value": None, "interval": None, "reason": "weights file x.pt missing"}
    result = {
        "schema": 1,
        "checkpoint": "c",
        "step": 24,
        "settings": {"clips": 7, "mode": "paper", "seed": 0},
        "metrics": {"chamfer": value, "fvd": missing},
    }
    workflow.store().write("evaluate/00000024-abc.json", json.dumps(result).encode())
    text = page(workflow).text
    assert "chamfer 1.234 1 to 1.5 bins squared lower 7 a note" in text
    assert "not computed: weights file x.pt missing" in text


def test_an_identity_without_faces_is_marked_in_its_row(workflow: Workflow) -> None:
    value = {"unit": "", "direction": "higher", "samples": 8, "interval": None, "reason": "", "note": ""}
    metrics = {"id/dlib": value | {"value": 0.9867}, "faces_found/dlib": value | {"value": 0.0}}
    result = {"schema": 1, "checkpoint": "c", "step": 24, "metrics": metrics,
              "settings": {"clips": 8, "mode": "paper", "seed": 0}}  # fmt: skip
    store = workflow.store()
    store.write("evaluate/00000024-abc.json", json.dumps(result).encode())
    assert "id/dlib 0.9867 higher 8 faces found in 0 of 32 frames: says nothing" in page(workflow).text
    metrics["faces_found/dlib"]["value"] = 0.75
    store.write("evaluate/00000024-abc.json", json.dumps(result).encode())
    assert "says nothing" not in page(workflow).text


def test_figures_of_an_older_dataset_say_so(workflow: Workflow) -> None:
    from collections import Counter

    from pipelines.report_figures import Seen
    from pipelines.report_tables import dataset_of, tiles
    from pipelines.report_walk import Walk
    from pipelines.survey import Counts

    step = workflow.steps[0]
    made: dict[str, Any] = {"clips": 3, "frames": 75, "fps": 25.0, "bytes": 10**6, "shards": 2, "size": 64}
    for counts, clips, said in (
        (Counts(todo=3, stale=3), 0, "latest dataset (of earlier settings or videos)"),
        (Counts(todo=1, ok=3), 3, "latest dataset (without what waits)"),
        (Counts(ok=3), 3, ""),
    ):
        found = Walk(steps=(step,), stages={step.name: counts}, clips=clips, people=Counter())
        assert dataset_of(found, made) == said
        notes = [tile["note"] for tile in tiles(found, Seen(), made)]
        assert sum(note.endswith(said) and "latest" in note for note in notes) == (2 if said else 0)


def test_true_cameras_of_the_demo_give_an_error_table(workflow: Workflow) -> None:
    from stages.sources import portraits

    name, scene = next(iter(portraits.SCENES.items()))
    store = workflow.store()
    pictures = np.zeros((scene.frames, 64, 64, 3), np.uint8)
    write_video(store.path(portraits.video_key(name)), pictures, portraits.FPS)
    truth = portraits.true_cameras(scene)
    store.write(
        portraits.truth_key(name), json.dumps({"fps": portraits.FPS, "cameras": truth.tolist()}).encode()
    )

    from pipelines.ledger import Ledger, Ref
    from pipelines.report_sheets import pose_rows
    from pipelines.report_walk import Walk
    from pipelines.survey import Counts
    from stages.clip import Clip

    still = np.tile(np.float64([[1, 0, 0], [0, 1, 0]]), (scene.frames, 1, 1))
    clip = Clip(
        id="c",
        source="s",
        video=f"store:{portraits.video_key(name)}",
        cameras=truth,
        crop_transforms=still,
        frame_times_s=np.arange(scene.frames) / portraits.FPS,
    )
    refs = [
        Ref("c", "", "s", clip=clip),
        Ref("d", "", "s", clip=dataclasses.replace(clip, video="elsewhere")),
    ]
    pose = next(step for step in workflow.steps if step.name == "Pose")
    found = Walk(steps=workflow.steps, stages={step.name: Counts() for step in workflow.steps})
    passed = next(tally.passed for tally in found.tallies if tally.step is pose)
    for ref in refs:
        passed.offer(ref.id, ref)
    rows = pose_rows(store, Ledger(store), found)
    assert [row["id"] for row in rows] == ["c", "mean"]
    assert {rows[0][angle] for angle in ("yaw", "pitch", "roll")} == {"0.00"}


def test_training_curves_the_last_sample_and_the_registered_version_are_shown(workflow: Workflow) -> None:
    torch = pytest.importorskip("torch")
    from infra.checkpoints import save
    from infra.tracking import open_run
    from model.config import tiny, to_dict
    from model.generator import Generator
    from pipelines.checkpoints import EMA
    from pipelines.evaluate import training
    from pipelines.register import register
    from stages.shards import commit_dataset

    store = workflow.store()
    commit_dataset(store, [])
    job = training(workflow)
    torch.manual_seed(0)
    weights = Generator(tiny().model).state_dict()
    save(store, job.checkpoints, 24, {EMA: weights}, {"variant": to_dict(tiny())}, keep=1)
    run = open_run(store, job.tracking_key, uri=workflow.storage.tracking, experiment="t", name="t")
    for step in (1, 2, 3):
        run.log(step, {"G/img": 1 / step, "time/data_wait": 0.1, "eval/chamfer": 2.0})
    run.close()
    write_video(store.path(job.sample(24)), np.zeros((4, 64, 64, 3), np.uint8), 25.0)
    register(workflow)

    shown = page(workflow)
    assert "24 of 24 updates" in shown.text
    assert "G/img" in shown.text
    assert "last 0.3333" in shown.text
    assert "1 more curve" in shown.text  # time/data_wait; figures of the evaluation are no curves
    assert sum(link.startswith("data:video/mp4;base64,") for link in shown.links) == 1
    assert "pv3d version 1" in shown.text
    uri = workflow.storage.tracking
    assert f"pv3d generate models:/pv3d@candidate --seeds 0-3 --out samples --tracking {uri}" in shown.text
    assert "not the one above" not in shown.text

    # Another dataset: what is there is of the one before.
    result = {"schema": 1, "checkpoint": f"{job.checkpoints}/00000024-x", "step": 24, "metrics": {},
              "settings": {"clips": 7, "mode": "paper", "seed": 0}}  # fmt: skip
    store.write("evaluate/00000024-abc.json", json.dumps(result).encode())
    before = json.loads(store.read("dataset/latest.json"))["version"]
    other = json.loads(store.read(f"dataset/{before}.json")) | {"key": "another"}
    store.write("dataset/00000000000000ff.json", json.dumps(other).encode())
    store.write("dataset/latest.json", json.dumps({"version": "00000000000000ff"}).encode())
    shown = page(workflow)
    assert "Not trained on dataset 00000000000000ff with these settings yet" in shown.text
    assert shown.text.count(f"This is of dataset {before}, not the one above") == 1  # the model, by its tag
    assert f"This is of {job.run}, another training than the one above" in shown.text  # its card tells none


@pytest.mark.s3
def test_it_is_made_of_a_store_on_s3_and_put_there(
    workflow: Workflow, tmp_path: Path, rgw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", rgw.endpoint)
    there = load(tmp_path / "workflow.yaml", None, ["storage.root=s3://pv3d-test/report"])
    prepare(there, in_process=True)
    assert report(there) == "s3://pv3d-test/report/report/index.html"
    shown = Page(there.store().read("report/index.html").decode())
    assert "2 people, 3 clips" in shown.text
    assert len([link for link in shown.links if link.startswith("data:image/webp")]) == 9
    assert rgw.secret_key not in shown.text


@pytest.mark.slow
def test_a_browser_shows_it_without_a_request_or_a_complaint_also_on_a_phone(
    workflow: Workflow, tmp_path: Path
) -> None:
    import chromium

    if chromium.path() is None:
        pytest.skip("no Chromium here; apt-get install --no-install-recommends chromium")
    long = "a" * 120 + "_<img src=x onerror=alert(1)>"
    videos = Path(workflow.source.location)
    (videos / "a-1.mp4").rename(videos / f"{long}.mp4")
    prepare(workflow, in_process=True)
    url = Path(report(workflow)).as_uri()
    with chromium.browser(tmp_path / "profile") as browser:
        for width, dark in ((390, False), (390, True), (320, False), (1280, False)):
            browser.open(url, width=width, dark=dark, phone=width < 500)
            browser.ask("document.querySelectorAll('details').forEach(part => part.open = true)")
            assert browser.requests == [url]
            assert browser.complaints == []
            assert browser.ask("document.documentElement.scrollWidth") <= width
            assert browser.ask("[...document.images].every(image => image.complete && image.naturalWidth)")
            colour = browser.ask("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", colour))) < 3 * 128) == dark
            # Nothing is cut off: no element is wider than its card.
            assert browser.ask(OVERFLOWING) == []


OVERFLOWING = """[...document.querySelectorAll('main *')]
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('thead') && !e.closest('svg'))
    .map(e => e.outerHTML.slice(0, 80))"""
