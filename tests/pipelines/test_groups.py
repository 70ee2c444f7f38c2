"""Light clips: a large group gets the arrays it reads, and what it writes reaches the whole clips."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipelines.groups import Division, clips_of, in_storage_order, light, restore
from pipelines.ledger import Ledger, Output, Record, Ref, members_digest
from pipelines.pools import Pool, Work
from pipelines.settings import Workers
from pipelines.spool import Spool
from pipelines.work import Chain
from pipelines.workflow import Step
from stages import Clip, GroupStage, Rejected, Resources


@dataclass
class Number(GroupStage):
    """Numbers the clips; rejects the first."""

    name: ClassVar[str] = "Number"
    reads: ClassVar[tuple[str, ...]] = ("embedding_mean",)
    writes: ClassVar[tuple[str, ...]] = ("identity", "extra.number")
    whole_clips: ClassVar[bool] = False

    def process_group(self, group: str, clips: list[Clip]) -> Iterator[Clip | Rejected]:
        for number, clip in enumerate(clips):
            assert clip.embeddings is None
            assert clip.face_boxes is None
            out = clip.copy(identity=f"p{int(clip.need('embedding_mean')[0])}")
            out.extra["number"] = number
            yield out if number else Rejected(out, "first")


def written(store, count: int) -> tuple[Ledger, list[Ref]]:
    """A ledger with clips of one stage, in two segments, and their refs sorted by id."""
    ledger = Ledger(store)
    refs = []
    for i in reversed(range(count)):
        clip = Clip(
            id=f"c{i}", source="s", video="v", face_boxes=np.zeros((3, 4), np.float32),
            embeddings=np.full((3, 2), i, np.float32), embedding_mean=np.full(2, i, np.float32),
        )  # fmt: skip
        record = Record(clip.id, "s", "key", "in", "ok", outputs=[Output(clip.id, clip.digest())])
        refs += ledger.add("Before", record, [clip])
        if i == count // 2:
            ledger.flush()
    ledger.flush()
    return ledger, sorted(refs, key=lambda ref: ref.id)


def step() -> Step:
    return Step("Number", "x:Number", Number(), Resources(), Workers(), 60.0)


def test_a_light_group_gets_what_it_reads_and_whole_clips_come_out(store):
    ledger, refs = written(store, 4)
    work = Work(Pool([step()], 0), 0, refs, "all")
    clips = clips_of(work, ledger)
    assert [clip.id for clip in clips] == ["c0", "c1", "c2", "c3"]
    pieces = Chain([step().stage], ["Number"], store).run_group("all", clips)
    for i, (ref, piece) in enumerate(zip(refs, pieces, strict=True)):
        restore(piece, ledger.load(ref), Number.writes)
        (clip,), (output,) = piece.clips, piece.outputs
        assert (clip.identity, clip.extra) == (f"p{i}", {"number": i})
        assert clip.embeddings.shape == (3, 2)
        assert clip.face_boxes.shape == (3, 4)
        assert output.digest == clip.digest()
        assert output.state == ("ok" if i else "rejected")


def test_clips_that_are_not_written_yet_are_light_too():
    clip = Clip(id="a", source="s", video="v", embeddings=np.ones((2, 2)), embedding_mean=np.ones(2))
    assert light(clip, ("embedding_mean",)).embeddings is None
    assert light(clip, ("embedding_mean",)).embedding_mean is clip.embedding_mean
    assert clip.embeddings is not None


def test_each_segment_is_read_once(store, monkeypatch):
    ledger, refs = written(store, 6)
    monkeypatch.setattr("pipelines.blocks.BLOCKS", 1)
    read = []
    ranged = store.read_range
    monkeypatch.setattr(store, "read_range", lambda key, *at: read.append((key, *at)) or ranged(key, *at))
    shuffled = refs[::2] + refs[1::2]
    clips_of(Work(Pool([step()], 0), 0, shuffled, "all"), ledger)
    assert len(read) == len(set(read)) == len({ref.segment for ref in refs}) == 2
    assert [ref.segment for ref in in_storage_order(shuffled)] == sorted(ref.segment for ref in refs)


def divided(ledger: Ledger, refs: list[Ref]) -> tuple[Spool, Spool]:
    division = Division(step(), ledger)
    for ref in refs:
        division.add(ref)
    return division.end()


def finished(ledger: Ledger, group: str, refs: list[Ref], members: str, again: bool = False) -> None:
    """Note that a group stage has done these."""
    for ref in refs:
        clip = ledger.load(ref)
        record = Record(
            ref.id, ref.source, step().key, ref.digest, "failed" if again else "ok", group=group,
            members=members, again=again, outputs=[] if again else [Output(clip.id, ref.digest)],
        )  # fmt: skip
        ledger.add("Number", record, [] if again else [clip])


def test_only_groups_done_with_exactly_these_members_are_done(store):
    ledger, refs = written(store, 8)
    groups = {"same": refs[0:2], "fewer": refs[2:4], "again": refs[4:6], "mixed": refs[6:8]}
    for group, members in groups.items():
        came_with = [*members, refs[0]] if group == "fewer" else members
        finished(ledger, group, members, members_digest(came_with), group == "again")
    finished(ledger, "mixed", refs[7:], "another")
    came, to_do = divided(ledger, refs)
    assert came.count == 2
    assert [ref.id for ref in came] == ["c0", "c1"]
    assert [group for group, _ in to_do.groups()] == ["again", "fewer", "mixed"]


def test_a_group_that_lost_a_member_or_got_one_is_done_again(store):
    ledger, refs = written(store, 5)
    finished(ledger, "a", refs[:2], members_digest(refs[:2]))
    finished(ledger, "b", refs[2:4], members_digest(refs[2:4]))
    came, to_do = divided(ledger, refs[1:])
    assert [ref.id for ref in came] == ["c2", "c3"]
    found = {group: [ref.id for ref in members] for group, members in to_do.groups()}
    assert found == {"a": ["c1"], step().stage.group(ledger.load(refs[4])): ["c4"]}
