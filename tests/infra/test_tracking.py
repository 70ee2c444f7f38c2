"""One MLflow run over restarts, with no step twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.storage import FolderStorage
from infra.tracking import Run, check_tracking, open_run, shown

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracking")


def opened(place: Path, key: str = "train/x/mlflow.json") -> Run:
    uri = f"sqlite:///{place}/new/folder/mlflow.db"
    return open_run(FolderStorage(place / "store"), key, uri=uri, experiment="pv3d", name="x")


def history(run: Run, name: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in run.client.get_metric_history(run.id, name)]


def test_a_restart_continues_the_run_and_leaves_logged_steps_alone(place: Path) -> None:
    first = opened(place)
    for step in (1, 2, 3):
        first.log(step, {"loss": step / 10, "other": 1.0})
    first.flush()
    again = opened(place)
    assert again.id == first.id
    for step in (2, 3, 4):
        again.log(step, {"loss": 9.0})
    again.close()
    assert history(again, "loss") == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 9.0)]
    assert again.client.get_run(again.id).info.status == "FINISHED"


def test_a_changed_parameter_is_noted_beside_the_first(place: Path) -> None:
    run = opened(place)
    run.params({"train.steps": 10, "train.seed": 0})
    run.params({"train.steps": 20, "train.seed": 0})
    data = run.client.get_run(run.id).data
    assert data.params["train.steps"] == "10"
    assert data.tags["changed.train.steps"] == "20"
    assert "changed.train.seed" not in data.tags


def test_the_dataset_is_an_input_once(place: Path) -> None:
    run = opened(place)
    for _ in range(2):
        run.dataset(name="shards", digest="abc", source="/data/dataset/abc.json", profile={"clips": 3})
    (found,) = run.client.get_run(run.id).inputs.dataset_inputs
    assert (found.dataset.digest, json.loads(found.dataset.profile)) == ("abc", {"clips": 3})


def test_artifacts_lie_beside_the_database(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "grid.mp4"
    file.write_bytes(b"mp4")
    run = opened(place)
    run.artifact(file, "samples")
    run.text("{}", "checkpoints/1.json")
    assert sorted(p.name for p in (place / "new" / "folder" / "mlartifacts").rglob("*") if p.is_file()) == [
        "1.json", "grid.mp4",
    ]  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["grid.mp4"]


def test_a_run_that_is_gone_is_replaced(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = opened(place, "gone.json")
    first.client.delete_run(first.id)
    second = opened(place, "gone.json")
    assert second.id != first.id
    assert "was deleted; starting another" in caplog.text
    FolderStorage(place / "store").write("other.json", json.dumps({"run_id": "0" * 32}).encode())
    assert opened(place, "other.json").id not in {first.id, second.id, "0" * 32}


def test_many_metrics_are_sent_in_pieces(place: Path) -> None:
    run: Any = opened(place, "many.json")
    for step in range(600):
        run.log(step, {"a": 1.0, "b": 2.0})
    run.flush()
    assert len(history(run, "a")) == len(history(run, "b")) == 600


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sqlite:///{place}/text.db", "is no SQLite database"),
        ("sqlite:///{place}/text.db/below.db", "storage.tracking"),
        ("sqlite:///{place}", "cannot be read"),
        ("http://127.0.0.1:1", "nothing answers"),
        ("http://127.0.0.1:99999", "nothing answers"),
        ("http://", "nothing answers"),
        ("foo://x", "is no address of MLflow"),
        ("a folder\x1b", "is no address of MLflow"),
        ("postgresql+nothing://x/y", "is no address of a database"),
    ],
)
def test_a_tracking_place_that_cannot_be_is_refused_at_once(uri: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is a text of more than sixteen letters")
    with pytest.raises(ValueError, match=message) as refused:
        check_tracking(uri.format(place=tmp_path))
    assert str(refused.value).startswith("storage.tracking: ")
    assert "\n" not in str(refused.value)


def test_a_damaged_database_is_one_line(place: Path, tmp_path: Path) -> None:
    opened(place)
    file = tmp_path / "m.db"
    file.write_bytes((place / "new" / "folder" / "mlflow.db").read_bytes()[:4096])
    with pytest.raises(ValueError, match=r"storage\.tracking: .*m\.db: is damaged \(.*\); bring it back"):
        check_tracking(f"sqlite:///{file}")


@pytest.mark.parametrize(
    "uri", ["http://me:hush@127.0.0.1:1", "postgresql+nothing://me:hush@h/db", "foo://me:hush@x"]
)
def test_the_password_of_an_address_is_not_told(uri: str) -> None:
    with pytest.raises(ValueError, match=r"//me") as refused:
        check_tracking(uri)
    assert "hush" not in str(refused.value)
    assert shown("postgresql://me:hu@sh@host/db") == "postgresql://me@host/db"
    assert shown("sqlite:////a:b@c/mlflow.db") == "sqlite:////a:b@c/mlflow.db"


def test_a_new_database_is_fine_and_asking_makes_nothing(tmp_path: Path) -> None:
    check_tracking(f"sqlite:///{tmp_path}/new/folder/mlflow.db")
    assert list(tmp_path.iterdir()) == []
    opened(tmp_path)
    check_tracking(f"sqlite:///{tmp_path}/new/folder/mlflow.db")
