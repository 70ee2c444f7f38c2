import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

mlflow = pytest.importorskip("mlflow")
torch = pytest.importorskip("torch")
pytest.importorskip("cv2")

from tiny_dataset import clip_in, write  # noqa: E402
from tiny_registry import database_at, generator, workflow_at  # noqa: E402

from infra.checkpoints import save  # noqa: E402
from infra.tracking import open_run  # noqa: E402
from model import camera, clips  # noqa: E402
from model.camera import canonical_camera  # noqa: E402
from model.config import tiny, to_dict  # noqa: E402
from model.discriminator import VideoDiscriminator  # noqa: E402
from model.generator import Generator  # noqa: E402
from pipelines.analyses import ANALYSES, Subject, analyse, analyse_all  # noqa: E402
from pipelines.analyses.long_videos import FRAMES, long_videos, moved, trained  # noqa: E402
from pipelines.analyses.mixing import mixed, way  # noqa: E402
from pipelines.checkpoints import D_VID, EMA  # noqa: E402
from pipelines.evaluate import NEUTRAL, training  # noqa: E402
from pipelines.models import OpenModel  # noqa: E402
from pipelines.settings import ANALYSES as SETTINGS  # noqa: E402
from pipelines.workflow import Workflow  # noqa: E402


@pytest.fixture
def workflow(tmp_path: Path, mlflow_database: Path) -> Workflow:
    """A training on moving cameras that has a checkpoint with D_vid, and one whose D_vid knows no order."""
    made = workflow_at(tmp_path, database_at(tmp_path, mlflow_database))
    store = made.store()
    write(store, [clip_in(store, name, frames=60) for name in ("a-0", "b-0", "c-0")])
    job = training(made)
    open_run(store, job.tracking_key, uri=made.storage.tracking, experiment="t", name="t").close()
    torch.manual_seed(0)
    d_vid = VideoDiscriminator(tiny().model)
    for step, weights in ((20, symmetric(d_vid)), (24, d_vid.state_dict())):
        files = {EMA: generator(0).state_dict(), D_VID: weights}
        save(store, job.checkpoints, step, files, {"variant": to_dict(tiny())}, keep=9)
    return made


def symmetric(d_vid: VideoDiscriminator) -> dict:
    """Its weights, changed so that both cameras of a pair mean the same wherever they stand."""
    weights = {name: value.clone() for name, value in d_vid.state_dict().items()}
    embed = weights["mapping.embed.weight"]
    embed[:, 25:] = embed[:, :25]
    return weights


def test_a_discriminator_that_knows_no_order_is_told_from_one_that_does(workflow: Workflow) -> None:
    options = {"count": 12, "ray_address": None}
    knows, text = analyse(workflow, "order", checkpoint=None, **options)
    folder = training(workflow).checkpoints
    ignores, _ = analyse(workflow, "order", checkpoint=f"{folder}/00000020", **options)
    assert (knows["step"], ignores["step"]) == (24, 20)
    assert ignores["numbers"]["cosine_median"] == pytest.approx(1, abs=1e-6)
    assert ignores["numbers"]["score_distance_median"] < 1e-4
    assert knows["numbers"]["cosine_median"] < 1 - 1e-6
    assert knows["numbers"]["score_distance_median"] > 10 * ignores["numbers"]["score_distance_median"]
    assert knows["says"] in text

    # In the store and in MLflow, once.
    page = Path(knows["page"]).read_text()
    assert "Fig. 8a" in page
    assert page.count("<svg") == 2
    again, _ = analyse(workflow, "order", checkpoint=None, **options)
    assert again == knows
    run = training(workflow).mlflow_run()
    client = mlflow.MlflowClient(workflow.storage.tracking)
    below, where = f"tags.`mlflow.parentRunId` = '{run}'", [client.get_run(run).info.experiment_id]
    found = client.search_runs(where, below, order_by=["start_time"])
    assert [one.info.run_name for one in found] == ["analyse order"] * 2
    assert found[0].data.metrics["cosine_median"] == pytest.approx(knows["numbers"]["cosine_median"])
    assert {file.path for file in client.list_artifacts(found[0].info.run_id)} == {
        "analysis.html", "analysis.json"
    }  # fmt: skip


def test_a_checkpoint_without_a_video_discriminator_is_refused(workflow: Workflow) -> None:
    store, job = workflow.store(), training(workflow)
    save(store, job.checkpoints, 30, {EMA: generator(0).state_dict()}, {"variant": to_dict(tiny())}, keep=9)
    with pytest.raises(ValueError, match="has no video discriminator"):
        analyse(workflow, "order", count=2, checkpoint=None, ray_address=None)
    assert not list(store.list("analyse"))


