"""What nothing refers to is deleted when it is old enough, and nothing else."""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cv2")

import boto3
from botocore.config import Config
from people_store import PeopleStore, contents, workflow_file

from infra import lease
from infra.lease import LeaseError, hold
from pipelines import takedown
from pipelines.gc import KINDS, gc, seconds
from pipelines.ledger import Ledger
from pipelines.runner import prepare
from pipelines.workflow import load
from stages.dataset import open_dataset
from stages.versions import latest_version

DAY = 86400


class People(PeopleStore):
    """A store that grows old at will."""

    def run(self, *changes: str) -> int:
        """How many units it did."""
        return sum(prepare(self.load(*changes), in_process=True).redone.values())

    def age(self, *keys: str, days: float = 2) -> None:
        """These, or all that there is."""
        then = time.time() - days * DAY
        for path in [self.store.path(key) for key in keys] or Path(self.store.root).rglob("*"):
            os.utime(path, (then, then))

    def gc(self, *changes: str, **options: Any) -> dict[str, Any]:
        return gc(self.load(*changes), **options)[0]

    def deleted(self, *changes: str, **options: Any) -> set[str]:
        before = set(self.files())
        self.gc(*changes, **options)
        return before - set(self.files())

    def files(self) -> dict[str, bytes]:
        """All of it, also what `list` does not show; without the leases."""
        found = {path.relative_to(self.store.root).as_posix(): path.read_bytes()
                 for path in Path(self.store.root).rglob("*") if path.is_file()}  # fmt: skip
        return {key: data for key, data in found.items() if not key.startswith(("lease/", "calls.log"))}


@pytest.fixture
def people(tmp_path: Path) -> People:
    return People(tmp_path, buckets=3)


def seed(people: People) -> dict[str, dict[str, bytes]]:
    """An orphan of every kind; returns them by kind."""
    found = {
        "shards": {"shards/00001-0123456789abcdef.tar", "shards/00001-0123456789abcdef.index.json"},
        "manifests": {"manifest/00002-0123456789abcdef.json"},
        "ledger": {"ledger/Frames/20200101T000000.000000Z-000000-aaaaaa.npz",   # without records
                   "ledger/Frames/20200101T000000.000000Z-000000-bbbbbb.jsonl"},  # damaged
        "aligned": {"aligned/nobody-0123456789ab.tar", "aligned/nobody-0123456789ab.flac"},
        "statistics": {"statistics/i3d-0123456789abcdef.npz",                   # from before they named one
                       "statistics/0123456789abcdef-0123456789abcdef/i3d-0123456789abcdef.npz"},
        "temporary": {"shards/.tmp-123-abcdef"},
    }  # fmt: skip
    seeded: dict[str, dict[str, bytes]] = {kind: {} for kind in found}
    for kind, keys in found.items():
        for key in keys:
            seeded[kind][key] = b"{}" if key.endswith(".json") else b"orphan"
            path = Path(people.store.root, key)
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_bytes(seeded[kind][key])
    return seeded


def test_orphans_of_every_kind_go_and_nothing_else_does(people: People) -> None:
    people.run()
    people.store.write(f"statistics/{latest_version(people.store)}-0123456789abcdef/i3d-0.npz", b"kept")
    before = people.files()
    for _ in range(2):
        with hold(people.store, "pv3d run"):
            pass
    seeded = seed(people)
    people.age()
    planned = people.gc(dry_run=True)
    assert set(people.files()) == set(before).union(*seeded.values())
    answer = people.gc()
    assert people.files() == before
    for kind in seeded:
        assert set(planned["kinds"][kind].pop("keys")) == set(seeded[kind])
        assert planned["kinds"][kind] == answer["kinds"][kind]
        assert answer["kinds"][kind]["objects"] == len(seeded[kind])
        assert answer["kinds"][kind]["bytes"] == sum(len(seeded[kind][key]) for key in seeded[kind])
    assert answer["kinds"]["leases"]["objects"] > 0
    assert {lease.number_of(key) for key in people.store.list("lease")} == {3}
    assert answer["objects"] == sum(row["objects"] for row in answer["kinds"].values())
    assert people.run() == 0
    assert people.gc()["objects"] == 0


