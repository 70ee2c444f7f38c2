"""The figures of `bench identity`, on made-up people and on a few real ones."""

import csv
import json
import shutil
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest

from pipelines.benches.identity import (
    OPEN,
    Found,
    adjusted_rand,
    measure,
    scale,
    splice,
    spliced,
    synthetic,
)
from pipelines.workflow import load
from stages.backends import IdentityModel
from stages.balance import identities
from stages.clip import Clip

MODEL = IdentityModel("a.onnx", "0" * 64, "cosine", same_person=0.45, same_cluster=0.43)


def clip_of(name: str, person: int, frames: int = 30, like: float = 0.0) -> Clip:
    """A clip of unit vectors near the person's; `like`: how much all people have in common."""
    random = np.random.default_rng(sum(name.encode()))
    vectors = np.eye(64)[person] + like * np.eye(64)[63] + 0.3 * random.normal(size=(frames, 64)) / 8
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Clip(
        id=f"{name}_0", source=name, video="v", embeddings=vectors.astype(np.float32),
        embedding_model=asdict(MODEL),
    )  # fmt: skip


def test_a_flawless_run_has_flawless_figures():
    truth = {"a": "p1", "b": "p1", "c": "p2"}
    clips = [clip_of("a", 1), clip_of("b", 1), clip_of("c", 2)]
    found = Found(clips, [], {"a_0": "auto-1", "b_0": "auto-1", "c_0": "auto-2"})
    figures = measure(found, truth)
    wanted = {"adjusted_rand": 1.0, "good_clips_dropped": 0, "spliced_kept": 0, "clips_missing": 0}
    assert {name: figures[name] for name in wanted} == wanted
    assert figures["spliced"] == 4 * 5                   # ordered pairs of clips of two people, five kinds


def test_every_flaw_shows_in_its_figure():
    truth = {"a": "p1", "b": "p1", "c": "p2", "d": "p2"}
    clips = [clip_of("a", 1), clip_of("b", 1), clip_of("c", 2)]
    mixed = Found(clips, [clips[0]], {"b_0": "auto-1", "c_0": "auto-1"})
    told = []
    figures = measure(mixed, truth, told.append)
    assert figures["good_clips_dropped"] == 1
    assert figures["clips_missing"] == 1
    assert figures["adjusted_rand"] < 0.98
    assert told == ["dropped: a", "missing: d"]


def test_splices_of_lookalikes_are_kept_and_counted():
    truth = {"a": "p1", "b": "p2"}
    assert splice([clip_of("a", 1), clip_of("b", 2)], truth) == (10, 0)
    alike = [clip_of("a", 1, like=2.0), clip_of("b", 2, like=2.0)]
    assert splice(alike, truth) == (10, 10)
    assert splice(alike, truth, most=5) == (5, 5)


def test_a_splice_is_of_the_frames_of_both():
    a, b = np.zeros((40, 1), np.float32), np.ones((30, 1), np.float32)
    shares = [(len(one), float(one.sum())) for one in spliced(a, b)]
    assert shares == [(30, 15), (40, 3), (40, 4), (40, 10), (40, 16)]
    for one in spliced(a[:12], b[:2]):
        assert 0 < one.sum() < len(one)


def test_adjusted_rand_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    for _ in range(20):
        truth, found = random.integers(0, 6, (2, 30)).astype(str)
        assert adjusted_rand(truth, found) == pytest.approx(metrics.adjusted_rand_score(truth, found))
    assert adjusted_rand(["a"] * 3, ["x"] * 3) == adjusted_rand(["a", "b"], ["x", "y"]) == 1


def test_the_scale_is_measured_in_a_process_of_its_own():
    figures = scale(2000)
    assert set(figures) == {"cluster_2k_seconds", "cluster_2k_gb", "cluster_2k_rand"}
    assert 0 < figures["cluster_2k_gb"] < 1
    assert figures["cluster_2k_rand"] > 0.99


def test_synthetic_people_can_be_told_apart():
    people, clips = synthetic(600)
    names = identities(clips)
    assert adjusted_rand([str(p) for p in people], [names[clip.id] for clip in clips]) > 0.99


def test_what_is_not_about_identity_is_open():
    """The names of the settings are those of the stages."""
    planned = load("workflow.yaml", None, OPEN)
    assert planned.steps


@pytest.mark.slow
def test_real_people_by_the_whole_command(shared_data, tmp_path, monkeypatch):
    """Short clips: two of one person and one of each of two others, as far as the manifest has them."""
    from click.testing import CliRunner

    from pipelines.cli import main

    monkeypatch.setenv("PV3D_WEIGHTS", "")                 # the bench sets it; put back afterwards
    with (shared_data / "manifest.csv").open(newline="", encoding="utf-8") as file:
        listed = [row for row in csv.DictReader(file) if row["kind"] == "talk"]
    listed.sort(key=lambda row: float(row["duration_s"]))
    clips = Counter(row["identity"] for row in listed)
    several = next((row["identity"] for row in listed if clips[row["identity"]] > 1), "")
    chosen = [row for row in listed if row["identity"] == several][:2]
    chosen += [row for row in listed if clips[row["identity"]] == 1][:2]
    (tmp_path / "videos").mkdir()
    (tmp_path / "weights").symlink_to(shared_data / "weights")
    for row in chosen:
        shutil.copy(shared_data / row["file"], tmp_path / row["file"])
    with (tmp_path / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(chosen[0]))
        writer.writeheader()
        writer.writerows(chosen)
    command = ["bench", "identity", "--data", str(tmp_path), "--json", "--in-process", "1", "--count", "1000"]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout[result.stdout.index("{") :])["figures"]
    assert figures["videos"] == len(chosen)
    assert figures["people"] == len({row["identity"] for row in chosen})
    assert figures["adjusted_rand"] >= 0.98
    assert figures["good_clips_dropped"] == figures["spliced_kept"] == figures["clips_missing"] == 0
