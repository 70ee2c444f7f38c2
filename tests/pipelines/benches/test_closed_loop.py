"""The bench of the closed loop, at its smallest: real dataset, real checkpoint, real detector, two videos."""

import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("dlib")

from tiny_dataset import clip_in, write  # noqa: E402

from infra.checkpoints import save  # noqa: E402
from infra.storage import FolderStorage  # noqa: E402
from model.config import tiny, to_dict  # noqa: E402
from model.generator import Generator  # noqa: E402
from pipelines.benches import closed_loop  # noqa: E402
from pipelines.checkpoints import EMA  # noqa: E402
from stages.dataset import open_dataset  # noqa: E402


@pytest.fixture
def store(tmp_path: Path) -> FolderStorage:
    """Four clips without a face, and two checkpoints, the first of untrained weights."""
    made = FolderStorage(tmp_path / "store")
    write(made, [clip_in(made, name) for name in ("a_1", "b_1", "c_1", "d_1")])
    for step, seed in ((2, 0), (4, 1)):
        torch.manual_seed(seed)
        files = {EMA: Generator(tiny().model).state_dict()}
        card = {"variant": to_dict(tiny()), "dataset": open_dataset(made).version, "settings": {"seed": 0}}
        save(made, "train/r/checkpoints", step, files, card, keep=9)
    return made


@pytest.mark.slow
def test_start_end_and_real_frames_are_measured_and_drawn(store: FolderStorage, tmp_path: Path) -> None:
    told: list[str] = []
    curve = tmp_path / "curve.svg"
    figures = closed_loop.run(
        str(store.root), "train/r/checkpoints/00000004", videos=2, frames=4, curve=str(curve),
        progress=told.append,
    )["figures"]  # fmt: skip
    assert figures["faces_found"] == figures["faces_found_start"] == figures["faces_found_real"] == 0
    assert "yaw_correlation" not in figures              # of no face there is none, and none is made up
    assert all(math.isfinite(value) for value in figures.values())
    assert figures["frechet_dlib"] > figures["frechet_dlib_real"] > 0
    assert -1 <= figures["id_dlib"] <= 1
    assert "curve: 2 updates" in told
    assert curve.read_text().count("<polyline") == 2     # faces and distance; there is no yaw to draw


def test_the_start_is_the_untrained_weights_of_the_seed(store: FolderStorage) -> None:
    from infra.checkpoints import open_checkpoint
    from pipelines.models import of_checkpoint

    start = closed_loop.untrained(open_checkpoint(store, "train/r/checkpoints/00000004")).generator
    first = of_checkpoint(store, "train/r/checkpoints/00000002").generator
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), first.parameters(), strict=True))


@pytest.mark.parametrize(("options", "message"), [
    ({"videos": 1}, "--videos and --frames are 2 or more"),
    ({"curve": "/no/such/folder/a.svg"}, "--curve /no/such/folder/a.svg: no such folder"),
    ({}, "no checkpoint in .*; run `pv3d run --until train` first"),
])  # fmt: skip
def test_mistakes_are_one_line(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        closed_loop.run(str(tmp_path), **options)