def test_what_is_younger_than_the_grace_time_stays(people: People) -> None:
    people.run()
    seeded = set().union(*seed(people).values())
    before = people.files()
    assert people.gc()["young"] == len(seeded)
    assert people.files() == before
    people.age(*(key for key in seeded if "/.tmp" not in key), days=0.5)
    assert people.deleted(grace="11h") == {key for key in seeded if "/.tmp" not in key}
    assert people.deleted(grace="0") == {key for key in seeded if "/.tmp" in key}


def test_the_frames_and_records_of_clips_that_are_gone_go(people: People) -> None:
    people.run()
    old = {sample.clip_id for sample in open_dataset(people.store).samples}
    people.run("stages.Cut.shift_s=0.5")
    new = {sample.clip_id for sample in open_dataset(people.store).samples}
    assert not old & new
    people.age()
    first = set(people.store.list("dataset"))
    gone = people.deleted("stages.Cut.shift_s=0.5")
    frames = {key for key in gone if key.startswith("aligned/")}
    assert len(frames) == 12
    assert {key.removeprefix("aligned/").rpartition("-")[0] for key in frames} >= old
    assert {key.split("/")[1] for key in gone if key.startswith("ledger/")} >= {"Cut", "Frames", "Two"}
    assert set(people.store.list("dataset")) == first     # a version that is there can be read
    assert not [key for key in gone if key.startswith(("shards/", "manifest/"))]
    assert people.run("stages.Cut.shift_s=0.5") == 0


def test_only_the_last_versions_of_the_dataset_are_kept_when_asked(people: People) -> None:
    versions = []
    for number in range(3):
        people.run(f"stages.WriteShards.buckets={number + 2}")
        versions.append(open_dataset(people.store).version)
        people.store.write(f"statistics/{versions[-1]}-0123456789abcdef/i3d-0.npz", b"features")
        people.age(f"dataset/{versions[-1]}.json", days=5 - number)
    people.age(*people.store.list("statistics"))
    people.age(*people.store.list("manifest"), *people.store.list("shards"), *people.store.list("ledger"))
    last = "stages.WriteShards.buckets=4"
    kept = {v: set(open_dataset(people.store, v).manifests) for v in versions}
    assert not [key for key in people.deleted(last) if not key.startswith("ledger/")]
    gone = people.deleted(last, keep=2)
    assert {key for key in gone if key.startswith("dataset/")} == {f"dataset/{versions[0]}.json"}
    assert [key.split("/")[1].split("-")[0] for key in gone if key.startswith("statistics/")] == versions[:1]
    assert {key for key in gone if key.startswith("manifest/")} == kept[versions[0]] - kept[versions[1]]
    for version in versions[1:]:
        assert open_dataset(people.store, version).samples
    people.deleted(last, keep=1)
    with pytest.raises(ValueError, match="no version"):
        open_dataset(people.store, versions[1])
    data = open_dataset(people.store)
    assert data.version == versions[2]
    assert all(data.frames(sample, [0]).shape for sample in data.samples)
    assert people.run(last) == 0


def test_the_latest_version_stays_also_when_it_is_not_the_newest(people: People) -> None:
    people.run()
    latest = open_dataset(people.store).version
    people.run("stages.WriteShards.buckets=2")
    people.run()
    assert open_dataset(people.store).version == latest
    people.age(days=3)
    people.age(f"dataset/{latest}.json", days=9)
    people.gc(keep=1)
    assert [key for key in people.store.list("dataset") if "latest" not in key] == [f"dataset/{latest}.json"]
    assert people.run() == 0


