"""The training loop on real shards and real networks, made small: parity, resume, what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_training
from disks import small_disk
from tiny_training import (
    STEPS,
    TOLERANCE,
    copy,
    difference,
    folder,
    history,
    make_data,
    python_path,
    run,
    settings,
    workflow,
)

from infra.storage import FolderStorage
from stages.shards import open_dataset

FRAMES = {"three": 3, "four": 4}  # of D_vid


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _variants(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(data)


@pytest.fixture(scope="module")
def results(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trainings of STEPS updates: undisturbed on one worker, on two, interrupted in several ways."""
    base = tmp_path_factory.mktemp("results")
    names = (
        "one",
        "zero-0",
        "zero-1",
        "zero-2",
        "recomputed",
        "bfloat16-0",
        "bfloat16-1",
        "bfloat16-2",
        "resumed",
        "damaged",
        "half-written",
        "broken",
        "parts",
        "in-chunks",
        "three-frames",
        "four-frames",
        "named",
        "started",
    )
    at = {name: copy(data, base / name) for name in names}
    run(
        data, 1, (at["one"], settings()), (at["parts"], settings(accumulate=2, zero_stage=1)),
        (at["in-chunks"], settings(accumulate=2, zero_stage=2, recipe={"checkpointing": True},
                                   model={"rendering.chunk_rays": 13})),
        *((at[f"{word}-frames"], settings(steps=2, model={"frames_span": 48, "discriminator.frames": n}))
          for word, n in FRAMES.items()),
        (at["named"], settings(name="mine", steps=3)),
    )  # fmt: skip
    run(
        data, 2, *((at[f"zero-{zero}"], settings(zero_stage=zero)) for zero in (0, 1, 2)),
        (at["recomputed"], settings(variant="small_variant:recomputing", zero_stage=2)),
        (at["resumed"], settings(steps=3, zero_stage=1)),
        *((at[f"bfloat16-{z}"], settings(steps=3, precision="bfloat16", zero_stage=z)) for z in (0, 1, 2)),
        (at["damaged"], settings(steps=4, checkpoint_every=2)),
        (at["half-written"], settings(steps=4, checkpoint_every=2)),
        (at["broken"], settings(variant="small_variant:broken")),
    )  # fmt: skip
    damaged = folder(at["damaged"], 4) / "generator.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x00")
    (folder(at["half-written"], 4) / "checkpoint.json").unlink()
    run(
        data, 1, *((at[name], settings()) for name in ("resumed", "damaged", "half-written")),
        (at["named"], settings(name="mine", recipe={"lr_generator": 1e-3}, zero_stage=1)),
        (at["started"], settings(init=str(folder(at["one"])), steps=1)),
    )  # fmt: skip
    return base


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_two_workers_train_as_one_does(results: Path, zero: int) -> None:
    assert difference(results / "one", results / f"zero-{zero}") < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("other", ["zero-0", "zero-1", "zero-2", "parts"])
def test_what_is_logged_is_of_the_whole_batch(results: Path, other: str) -> None:
    terms = [f"{d}/{term}" for d in ("D_img", "D_vid") for term in ("fake", "real", "r1", "logit_gap")]
    norms = [f"{phase}/grad_norm" for phase in ("G", "D_vid", "D_img_reg")]
    for name in (*terms, *norms, "G/img", "G/vid", "G/density"):
        whole = dict(history(results / "one", name))
        assert whole
        assert dict(history(results / other, name)) == pytest.approx(whole, rel=1e-3, abs=1e-5), name


@pytest.mark.slow
def test_bfloat16_is_the_same_at_every_zero_stage(results: Path) -> None:
    """Up to its rounding: weights that differ in their last bit round to other numbers now and then."""
    at = [results / f"bfloat16-{zero}" for zero in (0, 1, 2)]
    assert difference(at[1], at[2], step=3) < TOLERANCE
    assert difference(at[0], results / "resumed", step=3) > 100 * TOLERANCE  # it is not float32
    for name in ("G/img", "G/vid", "D_img/fake", "D_img/real", "D_img/r1"):
        first = dict(history(at[0], name))
        assert first
        assert dict(history(at[1], name)) == pytest.approx(first, rel=2e-2), name


@pytest.mark.slow
def test_accumulated_parts_train_as_the_whole_batch_does(results: Path) -> None:
    assert difference(results / "one", results / "parts") < TOLERANCE


@pytest.mark.slow
def test_rays_in_chunks_recomputed_in_parts_train_as_all_at_once(results: Path) -> None:
    assert difference(results / "one", results / "in-chunks") < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("word", FRAMES)
