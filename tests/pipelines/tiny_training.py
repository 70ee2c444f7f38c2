"""A training of seconds on real shards and real networks: what its tests share.

Run as a script, this file is one worker of some jobs, which `run` starts with the ranks in the environment;
or a driver.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from infra.storage import FolderStorage
from model.camera import orbit
from pipelines.settings import EvaluateSettings, PolicySettings, StorageSettings, TrainSettings
from pipelines.train_job import Job
from stages.clip import Clip
from stages.shards import WriteShards, open_dataset
from stages.takedown import Takedown

STEPS = 5
PAGES_LEFT = 20  # on the disk of `troubled`: room for what tells how far it is, not for a checkpoint
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


def make_data(root: Path) -> Path:
    """A store with the shards of three people, and the small variant beside it."""
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


def history(root: Path, metric: str) -> list[tuple[int, float]]:
    """What MLflow's only run holds of a metric: step and value, in the order of arrival."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, metric)]


def difference(a: Path, b: Path, step: int = STEPS) -> float:
    """Largest difference of any number in the checkpoints of a step: weights, averages, buffers, Adam's
    moments. Relative where weights are above 1 (those of the mapping network are hundreds)."""
    from safetensors.numpy import load_file

    names = [sorted(p.name for p in folder(root, step).glob("*.safetensors")) for root in (a, b)]
    assert names[0] == names[1]
    assert len(names[0]) == 7
    worst = 0.0
    for name in names[0]:
        left, right = (load_file(folder(root, step) / name) for root in (a, b))
        assert left.keys() == right.keys()
        worst = max(
            [
                worst,
                *(float((np.abs(x - right[k]) / np.maximum(1, np.abs(x))).max()) for k, x in left.items()),
            ]
        )
    return worst


def workflow(root: Path, **changes: Any) -> Any:
    """What `train` reads of a workflow."""
    return SimpleNamespace(
        storage=place(root), train=settings(**changes), store=lambda: FolderStorage(root / "store"),
        policy=PolicySettings(), takedown=Takedown(), steps=(), evaluate=EvaluateSettings(),
    )  # fmt: skip


def troubled(root: Path) -> None:
    """Train on a small disk, which is full at the second checkpoint, with MLflow away; go on when there is
    room, and tell MLflow when it is back. Prints what stopped it."""
    from disks import Disk

    from infra.engine import end_deepspeed
    from infra.storage import StorageError
    from pipelines import train, train_log

    patience_s, train_log.CLOSE_S = train_log.CLOSE_S, 1.0
    store, disk = FolderStorage(root / "store"), Disk(root)
    away = StorageSettings(root=store.root, tracking="http://127.0.0.1:9")  # nothing answers there
    job = Job(away, settings(checkpoint_every=2, log_every=1), open_dataset(store).version)
    train.work(replace(job, settings=settings(steps=2, log_every=1)))
    disk.leave(PAGES_LEFT)
    try:
        train.work(job)
    except StorageError as error:
        print(error)
    disk.free()
    train._work({"job": job})
    end_deepspeed()
    train_log.CLOSE_S = patience_s
    train._told(replace(job, storage=place(root)))


if __name__ == "__main__":
    from infra import cluster
    from infra.engine import end_deepspeed
    from pipelines.replay import replay
    from pipelines.train import train, work
    from pipelines.train_init import prepare_init

    if sys.argv[1] == "replay":
        print(replay(workflow(Path(sys.argv[2]), variant="small_variant:broken"))[1])
        sys.exit()
    if sys.argv[1] == "troubled":
        troubled(Path(sys.argv[2]))
        sys.exit()
    if sys.argv[1] == "train":  # on a Ray of its own, once for each of some settings
        for change in sys.argv[3:]:
            train(workflow(Path(sys.argv[2]), **json.loads(change)))
        cluster.stop()
        sys.exit()
    for given in json.loads(sys.argv[1]):
        storage = StorageSettings(**given["storage"])
        store, training = FolderStorage(storage.root), TrainSettings(**given["settings"])
        init = prepare_init(SimpleNamespace(train=training, storage=storage, store=lambda store=store: store))
        work(Job(storage, training, open_dataset(store).version, init=init))
    end_deepspeed()
