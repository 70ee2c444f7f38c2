"""The training loop on real shards and real networks, made small: parity, resume, what it leaves behind.

Run as a script, this file is one worker of a job; the tests start it with the ranks in the environment.
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
from pathlib import Path

import numpy as np
import pytest

from infra.storage import FolderStorage
from model.camera import orbit
from pipelines.settings import StorageSettings, TrainSettings
from pipelines.train_job import Job
from stages.clip import Clip
from stages.shards import WriteShards, open_dataset

SMALL = '''
from dataclasses import replace
from model.config import DiscriminatorConfig, ModelConfig, MotionConfig, Recipe, RenderingConfig, SuperResolutionConfig, Variant

def small():
    """All the parts and phases of the real thing at 16 x 16; every schedule is moving."""
    model = ModelConfig(
        img_resolution=16, z_dim=8, z_m_dim=8, w_dim=8, channel_base=128, channel_max=8, plane_resolution=16,
        plane_features=4, plane_axes="orthogonal", decoder_hidden=8, motion=MotionConfig(blocks=2),
        rendering=RenderingConfig(resolution=8, samples_coarse=6, samples_fine=4),
        superresolution=SuperResolutionConfig(input_resolution=8, channels=(8, 8)),
        discriminator=DiscriminatorConfig(channel_base=128, channel_max=8, mapping_layers=2, minibatch_group_image=4),
    )
    recipe = Recipe(
        batch=4, resolution_initial=4, resolution_fade_kvideos=0.03, blur_sigma=1.0, blur_fade_kvideos=0.2,
        blur_fade_by="global", swap_fade_kvideos=0.05, generator_reg_interval=2, discriminator_reg_interval=3,
        density_points=50, fake_camera_time="matched", fake_time="grid", flip_fake_cameras=True,
    )
    return Variant(name="small", model=model, recipe=recipe)

def broken():
    return replace(small(), recipe=replace(small().recipe, r1_gamma=1e38))
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
        face_boxes=np.zeros((frames, 4), np.float32), landmarks=np.zeros((frames, 68, 2), np.float32), crop_size=16,
        crop_transforms=np.zeros((frames, 2, 3)), aligned=f"aligned/{name}.tar",
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
    stage.finish(store, written)
    (root / "small_variant.py").write_text(SMALL)
    return root


@pytest.fixture
def root(data: Path, tmp_path: Path) -> Path:
    """A fresh copy: shards, and nothing trained."""
    return Path(shutil.copytree(data, tmp_path / "run"))


@pytest.fixture(autouse=True)
def _variants(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(data)


def job(root: Path, **settings: object) -> Job:
    store = FolderStorage(root / "store")
    return Job(
        StorageSettings(root=store.root, tracking=f"sqlite:///{root}/mlflow.db"),
        TrainSettings(**{"variant": "small_variant:small", "steps": 7, "log_every": 2, "seed": 1, **settings}),  # type: ignore[arg-type]
        open_dataset(store).version,
    )


def run(root: Path, job: Job, *, workers: int) -> None:
    """Run `work` on that many gloo processes."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    text = json.dumps({"storage": job.storage.model_dump(), "settings": job.settings.model_dump(), "dataset": job.dataset})
    base = {
        **os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "WORLD_SIZE": str(workers), "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(root)]),
    }  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, __file__, text], env={**base, "RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for r in range(workers)
    ]  # fmt: skip
    outputs = [p.communicate(timeout=300)[0] for p in started]
    assert all(p.returncode == 0 for p in started), "\n".join(outputs)


def difference(a: Path, b: Path, step: int) -> float:
    """Largest difference of any number in two checkpoints: weights, averages, buffers, Adam's moments."""
    from safetensors.numpy import load_file

    folders = [next(Path(root, "store", "train").glob("*/checkpoints")) / f"{step:08d}" for root in (a, b)]
    names = [sorted(p.name for p in folder.glob("*.safetensors")) for folder in folders]
    assert names[0] == names[1]
    assert len(names[0]) == 7
    worst = 0.0
    for name in names[0]:
        left, right = (load_file(folder / name) for folder in folders)
        assert left.keys() == right.keys()
        worst = max([worst, *(float(np.abs(left[k] - right[k]).max()) for k in left)])
    return worst


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven updates on one worker, undisturbed."""
    root = Path(shutil.copytree(data, tmp_path_factory.mktemp("one") / "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        run(root, job(root), workers=1)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_two_workers_train_as_one_does(reference: Path, root: Path, zero: int) -> None:
    run(root, job(root, zero_stage=zero), workers=2)
    assert difference(reference, root, 7) < 1e-5


if __name__ == "__main__":
    import torch

    from pipelines.train import work

    given = json.loads(sys.argv[1])
    work(Job(StorageSettings(**given["storage"]), TrainSettings(**given["settings"]), given["dataset"]))
    torch.distributed.destroy_process_group()