def test_a_video_discriminator_of_more_frames_learns_from_each_and_the_times_between(
    results: Path, word: str
) -> None:
    from safetensors.numpy import load_file

    moments = load_file(folder(results / f"{word}-frames", 2) / "video_discriminator_adam.safetensors")
    assert moments["step"] == 3  # two updates, and the first one's R1
    squares = moments["b16.fromrgb.weight.exp_avg_sq"].max(axis=(0, 2, 3))
    assert squares.shape == (3 * FRAMES[word] + FRAMES[word] - 1,)
    assert (squares > 0).all()
    cameras = moments["mapping.embed.weight.exp_avg_sq"].max(axis=0)
    assert cameras.shape == (25 * FRAMES[word],)
    assert (cameras.reshape(-1, 25)[:, [0, 3, 16]] > 0).all()  # turn, place and focal length of each


@pytest.mark.slow
def test_a_named_training_goes_on_with_other_settings_and_records_them(results: Path) -> None:
    from mlflow.tracking import MlflowClient

    card = json.loads((folder(results / "named") / "checkpoint.json").read_text())
    assert card["run"] == "train/mine"
    assert card["changes"] == [
        {"step": 3, "changed": {"recipe.lr_generator": [0.0025, 0.001], "train.zero_stage": [0, 1]}}
    ]
    client = MlflowClient(f"sqlite:///{results}/named/mlflow.db")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.data.tags["changed.recipe.lr_generator"] == "0.001"


@pytest.mark.slow
def test_a_training_starts_from_the_weights_and_schedules_of_another(results: Path) -> None:
    from safetensors.numpy import load_file

    card = json.loads((folder(results / "started", 1) / "checkpoint.json").read_text())
    assert card["samples"] == (STEPS + 1) * 4
    assert card["init"]
    before = load_file(folder(results / "one") / "generator.safetensors")
    after = load_file(folder(results / "started", 1) / "generator.safetensors")
    moved = max(float(np.abs(x - after[name]).max()) for name, x in before.items() if "noise" not in name)
    assert 0 < moved < 0.02  # one update of Adam, not other weights


@pytest.mark.slow
def test_what_is_evaluated_is_the_training_with_its_init(data: Path, results: Path, tmp_path: Path) -> None:
    from pipelines.evaluate import training
    from pipelines.train import plan

    started = workflow(copy(data, tmp_path / "w"), init=str(folder(results / "one")))
    assert training(started).run == plan(started).run
    assert training(workflow(tmp_path / "w")).run != plan(started).run


def test_an_init_that_does_not_exist_is_one_line(data: Path) -> None:
    from pipelines.train import plan

    with pytest.raises(ValueError, match=r"train.init: train/none: no folder, and no training of .*; name"):
        plan(workflow(data, init="train/none"))
    with pytest.raises(ValueError, match=r"train.init: models:/pv3d: model 'models:/pv3d': write models"):
        plan(workflow(data, init="models:/pv3d"))


@pytest.mark.slow
def test_recomputing_activations_changes_nothing(results: Path) -> None:
    assert difference(results / "one", results / "recomputed") < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("interruption", ["resumed", "damaged", "half-written"])
def test_continues_on_another_number_of_workers_as_if_undisturbed(results: Path, interruption: str) -> None:
    assert difference(results / "one", results / interruption) < TOLERANCE


@pytest.mark.slow
def test_every_loss_of_the_paper_is_in_one_mlflow_run_and_no_step_twice(results: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{results}/resumed/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'pv3d'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    terms = {f"D_{d}/{term}" for d in ("img", "vid") for term in ("fake", "real", "r1", "logit_gap")}
    wanted = terms | {"G/img", "G/vid", "G/density", "G/grad_norm", "time/data_wait", "videos_per_second"}
    assert wanted <= run.data.metrics.keys()
    steps = [m.step for m in client.get_metric_history(run.info.run_id, "G/img")]
    assert steps == [2, 3, 4, 5]  # logged every 2 and at the end of both parts
    assert run.data.params["recipe.r1_gamma"] == "2.0"
    (shards,) = run.inputs.dataset_inputs
    assert shards.dataset.digest == open_dataset(FolderStorage(results / "resumed" / "store")).version
    assert [f.path for f in client.list_artifacts(run.info.run_id, "samples")] == [
        f"samples/{step:08d}.mp4" for step in (3, 5)
    ]


@pytest.mark.slow
def test_stops_before_a_loss_that_is_not_finite_reaches_the_weights(results: Path) -> None:
    (stopped,) = Path(results, "broken", "store", "train").glob("*/stopped.json")
    reason = json.loads(stopped.read_text())["reason"]
    assert reason.startswith("training stopped before update 1: the gradient of D_img_reg is not finite;")
    assert not list(stopped.parent.glob("checkpoints/*"))


@pytest.mark.slow
def test_an_update_that_was_not_finite_is_done_again_alone(data: Path, results: Path) -> None:
    again = subprocess.run(
        [sys.executable, tiny_training.__file__, "replay", str(results / "broken")],
        capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path(data)},
        check=True,
    )  # fmt: skip
    told = "update 1, discriminator_reg: again, the gradient of D_img_reg is not finite"
    assert again.stdout.splitlines()[-1] == told


