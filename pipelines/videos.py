"""Downloaded videos are a cache: one that is gone comes again when it is needed, and one that nobody needs
any more may go, while others are still on their way."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence

from infra.storage import Storage
from pipelines.ledger import Ledger, Ref
from pipelines.workflow import Step
from stages.base import Stage

log = logging.getLogger(__name__)


class Videos:
    """The videos that one stage of a stream of stages brings. `fed`: the unit that went into that stage.

    Two units may share a video, so they are counted by the source that they name.
    """

    def __init__(
        self, steps: Sequence[Step], start: int, end: int, all_steps: Sequence[Step], ledger: Ledger,
        store: Storage,
    ) -> None:  # fmt: skip
        found = [n for n in range(start, end) if getattr(steps[n].stage, "fetches", False)]
        self.at = found[0] if found else -1
        self._steps, self._end, self._ledger, self._store = steps, end, ledger, store
        readers = [n for n, step in enumerate(all_steps) if _reads_video(step)]
        self._last_use = bool(found) and max(readers) < end      # else a later stage reads them, too
        self._open: Counter[str] = Counter()                     # works under way, by source
        self._came: dict[str, dict[str, Ref]] = {}               # what came out of the stage, by source
        self._seen: set[str] = set()                             # sources of these, since `settle`
        self._needed: set[str] = set()                           # by what the next run tries again

    @property
    def _stage(self) -> Stage:
        stage = self._steps[self.at].stage
        assert isinstance(stage, Stage)
        return stage

    def used_from(self, at: int) -> bool:
        """Whether a step from `at` on reads the video."""
        return any(_reads_video(step) for step in self._steps[at:self._end])

    def lost(self, refs: Iterable[Ref]) -> bool:
        """Whether the store no longer has what came out of the stage."""
        return any(self._stage.lost(self._store, self._ledger.load(ref, arrays=())) for ref in refs)

    def began(self, fed: Ref | None) -> None:
        """A work on a video was queued."""
        if fed is not None and self._last_use:
            self._open[fed.source] += 1

    def came(self, fed: Ref | None, out: Ref) -> None:
        """A unit came out of the stage, now or earlier."""
        if fed is not None and self._last_use:
            self._came.setdefault(fed.source, {})[out.id] = out
            self._seen.add(fed.source)

    def settle(self) -> None:
        """All that is to be done of what came is queued: of videos with nothing to do nothing is kept."""
        for source in self._seen:
            if not self._open.get(source):
                self._came.pop(source, None)
        self._seen.clear()

    def ended(self, fed: Ref | None, retried: bool | None) -> None:
        """A work has ended, and what came of it is queued. `retried`: by the next run; None: by this one."""
        if fed is None or not self._last_use or retried is None:
            return
        source = fed.source
        if retried:
            self._needed.add(source)
        self._open[source] -= 1
        if self._open[source]:
            return
        del self._open[source]
        for ref in self._came.pop(source, {}).values():
            if source not in self._needed:
                self._stage.release(self._store, self._ledger.load(ref, arrays=()))


def _reads_video(step: Step) -> bool:
    return step.stage.reads_video() if isinstance(step.stage, Stage) else "video" in step.stage.reads
