"""Start Ray on this machine, or join a cluster. Takes plain numbers: `infra` knows nothing of stages."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from typing import Any

from infra import interrupts

_MOST = "PV3D_CLUSTER_MAX"
_ANSWER_SECONDS = 15.0
LEAST_ROOM = 50_000_000          # bytes, of the disk that Ray keeps its session on
OBJECTS_MB = 512                 # only clips travel, and Ray would take a third of the memory


def start(
    address: str | None = None, *, cpus: int | None = None, objects_mb: int = OBJECTS_MB,
    log_to_driver: bool = True,
) -> None:  # fmt: skip
    """Start a Ray of our own, or join the one at `address` (or at RAY_ADDRESS, as inside a Ray job).

    `objects_mb` is the object store of one that is started; it is memory, taken as it fills.

    Does nothing when this process is connected already. Raises ValueError, within seconds, when nothing or
    something else answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_process_group_cleanup_enabled", "true")  # what a worker started ends with it
    import ray

    if ray.is_initialized():
        return
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    common: dict[str, Any] = {"log_to_driver": log_to_driver, "logging_level": "WARNING"}
    if where == "local":
        _check_room()
        # When a run is killed, Ray's agents would look for its head for a minute.
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "15")
        with interrupts.kept():
            ray.init(
                address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=objects_mb << 20,
                **common,
            )  # fmt: skip
        return
    check_address(where)
    try:
        with interrupts.kept():
            ray.init(address=where, **common)
    except (ConnectionError, RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"--ray-address {where}: cannot be joined ({first})") from None


def _check_room() -> None:
    """Raise ValueError for a full disk, of which Ray only says, after a minute, that it timed out."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    with contextlib.suppress(OSError):       # Ray makes a folder that is not there
        free = shutil.disk_usage(folder).free
        if free < LEAST_ROOM:
            raise ValueError(
                f"TMPDIR: {folder} has {free / 1e6:.1f} MB free, and a Ray needs {LEAST_ROOM / 1e6:.0f} MB "
                "for its logs and sockets; make room there, or set TMPDIR to another folder"
            )


def check_address(address: str) -> None:
    """Raise ValueError unless a Ray head answers at `address`. Ray itself would try for two minutes."""
    if address.startswith("ray://"):
        raise ValueError(
            f"--ray-address {address}: Ray Client is not supported; on a machine of the cluster write "
            "host:6379 or auto, from elsewhere use ray job submit"
        )
    found = re.fullmatch(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:]+\]):(\d{1,5})", address)
    if not found:
        if address == "auto":
            return
        raise ValueError(f"--ray-address {address}: not an address; write host:port, such as 10.0.0.1:6379")
    host, port = found.groups()
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise ValueError(
            f"--ray-address {address}: nothing answers ({cause}); leave it out to start a Ray here"
        ) from None
    probe = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", f"{host}:{port}"]
    try:
        answer = subprocess.run(probe, capture_output=True, timeout=_ANSWER_SECONDS, check=False)
        healthy = answer.returncode == 0
    except subprocess.TimeoutExpired:
        healthy = False
    if not healthy:
        raise ValueError(f"--ray-address {address}: what answers is no Ray head; check host and port")


def options(cpus: float, gpus: float, custom: dict[str, float]) -> dict[str, Any]:
    """Numbers as Ray's options of a task or an actor."""
    return {"num_cpus": cpus, "num_gpus": gpus, "resources": dict(custom), "scheduling_strategy": "SPREAD"}


def nodes() -> dict[str, dict[str, float]]:
    """What each node has, by id: those that are alive and are not being drained."""
    import ray
    from ray._private.state import state

    leaving = state.get_draining_nodes()  # as Ray Train asks; there is no public way
    alive = (node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving)
    return {node["NodeID"]: dict(node["Resources"]) for node in alive}


def grows() -> bool:
    """Whether nodes are added when they are asked for, so that a cluster of one is not alone."""
    return _MOST in os.environ


def here() -> dict[str, float]:
    """What the nodes have that are there now. Ray must be initialised."""
    import ray

    found: dict[str, float] = ray.cluster_resources()
    return found


def total() -> dict[str, float]:
    """What the cluster has, or can grow to: "CPU", "GPU" and custom resources.

    An autoscaler adds workers when they are asked for; `pv3d deploy` says in PV3D_CLUSTER_MAX how many.
    """
    import ray

    here: dict[str, float] = ray.cluster_resources()
    most: dict[str, float] = json.loads(os.environ.get(_MOST, "{}"))
    return {**here, **{name: max(amount, here.get(name, 0.0)) for name, amount in most.items()}}


def joined() -> bool:
    """Whether this process is connected to a Ray."""
    import ray

    connected: bool = ray.is_initialized()
    return connected


def stop() -> None:
    """Leave the cluster; a Ray that was started here ends."""
    import ray

    if ray.is_initialized():
        ray.shutdown()
