"""What a takedown list means is processed no further, and is removed from all that was made before."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cv2")

from people_store import PeopleStore, contents
from tiny_people import ID

from infra.storage import FolderStorage
from pipelines import forget, takedown
from pipelines.ledger import Ledger
from pipelines.policy import Policy
from pipelines.runner import prepare
from pipelines.segments import rows_of
from pipelines.status import survey
from pipelines.workflow import load
from stages.dataset import open_dataset
from stages.takedown import hash_of


class People(PeopleStore):
    """The workflow of tiny people in a folder of its own, with a takedown list."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.list = folder / "list.txt"
        self.list.write_text("# nobody\n")

    def name(self, *entries: str) -> None:
        self.list.write_text("".join(f"{entry}\n" for entry in entries))

    def load(self, *changes: str):
        return super().load(f"policy.takedown={self.list}", *changes)

    def run(self, *changes: str):
        return prepare(self.load(*changes), in_process=True)

    def take_down(self) -> dict[str, Any]:
        return takedown.takedown(self.load())[0]

    def calls(self) -> list[str]:
        log = self.root / "calls.log"
        lines = sorted(log.read_text().splitlines()) if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def clips(self) -> set[str]:
        return {sample.clip_id for sample in open_dataset(self.store).samples}

    def identities(self) -> set[str]:
        return {sample.identity for sample in open_dataset(self.store).samples}

    def contents(self, *folders: str) -> dict[str, bytes]:
        return contents(self.store, *folders)

    def reasons(self) -> dict[str, str]:
        return {u.clip or u.source: u.reason for u in survey(self.load()).units if u.state != "ok"}

    def state(self) -> dict[str, Any]:
        """All that a run leaves, but times: files as they are, records by what they say."""
        files = self.contents("shards", "manifest", "dataset", "aligned", "videos", "takedown")
        files = {key: re.sub(rb'"when": "[^"]*"', b"", data) for key, data in files.items()}
        records = {}
        for step in self.load().steps:
            for record in Ledger(self.store).records(step.name):
                outputs = [replace(out, at=None) for out in record.outputs]
                plain = replace(record, segment="", outputs=outputs, seconds=0.0)
                records[step.name, record.unit] = str(plain)
        return {**files, "records": records}


@pytest.fixture
def people(tmp_path: Path) -> People:
    return People(tmp_path / "people")


def traces(store: FolderStorage, *words: str) -> list[str]:
    """Files of the store that hold one of the words, but for the notes of the tiny stages."""
    found = []
    for key in store.list():
        data = store.read(key)               # arrays are not compressed
        if key != "calls.log" and any(word.encode() in data or word in key for word in words):
            found.append(key)
    return found


@pytest.mark.parametrize("entry", [f"video:{ID.format(2)}", f"https://youtu.be/{ID.format(2)}", ID.format(2)])
def test_a_listed_video_is_not_touched(people: People, entry: str) -> None:
    people.name(entry)
    assert people.run().kept == 6
    assert not [line for line in people.calls() if ID.format(2) in line]
    assert people.reasons()[f"https://www.youtube.com/watch?v={ID.format(2)}"] == "taken down"
    assert traces(people.store, ID.format(2)) == []


@pytest.mark.parametrize(
    ("entry", "gone"),
    [
        (f"video:{ID.format(2)}", {2}),
        ("identity:p1", {2, 3}),
        (f"clip:people-{ID.format(2)}", {2}),
    ],
)
@pytest.mark.parametrize("by_run", [True, False])
def test_what_is_sharded_is_removed_and_only_its_shards_are_rewritten(
    people: People, entry: str, gone: set[int], by_run: bool
) -> None:
    people.run()
    before, old = people.contents("shards", "manifest"), open_dataset(people.store)
    people.store.write("statistics/inception-0.npz", b"features of frames")
    people.calls()
    affected = {s.tar for s in old.samples if any(ID.format(n) in s.clip_id for n in gone)}
    people.name(entry)
    if by_run:
        people.run()
        assert not [line for line in people.calls() if line.split()[0] in ("Fetch", "Cut", "Frames")]
    else:
        answer = people.take_down()
        stems = {tar.removeprefix("shards/").removesuffix(".tar") for tar in affected}
        assert set(answer["shards"]) == {f"manifest/{stem}.json" for stem in stems}
    after = people.contents("shards")
    if not by_run or gone == {2, 3}:         # else a run gives the places of 2 to clips of 3
        tars = {key: data for key, data in before.items() if key.endswith(".tar") and key not in affected}
        assert tars.items() <= after.items()
    assert not affected & set(after)
    kept = {s.clip_id for s in old.samples if not any(ID.format(n) in s.clip_id for n in gone)}
    assert people.clips() >= kept
    assert not [clip for clip in people.clips() if any(ID.format(n) in clip for n in gone)]
    names = [ID.format(n) for n in gone]
    assert traces(people.store, *names) == []
    assert people.store.exists("takedown/state.json")
    assert not list(people.store.list("statistics"))
    with pytest.raises(ValueError, match=rf"version {old.version} .* was taken down \(see takedown/"):
        open_dataset(people.store, old.version)
    sample = next(s for s in old.samples if s.tar in affected)
    with pytest.raises(ValueError, match="was taken down"):
        old.frames(sample, [0])


