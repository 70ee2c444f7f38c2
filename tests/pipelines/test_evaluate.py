import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

mlflow = pytest.importorskip("mlflow")
torch = pytest.importorskip("torch")
pytest.importorskip("dlib")

from infra.checkpoints import save  # noqa: E402
from infra.tracking import open_run  # noqa: E402
from model.config import tiny, to_dict  # noqa: E402
from model.generator import Generator  # noqa: E402
from pipelines.after_data import later  # noqa: E402
from pipelines.checkpoints import EMA  # noqa: E402
from pipelines.evaluate import evaluate, evaluate_now, newest_checkpoint, training  # noqa: E402
from pipelines.evaluate_samples import Here, Studio, multi_view  # noqa: E402
from pipelines.models import of_checkpoint  # noqa: E402
from pipelines.register import find_version, register  # noqa: E402
from pipelines.workflow import Workflow, load  # noqa: E402
from stages.metrics import MultiView  # noqa: E402
from stages.shards import commit_dataset  # noqa: E402

TEXT = """
storage: {{root: "{root}/store", tracking: "sqlite:///{root}/mlflow.db"}}
source: {{use: "stages.sources.folder:Folder", location: "{root}"}}
stages: [{{use: "stages.shots:SplitShots"}}]
train: {{variant: "model.config:tiny", steps: 24}}
evaluate:
  metrics: [stages.metrics.identity, stages.metrics.chamfer, stages.metrics.warping, stages.metrics.fvd]
  clips: 2
  samples: 0
"""


def generator(seed: int = 0) -> Generator:
    """Untrained, but dense enough that rays end at a surface."""
    torch.manual_seed(seed)
    made = Generator(tiny().model)
    with torch.no_grad():
        made.decoder.net[2].bias[0] += 20
    return made


def checkpoint(workflow: Workflow, step: int, weights: Generator) -> None:
    card = {"variant": to_dict(tiny())}
    save(workflow.store(), training(workflow).checkpoints, step, {EMA: weights.state_dict()}, card, keep=3)


@pytest.fixture
def workflow(tmp_path: Path, mlflow_database: Path) -> Workflow:
    """A run that has trained 24 updates on nothing."""
    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    (tmp_path / "workflow.yaml").write_text(TEXT.format(root=tmp_path))
    made = load(tmp_path / "workflow.yaml")
    commit_dataset(made.store(), [])
    checkpoint(made, 24, generator())
    tracking = made.storage.tracking
    open_run(made.store(), training(made).tracking_key, uri=tracking, experiment="t", name="t").close()
    return made


def changed(workflow: Workflow, **settings: Any) -> Workflow:
    import dataclasses

    return dataclasses.replace(workflow, evaluate=workflow.evaluate.model_copy(update=settings))


def to_do(workflow: Workflow) -> dict[str, int]:
    """What a dry run says of the steps after the data."""
    return {one.name: one.todo for one in later(workflow, workflow.store(), None, dataset_changes=False)}


def test_every_figure_is_measured_stored_and_logged_once(workflow: Workflow) -> None:
    result = evaluate(workflow)
    values = result["metrics"]
    assert {"id", "id/dlib", "faces_found/dlib", "chamfer", "warping_error", "fvd"} == set(values)
    for name in ("id/dlib", "chamfer", "warping_error"):
        assert values[name]["samples"] == 2
    assert "missing" in values["fvd"]["reason"]
    assert "missing" in values["id"]["reason"]
    store = workflow.store()
    keys = [key for key in store.list("evaluate") if key.endswith(".json")]      # beside its page
    assert len(keys) == 1
    assert json.loads(store.read(keys[0])) == result

    assert to_do(workflow) == {"train": 0, "evaluate": 0, "register": 1}
    written = store.path(keys[0]).stat().st_mtime_ns
    assert evaluate(workflow) == result
    assert store.path(keys[0]).stat().st_mtime_ns == written
    client = mlflow.MlflowClient(workflow.storage.tracking)
    run = json.loads(store.read(training(workflow).tracking_key))["run_id"]
    history = client.get_metric_history(run, "eval/chamfer")
    assert [(m.step, m.value) for m in history] == [(24, values["chamfer"]["value"])]
    assert not client.get_metric_history(run, "eval/fvd")


