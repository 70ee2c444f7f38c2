"""The paper's protocol on a checkpoint of the authors' layout, small."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("dlib")

from click.testing import CliRunner  # noqa: E402
from metric_files import VideoNetwork, script, seeded  # noqa: E402
from tiny_dataset import SIZE, clip_in, write  # noqa: E402

from infra.storage import FolderStorage  # noqa: E402
from model.config import variant, with_changes  # noqa: E402
from model.discriminator import ImageDiscriminator, VideoDiscriminator  # noqa: E402
from model.generator import Generator  # noqa: E402
from pipelines.cli import main  # noqa: E402
from pipelines.import_official import import_official  # noqa: E402
from pipelines.reproduce import reproduce  # noqa: E402
from pipelines.workflow import Workflow, load  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
TEXT = """
storage: {{root: "{root}/store", tracking: "sqlite:///{root}/mlflow.db"}}
source: {{use: "stages.sources.folder:Folder", location: "{root}"}}
stages: [{{use: "stages.shots:SplitShots"}}]
train: {{variant: "model.config:tiny", steps: 24}}
evaluate: {{clips: 1, videos: 2, networks: {{i3d: "{i3d}"}}}}
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A file of the authors' layout, small; of opaque surfaces."""
    torch.manual_seed(0)
    changes = {"plane_axes": "eg3d_compat", "superresolution.input_resolution": 16}
    config = with_changes(variant("tiny").model, changes)
    made = Generator(config)
    with torch.no_grad():
        made.decoder.net[2].bias[0] += 20
    networks = {
        "generator": made, "generator_ema": made,
        "img_discriminator": ImageDiscriminator(config), "vid_discriminator": VideoDiscriminator(config),
    }  # fmt: skip
    state = {f"{name}.{n}": t for name, network in networks.items() for n, t in network.state_dict().items()}
    rendering = {"depth_resolution": 12, "depth_resolution_importance": 12}
    settings = {"model_config": {"rendering_kwargs": rendering}, "training": {"rendering_resolution": 16}}
    path = tmp_path / "model_7.ckpt"
    torch.save({"model": state, "config": settings, "num_updates": 7, "num_samples": 112}, path)
    return path


@pytest.fixture
def workflow(tmp_path: Path) -> Workflow:
    network = script(tmp_path, seeded(VideoNetwork), "random.pt")
    (tmp_path / "workflow.yaml").write_text(TEXT.format(root=tmp_path, i3d=network))
    return load(tmp_path / "workflow.yaml")


def test_an_official_checkpoint_has_figures_in_both_modes_and_they_are_kept(
    workflow: Workflow, checkpoint: Path, tmp_path: Path
) -> None:
    store = workflow.store()
    away = [clip_in(store, f"h{number}", listed={"split": "test"}) for number in range(2)]
    write(store, [clip_in(store, "t"), *away])
    answer, text = reproduce(workflow, "voxceleb", checkpoint)
    for mode, values in answer["modes"].items():
        assert {"fvd/random", "id", "id/dlib", "chamfer", "warping_error"} <= set(values)
        assert values["warping_error"]["value"] is not None
        assert {value["mode"] for value in values.values()} == {mode}
        assert values["id"]["value"] is None
    paper, official = (answer["modes"][mode] for mode in ("paper", "official"))
    assert paper["chamfer"]["unit"] != official["chamfer"]["unit"]
    version = answer["dataset"]["version"]
    said = f"model_7.ckpt on VoxCeleb, dataset {version}: 1 clip to train on, 2 of held-out people"
    assert text.splitlines()[0] == said
    assert "evaluate.videos is 2, not 5000" in text
    assert "not computed" in next(line for line in text.splitlines() if line.startswith("id "))
    kept = sorted(store.list("evaluate"))
    assert len(kept) == 2

    import_official(checkpoint, tmp_path / "imported")
    again, _ = reproduce(workflow, "voxceleb", tmp_path / "imported")
    assert again["modes"] == answer["modes"]
    assert sorted(store.list("evaluate")) == kept


def test_what_is_missing_is_told_in_one_line(workflow: Workflow, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no dataset, .* prepare CelebV-HQ first"):
        reproduce(workflow, "celebvhq", checkpoint)
    store = FolderStorage(tmp_path / "store")
    write(store, [clip_in(store, "t")])
    with pytest.raises(ValueError, match=r"--checkpoint .*none\.ckpt: no such file"):
        reproduce(workflow, "voxceleb", tmp_path / "none.ckpt")
    with pytest.raises(ValueError, match=r"--checkpoint .*store: a folder without checkpoint\.json"):
        reproduce(workflow, "voxceleb", tmp_path / "store")
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"broken\.ckpt"):
        reproduce(workflow, "voxceleb", broken)
    assert not list(store.list("evaluate"))
    assert SIZE == 64                        # of the dataset, as the checkpoint's pictures


def test_the_command_names_the_data_sets() -> None:
    told = CliRunner().invoke(main, ["reproduce", "ffhq", "--checkpoint", "x"])
    assert told.exit_code == 2
    assert "voxceleb" in told.output
