"""The submitter against a small server that answers as the API of Kubernetes does."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from infra.kube_submit import Api, RefusedError, submit

TEMPLATE = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"name": "night", "namespace": "faces", "labels": {"app.kubernetes.io/instance": "night"}},
    "spec": {"entrypoint": "true"},
}
FOLDER = "/apis/ray.io/v1/namespaces/faces/rayjobs"


class Cluster:
    """RayJobs by name. Each look at one moves it to its next state; the last one stays."""

    def __init__(self) -> None:
        self.jobs = {}
        self.states = [{}, {"jobDeploymentStatus": "Running"}, ended("SUCCEEDED")]
        self.seen = {}
        self.calls = []
        self.answers = []                    # statuses to give before anything else, 0 closes the connection

    def get(self, name):
        job = self.jobs[name]
        number = self.seen.get(name, 0)
        self.seen[name] = number + 1
        return {**job, "status": job.get("status") or self.states[min(number, len(self.states) - 1)]}


def ended(status, reason=""):
    state = "Complete" if status == "SUCCEEDED" else "Failed"
    return {"jobDeploymentStatus": state, "jobStatus": status, "reason": reason}


@pytest.fixture
def cluster():
    return Cluster()


@pytest.fixture
def api(cluster, tmp_path):
    class Handler(BaseHTTPRequestHandler):
        def answer(self, code, value):
            data = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def handle_call(self, method):
            path, _, query = self.path.partition("?")
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            cluster.calls.append((method, path, self.headers["Authorization"], query))
            fault = cluster.answers.pop(0) if cluster.answers else None
            lost = fault == "after"          # done, but the answer does not arrive
            if fault is not None and not lost:
                return self.answer(fault, {"message": "as told"})
            if method == "POST":
                name = body["metadata"]["name"]
                if name in cluster.jobs:
                    return self.answer(409, {"message": "exists"})
                cluster.jobs[name] = body
                return self.connection.close() if lost else self.answer(201, body)
            if path == FOLDER:
                return self.answer(200, {"items": [cluster.get(name) for name in cluster.jobs]})
            name = path.rpartition("/")[2]
            known = name in cluster.jobs
            return self.answer(200, cluster.get(name)) if known else self.answer(404, {})

        def do_GET(self):
            self.handle_call("GET")

        def do_POST(self):
            self.handle_call("POST")

        def log_message(self, *args):
            pass

    (tmp_path / "token").write_text("t0\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Api(f"http://127.0.0.1:{server.server_port}", tmp_path, outage_s=5.0, pause_s=0.01)
    server.shutdown()
    server.server_close()


def run(api, job="night-1"):
    return submit(api, TEMPLATE, job, "uid-1", poll_s=0.01)


def posts(cluster):
    return [call for call in cluster.calls if call[0] == "POST"]


def test_a_run_is_made_waited_for_and_belongs_to_its_job(api, cluster):
    assert run(api) == 0
    (made,) = cluster.jobs.values()
    assert made["metadata"]["name"] == "night-1-run"             # KubeRay gives its own Job the RayJob's name
    (owner,) = made["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("Job", "night-1", "uid-1")
    assert made["spec"] == TEMPLATE["spec"]
    assert {call[2] for call in cluster.calls} == {"Bearer t0"}


def test_a_run_that_fails_is_a_job_that_fails(api, cluster, caplog):
    cluster.states = [ended("FAILED", "AppFailed")]
    assert run(api) == 1
    assert "AppFailed" in caplog.text


def test_a_second_pod_goes_on_waiting_for_the_first_ones_run(api, cluster):
    assert run(api) == 0
    cluster.seen.clear()
    assert run(api) == 0
    assert len(posts(cluster)) == 1


def test_another_run_under_way_means_that_this_one_is_skipped(api, cluster):
    running = {"metadata": {"name": "by-hand"}, "status": {"jobDeploymentStatus": "Running"}}
    cluster.jobs["by-hand"] = running
    assert run(api) == 0
    assert not posts(cluster)
    assert any("labelSelector=app.kubernetes.io" in call[3] for call in cluster.calls)
    running["status"] = ended("FAILED")
    assert run(api) == 0
    assert "night-1-run" in cluster.jobs


def test_an_answer_that_was_lost_makes_no_second_run(api, cluster):
    cluster.answers = [404, 200, "after"]    # 404: not there yet; the list; made, and the answer lost
    assert run(api) == 0
    assert list(cluster.jobs) == ["night-1-run"]
    assert len(posts(cluster)) == 2


def test_the_api_may_be_away_for_a_while(api, cluster):
    cluster.answers = [503, 500, 429]
    assert run(api) == 0
    cluster.answers = [503] * 10_000
    api.outage_s = 0.05
    with pytest.raises(TimeoutError, match="503"):
        run(api, "night-2")


def test_what_is_forbidden_is_said_and_not_asked_again(api, cluster):
    cluster.answers = [403]
    with pytest.raises(RefusedError, match="403 as told"):
        run(api)
    assert len(cluster.calls) == 1


def test_a_cluster_without_kuberay_is_said(api, cluster):
    cluster.answers = [404, 404]
    with pytest.raises(RefusedError, match="KubeRay"):
        run(api)


def test_a_run_that_was_deleted_is_a_failure(api, cluster):
    cluster.states = [{"jobDeploymentStatus": "Running"}] * 3
    cluster.answers = [404, 200, None, None, 404]                # looked for, listed, made, seen, gone
    assert run(api) == 1


def test_an_operator_that_does_nothing_is_noticed(api, cluster, monkeypatch):
    monkeypatch.setattr("infra.kube_submit._UNSEEN_S", 0.05)
    cluster.states = [{}]
    assert run(api) == 1
