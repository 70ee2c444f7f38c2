"""Downloaded videos are a cache: deleted when nobody needs them, by us or by hand, and brought again."""

from pathlib import Path

import pytest

from pipelines.runner import prepare
from pipelines.status import workflow_status
from pipelines.workflow import load

WORKFLOW = Path(__file__).parents[2] / "workflow.yaml"
STAGES = """\
  - use: tiny_stages:Fetch
    keep: KEEP
  - use: tiny_stages:Cut
  - use: tiny_stages:Look
  - use: tiny_stages:Keep
  - use: tiny_stages:Write
"""


@pytest.fixture(params=[False, True], ids=["deleted", "kept"])
def keep(request):
    return request.param


@pytest.fixture
def films(tiny, keep):
    head, _, rest = tiny.path.read_text().partition("  - use: tiny_stages:Cut\n")
    tail = rest.partition("train:")[2]
    tiny.path.write_text(head + STAGES.replace("KEEP", str(keep).lower()) + "train:" + tail)
    return tiny


def present(films):
    return len(list(films.store.list("videos")))


def fetched(films):
    return [line.split()[1] for line in films.calls() if line.startswith("Fetch")]


def test_videos_go_when_their_clips_are_through_and_a_second_run_brings_none(films, keep):
    done = prepare(films.load(), in_process=True)
    assert (done.kept, present(films)) == (8, 4 if keep else 0)
    films.calls()
    done = prepare(films.load(), in_process=True)
    assert (done.kept, set(done.redone.values()), fetched(films)) == (8, {0}, [])


def test_a_setting_that_needs_pixels_brings_the_videos_again_and_redoes_no_more(films, keep):
    prepare(films.load(), in_process=True)
    before = films.output()
    films.calls()
    done = prepare(films.load("stages.Look.value=2"), in_process=True)
    assert len(fetched(films)) == (0 if keep else 4)
    assert (done.kept, done.redone["Cut"], done.redone["Look"]) == (8, 0, 8)
    assert present(films) == (4 if keep else 0)
    assert films.output() != before


def test_a_setting_that_needs_no_pixels_brings_none(films):
    prepare(films.load(), in_process=True)
    films.calls()
    assert prepare(films.load("stages.Write.title=u"), in_process=True).kept == 8
    assert fetched(films) == []


def test_videos_that_were_deleted_by_hand_come_again_when_needed(films):
    prepare(films.load(), in_process=True)
    for key in list(films.store.list("videos")):
        films.store.delete(key)
    films.calls()
    assert prepare(films.load(), in_process=True).kept == 8
    assert fetched(films) == []
    assert prepare(films.load("stages.Look.value=2"), in_process=True).kept == 8
    assert len(fetched(films)) == 4


def test_a_video_stays_for_the_clip_that_the_next_run_tries_again(films, keep):
    workflow = films.load("stages.Look.later=[v01-0]")
    assert prepare(workflow, in_process=True).kept == 7
    assert present(films) == (4 if keep else 1)
    (films.root / "there").touch()
    films.calls()
    assert prepare(workflow, in_process=True).kept == 8
    assert (fetched(films), present(films)) == ([], 4 if keep else 0)


def test_what_is_done_stays_when_a_video_does_not_come_again(films):
    workflow = films.load("stages.Look.later=[v01-0]")
    prepare(workflow, in_process=True)
    for key in list(films.store.list("videos")):
        films.store.delete(key)
    (films.root / "offline").touch()
    films.calls()
    done = prepare(workflow, in_process=True)
    assert (done.kept, fetched(films)) == (7, ["v01"])
    answer, _ = workflow_status(workflow)
    assert answer["stages"]["Fetch"] == {"ok": 4, "rejected": 0, "failed": 0, "todo": 0}
    assert answer["stages"]["Look"] == {"ok": 7, "rejected": 0, "failed": 1, "todo": 0}
    (films.root / "offline").unlink()
    (films.root / "there").touch()
    assert prepare(workflow, in_process=True).kept == 8


def test_a_run_that_ends_early_keeps_what_the_next_stage_reads(films):
    prepare(films.load(), until="Cut", in_process=True)
    assert present(films) == 4


def test_few_videos_are_there_at_a_time(films, keep):
    prepare(films.load("source.count=40"), in_process=True)
    most = max(int(line.split()[1]) for line in films.calls() if line.startswith("present"))
    assert most == 40 if keep else most <= 12


def test_a_lost_worker_and_ray_change_nothing_of_this(films, keep, ray_session):
    pytest.importorskip("ray")
    workflow = films.load("stages.Look.crash_once=[v01-0]", "source.count=6")
    assert prepare(workflow).kept == 12
    assert present(films) == (6 if keep else 0)


def test_every_stage_that_opens_a_source_says_so():
    """Else its videos would not come again."""
    steps = [step for step in load(WORKFLOW).steps if hasattr(step.stage, "reads_video")]
    told = {step.name for step in steps if step.stage.reads_video()}
    assert told >= {"SplitShots", "FollowFace", "AlignCrop"}
    assert "FitCameras" not in told
    deep = load(WORKFLOW, overrides=["stages.FitCameras.backend=deep3d"])
    assert next(step for step in deep.steps if step.name == "FitCameras").stage.reads_video()
