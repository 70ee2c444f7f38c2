import socket
import time

import pytest

from infra import cluster


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def test_an_address_where_nothing_listens_is_one_line_at_once():
    started = time.monotonic()
    message = r"--ray-address 127\.0\.0\.1:\d+: nothing answers \(.+\); leave"
    with pytest.raises(ValueError, match=message) as error:
        cluster.check_address(f"127.0.0.1:{free_port()}")
    assert time.monotonic() - started < 10
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("address", ["nonsense", "host:port", "http://host:1", "host:123456"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match="--ray-address"):
        cluster.check_address(address)


def test_ray_client_is_refused_and_told_what_to_use():
    with pytest.raises(ValueError, match=r"ray://head:10001: Ray Client is not supported; .+ ray job submit"):
        cluster.check_address("ray://head:10001")


@pytest.mark.slow
def test_a_server_that_is_no_ray_is_told_apart_within_seconds(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 4.0)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        started = time.monotonic()
        with pytest.raises(ValueError, match="what answers is no Ray head"):
            cluster.check_address(f"127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - started < 30


@pytest.mark.slow
def test_a_ray_that_runs_is_recognised(ray_session):
    import ray

    cluster.check_address(ray.get_runtime_context().gcs_address)
    assert cluster.total()["CPU"] == 2


def test_numbers_become_options():
    options = cluster.options(0.5, 0.25, {"egress": 1.0})
    assert (options["num_cpus"], options["num_gpus"], options["resources"]) == (0.5, 0.25, {"egress": 1.0})
