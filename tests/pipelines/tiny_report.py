"""A small run whose report the tests read, and a reader of its page."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from pipelines.report import report
from pipelines.workflow import Workflow, load
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


def make_workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workflow:
    """A folder of six small videos, and two stages for them."""
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
