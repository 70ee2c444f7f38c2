"""Files of clips that are gone from the store, such as aligned frames: what brought them is done again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from infra.storage import Storage, StorageError
from infra.words import many
from pipelines.ledger import Ledger, LostSegmentError, Record
from pipelines.workflow import Step
from stages.base import LostInputError
from stages.clip import Clip

log = logging.getLogger(__name__)


class Lost:
    """Has units done again, each once in a run."""

    def __init__(self, ledger: Ledger, store: Storage, steps: Sequence[Step]) -> None:
        self._ledger, self._store, self._steps = ledger, store, steps
        self._told: set[str] = set()

    def bring_back(self, error: LostInputError) -> None:
        """Mark the records of what wrote the field of the error: of its clip, and of all whose file is gone.

        Raises StorageError when that does not help.
        """
        step = next((step for step in reversed(self._steps) if error.field in step.stage.writes), None)
        if step is None or error.unit in self._told:
            raise StorageError(
                f"{error} in {self._store.root}, and is not made again; bring the file back, or change a "
                f"setting of {step.name if step else 'the stage that wrote it'}"
            ) from error
        held = set(self._store.list(error.key.partition("/")[0]))
        try:
            records = self._ledger.records(step.name)
            lost = [record for record in records if self._is_lost(record, error, held)]
        except LostSegmentError:             # it is done again for that
            return
        self._told.add(error.unit)
        log.warning("%s; %s of %s done again", error, many(len(lost), "unit"), step.name)
        for record in lost:
            again = replace(record, state="failed", reason="lost", outputs=[], members="", again=True)
            self._ledger.add(step.name, again, [])
        self._ledger.flush()

    def _is_lost(self, record: Record, error: LostInputError, held: set[str]) -> bool:
        for ref in self._ledger.outputs(record):
            if ref.id == error.unit:
                return True
            key = _key(self._ledger.load(ref, arrays=()), error.field)
            if key and key not in held:
                return True
        return False


def _key(clip: Clip, field: str) -> str:
    owner, _, name = field.rpartition(".")
    return str(clip.extra.get(name, "") if owner else getattr(clip, name))
