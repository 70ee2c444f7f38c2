"""The units of a run: what the source lists, as the policy allows it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from infra.scratch import Seen
from infra.storage import Storage
from pipelines.ledger import Ref
from pipelines.policy import Policy
from pipelines.workflow import Workflow
from stages.sources.several import mark_duplicates

_ID = re.compile(r"[A-Za-z0-9_-]+")


def listed(workflow: Workflow, store: Storage, policy: Policy) -> Iterator[Ref]:
    """The videos of the source. Raises ValueError for an id that is unfit or comes twice."""
    seen, source = Seen(), workflow.source
    clips = mark_duplicates(policy.licensed(source.clips(store)), source.names_once)
    for clip in policy.meant(clips):
        if not _ID.fullmatch(clip.id):
            raise ValueError(f"source: id {clip.id!r} of {clip.source}: use letters, digits, _ and -")
        if seen.again(clip.id):
            raise ValueError(f"source: {clip.source}: a second video with the id {clip.id!r}; rename one")
        yield Ref(clip.id, clip.digest(), clip.source, clip.identity, clip=clip)