def test_a_command_and_a_run_end_in_the_same_state(tmp_path: Path) -> None:
    one, two = People(tmp_path / "a"), People(tmp_path / "b")
    for each in (one, two):
        each.run()
        each.name("identity:p1", f"video:{ID.format(0)}")
    one.take_down()
    one.run()
    two.run()
    assert one.state() == two.state()
    assert one.clips() == two.clips()


def test_doing_it_again_changes_nothing(people: People) -> None:
    people.run()
    people.name("identity:p1")
    people.take_down()
    people.run()
    before = people.contents()
    assert people.take_down()["units"] == []
    done = people.run()
    assert set(done.redone.values()) == {0}
    assert people.contents() == before


def test_a_dry_run_tells_and_changes_nothing(people: People) -> None:
    people.run()
    people.name("identity:p1")
    before = people.contents()
    answer, text = takedown.takedown(people.load(), dry_run=True)
    assert people.contents() == before
    assert answer["dry_run"]
    assert len(answer["clips"]) == 2
    assert "would be removed" in text
    assert set(answer["clips"]) == set(people.take_down()["clips"])


class PowerError(Exception):
    """The power fails."""


def fail_after(writes: int, store: FolderStorage, patch: pytest.MonkeyPatch) -> None:
    """Let so many changes of a store succeed, and no more."""
    left = writes

    def dying(method: str) -> None:
        plain = getattr(FolderStorage, method)

        def call(self: FolderStorage, *args: Any) -> Any:
            nonlocal left
            if self.root == store.root:
                left -= 1
                if left < 0:
                    raise PowerError
            return plain(self, *args)

        patch.setattr(FolderStorage, method, call)

    for method in ("write", "create", "upload", "delete"):
        dying(method)


