"""`pv3d export`: folders of other programs, whole, resumable, with their licences; and back again."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from tiny_dataset import clip_in, picture, write

from infra.storage import FolderStorage, open_storage
from model.camera import check_cameras, hflip
from pipelines.cli import main
from pipelines.export import export, make_layout
from pipelines.run import run_workflow
from pipelines.workflow import load
from stages.shards import Dataset, open_dataset
from stages.video import read_all

WORKFLOW = """\
storage: {{root: {root}}}
source: {source}
stages:
{stages}
train: {{variant: "model.config:tiny"}}
"""
ROOT = Path(__file__).parents[2]
ALIGNED = """\
- {use: "stages.aligned:TakeAligned", size: 64}
- {use: "stages.shards:WriteShards", buckets: 3}
"""
IDS = ["a", "a-1", "_b_0000040", "-c", "d"]


def workflow(root: Path, source: str = "{use: tiny_stages:Numbers}", stages: str = "- use: tiny_stages:Cut"):
    path = root.with_suffix(".yaml")
    path.write_text(WORKFLOW.format(root=root, source=source, stages=stages))
    return load(path)


def official(folder: Path) -> str:
    return f'{{use: "stages.sources.official:Official", location: {folder}}}'


@pytest.fixture
def made(tmp_path: Path):
    """A workflow whose store holds a dataset."""
    store = FolderStorage(tmp_path / "made")
    write(store, [clip_in(store, i) for i in IDS])
    return workflow(tmp_path / "made")


def dataset_of(made) -> Dataset:
    return open_dataset(made.store())


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def times(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_the_authors_folder_holds_every_clip_with_its_cameras_and_licence(made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    value, text = export(made, make_layout("pv3d"), str(out))
    assert (value["clips"], value["written"], value["frames"]) == (len(IDS), len(IDS), 20 * len(IDS))
    assert str(out) in text
    names = (out / "voxceleb.list").read_text().splitlines()
    assert names == [f"{i}.mp4" for i in sorted(IDS)]
    dataset = dataset_of(made)
    for sample in dataset.samples:
        rows = json.loads((out / "smoothed_camera2world" / f"{sample.clip_id}.json").read_text())
        assert [len(row) for row in rows] == [2] * sample.frame_count
        assert [row[0] for row in rows] == sorted({row[0] for row in rows})
        written = np.array([row[1] for row in rows], np.float32)
        np.testing.assert_array_equal(written, dataset.cameras(sample))
        shown = [frame for _, frame in read_all(out / "recrop_faces" / f"{sample.clip_id}.mp4")]
        assert len(shown) == sample.frame_count
        for index, frame in enumerate(shown):
            assert np.abs(frame.astype(int) - picture(sample.clip_id, index)).mean() < 4
        known = json.loads((out / "provenance" / f"{sample.clip_id}.json").read_text())
        for field in ("licence", "source", "identity"):
            assert known[field] == getattr(sample, field)


@pytest.mark.parametrize(
    ("options", "frames"),
    [
        ({}, 20), ({"every": 7}, 3), ({"per_clip": 4}, 4), ({"per_clip": 50}, 20),
        ({"every": 7, "mirror": True}, 6),
    ],
)
def test_eg3d_gets_a_label_for_every_image_and_an_image_for_every_label(
    options: dict, frames: int, made, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    value, _ = export(made, make_layout("eg3d", **options), str(out))
    labels = dict(json.loads((out / "dataset.json").read_text())["labels"])
    images = {p.relative_to(out).as_posix() for p in out.rglob("*.png")}
    assert images == set(labels)
    assert len(images) == value["frames"] == frames * len(IDS)
    check_cameras(list(labels.values()))
    dataset = dataset_of(made)
    for sample in dataset.samples:
        name = f"images/{sample.clip_id}/0007.png"
        if name in labels:
            np.testing.assert_array_equal(np.float32(labels[name]), dataset.cameras(sample)[7])
            shown = cv2.imread(str(out / name))[..., ::-1]
            np.testing.assert_array_equal(shown, dataset.frames(sample, [7])[0])
            if "mirror" in options:
                mirrored = name.replace(".png", "_mirror.png")
                np.testing.assert_array_equal(np.float32(labels[mirrored]), hflip(dataset.cameras(sample)[7]))
                np.testing.assert_array_equal(cv2.imread(str(out / mirrored))[..., ::-1], shown[:, ::-1])


@pytest.mark.parametrize("kind", ["pv3d", "eg3d"])
def test_a_second_run_does_nothing_and_two_exports_are_equal(kind: str, made, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    export(made, make_layout(kind), str(one), workers=1)
    before = times(one)
    value, _ = export(made, make_layout(kind), str(one))
    assert (value["written"], value["kept"]) == (0, len(IDS))
    assert times(one) == before
    export(made, make_layout(kind), str(two), workers=4)
    assert content(one) == content(two)


@pytest.mark.parametrize("kind", ["pv3d", "eg3d"])
def test_an_export_that_broke_off_has_no_list_and_the_next_run_completes_it(
    kind: str, made, tmp_path: Path
) -> None:
    layout, out, whole = make_layout(kind), tmp_path / "out", tmp_path / "whole"
    export(made, layout, str(whole))
    dataset = dataset_of(made)
    manifest = json.loads(made.store().read(dataset.manifests[-1]))
    shard = FolderStorage(made.storage.root).path(manifest["tar"])
    sound = shard.read_bytes()
    shard.write_bytes(sound[:2000])
    with pytest.raises(ValueError, match="damaged"):
        export(made, layout, str(out))
    assert not (out / layout.last).exists()
    assert json.loads((out / "export.json").read_text())["complete"] is False
    shard.write_bytes(sound)
    value, _ = export(made, layout, str(out))
    assert value["written"] + value["kept"] == len(IDS)
    assert content(out) == content(whole)


def test_a_lost_file_is_written_again(made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(made, make_layout("pv3d"), str(out))
    before = content(out)
    (out / "recrop_faces" / "d.mp4").unlink()
    assert export(made, make_layout("pv3d"), str(out))[0]["written"] == 1
    assert content(out) == before


def test_another_version_of_the_dataset_is_noticed_and_what_it_lost_is_deleted(made, tmp_path: Path) -> None:
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    export(made, make_layout("pv3d"), str(out))
    store = made.store()
    write(store, [clip_in(store, i) for i in [*IDS, "new"] if i != "d"])
    value, _ = export(made, make_layout("pv3d"), str(out))
    assert value["version"] == dataset_of(made).version
    assert value["deleted_files"] == 3
    export(made, make_layout("pv3d"), str(fresh))
    assert content(out) == content(fresh)
    assert not (out / "recrop_faces" / "d.mp4").exists()


def test_only_the_wanted_split_leaves_the_house(tmp_path: Path) -> None:
    store = FolderStorage(tmp_path / "made")
    write(store, [clip_in(store, f"{c}1", 4) for c in "abcdefgh"], held_out=0.5)
    made = workflow(tmp_path / "made")
    splits = {s.clip_id: s.split for s in dataset_of(made).samples}
    assert set(splits.values()) == {"train", "test"}
    value, text = export(made, make_layout("pv3d"), str(tmp_path / "out"))
    names = (tmp_path / "out" / "voxceleb.list").read_text().split()
    assert names == sorted(f"{i}.mp4" for i in splits if splits[i] == "train")
    assert value["other_split"] == 8 - len(names)
    assert f"{8 - len(names)} clips of another split" in text
    export(made, make_layout("pv3d"), str(tmp_path / "all"), split="all")
    stages = ALIGNED.replace("64", "64, minimum_frames: 4")
    back = workflow(tmp_path / "back", official(tmp_path / "all"), stages)
    run_workflow(back, until="WriteShards", in_process=True)
    assert {s.clip_id: s.split for s in open_dataset(back.store()).samples} == splits
    with pytest.raises(ValueError, match="it holds test, train"):
        export(made, make_layout("pv3d"), str(tmp_path / "none"), split="valid")


@pytest.mark.parametrize("other", ["photo.jpg", "recrop_faces/a.mp4", "export.json"])
def test_a_folder_that_holds_something_else_is_refused(other: str, made, tmp_path: Path) -> None:
    path = tmp_path / "out" / other
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(ValueError, match="give a new or empty folder") as refused:
        export(made, make_layout("pv3d"), str(tmp_path / "out"))
    assert "\n" not in str(refused.value)
    assert content(tmp_path / "out") == {other: b"mine"}


def test_an_export_with_other_options_is_refused(made, tmp_path: Path) -> None:
    export(made, make_layout("eg3d", every=2), str(tmp_path / "out"))
    before = content(tmp_path / "out")
    others = [{"kind": "pv3d"}, {"kind": "eg3d", "every": 3}, {"kind": "eg3d", "every": 2, "mirror": True}]
    for layout in (make_layout(**options) for options in others):
        with pytest.raises(ValueError, match="give another folder"):
            export(made, layout, str(tmp_path / "out"))
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize("kind", ["pv3d", "eg3d"])
def test_a_dry_run_counts_clips_frames_and_bytes_and_writes_nothing(kind: str, made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    value, text = export(made, make_layout(kind), str(out), dry_run=True)
    assert not out.exists()
    assert (value["to_write"], value["kept"], value["frames"]) == (len(IDS), 0, 20 * len(IDS))
    assert f"{len(IDS)} of {len(IDS)} clips" in text
    done, _ = export(made, make_layout(kind), str(out))
    assert 0.3 < value["bytes_to_write"] / done["bytes"] < 3
    assert export(made, make_layout(kind), str(out), dry_run=True)[0]["to_write"] == 0


def test_the_command_answers_with_json_and_refuses_in_one_line(made, tmp_path: Path) -> None:
    def call(*options: str):
        return CliRunner().invoke(main, ["export", *options, made.path])

    done = call("--format", "eg3d", "--per-clip", "2", "--out", str(tmp_path / "out"), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["frames"] == 2 * len(IDS)
    (tmp_path / "file").write_text("x")
    for kind, out, options, message in [
        ("pv3d", "file", [], "is a file"),
        ("pv3d", "x", ["--mirror"], "only for --format eg3d"),
        ("eg3d", "x", ["--crf", "20"], "without loss"),
        ("eg3d", "x", ["--every", "2", "--per-clip", "2"], "one of them"),
        ("pv3d", "x", ["--dataset", "../x"], "storage key"),
        ("pv3d", "x", ["--dataset", "0123"], "no version 0123"),
    ]:
        refused = call("--format", kind, "--out", str(tmp_path / out), *options)
        assert refused.exit_code == 2
        assert len(refused.stderr.strip().splitlines()) == 1
        assert message in refused.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place that nobody may write")
def test_a_place_that_cannot_be_written_is_named(made) -> None:
    with pytest.raises(Exception, match="--out") as refused:
        export(made, make_layout("pv3d"), "/proc/self/nowhere")
    assert type(refused.value).__name__ == "StorageError"
    assert "\n" not in str(refused.value)


def test_there_and_back_again_keeps_cameras_people_licences_and_pictures(made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(made, make_layout("pv3d"), str(out))
    back = workflow(tmp_path / "back", official(out), ALIGNED)
    run_workflow(back, until="WriteShards", in_process=True)
    before, after = dataset_of(made), open_dataset(back.store())
    assert (after.size, after.fps) == (before.size, before.fps)
    theirs = {s.source: s for s in before.samples}
    assert sorted(s.source for s in after.samples) == sorted(theirs)
    for sample in after.samples:
        other = theirs[sample.source]
        for field in ("identity", "licence", "frame_count"):
            assert getattr(sample, field) == getattr(other, field)
        np.testing.assert_allclose(after.cameras(sample), before.cameras(other), atol=1e-6)
        every = range(sample.frame_count)
        lost = after.frames(sample, every).astype(float) - before.frames(other, every)
        assert 10 * np.log10(255**2 / (lost**2).mean()) > 35
        record = after.record(sample)
        assert record["listed"]["provenance"]["listed"] == before.record(other)["listed"]
        assert str(tmp_path) not in json.dumps(record)


def test_the_workflows_of_the_manual_are_sound(tmp_path: Path) -> None:
    short, stages = re.findall("```yaml\n(.*?)```", (ROOT / "docs" / "layouts.md").read_text(), re.DOTALL)
    checked = re.sub("stages:.*?(?=train:)", lambda _: stages, short, flags=re.DOTALL)
    for number, text in enumerate([short, checked]):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        names = [step.name for step in load(path).steps]
        assert (len(names), names.index("TakeAligned")) == ((2, 0), (7, 2))[number]


def test_what_divides_clips_is_refused_after_their_frames_are_written(tmp_path: Path) -> None:
    taken, written = ALIGNED.splitlines(keepends=True)
    stages = f'{taken}- {{use: "stages.faces:FollowFace"}}\n{written}'
    with pytest.raises(ValueError, match=r"stages\.FollowFace: .*put it before 'TakeAligned'"):
        workflow(tmp_path / "wrong", official(tmp_path), stages)


def test_a_lower_rate_factor_is_better_and_larger(made, tmp_path: Path) -> None:
    sizes, losses = [], []
    sample = dataset_of(made).samples[0]
    whole = dataset_of(made).frames(sample, range(sample.frame_count))
    for crf in (5, 40):
        export(made, make_layout("pv3d", crf=crf), str(tmp_path / str(crf)))
        path = tmp_path / str(crf) / "recrop_faces" / f"{sample.clip_id}.mp4"
        sizes.append(path.stat().st_size)
        losses.append(np.abs(np.stack([f for _, f in read_all(path)]).astype(int) - whole).mean())
    assert sizes[0] > sizes[1]
    assert losses[0] < losses[1]


def test_a_bucket_is_a_target_like_a_folder(made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moto, boto3 = pytest.importorskip("moto"), pytest.importorskip("boto3")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with moto.mock_aws():
        boto3.client("s3").create_bucket(Bucket="bucket")
        export(made, make_layout("pv3d"), "s3://bucket/there")
        assert export(made, make_layout("pv3d"), "s3://bucket/there")[0]["written"] == 0
        store = open_storage("s3://bucket/there")
        there = {key: store.read(key) for key in store.list("")}
    export(made, make_layout("pv3d"), str(tmp_path / "here"))
    assert there == content(tmp_path / "here")


def test_a_folder_inside_the_store_is_refused(made) -> None:
    for out in (f"{made.storage.root}/export", f"{made.storage.root}/aligned/../x", made.storage.root):
        with pytest.raises(ValueError, match="lies in the store"):
            export(made, make_layout("pv3d"), out)
    assert not Path(made.storage.root, "export").exists()
