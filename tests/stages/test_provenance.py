"""What a sample says of itself: all that was promised, nothing local, nothing secret."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_clips import clip_in

from infra.storage import FolderStorage
from stages.clip import Clip
from stages.provenance import clean, provenance
from stages.shards import WriteShards, open_dataset
from stages.sources import lists

T = 4
PROMISED = {
    "clip_id", "source", "source_id", "dataset", "split", "licence", "identity", "list_row_sha1",
    "source_span_s", "listed_span_s", "listed_frames", "fps_ref", "fps", "frame_count", "frame_times_s",
    "source_resolution", "width", "height", "face_boxes", "crop_transforms", "crop_quads", "crop_s", "crop_t",
    "crop_size", "padded_fraction", "verification", "sigmas", "stages", "config_sha256", "tools", "listed",
    "landmark_backend", "embedding_backend", "embedding_model", "extra",
}  # fmt: skip

SPAN = {
    "key": "0001", "start_s": 10.0, "end_s": 20.0, "frames": [250, 500], "fps_ref": 25, "row_sha1": "a" * 40,
    "split": "train", "identity": "id1", "licence": "CC-BY 3.0",
    "row": {"path": "/home/me/lists/x.txt", "token": "t0ps3cret", "note": "a 1/2 b"},
}  # fmt: skip
HISTORY = [
    {"stage": "Smooth", "use": "a:B", "version": 1, "settings": {"sigma_s": 0.04, "file": "/home/me/w.pth"}},
    {"stage": "Write", "use": "a:C", "version": 2, "settings": {"buckets": 2}},
]


def listed_clip(**changes: Any) -> Clip:
    linear = 2 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    matrix = np.concatenate([np.tile(linear, (T, 1, 1)), np.ones((T, 2, 1))], axis=2)
    clip = Clip(
        id="urls-x-0001_0010000", source="https://videos.example/a.mp4?v=1&token=t0ps3cret#here",
        video="store:videos/a/whole.mp4", fingerprint="f", dataset="urls", licence="CC-BY 3.0",
        listed={"source_id": "https://videos.example/a.mp4?v=1&token=t0ps3cret", "span": SPAN}, fps=25.0,
        width=640, height=480, frame_times_s=10 + np.arange(T) / 25, face_boxes=np.ones((T, 4), np.float32),
        landmarks=np.ones((T, 68, 2), np.float32), mesh=np.ones((T, 478, 2), np.float32),
        smooth_mesh=np.ones((T, 478, 2), np.float32), landmark_backend="a:B", crop_transforms=matrix,
        crop_size=32, padded_fraction=0.1, aligned="aligned/x.tar", cameras=np.ones((T, 25), np.float32),
        embeddings=np.ones((2, 8), np.float32), embedding_step=2, embedding_backend="a:I",
        verification={"mean_cosine": 0.9}, identity="id1",
        extra={"file": "/home/me/secret/x.onnx", "url": "https://me:pass@site.example/x?sig=abc&v=2"},
    )  # fmt: skip
    return clip.copy(**changes)


def test_a_sample_holds_everything_that_is_promised(tmp_path: Path) -> None:
    store = FolderStorage(tmp_path)
    clip = clip_in(store, "a", T)
    clip = listed_clip(id="a", aligned=clip.aligned)
    stage = WriteShards(buckets=1)
    stage.follow(HISTORY)
    stage.setup(store)
    stage.finish(store, (c for c in stage.process_group("00000", [clip]) if isinstance(c, Clip)))
    dataset = open_dataset(store)
    record = dataset.record(dataset.samples[0])
    assert PROMISED - set(record) == set()
    assert all(record[name] is not None for name in PROMISED)
    text = json.dumps(record)
    for word in ("t0ps3cret", "/home", "pass@", "sig=", "embeddings", "mesh"):
        assert word not in text
    assert "t0ps3cret" not in dataset.samples[0].source


def test_facts_are_those_of_the_list_and_of_the_stages() -> None:
    record = provenance(listed_clip(), HISTORY)
    assert record["source"] == "https://videos.example/a.mp4?v=1"
    assert (record["list_row_sha1"], record["fps_ref"]) == ("a" * 40, 25)
    assert (record["source_span_s"], record["listed_span_s"]) == ([10.0, 10.12], [10.0, 20.0])
    assert record["listed_frames"] == [250, 500]
    assert record["source_resolution"] == [640, 480]
    assert record["sigmas"] == {"Smooth.sigma_s": 0.04}
    assert record["stages"][0]["settings"]["file"] == "w.pth"
    assert record["config_sha256"] != provenance(listed_clip(), HISTORY[:1])["config_sha256"]
    assert record["tools"]["numpy"] == np.__version__


def test_quads_scale_and_middle_are_those_of_the_transform() -> None:
    clip = listed_clip()
    record = provenance(clip)
    matrix = clip.need("crop_transforms")
    corners = np.array([(-0.5, -0.5), (-0.5, 31.5), (31.5, 31.5), (31.5, -0.5)])
    for t in range(T):
        back = np.array(record["crop_quads"][t]) @ matrix[t, :, :2].T + matrix[t, :, 2]
        np.testing.assert_allclose(back, corners, atol=0.01)
        middle = matrix[t, :, :2] @ record["crop_t"][t] + matrix[t, :, 2]
        np.testing.assert_allclose(middle, [15.5, 15.5], atol=0.01)
    np.testing.assert_allclose(record["crop_s"], 2.0, atol=1e-6)


def test_a_clip_without_a_list_still_has_a_row_hash() -> None:
    bare = provenance(listed_clip(source="sub/a.mp4", listed={}))
    other = provenance(listed_clip(source="sub/b.mp4", listed={}))
    assert len(bare["list_row_sha1"]) == 40
    assert bare["list_row_sha1"] != other["list_row_sha1"]
    assert (bare["source"], bare["source_id"], bare["listed_frames"]) == ("sub/a.mp4", "sub/a.mp4", None)


def test_the_split_of_the_list_is_kept_and_never_trained_on_unless_train(tmp_path: Path) -> None:
    stage = WriteShards(held_out=0.999)
    for split in ("test", "held-out"):
        assert stage._summary(listed_clip(listed={"span": {"split": split}}))["split"] == split
    assert stage._summary(listed_clip(listed={"span": {"split": "train"}}))["split"] == "test"
    assert WriteShards()._summary(listed_clip())["split"] == "train"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("/home/me/x.mp4", "x.mp4"),
        ("/video.mp4", "video.mp4"),
        ("~/videos/x.mp4", "x.mp4"),
        ("C:\\Users\\me\\x.mp4", "x.mp4"),
        ("\\\\server\\share\\x.mp4", "x.mp4"),
        ("file:///home/me/x.mp4", "x.mp4"),
        ("cannot read /home/me/x.mp4 (gone)", "cannot read x.mp4 (gone)"),
        ("sub/folder/x.mp4", "sub/folder/x.mp4"),
        ("store:videos/a/b.mp4", "store:videos/a/b.mp4"),
        ("1/2 of 3/4", "1/2 of 3/4"),
        ("https://site.example/a/b/c.mp4?v=1&x=/a/b/c", "https://site.example/a/b/c.mp4?v=1&x=/a/b/c"),
        ("https://u:p@site.example/a?X-Amz-Signature=1&v=2", "https://site.example/a?v=2"),
        ("https://site.example/a?access_token=1", "https://site.example/a"),
        ("see http://[broken and go", "see  and go"),
        ("-7TMJtnhiPM", "-7TMJtnhiPM"),
        ("_mjZ87sK6cA", "_mjZ87sK6cA"),
    ],
)
def test_paths_and_credentials_are_taken_out_of_texts(given: str, kept: str) -> None:
    assert clean(given) == kept
    assert clean({"a": [given]}) == {"a": [kept]}


def test_entries_named_like_secrets_are_left_out() -> None:
    secrets = ("password", "API_KEY", "cookies", "X-Amz-Credential", "session-id", "client_secret", "token")
    assert clean({**dict.fromkeys(secrets, "x"), "tokens": 3, "key": "0001"}) == {"tokens": 3, "key": "0001"}


def test_the_row_hash_of_a_list_reaches_the_sample() -> None:
    row = '{"url": "https://youtu.be/-7TMJtnhiPM"}'
    span = {"key": "0", "row_sha1": lists.row_sha1(row)}
    unit = lists.unit("urls", "x", "https://youtu.be/-7TMJtnhiPM", [span])
    cut = {name: getattr(listed_clip(), name) for name in ("frame_times_s", "crop_transforms")}
    part = lists.span_clip(unit, span).copy(**cut)
    record = provenance(part)
    assert record["source_id"] == "youtube:-7TMJtnhiPM"
    assert record["list_row_sha1"] == hashlib.sha1(row.encode(), usedforsecurity=False).hexdigest()