@pytest.mark.parametrize("by_run", [True, False])
def test_an_abort_between_any_two_writes_is_finished_by_the_next_attempt(
    tmp_path: Path, by_run: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = People(tmp_path / "whole")
    whole.run()
    shutil.copytree(whole.root, tmp_path / "before")
    whole.name("identity:p1")
    whole.take_down()
    whole.run()
    wanted = whole.state()
    for stop in range(200):
        people = People(tmp_path / f"{stop}")
        shutil.copytree(tmp_path / "before", people.root)
        people.name("identity:p1")
        fail_after(stop, people.store, monkeypatch)
        aborted = False
        try:
            people.run() if by_run else people.take_down()
        except PowerError:
            aborted = True
        monkeypatch.undo()
        if stop % 2:                         # a run finishes what either of them began
            people.take_down()
        people.run()
        assert people.state() == wanted, f"after {stop} writes"
        shutil.rmtree(people.root)
        if not aborted:
            assert stop > 20
            return
    raise AssertionError("it never ended")


def test_training_refuses_a_dataset_that_still_holds_what_is_listed(people: People) -> None:
    pytest.importorskip("torch")
    from pipelines.train import plan

    people.run()
    people.name("identity:p1")
    with pytest.raises(ValueError, match=r"holds 2 clips that .*list.txt names; run `pv3d takedown` first"):
        plan(people.load())


def test_a_store_that_was_swept_wants_its_list(people: People) -> None:
    people.name("identity:p1")
    people.run()
    with pytest.raises(ValueError, match=r"policy.takedown: not set, but .* was swept"):
        prepare(load(people.path), in_process=True)


def test_a_freed_place_goes_to_the_next_clip_of_the_person(people: People) -> None:
    people.run()
    before = people.clips()
    assert len([clip for clip in before if ID.format(0) in clip]) == 2
    people.name(f"clip:people-{ID.format(0)}_0000000")
    people.run()
    assert len(people.clips()) == len(before)
    assert people.clips() - before == {f"people-{ID.format(1)}_0000000"}


def test_one_person_of_a_video_is_removed_and_the_other_stays(people: People) -> None:
    changes = ("source.several=[0]",)
    people.run(*changes)
    assert {"px", "py"} < people.identities()
    before = people.contents("shards", "aligned")
    people.calls()
    people.name("identity:px")
    people.run(*changes)
    assert not [line for line in people.calls() if line.split()[0] in ("Fetch", "Cut", "Frames")]
    assert "px" not in people.identities()
    assert "py" in people.identities()
    assert not [key for key in people.store.list("videos") if ID.format(0) in key]
    kept = {key for key in before if key.startswith("aligned/") and f"{ID.format(0)}-1_" in key}
    assert kept <= set(people.store.list("aligned"))
    # A changed setting needs the video again: of it, what is allowed comes.
    people.run(*changes, "stages.Cut.pieces=3")
    assert [line for line in people.calls() if line.startswith("Fetch")] == [f"Fetch people-{ID.format(0)} 1"]
    assert "px" not in people.identities()
    assert "py" in people.identities()


def test_of_a_new_video_only_the_part_of_the_other_person_is_fetched(people: People) -> None:
    people.name("identity:px")
    people.run("source.several=[0]")
    assert f"Fetch people-{ID.format(0)} 1" in people.calls()
    assert not [name for name in people.identities() if name == "px"]


def test_a_video_of_which_every_part_is_meant_is_not_touched(people: People) -> None:
    people.name("identity:px", "identity:py")
    people.run("source.several=[0]")
    assert not [line for line in people.calls() if ID.format(0) in line]
    units = survey(people.load("source.several=[0]")).units
    assert [(u.clip, u.reason) for u in units if ID.format(0) in u.source] == [(None, "taken down")]


def test_a_person_that_only_the_balance_names_stays_away(people: People, monkeypatch: Any) -> None:
    changes = ("source.several=[]", "source.licences=[CC0]")
    people.run(*changes)
    name = sorted(people.identities())[0]
    people.name(f"identity:{name}")
    people.run(*changes)
    gone = people.contents()
    people.run(*changes)
    assert people.contents() == gone
    assert name not in people.identities()


def test_what_is_cut_anew_has_other_ids_and_still_stays_away(people: People) -> None:
    people.run()
    gone = sorted(people.clips())[0]
    people.name(f"clip:{gone}")
    people.run()
    people.run("stages.Cut.shift_s=0.02")            # other ids for the same seconds
    assert not [clip for clip in people.clips() if clip.startswith(gone[:-7] + "00000")]
    assert [clip for clip in people.clips() if clip.startswith(gone[:-7])]
    before = people.contents()
    assert people.take_down()["units"] == []
    assert people.contents() == before


@pytest.mark.parametrize("entry", ["identity:p1", f"clip:people-{ID.format(2)}_0000000"])
@pytest.mark.parametrize("run_between", [True, False])
def test_an_entry_that_is_withdrawn_lets_the_clips_come_back(
    people: People, entry: str, run_between: bool
) -> None:
    people.run()
    before = people.contents("shards", "manifest", "dataset", "aligned", "videos")
    people.name(entry)
    people.take_down()
    if run_between:
        people.run()
    people.name()
    people.run()
    assert people.contents("shards", "manifest", "dataset", "aligned", "videos").items() >= before.items()
    people.name("identity:p1")
    people.run()
    assert "p1" not in people.identities()


def test_licences_that_are_not_allowed_are_rejected_with_that_reason(people: People) -> None:
    changes = ("source.licences=[CC0, Other]", "source.several=[4]")
    people.run(*changes)
    allowed = (*changes, "policy.licences_allowed=[cc0]")
    with pytest.raises(ValueError, match=r"licence is not among policy.licences_allowed, such as 'Other'"):
        Policy(people.load(*allowed), people.store).check_dataset(open_dataset(people.store))
    people.run(*allowed)
    samples = open_dataset(people.store).samples
    assert {sample.licence for sample in samples} == {"CC0"}
    assert {sample.identity for sample in samples} >= {"p0", "p1", "px"}
    units = [u for u in survey(people.load(*allowed)).units if u.reason == "licence not allowed"]
    assert len(units) == 3 + 1
    assert {u.state for u in units} == {"rejected"}


def test_of_a_clip_nothing_but_its_id_stays_in_the_records_of_what_it_was_cut_from(people: People) -> None:
    people.run()
    name = f"people-{ID.format(0)}_0000000"
    people.name(f"clip:{name}")
    people.take_down()
    seen = 0
    for key, records in forget.segments(people.store):
        held = forget.clips(people.store, key)
        assert held is not None
        for record, rows in rows_of(records):
            assert record.unit != name
            for row, out in zip(rows, record.outputs, strict=True):
                clip = held.clip(row)
                assert (clip.id, bool(clip.is_cut or "/Fetch/" in key)) == (out.id, out.id != name)
                seen += out.id == name
    assert seen == 1
    assert people.reasons()[name] == "taken down"


def test_a_video_takes_along_all_that_was_cut_from_its_parts(people: People) -> None:
    people.run("source.several=[0]")
    people.name(f"clip:people-{ID.format(0)}")
    unlisted = people.load("source.use='stages.sources.urls:Urls'", "source.location=gone.csv")
    answer, _ = takedown.takedown(unlisted)
    assert len([clip for clip in answer["clips"] if ID.format(0) in clip]) == 4
    assert traces(people.store, ID.format(0)) == []


def test_the_record_names_nobody(people: People) -> None:
    people.run()
    people.name("identity:p1")
    key = people.take_down()["record"]
    record = json.loads(people.store.read(key))
    assert record["finished"]
    assert record["entries"] == [hash_of("identity:p1")]
    assert hash_of(f"people-{ID.format(2)}_0000000") in record["clips"]
    assert all(old.startswith("manifest/") for old in record["shards"])
    assert ID.format(2) not in str(record)


def test_a_malformed_list_is_refused_before_any_work(people: People) -> None:
    people.list.write_text("identity:p1\nperson:p2\n")
    with pytest.raises(ValueError, match=rf"{people.list}:2: no kind 'person'"):
        people.load()
    assert not people.root.exists()


def test_without_a_list_the_command_says_what_to_set(people: People) -> None:
    with pytest.raises(ValueError, match=r"policy.takedown: not set; name the list"):
        takedown.takedown(load(people.path))


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"samples": [{}]}', b'{"samples": 1}', b"[" * 100_000])
def test_a_damaged_manifest_is_named(people: People, content: bytes) -> None:
    people.run()
    key = next(people.store.list("manifest"))
    people.store.write(key, content)
    people.name(ID.format(2))
    with pytest.raises(ValueError, match=f"{key} in .* is damaged"):
        people.take_down()


