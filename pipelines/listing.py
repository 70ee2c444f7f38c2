"""The units of a run: what the source lists, as the policy allows it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from infra.scratch import Seen
from infra.storage import Storage
from pipelines.ledger import Ref
from pipelines.policy import Policy
from pipelines.workflow import Workflow
from stages.sources.several import mark_duplicates

PAGE = 128                                   # videos that are checked at a time

_ID = re.compile(r"[A-Za-z0-9_-]+")


def listed(workflow: Workflow, store: Storage, policy: Policy) -> Iterator[Ref]:
    """The videos of the source. Raises ValueError for an id that is unfit or comes twice."""
    seen = Seen()
    clips = policy.meant(mark_duplicates(policy.licensed(workflow.source.clips(store))))
    while page := list(islice(clips, PAGE)):
        for clip in page:
            if not _ID.fullmatch(clip.id):
                raise ValueError(f"source: id {clip.id!r} of {clip.source}: use letters, digits, _ and -")
        if again := seen.again([clip.id for clip in page]):
            source = [clip.source for clip in page if clip.id == again][-1]
            raise ValueError(f"source: {source}: a second video with the id {again!r}; rename one")
        for clip in page:
            yield Ref(clip.id, clip.digest(), clip.source, clip.identity, clip=clip)
