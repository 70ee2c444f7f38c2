"""Damaged files end in clips or reasons, whatever the decoder does; the bench counts what does not."""

import re
from pathlib import Path

import pytest

from pipelines.benches import mutants
from pipelines.ledger import Ledger
from pipelines.runner import prepare
from pipelines.workflow import load
from stages.base import Drop

pytest.importorskip("av")

WORKFLOW = """\
storage:
  root: {root}
source:
  use: stages.sources.folder:Folder
  location: {videos}
stages:
  - use: crashing:Dying
    crash: [crash]
    hang: [hang]
    timeout_s: 10
  - use: pipelines.benches.mutants:ReadFrames
train:
  variant: model.config:tiny
"""


def texture(count: int):
    import numpy as np

    coarse = np.random.default_rng(0).integers(30, 220, (12, 40, 3)).astype(np.uint8)
    picture = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    for n in range(count):
        yield np.ascontiguousarray(picture[:96, 2 * n:2 * n + 128])


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> bytes:
    from stages.video import write_video

    path = tmp_path_factory.mktemp("sound") / "v.mp4"
    write_video(path, texture(60), 25)
    return path.read_bytes()


def test_mutants_are_the_same_every_time_and_unlike_each_other(sound):
    originals = [sound, sound[::-1]]
    made = [mutants.mutant(originals, 0, number) for number in range(60)]
    assert made == [mutants.mutant(originals, 0, number) for number in range(60)]
    assert len({name for name, _ in made}) == 60
    assert len({content for _, content in made}) > 50
    assert {re.sub(r"m\d+-", "", name) for name, _ in made} == set(mutants.WAYS)
    assert mutants.mutant(originals, 1, 7)[1] != made[7][1]


def test_the_header_is_the_moov_box(sound):
    first, end = mutants.header(sound)
    assert sound[first + 4:first + 8] == b"moov"
    assert int.from_bytes(sound[first:first + 4], "big") == end - first
    assert mutants.header(b"no box at all") == (0, 13)


def test_outcomes_are_told_apart():
    kinds = {
        "kept": "kept", "cannot decode": "rejected", "timed out": "hung", "": "without_reason",
        "crashed: SIGSEGV": "crashed", "bug: KeyError": "crashed",
    }
    assert {outcome: mutants._kind(outcome) for outcome in kinds} == kinds


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_decoder_that_dies_or_hangs_costs_its_worker_and_its_file(tmp_path, sound):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("crash", "good", "hang", "well"):
        (videos / f"{name}.mp4").write_bytes(sound)
    path = tmp_path / "workflow.yaml"
    path.write_text(WORKFLOW.format(root=tmp_path / "store", videos=videos))
    assert prepare(load(path)).kept == 2
    ledger = Ledger(load(path).store())
    cut = {record.unit: (record.state, record.reason, record.attempts) for record in
           ledger.records("SplitShots")}  # fmt: skip
    assert cut == {
        "crash": ("failed", "crashed: SIGSEGV", 2), "hang": ("failed", "timed out", 2),
        "good": ("ok", "", 1), "well": ("ok", "", 1),
    }
    assert [record.state for record in ledger.records("ReadFrames")] == ["ok", "ok"]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("real", [False, True])
def test_fifty_mutants_end_in_clips_or_reasons(tmp_path, sound, real, request):
    if real:
        data = request.getfixturevalue("shared_data")
    else:
        data = tmp_path
        (data / "v.mp4").write_bytes(sound)
        (data / "manifest.csv").write_text("file,kind,identity\nv.mp4,talk,p\n")
    figures = mutants.run(data=data, count=50, seed=1)["figures"]
    assert figures["count"] == 50
    assert (figures["crashed"], figures["hung"], figures["without_reason"]) == (0, 0, 0)
    assert figures["kept"] > 0
    assert figures["rejected"] > 0


def test_a_stage_that_raises_what_it_should_not_is_counted_and_the_others_go_on(tmp_path, sound, monkeypatch):
    for name in ("m0-a", "m1-b_c", "m2-d"):
        (tmp_path / f"{name}.mp4").write_bytes(sound)
    process = mutants.ReadFrames.process

    def broken(self, clip):
        if clip.id.startswith("m1"):
            raise KeyError("a bug")
        if clip.id.startswith("m2"):
            raise Drop("unlucky")
        return process(self, clip)

    monkeypatch.setattr(mutants.ReadFrames, "process", broken)
    workflow = mutants._workflow("workflow.yaml", tmp_path, str(tmp_path / "store"))
    outcomes = mutants._send(workflow, Path(tmp_path), True, lambda line: None)
    assert {name: mutants._kind(outcome) for name, outcome in outcomes.items()} == {
        "m0-a": "kept", "m1-b_c": "crashed", "m2-d": "rejected",
    }
