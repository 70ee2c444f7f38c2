"""Run one function on W workers with Ray Train, quietly: joined in a process group, restarted when one dies.

Ray must be initialised. Results travel through the store: nothing here reports to Ray Train, which would cost
a poll of its controller each time.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from infra import cluster

log = logging.getLogger(__name__)

POLL_S = 0.2
# Ray Train hands these on from the driver to its controller and its workers.
QUIET = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(POLL_S),  # 2 s unless told: the end would be noticed that late
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths keep their meaning
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints appear twice otherwise
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # 60 s unless told: little for a busy laptop
    "RAY_TRAIN_V2_ENABLED": "1",
}
ALONE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}  # nobody takes our only machine; it complains


def use_gpus(workers: int, device: str) -> bool:
    """Whether every worker gets a GPU. `device` is auto, cpu or cuda. Raises ValueError when the cluster has
    too few."""
    have = int(cluster.total().get("GPU", 0))
    if device == "cuda" and have < workers:
        raise ValueError(
            f"train.device: cuda needs a GPU for each of {workers} workers, the cluster has {have}; "
            "lower train.workers or set train.device=cpu"
        )
    return device != "cpu" and have >= workers


def run_workers(
    function: Callable[[Any], None], argument: Any, *, workers: int, gpu: bool, restarts: int,
    placement: str = "PACK", env: Mapping[str, str] | None = None,
) -> Iterator[None]:  # fmt: skip
    """Call `function(argument)` on every worker; yields while they run, a few times per second, and ends when
    all have returned. When a worker dies all are started again, up to `restarts` times. `placement`: how they
    are spread over nodes (Ray's placement strategies); `env`: their environment, such as NCCL's.

    Raises ValueError or StorageError as the workers do, RuntimeError for anything else of theirs.
    """
    import ray
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    alone = len(ray.nodes()) == 1 and not cluster.grows()
    for name, value in {**QUIET, **(ALONE if alone else {})}.items():
        os.environ.setdefault(name, value)

    class Trainer(TorchTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            """On one machine without Ray's actor that frees the workers' places when their controller dies:
            there all end with the driver, and the actor complains every second when Ray has no dashboard."""
            callbacks: list[Any] = super()._create_default_callbacks()
            return [
                c for c in callbacks if not (alone and type(c).__name__ == "PlacementGroupCleanerCallback")
            ]

    each = {"CPU": share(workers)}
    with tempfile.TemporaryDirectory(prefix="pv3d-ray-train-") as folder:
        trainer = Trainer(
            function,
            train_loop_config=argument,
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=gpu, placement_strategy=placement,
                resources_per_worker={**each, **({"GPU": 1} if gpu else {})},
            ),
            run_config=RunConfig(
                name="train", storage_path=folder, failure_config=FailureConfig(max_failures=restarts),
                logging_config=LoggingConfig(log_level="CRITICAL"),
                worker_runtime_env={"env_vars": dict(env)} if env else None,
            ),
        )  # fmt: skip
        failed: list[BaseException] = []

        def fit() -> None:
            try:
                trainer.fit()
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
                failed.append(error)

        # Not in the main thread: there Ray Train takes over Ctrl-C, and makes it exit with status 0.
        thread = threading.Thread(target=fit, name="ray-train", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(POLL_S)
            yield
    if failed:
        raise _cause(failed[0]) from failed[0]


def _cause(error: BaseException) -> BaseException:
    """What a worker raised, when it is a user's mistake; otherwise a RuntimeError with the worker's
    traceback."""
    from infra.storage import StorageError

    failures = getattr(error, "worker_failures", {})
    for cause in failures.values():
        while cause is not None and not isinstance(cause, ValueError | StorageError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is not None:
            return (
                type(cause)(str(cause))
                if type(cause) in (ValueError, StorageError)
                else ValueError(str(cause))
            )
    return RuntimeError(f"training failed on the workers: {error}")


def share(workers: int) -> float:
    """Cores that each of so many workers asks for: it never waits for cores that do not exist."""
    return min(1.0, float(cluster.total().get("CPU", 1)) / workers)


def rank_and_size() -> tuple[int, int]:
    """This worker's number and how many there are, as the launcher says in the environment."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