def test_arrays_without_a_segment_are_deleted(people: People) -> None:
    people.run()
    segment = next(key for key in people.store.list("ledger/Frames") if key.endswith(".jsonl"))
    people.store.delete(segment)
    forget.forget(people.store, lambda unit: False)
    assert not people.store.exists(segment.removesuffix("jsonl") + "npz")


def test_older_versions_and_shards_are_searched_too(people: People) -> None:
    people.run("source.count=4")
    first = open_dataset(people.store).version
    people.run()
    assert len(list(people.store.list("manifest"))) > len(open_dataset(people.store).manifests)
    people.name("identity:p1")
    answer = people.take_down()
    assert None in answer["shards"].values()             # of the older version: not written again
    assert traces(people.store, ID.format(2)) == []
    with pytest.raises(ValueError, match="was taken down"):
        open_dataset(people.store, first)
    for key in people.store.list("manifest"):
        manifest = json.loads(people.store.read(key))
        assert ("taken_down" in manifest) != people.store.exists(manifest.get("tar", "shards/none"))


def test_a_shard_that_was_never_committed_is_found(people: People) -> None:
    people.run()
    sample = next(s for s in open_dataset(people.store).samples if s.identity == "p1")
    people.store.write("shards/00000-0123456789abcdef.tar", people.store.read(sample.tar))
    people.name("identity:p1")
    people.take_down()
    assert not people.store.exists("shards/00000-0123456789abcdef.tar")


