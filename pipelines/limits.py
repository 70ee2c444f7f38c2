"""When a stage stops: more of its units fail than units alone can be blamed for.

A disk that died, an account that was closed or a model that cannot take what it is given would let a run walk
through its whole list and fail it. What counts are units that failed, for good or for now (`TryLater`), and
not those that were rejected, which is what stages are for.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping

LEAST = 20                       # units that must have ended, so that a bad start is no verdict
RECENT = 1000                    # the latest units of a stage are judged, so that a late fault shows too
TOLD = 3                         # reasons


class TooManyFailedError(ValueError):
    """A stage passed its `max_failed_fraction`."""


class Limits:
    """Counts how the units of each stage end in this run."""

    def __init__(self, fractions: Mapping[str, float]) -> None:
        self._fractions = fractions
        # Why units failed; "" of those that did not.
        self._latest: dict[str, deque[str]] = {name: deque() for name in fractions}
        self._reasons: dict[str, Counter[str]] = {name: Counter() for name in fractions}

    def ended(self, stage: str, state: str, reason: str, units: int = 1) -> None:
        """So many units of a stage ended in this state."""
        latest, reasons = self._latest[stage], self._reasons[stage]
        reason = (reason or "no reason given") if state == "failed" else ""
        latest.extend([reason] * min(units, RECENT))
        reasons[reason] += min(units, RECENT)
        while len(latest) > RECENT:
            reasons[latest.popleft()] -= 1

    def check(self) -> None:
        """Raise TooManyFailedError, one line, for a stage of which more failed than it may."""
        for stage, most in self._fractions.items():
            reasons, count = self._reasons[stage], len(self._latest[stage])
            failed = count - reasons[""]
            if count < LEAST or failed <= most * count:
                continue
            told = [(name, n) for name, n in reasons.most_common() if name and n][:TOLD]
            causes = ", ".join(f"{name} ({n})" for name, n in told)
            raise TooManyFailedError(
                f"stage {stage}: {failed} of the last {count} units failed: {causes}; what is done is kept. "
                f"Cure the cause and run again, or go on with --set stages.{stage}.max_failed_fraction=1"
            )