def test_another_setting_or_checkpoint_is_measured_anew_and_the_same_again(workflow: Workflow) -> None:
    only = {"metrics": ("stages.metrics.chamfer",)}
    first = evaluate(changed(workflow, **only))
    other = evaluate(changed(workflow, **only, seed=1))
    assert other["metrics"]["chamfer"]["value"] != first["metrics"]["chamfer"]["value"]
    official = evaluate(changed(workflow, **only, mode="official"))
    assert official["metrics"]["chamfer"]["mode"] == "official"
    client, run = mlflow.MlflowClient(workflow.storage.tracking), training(workflow).mlflow_run()
    curves = [client.get_metric_history(run, f"eval/{name}") for name in ("chamfer", "official/chamfer")]
    assert [[point.value for point in curve] for curve in curves] == [
        [one["metrics"]["chamfer"]["value"] for one in ones] for ones in ([first, other], [official])
    ]
    checkpoint(workflow, 48, generator(1))
    later = evaluate(changed(workflow, **only))
    assert later["step"] == 48
    store = workflow.store()
    for key in store.list("evaluate"):
        store.delete(key)
    assert evaluate(changed(workflow, **only))["metrics"] == later["metrics"]


def test_the_command_tells_every_figure_what_to_know_of_it_and_where_the_page_is(workflow: Workflow) -> None:
    answer, text = evaluate_now(workflow, None)
    lines = text.splitlines()
    assert lines[0].startswith("update 24 of train/")
    assert any(re.match(r"chamfer +[0-9.e+-]+ bins squared +[0-9.e+-]+ to", line) for line in lines)
    assert "id/dlib: faces found in 0 of 8 frames: says nothing; dlib embeddings, not comparable" in text
    assert any(line.startswith("fvd: weights file i3d_torchscript.pt missing") for line in lines)
    assert lines[-1] == answer["page"]
    assert Path(answer["page"]).is_file()


def test_the_course_of_an_identity_without_faces_says_that_it_says_nothing(workflow: Workflow) -> None:
    only = changed(workflow, metrics=("stages.metrics.identity",))
    evaluate(only)
    checkpoint(only, 48, generator(1))
    assert evaluate(only)["metrics"]["faces_found/dlib"]["value"] == 0
    store = only.store()
    (page,) = (key for key in store.list("evaluate") if "/00000048-" in key and key.endswith(".html"))
    says = "faces found in 0 of 8 frames: says nothing"
    drawn = rf"id/dlib over updates: last [\d.]+ cosine; higher is better; {says}"
    assert re.search(drawn, store.read(page).decode())


def test_a_sample_is_a_function_of_seed_and_number(workflow: Workflow, tmp_path: Path) -> None:
    opened = of_checkpoint(workflow.store(), newest_checkpoint(workflow).key)
    stored = Here(Studio(opened, workflow.evaluate, tmp_path), "views/paper", 2)
    alone = multi_view(opened, workflow.evaluate.seed, 1)
    second = list(stored)[1]
    for name in MultiView.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(second, name), getattr(alone, name))
    assert second.times[0] == second.times[2] != second.times[1] == second.times[3]
    np.testing.assert_array_equal(second.cameras[0], second.cameras[3])
    assert len(stored) == 2


def test_points_lie_where_depth_says_for_opaque_rays(workflow: Workflow) -> None:
    """The three geometry outputs that the metrics use agree with each other and with the camera."""
    from model.camera import Camera
    from stages.metrics.warping import lift

    opened = of_checkpoint(workflow.store(), newest_checkpoint(workflow).key)
    view = multi_view(opened, 0, 0)
    opaque = view.opacity[1] > 0.99
    lifted = lift(Camera.decode(view.cameras[1]), view.depth[1].astype(np.float64))
    assert opaque.any()
    assert np.abs(lifted - view.points[1])[opaque].max() < 0.02
    line = view.points[1] - view.cameras[1].reshape(-1)[[3, 7, 11]]
    ray = lifted - view.cameras[1].reshape(-1)[[3, 7, 11]]
    cosine = (line * ray).sum(-1) / np.linalg.norm(line, axis=-1) / np.linalg.norm(ray, axis=-1)
    assert cosine.min() > 0.99999


def test_without_a_checkpoint_the_cure_is_named(tmp_path: Path) -> None:
    (tmp_path / "workflow.yaml").write_text(TEXT.format(root=tmp_path))
    made = load(tmp_path / "workflow.yaml")
    with pytest.raises(ValueError, match="no shards"):
        evaluate(made)
    commit_dataset(made.store(), [])
    with pytest.raises(ValueError, match=r"no checkpoint .* `pv3d run --until train`"):
        evaluate(made)