def test_addresses_of_files_are_taken_down_by_address(people: People) -> None:
    table = people.path.with_name("urls.csv")
    table.write_text("url\nhttp://x.example/a.mp4?token=t0p\nhttp://x.example/b.mp4\n")
    changes = ("source.use='stages.sources.urls:Urls'", f"source.location={table}")
    people.run(*changes)
    assert len(people.clips()) == 4
    people.name("url:https://x.example/a.mp4")
    people.run(*changes)
    assert {s.source for s in open_dataset(people.store).samples} == {"http://x.example/b.mp4"}
    assert not [key for key in people.store.list("videos") if "a-mp4" in key]
    assert people.store.exists("takedown/state.json")


def test_a_source_that_cannot_be_listed_does_not_keep_anybody_in_the_store(
    people: People, caplog: pytest.LogCaptureFixture
) -> None:
    people.run()
    people.name("identity:p1")
    changes = ("source.use='stages.sources.urls:Urls'", "source.location=gone.csv")
    answer, _ = takedown.takedown(people.load(*changes))
    assert len(answer["clips"]) == 2
    assert "cannot be listed" in caplog.text


def test_a_record_that_cannot_be_read_goes(people: People) -> None:
    people.run()
    segment = next(key for key in people.store.list("ledger/Frames") if key.endswith(".jsonl"))
    people.store.write(segment, people.store.read(segment)[:-9])
    people.name("identity:p1")
    people.take_down()
    assert not people.store.exists(segment)
    assert not people.store.exists(segment.removesuffix("jsonl") + "npz")


def test_workers_elsewhere_hear_what_made_the_clips(people: People) -> None:
    from pipelines.work import ChainSpec

    steps = people.load().steps
    last = steps[-1]
    spec = ChainSpec(
        ((last.use, last.settings),), (last.name,), str(people.root), {}, (), tuple(s.facts for s in steps)
    )
    (there,) = spec.build().stages
    assert [*there._history] == [*last.stage._history] == [step.facts for step in steps]
    people.run()
    dataset = open_dataset(people.store)
    record = dataset.record(dataset.samples[0])
    assert [stage["stage"] for stage in record["stages"]] == [step.name for step in steps]
    manifest = json.loads(people.store.read(dataset.manifests[0]))
    assert manifest["config_sha256"] == record["config_sha256"]


def test_the_command_line_answers_in_json_and_refuses_in_one_line(people: People) -> None:
    from click.testing import CliRunner

    from pipelines.cli import main

    people.run()
    people.name("identity:p1")
    arguments = ["takedown", str(people.path), "--set", f"policy.takedown={people.list}"]
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout.splitlines()[-1])
    assert len(answer["clips"]) == 2
    assert answer["dataset"] == open_dataset(people.store).version
    described = CliRunner().invoke(main, ["describe", *arguments[1:], "--json"])
    assert json.loads(described.stdout.splitlines()[-1])["policy"]["entries"] == 1
    people.name("identity:p1", "video:")
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 2
    assert refused.stderr.startswith(f"pv3d: {people.list}:2: the id is empty")
    assert refused.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_on_ray_the_same_is_made_and_taken_down(tmp_path: Path) -> None:
    here, there = People(tmp_path / "here"), People(tmp_path / "there")
    made = ("shards", "manifest", "dataset")
    here.run()
    prepare(there.load())
    assert here.contents(*made) == there.contents(*made)
    for each in (here, there):
        each.name("identity:p1")
    here.run()
    prepare(there.load())
    assert here.contents(*made) == there.contents(*made)
    assert here.contents(*made, "takedown").keys() == there.contents(*made, "takedown").keys()
    assert there.identities() == {"p0", "p2"}


def test_on_s3_the_same_is_removed(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto")
    from infra.s3 import S3Storage

    people.run()
    people.name("identity:p1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    with moto.mock_aws():
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="bucket")
        store = S3Storage("s3://bucket/x", region="us-east-1")
        for key, data in people.contents().items():
            store.write(key, data)
        takedown.sweep(people.load(), store)
        people.take_down()
        left = {key: data for key, data in people.contents().items() if not key.startswith("takedown/")}
        assert set(store.list("takedown")) == set(people.store.list("takedown"))
        there = {key: store.read(key) for key in store.list() if not key.startswith("takedown/")}
    assert there == left
