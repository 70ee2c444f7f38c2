"""The program in docs/api.md runs as it stands there, with few steps, on the model that ships."""

import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("dlib")
pytest.importorskip("trimesh")

from pipelines.latents import Latent
from pipelines.packed import PORTRAITS
from stages.sources.portraits import GRACE_HOPPER, _path

TEXT = (Path(__file__).parent.parent / "docs" / "api.md").read_text()


def test_the_program_runs(tmp_path, monkeypatch):
    if not PORTRAITS.is_file():
        pytest.skip("no trained model ships with this checkout")
    (program,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert "steps=500" in program
    monkeypatch.chdir(tmp_path)
    shutil.copy(_path(GRACE_HOPPER), "portrait.jpg")
    seen: dict = {}
    exec(compile(program.replace("steps=500", "steps=2"), "api.md", "exec"), seen)
    assert seen["depth"].shape == (8, 64, 64, 3)
    assert seen["wide"].shape == (8, 64, 192, 3)
    assert Latent.load("out/me").about["settings"]["steps"] == 2
    assert {path.name for path in Path("out").iterdir()} == {
        "seed0.mp4", "seed1.mp4", "head.glb", "me.json", "me.safetensors"
    }  # fmt: skip
    assert seen["video"].shape == (8, 64, 64, 3)
