import time

import pytest

from pipelines.ledger import Ledger
from pipelines.pools import make_pools
from pipelines.runner import prepare
from pipelines.work import SetupError, StageBugError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]


def records(tiny, stage):
    return {record.unit: record for record in Ledger(tiny.store).records(stage)}


def test_ray_and_this_process_write_the_same(tiny, tmp_path_factory):
    prepare(tiny.load("source.count=9", "stages.Mark.seconds=0.01"))
    other = type(tiny)(tmp_path_factory.mktemp("other"))
    prepare(other.load("source.count=9", "stages.Mark.seconds=0.01"), in_process=True)
    assert tiny.output() == other.output()
    assert prepare(tiny.load("source.count=9", "stages.Mark.seconds=0.01")).redone["Cut"] == 0


def test_adjacent_stages_of_equal_needs_share_a_pool_and_a_cut_ends_one(tiny):
    pools = make_pools(tiny.load().steps[:3], 0)
    assert [pool.name for pool in pools] == ["Cut", "Mark+Second"]
    assert [pool.has_setup for pool in pools] == [False, True]
    other = tiny.load("stages.Second.use=tiny_stages:Elsewhere")
    assert [pool.name for pool in make_pools(other.steps[:3], 0)] == ["Cut", "Mark", "Elsewhere"]


def test_a_short_time_limit_is_not_lengthened_by_that_of_the_next_stage(tiny):
    for changed in ("Mark", "Second"):
        pools = make_pools(tiny.load(f"stages.{changed}.timeout_s=6").steps[:3], 0)
        assert [pool.name for pool in pools] == ["Cut", "Mark", "Second"]
    both = make_pools(tiny.load("stages.Mark.timeout_s=6", "stages.Second.timeout_s=6").steps[:3], 0)
    assert [pool.name for pool in both] == ["Cut", "Mark+Second"]


def test_a_native_crash_costs_its_unit_and_is_named(tiny):
    done = prepare(tiny.load("stages.Mark.crash=[v01-0]", "stages.Second.leave=[v02-1]"))
    crashed, left = records(tiny, "Mark")["v01-0"], records(tiny, "Second")["v02-1"]
    assert (crashed.state, crashed.reason, crashed.attempts) == ("failed", "crashed: SIGSEGV", 2)
    assert (left.state, left.reason, left.attempts) == ("failed", "crashed: exit status 3", 2)
    assert records(tiny, "Mark")["v02-1"].state == "ok"
    assert done.kept == 6
    assert prepare(tiny.load("stages.Mark.crash=[v01-0]", "stages.Second.leave=[v02-1]")).redone["Mark"] == 0


def test_a_crash_that_does_not_come_again_costs_nothing(tiny):
    done = prepare(tiny.load("stages.Second.crash_once=[v00-0]"))
    assert done.kept == 8
    assert records(tiny, "Second")["v00-0"].state == "ok"


def test_a_bug_stops_the_run_and_shows_the_original_traceback(tiny):
    with pytest.raises(StageBugError, match=r"stage Mark failed on v02-1[\s\S]*KeyError: 'no such thing'"):
        prepare(tiny.load("stages.Mark.bug=[v02-1]"))


def test_a_stage_that_cannot_start_says_so(tiny):
    with pytest.raises(SetupError, match="stage Mark: weights file x is missing"):
        prepare(tiny.load("stages.Mark.refuse='weights file x is missing'"))


@pytest.mark.parametrize("cpus", [2.0, 1.0])
def test_pools_that_each_need_every_core_do_not_wait_for_ever(tiny, cpus):
    """Two pools of actors with needs that exclude each other, and many units for bounded windows."""
    needs = [f"stages.{name}.resources.cpus={value}" for name, value in
             (("Cut", 2.0), ("Mark", 2.0), ("Second", cpus))]  # fmt: skip
    started = time.monotonic()
    assert prepare(tiny.load("source.count=10", *needs)).kept == 20
    assert time.monotonic() - started < 90


@pytest.mark.timeout(150)
def test_a_cluster_that_is_full_is_shared_as_this_machine_is(tiny):
    """A worker that is asked for beyond what there is would wait for ever while another holds the core."""
    needs = [f"stages.{name}.resources.cpus=2" for name in ("Cut", "Mark", "Second", "Keep")]
    assert prepare(tiny.load("source.count=4", *needs), ray_address="auto").kept == 8


def test_needs_that_this_machine_lacks_are_refused_at_once(tiny):
    message = "stages.Mark.resources.gpus: 1 asked for, this machine has 0; lower it"
    with pytest.raises(ValueError, match=message):
        prepare(tiny.load("stages.Mark.resources.gpus=1"))