@pytest.mark.parametrize(
    "damage",
    [
        "{", "[]", '{"schema": 1}', "metrics: []", 'metrics: {"chamfer": 3}', 'chamfer: {"value": "x"}',
        'chamfer: {"value": NaN}', 'chamfer: {"interval": [1]}', 'chamfer: {"direction": "up"}',
        'step: "24"', "checkpoint: null", "settings: {}",
    ],
)  # fmt: skip
def test_a_kept_result_that_somebody_damaged_is_refused_and_spoils_no_other(
    workflow: Workflow, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    quick = changed(workflow, metrics=("stages.metrics.chamfer",), clips=1)
    result, store = evaluate(quick), quick.store()
    (key,) = (key for key in store.list("evaluate") if key.endswith(".json"))
    name, colon, value = damage.partition(": ")
    text = damage
    if colon and not damage.startswith("{"):
        at = result["metrics"] if name == "chamfer" else result
        at[name] = {**at[name], **json.loads(value)} if name == "chamfer" else json.loads(value)
        text = json.dumps(result)
    store.write(key, text.encode())
    with pytest.raises(ValueError, match=rf"{key}.*; delete it to evaluate again") as refused:
        evaluate(quick)
    assert len(str(refused.value).splitlines()) == 1
    evaluate(changed(quick, seed=1))
    assert key in caplog.text


def test_a_figure_that_is_not_finite_is_named_and_leaves_no_result(
    workflow: Workflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "huge_metric.py").write_text(
        "from stages.metrics import Value\n"
        "def compute(evaluation):\n"
        "    return {'huge': Value(value=float('inf'), unit='', direction='lower')}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="huge: inf, interval None: not finite"):
        evaluate(changed(workflow, metrics=("huge_metric",)))
    assert not list(workflow.store().list("evaluate"))


def test_a_checkpoint_without_an_averaged_generator_and_no_name_of_one_are_refused(
    workflow: Workflow,
) -> None:
    other = f"{training(workflow).run}/other"
    card = {"variant": to_dict(tiny())}
    save(workflow.store(), other, 1, {"generator": generator().state_dict()}, card, keep=1)
    with pytest.raises(ValueError, match="has no generator_ema, which is measured"):
        evaluate(workflow, f"{other}/00000001")
    with pytest.raises(ValueError, match="storage key"):
        evaluate(workflow, "")               # of an empty variable of a shell


def test_a_diverged_checkpoint_is_refused_and_leaves_no_result(workflow: Workflow) -> None:
    broken = generator()
    with torch.no_grad():
        broken.decoder.net[2].weight.fill_(float("nan"))
    checkpoint(workflow, 30, broken)
    with pytest.raises(ValueError, match="not finite"):
        evaluate(workflow)
    assert not list(workflow.store().list("evaluate"))


def test_the_newest_checkpoint_is_registered_once_with_its_evidence(workflow: Workflow) -> None:
    assert to_do(workflow) == {"train": 0, "evaluate": 1, "register": 1}
    first, again = register(workflow), register(workflow)
    assert (first.version, first.created, again.version, again.created) == (1, True, 1, False)
    found = find_version(workflow.storage.tracking, "pv3d", "candidate")
    assert found is not None
    assert found.tags["step"] == "24"
    assert found.tags["data"] == training(workflow).dataset
    assert to_do(workflow) == {"train": 0, "evaluate": 1, "register": 0}
    checkpoint(workflow, 48, generator(1))
    assert to_do(workflow) == {"train": 0, "evaluate": 1, "register": 1}
    assert register(workflow).version == 2
    assert find_version(workflow.storage.tracking, "pv3d", "champion") is None


def test_a_backend_that_is_not_there_is_found_before_any_video_is_made(workflow: Workflow) -> None:
    with pytest.raises(ValueError, match=r"evaluate\.identity_backend: .*stages\.backends\.nobody"):
        evaluate(changed(workflow, identity_backend="stages.backends.nobody:Nobody"))
    evaluate(
        changed(
            workflow, identity_backend="stages.backends.nobody:Nobody", metrics=("stages.metrics.chamfer",)
        )
    )
