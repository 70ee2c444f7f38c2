"""What a run tells Prometheus, through Ray: units by stage and state, and the time that they took.

Ray adds `ray_` and `_total` to the names. Without `ray[default]`, as on a laptop, nothing listens and nothing
is lost: the ledger has it all.
"""

from __future__ import annotations

from collections.abc import Callable

from pipelines.ledger import Record


def unit_counter() -> Callable[[str, Record], None]:
    """A function that counts one record of a stage. Ray must be initialised."""
    from ray.util.metrics import Counter

    units = Counter("pv3d_units", "Units that ended at a stage, by state.", tag_keys=("stage", "state"))
    seconds = Counter("pv3d_unit_seconds", "Time that workers spent on units.", tag_keys=("stage",))

    def count(stage: str, record: Record) -> None:
        units.inc(1.0, tags={"stage": stage, "state": record.state})
        if record.seconds > 0:
            seconds.inc(record.seconds, tags={"stage": stage})

    return count
