"""The training loop on real shards and real networks, made small: parity, resume, what it leaves behind.

Run as a script, this file is one worker of a job; the tests start it with the ranks in the environment.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from infra.storage import FolderStorage
from model.camera import orbit
from pipelines.settings import PolicySettings, StorageSettings, TrainSettings
from pipelines.train_job import Job
from stages.clip import Clip
from stages.shards import WriteShards, open_dataset
from stages.takedown import Takedown

STEPS = 5
TOLERANCE = 1e-5  # measured 1.5e-6: rounding that Adam amplifies; a wrong gradient shows as 1e-3

SMALL = '''
from dataclasses import replace
from model.config import *

def small():
    """All the parts and phases of the real thing at 16 x 16; every schedule is moving."""
    model = ModelConfig(
        img_resolution=16, z_dim=8, z_m_dim=8, w_dim=8, channel_base=128, channel_max=8, plane_resolution=16,
        plane_features=4, plane_axes="orthogonal", decoder_hidden=8, motion=MotionConfig(blocks=2),
        rendering=RenderingConfig(resolution=8, samples_coarse=6, samples_fine=4),
        superresolution=SuperResolutionConfig(input_resolution=8, channels=(8, 8)),
        discriminator=DiscriminatorConfig(
            channel_base=128, channel_max=8, mapping_layers=2, minibatch_group_image=4
        ),
    )
    recipe = Recipe(
        batch=4, resolution_initial=4, resolution_fade_kvideos=0.03, blur_sigma=1.0, blur_fade_kvideos=0.2,
        blur_fade_by="global", swap_fade_kvideos=0.05, generator_reg_interval=2, discriminator_reg_interval=3,
        density_points=50, fake_camera_time="matched", fake_time="grid", flip_fake_cameras=True,
    )
    return Variant(name="small", model=model, recipe=recipe)

def recomputing():
    return replace(small(), recipe=replace(small().recipe, checkpointing=True))

def broken():
    return replace(small(), recipe=replace(small().recipe, r1_gamma=1e38))

def long():
    return replace(small(), model=replace(small().model, frames_span=96))
'''


def make_clip(store: FolderStorage, name: str, person: str, frames: int) -> Clip:
    cv2 = pytest.importorskip("cv2")
    random = np.random.default_rng(sum(map(ord, name)))
    path = Path(store.root, "aligned", f"{name}.tar")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i in range(frames):
            picture = cv2.resize(random.integers(0, 255, (4, 4, 3), dtype=np.uint8), (16, 16))
            data = cv2.imencode(".jpg", picture)[1].tobytes()
            info = tarfile.TarInfo(f"{i:04d}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    yaws = random.uniform(-30, 30, frames)
    return Clip(
        id=name, source=name, video=name, fps=25.0, frame_times_s=np.arange(frames) / 25, identity=person,
        face_boxes=np.zeros((frames, 4), np.float32), landmarks=np.zeros((frames, 68, 2), np.float32),
        crop_size=16, crop_transforms=np.zeros((frames, 2, 3)), aligned=f"aligned/{name}.tar",
        cameras=np.stack([orbit(yaw).encode() for yaw in yaws]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the shards of three people, and the small variant beside it."""
    root = tmp_path_factory.mktemp("data")
    store = FolderStorage(root / "store")
    clips = [make_clip(store, f"c{i}", person, 48 + i) for i, person in enumerate("aabc")]
    stage = WriteShards(buckets=2)
    stage.setup(store)
    written = []
    for group in sorted({stage.group(c) for c in clips}):
        written += list(stage.process_group(group, [c for c in clips if stage.group(c) == group]))
    stage.finish(store, iter(written))
    (root / "small_variant.py").write_text(SMALL)
    return root