@pytest.mark.slow
def test_a_full_disk_at_a_checkpoint_and_a_server_that_is_away_cost_nothing(
    data: Path, results: Path, tmp_path: Path
) -> None:
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    paths = os.pathsep.join([python_path(data), str(Path(__file__).parents[1])])
    with small_disk(tmp_path / "disk", kilobytes=32 << 10) as disk:
        root = disk.path
        shutil.copytree(copy(data, tmp_path / "copied"), root, dirs_exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        done = subprocess.run(
            [sys.executable, tiny_training.__file__, "troubled", str(root)],
            env={**os.environ, **alone, "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths,
                 "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"},
            capture_output=True, text=True, check=False, timeout=500,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()
        assert re.search(r"cannot write train/.*/00000004/.* \(No space left on device\); make room", line)
        assert difference(results / "one", root) < TOLERANCE
        for name in ("G/img", "D_img/fake"):
            assert [step for step, _ in history(root, name)] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_the_averaged_generator_loads_back(results: Path) -> None:
    from pipelines.checkpoints import load_generator, newest_checkpoint, run_id

    store = FolderStorage(results / "one" / "store")
    generator, config = load_generator(store, newest_checkpoint(store).key)
    assert config.img_resolution == 16
    assert not generator.training
    assert load_generator(store, folder(results / "one"))[1] == config
    assert len(run_id(store)) == 32


@pytest.mark.slow
def test_trains_on_ray_and_a_second_run_does_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infra import cluster
    from pipelines.train import train

    root = copy(data, tmp_path / "ray")
    monkeypatch.setenv("PYTHONPATH", python_path(data))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    try:
        first = train(workflow(root, steps=3))
        assert first["steps"] == 3
        store = FolderStorage(root / "store")
        assert store.exists(first["sample"])
        assert store.exists(f"{first['checkpoint']}/checkpoint.json")
        again = train(workflow(root, steps=3))
        assert {k: v for k, v in again.items() if k != "seconds"} == {
            k: v for k, v in first.items() if k != "seconds"
        }
        with pytest.raises(
            ValueError,
            match="before update 1: the gradient of D_img_reg is not finite; the last",
        ):
            train(workflow(root, variant="small_variant:broken"))
    finally:
        cluster.stop()


def test_other_settings_start_another_run_and_more_steps_continue(data: Path) -> None:
    from pipelines.train import plan

    same = plan(workflow(data))
    assert plan(workflow(data, steps=99, log_every=1, workers=1, zero_stage=2)).run == same.run
    cheaper = {"recipe": {"checkpointing": True}, "model": {"rendering.chunk_rays": 16}, "accumulate": 2}
    assert plan(workflow(data, workers=1, **cheaper)).run == same.run
    others = {
        plan(workflow(data, **change)).run
        for change in ({"seed": 2}, {"batch": 2, "workers": 1}, {"precision": "bfloat16"})
    }
    assert len(others | {same.run}) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "model.config:tiny"}, "frames of 16 px, tiny makes 64 px; set stages.AlignCrop.size=64"),
        ({"variant": "small_variant:long"}, "no training clip has the 96 frames .* the longest of 4 has 51"),
        ({"workers": 3}, "train.batch: 4 videos cannot be shared by 3 workers"),
        (
            {"workers": 4},
            "4 workers would split the minibatch-std groups .* use 2 workers at most, or train.batch 8",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_any_work(
    data: Path, changes: dict[str, Any], message: str
) -> None:
    from pipelines.train import plan

    with pytest.raises(ValueError, match=message):
        plan(workflow(data, **changes))


def test_no_shards_is_one_clear_line(tmp_path: Path) -> None:
    from pipelines.train import plan

    with pytest.raises(ValueError, match=r"no shards in .*; run `pv3d run --until WriteShards` first"):
        plan(workflow(tmp_path))
