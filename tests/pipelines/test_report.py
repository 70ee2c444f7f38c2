import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("cv2")
pytest.importorskip("mlflow")

from model.camera import orbit
from pipelines.report import collect, report
from pipelines.report_tables import STATES
from pipelines.runner import prepare
from pipelines.workflow import Workflow, load
from stages.cameras import euler_degrees
from stages.video import write_video

STAGES = '''
import io
import tarfile
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from model.camera import orbit
from stages.base import Drop, Rejected, Stage
from stages.video import probe, resolve


@dataclass
class Cut(Stage):
    """Keep the first second, reject the rest."""

    name: ClassVar[str] = "Cut"
    writes: ClassVar = ("frame_times_s", "fps", "width", "height")

    def setup(self, store):
        self.store = store

    def process(self, clip):
        with resolve(self.store, clip.video) as path:
            info = probe(path)
        times = np.arange(info.frame_count) / info.fps
        clip = clip.copy(width=info.width, height=info.height)
        if "frozen" in clip.source:
            piece = clip.copy(id=clip.id + "_0", fps=info.fps, frame_times_s=times)
            yield Rejected(piece, "frozen", "stands")
            return
        yield clip.copy(id=clip.id + "_0", fps=info.fps, frame_times_s=times[:25])
        if len(times) > 25:
            rest = clip.copy(id=clip.id + "_1", fps=info.fps, frame_times_s=times[25:])
            yield Rejected(rest, "too short", "rest")


@dataclass
class Pose(Stage):
    """Name `people` and point cameras."""

    minimum_face_px: float = 20.0

    name: ClassVar[str] = "Pose"
    reads: ClassVar = ("frame_times_s",)
    writes: ClassVar = ("cameras", "face_boxes", "identity", "aligned")

    def setup(self, store):
        self.store = store

    def process(self, clip):
        if "unwanted" in clip.source:
            raise Drop("two faces", "<b>at 0.4 s</b>")
        boxes = np.tile(np.float32([10, 8, 50, 56]), (clip.frame_count, 1))
        cameras = np.stack([orbit(yaw).encode() for yaw in np.linspace(-20, 20, clip.frame_count)])
        self.store.write(f"aligned/{clip.id}.tar", faces(clip.frame_count))
        yield clip.copy(
            identity=clip.source[:1], face_boxes=boxes, cameras=cameras, aligned=f"aligned/{clip.id}.tar"
        )


def faces(count):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for index in range(count):
            data = cv2.imencode(".jpg", np.full((64, 64, 3), 4 * index, np.uint8))[1].tobytes()
            member = tarfile.TarInfo(f"{index:04d}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
'''

TEXT = """
storage: {{root: "{root}/store", tracking: "sqlite:///{root}/mlflow.db"}}
source: {{use: "stages.sources.folder:Folder", location: "{root}/videos"}}
stages: [{{use: "report_test_stages:Cut"}}, {{use: "report_test_stages:Pose"}}]
train: {{variant: "model.config:tiny", steps: 24}}
"""


