import json
from pathlib import Path

import pytest

mlflow = pytest.importorskip("mlflow")
torch = pytest.importorskip("torch")

from tiny_registry import begin, database_at, generator, workflow_at, write_checkpoint  # noqa: E402

from infra.checkpoints import save  # noqa: E402
from model.config import tiny, to_dict  # noqa: E402
from pipelines.checkpoints import EMA  # noqa: E402
from pipelines.evaluate import evaluate, training  # noqa: E402
from pipelines.evaluate_along import Along, spare  # noqa: E402
from pipelines.train_job import Job  # noqa: E402


@pytest.mark.parametrize(
    ("cores", "workers", "each", "left"), [(8, 6, 1.0, 2), (2, 2, 1.0, 0), (2, 3, 2 / 3, 0), (2.5, 1, 1.0, 1)]
)
def test_only_what_the_training_leaves_is_spare(cores: float, workers: int, each: float, left: int) -> None:
    assert spare(cores, workers, each) == left


def test_without_a_spare_core_nothing_is_started_and_once_said(tmp_path: Path, caplog) -> None:
    workflow = workflow_at(tmp_path, f"sqlite:///{tmp_path}/m.db", "evaluate.every=1")
    with Along(Job(workflow.storage, workflow.train, "d"), workflow.evaluate, cores=0) as along:
        along.tick()
        along.tick()
    assert [record.message for record in caplog.records] == [
        "evaluate.every: the training leaves no core or GPU; only the last checkpoint counts"
    ]


@pytest.mark.slow
def test_every_second_checkpoint_is_evaluated_and_a_failure_stops_nothing(
    tmp_path: Path, mlflow_database: Path, ray_session: Path
) -> None:
    workflow = workflow_at(
        tmp_path, database_at(tmp_path, mlflow_database), "evaluate.every=2", "train.checkpoint_every=4",
        "evaluate.metrics=[stages.metrics.chamfer]", "evaluate.samples=1",
    )  # fmt: skip
    begin(workflow)
    job, store = training(workflow), workflow.store()
    with Along(job, workflow.evaluate, cores=1) as along:
        for step in (4, 8, 12):
            write_checkpoint(workflow, step, step)
        along.tick()
        broken = generator(0)
        with torch.no_grad():
            broken.decoder.net[2].weight.fill_(float("nan"))
        save(store, job.checkpoints, 16, {EMA: broken.state_dict()}, {"variant": to_dict(tiny())}, keep=9)
        write_checkpoint(workflow, 24, 24)  # the last is evaluated by itself
    results = [key for key in store.list("evaluate") if key.endswith(".json")]
    assert [key.partition("/")[2][:8] for key in results] == ["00000008"]
    failed = json.loads(store.read(f"{job.run}/evaluations/00000016.json"))
    assert failed["step"] == 16
    assert "not finite" in failed["error"]

    last = evaluate(workflow)
    client = mlflow.MlflowClient(workflow.storage.tracking)
    run = job.mlflow_run()
    told = {m.step: m.value for m in client.get_metric_history(run, "eval/chamfer")}
    first = json.loads(store.read(results[0]))
    assert told == {step: one["metrics"]["chamfer"]["value"] for step, one in ((8, first), (24, last))}
    children = client.search_runs(
        [client.get_run(run).info.experiment_id], f"tags.`mlflow.parentRunId` = '{run}'"
    )
    states = {child.info.run_name: child.info.status for child in children}
    assert states == {"evaluate 8": "FINISHED", "evaluate 16": "FAILED", "evaluate 24": "FINISHED"}
    child = next(child for child in children if child.info.run_name == "evaluate 24")
    kinds = {Path(file.path).suffix for file in client.list_artifacts(child.info.run_id)}
    assert {".html", ".json"} <= kinds
    assert len(client.list_artifacts(child.info.run_id, "samples")) == 1
    page = next(key for key in store.list("evaluate") if "/00000024-" in key and key.endswith(".html"))
    text = store.read(page).decode()
    assert "data:video/mp4;base64," in text
    assert "chamfer over updates: last" in text  # two points make a curve
    assert "http" not in text.replace("http-equiv", "")