def test_shards_that_no_version_names_yet_stay_with_their_records(people: People) -> None:
    people.run()
    for key in people.store.list("dataset"):     # as when a run is killed before it commits
        people.store.delete(key)
    people.store.delete("ledger/WriteShards/finished.json")
    people.age()
    shards = set(people.store.list("shards"))
    people.gc(keep=1)
    assert set(people.store.list("shards")) == shards
    assert people.run() == 0
    assert open_dataset(people.store).samples


def test_another_setting_on_the_command_line_costs_nothing(people: People) -> None:
    people.run()
    people.age()
    before = people.files()
    people.gc("stages.Cut.pieces=1", "stages.WriteShards.buckets=9", "source.count=1")
    assert people.files() == before


@pytest.mark.parametrize("stage", ["Fetch", "Cut", "Frames", "Two", "WriteShards"])
def test_lost_records_of_one_stage_cost_only_that_stage(people: People, stage: str) -> None:
    people.run()
    for key in people.store.list(f"ledger/{stage}"):
        people.store.delete(key)
    people.age()
    people.gc()
    done = prepare(people.load(), in_process=True).redone
    assert {name for name, units in done.items() if units} == {stage}


def test_where_records_cannot_be_read_what_they_name_stays(people: People) -> None:
    people.run()
    for key in people.store.list("ledger/WriteShards"):
        if key.endswith(".npz"):
            people.store.write(key, b"damaged")
    seed(people)
    people.age()
    gone = people.deleted()
    assert not [key for key in gone if key.startswith(("aligned/", "manifest/"))]
    assert [key for key in gone if key.startswith("shards/")]    # without a manifest: nobody may name them


def test_records_of_another_version_stay(people: People) -> None:
    people.run()
    people.store.write("ledger/Cut/30000101T000000.000000Z-000000-aaaaaa.jsonl", b'{"schema": 99}\n')
    people.store.write("ledger/Cut/30000101T000000.000000Z-000000-aaaaaa.npz", b"new")
    people.age()
    assert people.deleted() == set()


def test_a_takedown_that_was_interrupted_ends_after_a_collection(people: People, tmp_path: Path) -> None:
    people.run()
    samples = open_dataset(people.store).samples
    sample = max(samples, key=lambda one: sum(other.tar == one.tar for other in samples))
    (tmp_path / "list.txt").write_text(f"clip:{sample.clip_id}\n")
    listed = f"policy.takedown={tmp_path / 'list.txt'}"

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(takedown, "_replace_dataset", dies)
        with pytest.raises(KeyboardInterrupt):
            takedown.takedown(people.load(listed))
    people.age()
    assert people.deleted(listed) == set()       # what it has written is named by its record alone
    takedown.takedown(people.load(listed))
    clips = {other.clip_id for other in open_dataset(people.store).samples}
    assert clips
    assert sample.clip_id not in clips
    people.age()
    people.gc(listed)
    assert [key for key in people.store.list("manifest") if b"taken_down" in people.store.read(key)]
    people.run(listed)
    data = open_dataset(people.store)
    assert sample.clip_id not in {other.clip_id for other in data.samples}
    assert all(data.frames(other, [0]).shape for other in data.samples)


def test_nothing_is_deleted_while_a_run_has_the_store(people: People) -> None:
    people.run()
    seed(people)
    people.age()
    before = people.files()
    with hold(people.store, "pv3d run"):
        with pytest.raises(LeaseError, match="in use by pv3d run"):
            people.gc()
        assert people.gc(dry_run=True)["objects"] > 0
    assert people.files() == before


def test_it_stops_when_another_run_takes_the_store_over(people: People, monkeypatch: Any) -> None:
    people.run()
    seed(people)
    people.age()
    before = people.files()
    find = gc.__globals__["find"]

    def slow(*args: Any, **options: Any) -> Any:
        found = find(*args, **options)
        assert people.store.create("lease/00000002.json", b"{}")
        return found

    monkeypatch.setitem(gc.__globals__, "find", slow)
    with pytest.raises(LeaseError, match="taken over"):
        people.gc()
    assert people.files() == before