@pytest.fixture(autouse=True)
def _variants(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(data)


def copy(data: Path, root: Path) -> Path:
    """Shards, and nothing trained."""
    return Path(shutil.copytree(data, root, ignore=shutil.ignore_patterns("aligned", "*.py")))


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings(
        **{"variant": "small_variant:small", "steps": STEPS, "log_every": 2, "seed": 1, **changes}
    )


def place(root: Path) -> StorageSettings:
    return StorageSettings(root=str(root / "store"), tracking=f"sqlite:///{root}/mlflow.db")


def python_path(data: Path) -> str:
    return os.pathsep.join([str(Path(__file__).parents[2]), str(data)])


def run(data: Path, workers: int, *tasks: tuple[Path, TrainSettings]) -> None:
    """Run `work` for each task, one after the other, on that many gloo processes."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    jobs = [{"storage": place(r).model_dump(), "settings": s.model_dump()} for r, s in tasks]
    base = {
        **os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "WORLD_SIZE": str(workers), "PYTHONPATH": python_path(data),
    }  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, __file__, json.dumps(jobs)], env={**base, "RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for r in range(workers)
    ]  # fmt: skip
    outputs = [p.communicate(timeout=500)[0] for p in started]
    assert all(p.returncode == 0 for p in started), "\n".join(outputs)


def folder(root: Path, step: int = STEPS) -> Path:
    """The only training's checkpoint of that step."""
    (found,) = Path(root, "store", "train").glob("*/checkpoints")
    return found / f"{step:08d}"


def difference(a: Path, b: Path) -> float:
    """Largest difference of any number in the last checkpoints: weights, averages, buffers, Adam's moments.
    Relative where weights are above 1 (those of the mapping network are hundreds)."""
    from safetensors.numpy import load_file

    names = [sorted(p.name for p in folder(root).glob("*.safetensors")) for root in (a, b)]
    assert names[0] == names[1]
    assert len(names[0]) == 7
    worst = 0.0
    for name in names[0]:
        left, right = (load_file(folder(root) / name) for root in (a, b))
        assert left.keys() == right.keys()
        worst = max(
            [
                worst,
                *(float((np.abs(x - right[k]) / np.maximum(1, np.abs(x))).max()) for k, x in left.items()),
            ]
        )
    return worst


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
        "resumed",
        "damaged",
        "half-written",
        "broken",
        "parts",
        "named",
        "started",
    )
    at = {name: copy(data, base / name) for name in names}
    run(
        data, 1, (at["one"], settings()), (at["parts"], settings(accumulate=2, zero_stage=1)),
        (at["named"], settings(name="mine", steps=3)),
    )  # fmt: skip
    run(
        data, 2, *((at[f"zero-{zero}"], settings(zero_stage=zero)) for zero in (0, 1, 2)),
        (at["recomputed"], settings(variant="small_variant:recomputing", zero_stage=2)),
        (at["resumed"], settings(steps=3, zero_stage=1)),
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
def test_accumulated_parts_train_as_the_whole_batch_does(results: Path) -> None:
    assert difference(results / "one", results / "parts") < TOLERANCE


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
        [sys.executable, __file__, "replay", str(results / "broken")], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path(data)},
        check=True,
    )  # fmt: skip
    told = "update 1, discriminator_reg: again, the gradient of D_img_reg is not finite"
    assert again.stdout.splitlines()[-1] == told


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


def ray_workers() -> list[int]:
    """Process ids of Ray Train's workers that descend from this process."""
    table = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 2) for line in table.splitlines()]
    parents = {int(pid): int(parent) for pid, parent, *_ in rows}

    def is_ours(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return [int(pid) for pid, _, *args in rows if "RayTrainWorker" in "".join(args) and is_ours(int(pid))]


@pytest.mark.slow
def test_a_killed_worker_costs_no_step_and_none_is_logged_twice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    from infra import cluster
    from pipelines.train import train

    root = copy(data, tmp_path / "killed")
    monkeypatch.setenv("PYTHONPATH", python_path(data))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    killed: list[int] = []

    def kill_after_the_first_checkpoint() -> None:
        while not list(root.glob("store/train/*/checkpoints/*/checkpoint.json")):
            time.sleep(0.02)
        killed.append(ray_workers()[-1])
        os.kill(killed[0], signal.SIGKILL)

    threading.Thread(target=kill_after_the_first_checkpoint, daemon=True).start()
    try:
        result = train(workflow(root, steps=40, checkpoint_every=4, sample_every=40, log_every=1))
    finally:
        cluster.stop()
    assert killed
    assert result["steps"] == 40
    history = MlflowClient(f"sqlite:///{root}/mlflow.db").get_metric_history(result["run_id"], "G/img")
    assert [m.step for m in history] == list(range(1, 41))


def workflow(root: Path, **changes: Any) -> Any:
    """What `train` reads of a workflow."""
    return SimpleNamespace(
        storage=place(root), train=settings(**changes), store=lambda: FolderStorage(root / "store"),
        policy=PolicySettings(), takedown=Takedown(), steps=(),
    )  # fmt: skip


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


if __name__ == "__main__":
    from infra.engine import end_deepspeed
    from pipelines.replay import replay
    from pipelines.train import work
    from pipelines.train_init import prepare_init

    if sys.argv[1] == "replay":
        print(replay(workflow(Path(sys.argv[2]), variant="small_variant:broken"))[1])
        sys.exit()
    for given in json.loads(sys.argv[1]):
        storage = StorageSettings(**given["storage"])
        store, training = FolderStorage(storage.root), TrainSettings(**given["settings"])
        init = prepare_init(SimpleNamespace(train=training, storage=storage, store=lambda store=store: store))
        work(Job(storage, training, open_dataset(store).version, init=init))
    end_deepspeed()