class Page(HTMLParser):
    """Collects what the tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        self.links += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture
def workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workflow:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "report_test_stages.py").write_text(STAGES)
    monkeypatch.syspath_prepend(tmp_path / "code")
    rng = np.random.default_rng(0)
    for name, frames in (("a-1", 25), ("a-2", 40), ("b-1", 25), ("b-unwanted", 25), ("c-frozen", 25)):
        pictures = np.cumsum(rng.integers(0, 2, (frames, 64, 96, 3)), axis=0).astype(np.uint8) * 3
        write_video(tmp_path / "videos" / f"{name}.mp4", pictures, 25.0)
    (tmp_path / "videos" / "no <script>alert(1) video.mp4").write_text("not a video")
    (tmp_path / "workflow.yaml").write_text(TEXT.format(root=tmp_path))
    return load(tmp_path / "workflow.yaml")


def page(workflow: Workflow) -> Page:
    return Page(Path(report(workflow)).read_text())


def test_the_report_of_nothing_says_so(workflow: Workflow) -> None:
    empty = page(workflow)
    for words in (
        "6 units wait for a stage",
        "No clip has come through",
        "Nothing was rejected",
        "Not trained yet",
        "Not evaluated yet",
        "Nothing is registered yet",
    ):
        assert words in empty.text


def test_stages_reasons_figures_and_pictures_are_shown(workflow: Workflow) -> None:
    prepare(workflow, in_process=True)
    shown = page(workflow)
    for words in (
        "two faces 1",
        "too short 1",
        "cannot decode 1",
        "<b>at 0.4 s</b>",
        "Yaw",
        "Clips per person",
        "2 people, 3 clips",
        "Keep the first second, reject the rest.",
        "96×64",
        "limit 20",
    ):
        assert words in shown.text, words
    pictures = [link for link in shown.links if link.startswith("data:image/webp;base64,")]
    # Kept clips, cameras over frames of each, and rejected ones; one of these cannot be decoded.
    assert len(pictures) == 3 + 3 + 3
    assert shown.text.count("no picture: cannot decode") == 1
    cameras = shown.text[shown.text.index("Cameras over frames") :]
    yaw = abs(float(euler_degrees(orbit(20).encode()[None])[0][0]))  # of the first and the last frame
    assert f"largest yaw ({yaw:.0f}°)" in cameras
    assert shown.text.count("5 to 95 %") == 6  # yaw, pitch, roll, face, length in frames and in seconds


def test_the_counts_are_those_of_status(workflow: Workflow) -> None:
    from pipelines.status import workflow_status

    prepare(workflow, until="Cut", in_process=True)
    data = collect(workflow, workflow.store())
    stages = workflow_status(workflow)[0]["stages"]
    assert {row["name"]: {state: row[state] for state in STATES} for row in data["stages"]} == stages
    assert stages["Pose"]["todo"] == 4 == data["todo"]
    assert [row["count"] for row in data["flow"]] == [6, 4, 0]
    assert [(row["text"], row["count"]) for row in data["by_reason"]] == [
        ("cannot decode · Cut", 1),
        ("frozen · Cut", 1),
        ("too short · Cut", 1),
    ]


def test_in_the_middle_of_a_run_the_clips_so_far_are_shown(workflow: Workflow) -> None:
    prepare(workflow, until="Cut", in_process=True)
    shown = page(workflow)
    assert (
        "No clip has come through all stages yet. Shown are clips that have come out of Cut ." in shown.text
    )
    assert "4 of 4 clips were read" in shown.text
    assert "Clip length in frames" in shown.text
    assert len([link for link in shown.links if link.startswith("data:image/webp")]) == 4 + 2


def test_the_page_is_one_file_and_escapes_what_videos_are_called(workflow: Workflow) -> None:
    prepare(workflow, in_process=True)
    path = Path(report(workflow))
    text = path.read_text()
    shown = Page(text)
    ids = {value for name, value in shown.attributes if name == "id"}
    assert {"stages", "lost", "figures", "kept", "cameras", "rejected"} <= ids
    assert all(link.startswith("data:") or link[1:] in ids for link in shown.links)
    assert not {"script", "iframe", "object", "embed", "form"} & set(shown.tags)
    assert not [name for name, _ in shown.attributes if name.startswith("on")]
    assert "default-src 'none'" in dict(shown.attributes)["content"] or "default-src 'none'" in text
    assert "<b>at 0.4 s</b>" not in text
    assert "http" not in re.sub(r"data:[^\"]*|http-equiv", "", text)
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]


def test_every_picture_and_plot_says_what_it_shows(workflow: Workflow) -> None:
    prepare(workflow, in_process=True)
    shown = page(workflow)
    assert shown.tags.count("img") == len(
        [name for name, value in shown.attributes if name == "alt" and value]
    )
    labels = [value for name, value in shown.attributes if name == "aria-label"]
    assert any(label.startswith("Yaw: median") for label in labels if label)
    assert {value for name, value in shown.attributes if name == "scope"} == {"col", "row"}


def test_it_is_written_where_it_is_asked_for(workflow: Workflow, tmp_path: Path) -> None:
    assert report(workflow, tmp_path / "mine.html") == str(tmp_path / "mine.html")
    assert "No clip has come through" in (tmp_path / "mine.html").read_text()
    assert not workflow.store().exists("report/index.html")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    for out, words in ((tmp_path, "is a folder"), (tmp_path / "no" / "a.html", "there is no folder")):
        with pytest.raises(ValueError, match=words):
            report(workflow, out)


def test_what_was_taken_down_is_not_shown(workflow: Workflow, tmp_path: Path) -> None:
    prepare(workflow, in_process=True)
    (tmp_path / "list.txt").write_text("clip:" + cut_of(workflow, "a-2", 1) + "\nvideo:c-frozen.mp4\n")
    swept = load(tmp_path / "workflow.yaml", None, [f"policy.takedown={tmp_path / 'list.txt'}"])
    sheets = collect(swept, swept.store())["sheets"]
    rows = [clip for stage in sheets for sheet in stage["sheets"] for clip in sheet["clips"]]
    assert sorted(row["source"] for row in rows) == ["b-unwanted.mp4", "no <script>alert(1) video.mp4"]


def cut_of(workflow: Workflow, name: str, number: int) -> str:
    clip = next(c for c in workflow.source.clips(workflow.store()) if name in c.source)
    return f"{clip.id}_{number}"


def test_a_page_holds_so_many_pictures_and_says_what_it_leaves_out(
    workflow: Workflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines import report_sheets

    prepare(workflow, in_process=True)
    monkeypatch.setattr(report_sheets, "PICTURE_BYTES", 1)  # the first fills it
    shown = page(workflow)
    assert len([link for link in shown.links if link.startswith("data:image")]) == 1
    assert "9 pictures left out: the page holds 0 MB of pictures at most" in shown.text


def test_a_file_name_that_is_no_text_does_not_stop_the_report(workflow: Workflow) -> None:
    video = Path(next(iter(workflow.source.clips(workflow.store()))).video)
    video.rename(video.with_name("odd\udcff-frozen.mp4"))
    prepare(workflow, in_process=True)
    assert "odd?-frozen.mp4" in Path(report(workflow)).read_text()


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
    assert "pv3d generate models:/pv3d@candidate" in shown.text


def test_it_is_made_of_a_store_on_s3_and_put_there(
    workflow: Workflow, tmp_path: Path, moto_server: Any, no_aws: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-nobody")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto_server.endpoint)
    boto3.Session().client("s3").create_bucket(Bucket="pv3d-report")
    there = load(tmp_path / "workflow.yaml", None, ["storage.root=s3://pv3d-report/run"])
    prepare(there, in_process=True)
    assert report(there) == "s3://pv3d-report/run/report/index.html"
    shown = Page(there.store().read("report/index.html").decode())
    assert "2 people, 3 clips" in shown.text
    assert len([link for link in shown.links if link.startswith("data:image/webp")]) == 9
    assert "secret-of-nobody" not in shown.text


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
