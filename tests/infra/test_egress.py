"""Manners: tokens, pauses, and that all workers share them."""

import contextlib
import threading

import pytest

from infra.egress import PROBE_S, CircuitOpenError, Egress, connect, wait_for


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_burst_goes_at_once_and_then_the_rate_holds(clock):
    egress = Egress(requests_per_minute=30, burst=3, clock=clock)
    assert [egress.ask() for _ in range(3)] == [0.0, 0.0, 0.0]
    assert egress.ask() == pytest.approx(2.0)
    clock.now += 2.0
    assert egress.ask() == 0.0


def test_over_a_long_time_the_rate_is_kept_and_not_missed(clock):
    egress = Egress(requests_per_minute=60, burst=1, clock=clock)
    start, done = clock.now, 0
    while clock.now < start + 600:
        wait_for(egress, 100, clock.sleep, jitter=lambda: 0.0)
        done += 1
    assert 590 <= done <= 601


def test_no_limit_means_no_waiting(clock):
    egress = Egress(requests_per_minute=0, clock=clock)
    assert all(egress.ask() == 0.0 for _ in range(100))


def test_unused_tokens_do_not_pile_up(clock):
    egress = Egress(requests_per_minute=60, burst=2, clock=clock)
    clock.now += 3600
    assert [egress.ask() == 0.0 for _ in range(3)] == [True, True, False]


def test_one_throttled_worker_stops_all(clock):
    egress = Egress(requests_per_minute=0, pause_s=60, clock=clock)
    assert egress.ask() == 0.0
    assert egress.throttled() == 60
    assert egress.ask() == 60
    clock.now += 30
    assert egress.ask() == 30


def test_after_the_pause_one_request_goes_and_the_others_wait_for_its_report(clock):
    egress = Egress(requests_per_minute=0, pause_s=60, clock=clock)
    egress.throttled()
    clock.now += 60
    assert egress.ask() == 0.0
    assert egress.ask() > 0.0
    egress.succeeded()
    assert egress.ask() == 0.0 == egress.ask()


def test_a_probe_that_never_reports_does_not_close_the_road_for_ever(clock):
    egress = Egress(requests_per_minute=0, pause_s=60, clock=clock)
    egress.throttled()
    clock.now += 60
    assert egress.ask() == 0.0
    clock.now += PROBE_S
    assert egress.ask() == 0.0


def test_pauses_double_up_to_the_longest_and_a_success_forgets_them(clock):
    egress = Egress(requests_per_minute=0, pause_s=60, longest_pause_s=200, clock=clock)
    pauses = []
    for _ in range(4):
        pauses.append(egress.throttled())
        clock.now += pauses[-1]
        assert egress.ask() == 0.0
    assert pauses == [60, 120, 200, 200]
    egress.succeeded()
    assert egress.throttled() == 60


def test_many_answers_of_requests_that_left_together_count_once(clock):
    egress = Egress(requests_per_minute=0, pause_s=60, clock=clock)
    assert [egress.throttled() for _ in range(8)] == [60] * 8


def test_a_success_of_a_request_that_left_before_the_pause_does_not_end_it(clock):
    egress = Egress(requests_per_minute=0, pause_s=60, clock=clock)
    egress.throttled()
    egress.succeeded()
    assert egress.ask() == 60


def test_the_servers_own_wish_is_honoured(clock):
    egress = Egress(requests_per_minute=0, pause_s=60, clock=clock)
    assert egress.throttled(900) == 900


def test_the_servers_wish_goes_no_further_than_the_longest_pause(clock):
    egress = Egress(requests_per_minute=0, pause_s=60, longest_pause_s=600, clock=clock)
    assert egress.throttled(864_000) == 600


def test_waiting_ends_with_a_clear_word_when_it_would_take_too_long(clock):
    egress = Egress(requests_per_minute=0, pause_s=600, clock=clock)
    egress.throttled()
    with pytest.raises(CircuitOpenError, match="600 s"):
        wait_for(egress, 60, clock.sleep, jitter=lambda: 0.0)
    assert wait_for(egress, 700, clock.sleep, jitter=lambda: 0.0) == pytest.approx(600, abs=1)


@pytest.mark.parametrize(("name", "value"), [("requests_per_minute", -1), ("burst", 0), ("pause_s", -5)])
def test_a_senseless_limit_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        Egress(**{name: value})


def test_threads_never_get_more_than_the_burst():
    egress = Egress(requests_per_minute=0.001, burst=5)
    went = []
    workers = [threading.Thread(target=lambda: went.append(egress.ask() == 0.0)) for _ in range(40)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sum(went) == 5


def test_one_process_has_one_egress_per_address(monkeypatch):
    monkeypatch.setattr("infra.egress._ray_runs", lambda: False)  # another test may have left Ray running
    first = connect("test-a", 60, 1, 60, 600)
    assert connect("test-a", 30, 1, 60, 600) is first
    assert connect("test-b", 60, 1, 60, 600) is not first


@pytest.mark.slow
def test_ray_workers_share_one_egress_and_survive_its_loss(ray_session):
    import ray

    def ask() -> bool:
        from infra.egress import connect

        return connect("shared", 0.001, 3, 60, 600).ask() == 0.0

    worker = ray.remote(ask)
    assert sum(ray.get([worker.remote() for _ in range(6)])) == 3
    gate = connect("shared", 0, 1, 60, 600)
    gate.throttled()
    assert not any(ray.get([worker.remote() for _ in range(2)]))
    actor = ray.get_actor("egress-shared", namespace="pv3d")
    ray.kill(actor)
    with contextlib.suppress(ray.exceptions.RayActorError):  # it may answer a little while
        while True:
            ray.get(actor.ask.remote())
    assert gate.ask() == 0.0
