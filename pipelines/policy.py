"""What a run may use: the takedown list and the allowed licences, as a filter outside of the stages.

No stage key depends on it, so a list that grows redoes nothing: units that it means go no further, wherever
the ledger has them. See `pipelines.takedown` for what is removed from the store.

    takedown/<hash>.json    what was removed for which entries, as hashes; create-only, then marked finished
    takedown/state.json     the list that the store was last swept for
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from infra.json_values import damaged, is_number, read_object
from infra.storage import Storage
from pipelines.ledger import Ledger, Record, Ref, holds, in_pages
from pipelines.workflow import Step, Workflow
from stages.clip import Clip
from stages.dataset import Dataset
from stages.sources.lists import Span
from stages.takedown import TAKEN_DOWN, Entry, hash_of, uncut

NOT_ALLOWED = "licence not allowed"
FOLDER = "takedown"
STATE = f"{FOLDER}/state.json"


class Policy:
    """The policy of a workflow, with what earlier sweeps of its store found out about whom the list means.

    Raises ValueError when the store was swept for a list and the workflow names none.
    """

    def __init__(self, workflow: Workflow, store: Storage) -> None:
        self.takedown = workflow.takedown
        self.allowed = workflow.policy.licences_allowed
        self.root = store.root
        self._allowed = {name.strip().casefold() for name in self.allowed or ()}
        self._names: dict[str, str] = {}     # source as listed -> source_id that the list means
        cut = [n for n, step in enumerate(workflow.steps) if "frame_times_s" in step.stage.writes]
        self._uncut = {step.name for step in workflow.steps[: cut[0] + 1 if cut else None]}
        keys = [key for key in store.list(FOLDER) if key.endswith(".json")]
        if keys and not workflow.policy.takedown:
            raise ValueError(
                f"policy.takedown: not set, but {store.root} was swept for a list ({keys[0]}); name that list"
            )
        self.records = {key: read_record(store, key) for key in keys if key != STATE}
        self._found: dict[str, Entry] = {}   # by the hash of a unit's id
        self._places: dict[str, list[tuple[float, float, Entry]]] = {}   # s, by that of what it was cut from
        self._recall()

    def _recall(self) -> None:
        """What sweeps removed for entries that are listed still."""
        entries = {entry.hash: entry for entry in self.takedown.entries}
        for record in self.records.values():
            for unit, causes in record["clips"].items():
                self._found.update((unit, entries[cause]) for cause in causes if cause in entries)
            for part, start_s, end_s, causes in record["places"]:
                places = self._places.setdefault(part, [])
                places += [(start_s, end_s, entries[cause]) for cause in causes if cause in entries]

    # --- listed videos -----------------------------------------------------------------------------------

    def licensed(self, clips: Iterable[Clip]) -> Iterator[Clip]:
        """Mark videos, and parts of videos, whose licence is not allowed."""
        for clip in clips:
            yield clip if self.allowed is None or "error" in clip.listed else self._licensed(clip)

    def _licensed(self, clip: Clip) -> Clip:
        spans = clip.listed.get("spans")
        if not spans:
            return clip if self._may(clip.licence) else _marked(clip, NOT_ALLOWED, clip.licence)
        marked = [
            span if "error" in span or self._may(licence := str(span.get("licence", clip.licence)))
            else {**span, "error": NOT_ALLOWED, "detail": licence}
            for span in spans
        ]  # fmt: skip
        if all(span.get("error") == NOT_ALLOWED for span in marked):
            return _marked(clip, NOT_ALLOWED, marked[0]["detail"])
        return clip if marked == spans else clip.copy(listed={**clip.listed, "spans": marked})

    def _may(self, licence: str) -> bool:
        return licence.strip().casefold() in self._allowed

    def meant(self, clips: Iterable[Clip]) -> Iterator[Clip]:
        """Mark videos that the list means, wholly; see `current` for the others."""
        for clip in clips:
            name = clip.listed.get("source_id") if self.takedown else None
            if name and self.takedown.find(sources=[str(name)]):     # of the others nothing need be known
                self._names[clip.source] = str(name)
            if not self.takedown or clip.listed.get("error") == NOT_ALLOWED:
                yield clip
                continue
            spans = [span for span in clip.listed.get("spans", []) if "error" not in span]
            whole = self.find(clip.id, clip.source, clip.identity)
            parts = spans and all(self._find_part(clip, span) for span in spans)
            yield _marked(clip, TAKEN_DOWN, self._detail) if whole or parts else clip

    @property
    def _detail(self) -> str:
        return f"named in {self.takedown.path.rpartition('/')[2]}"

    # --- units in their course ---------------------------------------------------------------------------

    def find(self, unit: str, source: str = "", identity: str = "") -> Entry | None:
        """The entry of the list that means a unit."""
        names = [name for name in (source, self._names.get(source, "")) if name]
        entry = self.takedown.find(unit=unit, identity=identity, sources=names)
        return entry or (self._found.get(hash_of(unit)) if self._found else None)

    def _find_part(self, clip: Clip, span: Span) -> Entry | None:
        unit = f"{clip.listed.get('unit', clip.id)}-{span['key']}"
        return self.find(unit, identity=str(span.get("identity", clip.identity)))

    def find_place(self, unit: str, load: Callable[[], Clip]) -> Entry | None:
        """The entry for which a clip was removed that showed the same part at the same time: other settings
        of a cut give other ids to the same pictures."""
        places = self._places.get(hash_of(uncut(unit))) if self._places else None
        times = load().frame_times_s if places else None
        if not places or times is None:
            return None
        return next((entry for start, end, entry in places if start <= times[-1] and times[0] <= end), None)

    def stops(self, ref: Ref, ledger: Ledger) -> str:
        """The reason why a unit must go no further, or ""."""
        if ref.clip is not None and ref.clip.listed.get("error") in (TAKEN_DOWN, NOT_ALLOWED):
            return str(ref.clip.listed["error"])
        if not self.takedown:
            return ""
        entry = self.find(ref.id, ref.source, ref.identity)
        entry = entry or self.find_place(ref.id, lambda: ledger.load(ref, ("frame_times_s",)))
        return TAKEN_DOWN if entry else ""

    def divide(self, refs: Iterable[Ref], ledger: Ledger) -> tuple[list[Ref], list[tuple[Ref, str]]]:
        """(those that go on, those that are stopped with the reason)."""
        kept: list[Ref] = []
        stopped: list[tuple[Ref, str]] = []
        for ref in refs:
            if reason := self.stops(ref, ledger):
                stopped.append((ref, reason))
            else:
                kept.append(ref)
        return kept, stopped

    def pairs(self, ledger: Ledger, step: Step, refs: Iterable[Ref]) -> Iterator[tuple[Ref, Record | None]]:
        """`current` of many units, which is quicker."""
        for page in in_pages(refs, 256):
            found = ledger.fetch(step.name, [ref.id for ref in page])
            for ref in page:
                yield self.judge(ledger, step, ref, found.get(ref.id))

    def current(self, ledger: Ledger, step: Step, ref: Ref) -> tuple[Ref, Record | None]:
        """`judge` of the latest record."""
        return self.judge(ledger, step, ref, ledger.record(step.name, ref.id))

    def judge(
        self, ledger: Ledger, step: Step, ref: Ref, latest: Record | None
    ) -> tuple[Ref, Record | None]:
        """The unit as it must be done, and its latest record when it is done as it is.

        A video of which the list means some parts goes on as it was while it is done, and without these parts
        where there is work to do: so nothing is downloaded again for what was taken out.
        """
        if latest is not None and holds(latest, step.key, ref, step.barred_key):
            if not self.takedown.path:
                return ref, latest
            # An entry that is no longer listed: what was taken out of the record is to be done again.
            gone = [out for out in latest.outputs if out.reason == TAKEN_DOWN]
            known = all(self.find(out.id, latest.source, out.identity) for out in gone)
            return ref, latest if known else None
        if not self.takedown.path or step.name not in self._uncut:
            return ref, None
        ref = self.allowed_part(ledger, ref)
        return ref, latest if latest is not None and holds(latest, step.key, ref, step.barred_key) else None

    def allowed_part(self, ledger: Ledger, ref: Ref) -> Ref:
        """A video that was not cut yet, without the parts that the list means; itself when it means none."""
        if not self.takedown:
            return ref
        clip = ledger.load(ref, arrays=())
        spans = [self._taken_out(clip, span) for span in clip.listed.get("spans", [])]
        if spans == clip.listed.get("spans", []):
            return ref
        clip = clip.copy(listed={**clip.listed, "spans": spans})
        return Ref(ref.id, clip.digest(), ref.source, ref.identity, clip=clip)

    def _taken_out(self, clip: Clip, span: Span) -> Span:
        if "error" in span or not self._find_part(clip, span):
            return span
        return {**span, "error": TAKEN_DOWN, "detail": self._detail}

    # --- datasets ----------------------------------------------------------------------------------------

    def check_dataset(self, dataset: Dataset) -> None:
        """Raise ValueError for a dataset that holds what must not be used."""
        samples = dataset.samples
        taken = [s for s in samples if self.find(s.clip_id, s.source, s.identity)]
        if taken:
            raise ValueError(
                f"the dataset {dataset.version} holds {len(taken)} clips that {self.takedown.path} names; "
                "run `pv3d takedown` first"
            )
        barred = [s for s in samples if self.allowed is not None and not self._may(s.licence)]
        if barred:
            raise ValueError(
                f"the dataset {dataset.version} holds {len(barred)} clips whose licence is not among "
                f"policy.licences_allowed, such as {barred[0].licence!r}; run `pv3d run --until WriteShards`"
            )


def _marked(clip: Clip, reason: str, detail: Any) -> Clip:
    return clip.copy(listed={**clip.listed, "error": reason, "detail": str(detail)})


def read_record(store: Storage, key: str) -> dict[str, Any]:
    """What `pv3d takedown` wrote down. Raises ValueError for a damaged one: what must not come back would."""
    record = read_object(store, key)
    clips, shards, places = (record.get(name) for name in ("clips", "shards", "places"))
    sound = (
        _texts(record.get("entries")) and _texts(record.get("files"))
        and isinstance(clips, dict) and all(_texts(causes) for causes in clips.values())
        and isinstance(shards, dict) and all(isinstance(new, str | None) for new in shards.values())
        and isinstance(places, list) and all(_place(place) for place in places)
        and isinstance(record.get("finished"), bool)
    )  # fmt: skip
    if not sound:
        raise damaged(store, key)
    return record


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _place(value: object) -> bool:
    """(hash, start, end, causes)"""
    if not isinstance(value, list) or len(value) != 4:
        return False
    part, start, end, causes = value
    return isinstance(part, str) and is_number(start) and is_number(end) and _texts(causes)
