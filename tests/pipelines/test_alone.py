"""A unit in a process of its own: how its end is named. No Ray is needed."""

import os
import sys
import time
from pathlib import Path

import pytest

from pipelines.alone import Death, run_alone
from pipelines.work import ChainSpec, SetupError, StageBugError
from stages.clip import Clip

CGROUPS = Path("/sys/fs/cgroup/memory")
LIMIT = 300 << 20


@pytest.fixture
def alone(tmp_path):
    def run(use: str = "poison:Hold", timeout_s: float = 20.0, **settings):
        settings = settings if use.startswith("tiny") else {"folder": str(tmp_path), **settings}
        spec = ChainSpec(((use, settings),), (use.partition(":")[2],), str(tmp_path), {}, tuple(sys.path))
        group = "7" if use.endswith("Bundle") else None
        clips = [Clip(f"v{i}7", "list/v.mp4", "/none/v.mp4") for i in range(3 if group else 1)]
        return run_alone(spec, clips, 0, group, timeout_s)

    return run


def test_what_comes_out_is_what_a_worker_gives(alone):
    (piece,) = alone()
    assert (piece.unit, piece.state, piece.clips[0].extra) == ("v07", "ok", {"plain": 1})
    assert piece.outputs[0].digest == piece.clips[0].digest()


def test_a_group_comes_back_clip_by_clip(alone):
    pieces = alone("poison:Bundle")
    assert [(p.unit, p.clips[0].shard, p.outputs[0].digest) for p in pieces] == [
        (f"v{i}7", "7", pieces[i].clips[0].digest()) for i in range(3)
    ]


def test_a_limit_counts_from_the_end_of_the_set_up(alone):
    """Python and its imports alone take longer than this."""
    (piece,) = alone(timeout_s=0.05)
    assert piece.state == "ok"


def test_a_hang_that_holds_the_lock_of_the_interpreter_is_ended_with_its_place(alone):
    began = time.monotonic()
    death = alone(timeout_s=0.5, how={"v07": "native"})
    assert death == Death("timed out", death.detail)
    assert death.detail.startswith("poison.py:")
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("how", "reason"),
    [("killed", "crashed: SIGKILL"), ("leave", "crashed: exit status 3"), ("allocate", "out of memory")],
)
def test_an_end_has_a_name(alone, how, reason):
    assert alone(how={"v07": how}).reason == reason


def test_what_the_kernel_kills_for_want_of_memory_is_told_from_other_kills(alone, monkeypatch):
    group = CGROUPS / f"pv3d-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT))
    except OSError as error:
        pytest.skip(f"no memory limit can be set for a group of processes here ({error})")
    monkeypatch.setenv("PV3D_TEST_CGROUP", str(group))
    try:
        assert alone(how={"v07": "memory of a group"}) == Death("out of memory", "the system killed it")
    finally:
        group.rmdir()


def test_mistakes_arrive_as_they_are(alone):
    with pytest.raises(StageBugError, match="KeyError"):
        alone(how={"v07": "bug"})
    with pytest.raises(SetupError, match="stage Mark: no weights"):
        alone("tiny_stages:Mark", refuse="no weights")
