"""What a run tells Prometheus, through Ray: units by stage and state, the time they took, and what is left.

Ray adds `ray_` and `_total` to the names. Without `ray[default]`, as on a laptop, nothing listens and nothing
is lost: the ledger has it all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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


def to_do_gauge() -> Callable[[Mapping[str, float]], None]:
    """A function that is told, per stage, how many units are still to come through it, as far as known."""
    from ray.util.metrics import Gauge

    gauge = Gauge("pv3d_units_to_do", "Units still to come through a stage.", tag_keys=("stage",))

    def tell(units: Mapping[str, float]) -> None:
        for stage, count in units.items():
            gauge.set(count, tags={"stage": stage})

    return tell
