import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("cv2")
pytest.importorskip("mlflow")

from pipelines.report import report
from pipelines.runner import prepare
from pipelines.workflow import Workflow, load
from stages.video import write_video

STAGES = '''
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from model.camera import orbit
from stages.base import Drop, Rejected, Stage
from stages.video import probe, resolve


@dataclass
class Cut(Stage):
    """Keep the first second, reject the rest."""

    name: ClassVar[str] = "Cut"
    writes: ClassVar = ("frame_times_s", "fps")

    def setup(self, store):
        self.store = store

    def process(self, clip):
        with resolve(self.store, clip.video) as path:
            info = probe(path)
        times = np.arange(info.frame_count) / info.fps
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

    name: ClassVar[str] = "Pose"
    reads: ClassVar = ("frame_times_s",)
    writes: ClassVar = ("cameras", "face_boxes", "identity")

    def process(self, clip):
        if "unwanted" in clip.source:
            raise Drop("two faces", "<b>at 0.4 s</b>")
        boxes = np.tile(np.float32([10, 8, 50, 56]), (clip.frame_count, 1))
        cameras = np.stack([orbit(yaw).encode() for yaw in np.linspace(-20, 20, clip.frame_count)])
        yield clip.copy(identity=clip.source[:1], face_boxes=boxes, cameras=cameras)
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
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
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
        "two faces (1)",
        "too short (1)",
        "cannot decode",
        "at 0.4 s",
        "Yaw",
        "Clips per person",
        "2 people, 3 clips",
        "Keep the first second, reject the rest.",
    ):
        assert words in shown.text, words
    pictures = [link for link in shown.links if link.startswith("data:image/webp;base64,")]
    assert len(pictures) == 3 + 3  # kept clips, and the rejected ones that can be decoded
    assert "frozen · Cut · 1 clip rejected" in shown.text
    assert shown.text.count("median") == 5  # yaw, pitch, roll, face, length


def test_the_page_is_one_file_and_escapes_what_videos_are_called(workflow: Workflow) -> None:
    prepare(workflow, in_process=True)
    path = Path(report(workflow))
    shown = Page(path.read_text())
    assert all(link.startswith("data:") for link in shown.links)
    assert "script" not in shown.tags
    assert "b" in shown.tags  # ours; not the one in the detail
    assert "<b>at 0.4 s</b>" not in path.read_text()
    assert "http" not in re.sub(r"data:[^\"]*", "", path.read_text())
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]


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

    from pipelines.report_clips import pose_rows
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
    rows = pose_rows(store, [clip, dataclasses.replace(clip, video="elsewhere")])
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
    assert "1 more curves" in shown.text  # time/data_wait; figures of the evaluation are no curves
    assert sum(link.startswith("data:video/mp4;base64,") for link in shown.links) == 1
    assert "pv3d version 1" in shown.text
    assert "pv3d generate models:/pv3d@candidate" in shown.text