def test_what_was_kept_is_made_again_without_its_page_and_refused_when_damaged(workflow: Workflow) -> None:
    def again() -> dict:
        return analyse(workflow, "order", count=2, checkpoint=None, ray_address=None)[0]

    found = again()
    Path(found["page"]).unlink()
    assert again() == found
    assert Path(found["page"]).is_file()
    kept = Path(found["page"]).with_suffix(".json")
    for damage in ("{", "[]", "{}", '{"says": "x", "step": 24, "numbers": {"pairs": NaN}}'):
        kept.write_text(damage)
        with pytest.raises(ValueError, match=rf"{kept.name}.*: is damaged; delete it to analyse again"):
            again()


def test_a_run_does_those_that_the_workflow_asks_for_and_one_that_cannot_be_stops_nothing(
    workflow: Workflow, tmp_path: Path
) -> None:
    asked = workflow_at(tmp_path, workflow.storage.tracking, "evaluate.analyses={order: 2, mixing: 2}")
    assert training(asked).run == training(workflow).run
    store, job = asked.store(), training(asked)
    save(store, job.checkpoints, 30, {EMA: generator(0).state_dict()}, {"variant": to_dict(tiny())}, keep=9)
    found = analyse_all(asked, None)
    assert "has no video discriminator" in found["order"]["fault"]
    assert Path(found["mixing"]["page"]).is_file()
    assert "analyses" in NEUTRAL             # an evaluation is not done again for them


def test_the_workflow_names_the_analyses_that_there_are(tmp_path: Path) -> None:
    assert set(SETTINGS) == set(ANALYSES)
    with pytest.raises(ValueError, match=r"evaluate\.analyses: 'ordr' is no analysis; known: order, mixing"):
        workflow_at(tmp_path, "sqlite:///none.db", "evaluate.analyses={ordr: 5}")


def test_mixing_all_layers_is_the_other_person_and_none_is_oneself(workflow: Workflow) -> None:
    made = generator(0).eval().requires_grad_(False)
    frames = mixed(OpenModel("m", made, clips, camera), 6)
    assert len(frames) == tiny().model.num_ws + 1
    front = canonical_camera().encode()[None]
    (own,) = clips.render_clip(made, 6, front, np.zeros(1, np.float32))
    np.testing.assert_array_equal(frames[0], clips.to_uint8(own.image[0, 0]))
    shares = way(frames)
    assert (shares[0], shares[-1]) == (0, 1)
    result, _ = analyse(workflow, "mixing", count=2, checkpoint=None, ray_address=None)
    assert {f"changed_k{k}" for k in (0, 2, 4, tiny().model.num_ws)} <= set(result["numbers"])
    assert "data:image/png;base64," in Path(result["page"]).read_text()
    assert np.isnan(way(frames[[0, 0]])).all()


def test_long_videos_are_compared_with_clips_as_long(workflow: Workflow) -> None:
    config = replace(tiny().model, frames_span=FRAMES)
    variant = replace(tiny(), model=config)
    torch.manual_seed(0)
    files = {EMA: Generator(config).state_dict()}
    found = save(workflow.store(), "train/x/checkpoints", 1, files, {"variant": to_dict(variant)}, keep=1)
    findings = long_videos(Subject(workflow, found, 1, 0))
    assert set(findings.numbers) == {
        f"{who}_moved_{n}" for who in ("generated", "real") for n in (16, 48)
    }
    assert findings.numbers["real_moved_48"] > findings.numbers["real_moved_16"] > 0  # they brighten steadily
    assert findings.files[".mp4"][4:8] == b"ftyp"
    json.dumps(findings.numbers, allow_nan=False)


def test_the_model_of_longer_windows_is_trained_beside_the_stores_own(
    workflow: Workflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple] = []
    monkeypatch.setattr(
        "pipelines.train.train", lambda longer, **how: asked.append((longer.train.model, how["beside"]))
    )
    monkeypatch.setattr("pipelines.evaluate.evaluate", lambda longer: asked.append(longer.evaluate.frames))
    longer = trained(workflow, None)
    assert asked == [({"frames_span": FRAMES}, True), FRAMES]
    assert training(longer).run != training(workflow).run


def test_motion_is_counted_from_the_first_frame() -> None:
    frames = np.zeros((3, 2, 2, 3), np.uint8)
    frames[1], frames[2] = 10, 4
    assert moved(frames).tolist() == [0, 10, 4]