def test_a_store_that_only_reads_can_be_looked_at(people: People) -> None:
    people.run()
    seed(people)
    people.age()
    before = people.files()
    assert people.gc(dry_run=True)["objects"] == 10
    assert people.files() == before
    assert list(people.store.list("lease")) == []


def test_an_empty_store_has_nothing_to_collect(people: People) -> None:
    assert people.gc(dry_run=True)["objects"] == 0
    assert people.gc()["kinds"].keys() == set(KINDS)


def test_a_damaged_version_of_the_dataset_is_named_and_nothing_is_deleted(people: People) -> None:
    people.run()
    version = open_dataset(people.store).version
    people.store.write(f"dataset/{version}.json", b"{")
    people.age()
    with pytest.raises(ValueError, match=rf"dataset/{version}.json .* damaged"):
        people.gc()


@pytest.mark.parametrize(
    ("text", "value"), [("24h", 86400), ("30m", 1800), ("7d", 604800), ("9s", 9), ("0", 0)]
)
def test_grace_times(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "24", "-1h", "1w", "1.5h", "h"])
def test_what_is_no_grace_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write 30m, 24h or 7d"):
        seconds(text)


def test_records_that_were_superseded_go(people: People) -> None:
    people.run()
    first = set(people.store.list("ledger/WriteShards"))
    people.run("stages.WriteShards.held_out=0.5")
    people.age()
    gone = people.deleted("stages.WriteShards.held_out=0.5")
    assert gone == {key for key in first if key.endswith((".jsonl", ".npz"))}
    assert Ledger(people.store).count("WriteShards")
    assert json.loads(people.store.read("ledger/WriteShards/finished.json"))


@pytest.mark.s3
def test_on_s3_leftovers_go_too_also_uploads_that_were_never_finished(rgw: Any, tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    path = workflow_file(tmp_path, f"s3://pv3d-test/{name}/one", buckets=3)
    workflow = load(path, None, (f"storage.s3.endpoint={rgw.endpoint}",))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)                # where the tiny stages leave their notes
        prepare(workflow, in_process=True)
        store = workflow.store()
        before = contents(store)
        store.write("aligned/nobody-0123456789ab.tar", b"orphan")
        store.write("shards/00001-0123456789abcdef.tar", b"orphan")
        client = _client(rgw.endpoint)
        for key in (f"{name}/one/shards/half.tar", f"{name}/other/half.tar"):
            upload = client.create_multipart_upload(Bucket="pv3d-test", Key=key)["UploadId"]
            which = {"Bucket": "pv3d-test", "Key": key, "UploadId": upload}
            client.upload_part(**which, PartNumber=1, Body=bytes(5 << 20))
        assert gc(workflow)[0]["objects"] == 0       # all of it is young
        planned = gc(workflow, grace="0", dry_run=True)[0]["kinds"]["temporary"]
        assert planned == {"objects": 1, "bytes": 5 << 20, "keys": ["shards/half.tar"]}
        kinds = gc(workflow, grace="0")[0]["kinds"]
        assert kinds.pop("leases")["objects"] > 0
        gone = {kind: row["objects"] for kind, row in kinds.items() if row["objects"]}
        assert gone == {"aligned": 1, "shards": 1, "temporary": 1}
        assert contents(store) == before
        uploads = client.list_multipart_uploads(Bucket="pv3d-test", Prefix=name)["Uploads"]
        assert [upload["Key"] for upload in uploads] == [f"{name}/other/half.tar"]
        assert not any(prepare(workflow, in_process=True).redone.values())


def _client(endpoint: str) -> Any:
    config = Config(s3={"addressing_style": "path"})
    return boto3.Session().client("s3", endpoint_url=endpoint, config=config)
