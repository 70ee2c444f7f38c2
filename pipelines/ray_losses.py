"""Why a Ray worker was lost, in two words instead of Ray's paragraphs."""

from __future__ import annotations

from ray import exceptions

CRASHED = "worker crashed"
NODE_LOST = "node lost"
NO_MEMORY = "out of memory"

LOST = (
    exceptions.RayActorError,
    exceptions.WorkerCrashedError,
    exceptions.OutOfMemoryError,
    exceptions.NodeDiedError,
    exceptions.LocalRayletDiedError,
    exceptions.ObjectLostError,
    exceptions.TaskCancelledError,
)
# The node, or the way to it, has gone; so have results that lay there.
_NODES = (
    exceptions.NodeDiedError,
    exceptions.LocalRayletDiedError,
    exceptions.ActorUnavailableError,
    exceptions.ObjectLostError,
)


def why(error: Exception) -> str:
    """CRASHED, NODE_LOST or NO_MEMORY for an exception of `LOST`."""
    if isinstance(error, exceptions.OutOfMemoryError):
        return NO_MEMORY
    if isinstance(error, _NODES) or getattr(error, "preempted", False):
        return NODE_LOST
    if isinstance(error, exceptions.RayActorError) and "its node has died" in str(error):
        return NODE_LOST  # Ray has no other sign of it
    return CRASHED
