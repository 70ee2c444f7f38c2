"""What the CronJob's container runs: make a RayJob from its template and wait until it has ended.

Python's standard library, and the account of the pod. May be killed and started again at any moment: the name
of the RayJob follows from that of the Job, so a second pod finds the first one's. The RayJob belongs to the
Job: whoever deletes the Job ends the run.

Exit status: 0 done, or skipped because another run is under way; 1 the run failed; 2 the cluster refuses.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_ENDED = ("Complete", "Failed", "ValidationFailed")
_OUTAGE_S = 900.0                            # how long the API may be away
_UNSEEN_S = 600.0                            # how long a new RayJob may be without any state


class RefusedError(Exception):
    """The cluster says no; asking again would not help."""


@dataclass
class Api:
    """The API server, as far as it is needed."""

    address: str                             # https://host:port
    account: Path = _ACCOUNT                 # a folder with token and ca.crt
    outage_s: float = _OUTAGE_S
    pause_s: float = 5.0

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        """(status, answer) for 200 to 299, 404 and 409. Raises RefusedError for other answers below 500,
        TimeoutError when there is none for too long."""
        until = time.monotonic() + self.outage_s
        while True:
            try:
                return self._once(method, path, body)
            except urllib.error.HTTPError as error:
                text = error.read().decode(errors="replace")
                if error.code in (404, 409):
                    return error.code, {}
                if error.code < 500 and error.code != 429:
                    raise RefusedError(f"{method} {path}: {error.code} {_message(text)}") from None
                cause = f"{error.code} {_message(text)}"
            except (OSError, http.client.HTTPException, ValueError) as error:
                cause = str(error)
            if time.monotonic() > until:
                raise TimeoutError(f"{method} {path}: {cause}")
            log.warning("%s %s: %s; trying again", method, path, cause)
            time.sleep(self.pause_s)

    def _once(self, method: str, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        token = (self.account / "token").read_text().strip()  # anew each time: it changes every hour
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, headers, method=method)
        secure = self.address.startswith("https:")
        context = ssl.create_default_context(cafile=str(self.account / "ca.crt")) if secure else None
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            return answer.status, json.loads(answer.read())


def submit(api: Api, template: dict[str, Any], job: str, uid: str, poll_s: float = 15.0) -> int:
    """Make the RayJob of the Job `job` and wait. Returns the exit status."""
    body = _named(template, f"{job}-run", job, uid)
    name, namespace = body["metadata"]["name"], body["metadata"]["namespace"]
    folder = f"/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
    status, _ = api.call("GET", f"{folder}/{name}")
    if status == 404:
        other = _under_way(api, folder, body["metadata"]["labels"])
        if other:
            log.info("skipped: %s is still under way", other)
            return 0
        status, _ = api.call("POST", folder, body)  # 409: an answer was lost, and it is there
        if status == 404:
            raise RefusedError(f"POST {folder}: 404; is KubeRay installed, and the namespace there?")
    log.info("%s is under way; its log: kubectl -n %s logs -f job/%s", name, namespace, name)
    return _wait(api, f"{folder}/{name}", name, poll_s)


def _named(template: dict[str, Any], name: str, job: str, uid: str) -> dict[str, Any]:
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": uid}
    return {**template, "metadata": {**template["metadata"], "name": name, "ownerReferences": [owner]}}


def _under_way(api: Api, folder: str, labels: dict[str, str]) -> str:
    """The name of a RayJob of this workflow that has not ended, "" when there is none."""
    selector = urllib.parse.quote(",".join(f"{key}={value}" for key, value in sorted(labels.items())))
    status, found = api.call("GET", f"{folder}?labelSelector={selector}")
    if status == 404:
        raise RefusedError(f"GET {folder}: 404; is KubeRay installed?")
    for item in found.get("items", []):
        if item.get("status", {}).get("jobDeploymentStatus", "") not in _ENDED:
            return str(item["metadata"]["name"])
    return ""


def _wait(api: Api, path: str, name: str, poll_s: float) -> int:
    begun, told = time.monotonic(), ""
    while True:
        code, found = api.call("GET", path)
        if code == 404:
            log.error("%s was deleted", name)
            return 1
        status = found.get("status", {})
        state = status.get("jobDeploymentStatus", "")
        if state != told:
            log.info("%s: %s", name, state)
            told = state
        if state in _ENDED:
            good = status.get("jobStatus") == "SUCCEEDED"
            why = " ".join(f"{status.get('reason', '')} {status.get('message', '')}".split())
            log.log(logging.INFO if good else logging.ERROR, "%s: %s %s", name, status.get("jobStatus"), why)
            return 0 if good else 1
        if not state and time.monotonic() - begun > _UNSEEN_S:
            log.error("%s: KubeRay does not take it up; does its operator watch this namespace?", name)
            return 1
        time.sleep(poll_s)


def _message(text: str) -> str:
    """The sentence in an answer of the API."""
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200]


def main() -> int:
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    template = json.loads(Path(sys.argv[1]).read_text())
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    api = Api(f"https://{f'[{host}]' if ':' in host else host}:{port}")
    try:
        return submit(api, template, os.environ["JOB_NAME"], os.environ["JOB_UID"])
    except (RefusedError, TimeoutError) as error:
        log.error("%s", error)
        return 2


if __name__ == "__main__":
    sys.exit(main())
