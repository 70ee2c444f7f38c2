import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tiny_dataset import clip_in, write  # noqa: E402
from tiny_registry import begin, database_at, workflow_at, write_checkpoint  # noqa: E402

from model import camera, clips  # noqa: E402
from model.config import tiny  # noqa: E402
from model.generator import Generator  # noqa: E402
from pipelines import ablations  # noqa: E402
from pipelines.ablations import FILE, Row, headings, read_matrix, rows, text  # noqa: E402
from pipelines.evaluate import evaluate  # noqa: E402
from pipelines.evaluate_samples import multi_view  # noqa: E402
from pipelines.models import OpenModel  # noqa: E402
from pipelines.train_job import Job  # noqa: E402
from pipelines.workflow import Workflow, load  # noqa: E402
from stages.metrics import FRONT, SIDE  # noqa: E402

WORKFLOW = str(Path(__file__).parents[2] / "workflow.yaml")


def test_every_row_is_a_workflow_at_either_size_and_equal_ones_share_a_training() -> None:
    matrix = read_matrix(FILE)
    for size in matrix.sizes:
        found = rows(matrix, size, None, WORKFLOW, None, [])
        names = [Job(row.workflow.storage, row.workflow.train, "d").name for row in found]
        same = {row.text for row, name in zip(found, names, strict=True) if name == names[1]}
        assert same == {
            "2a middle", "2b ModConv", "2c MapT", "2d camera and time difference", "3a D_img and D_vid",
            "3b 64", "3c w/ camera",
        }  # fmt: skip
        assert len(set(names)) == len(found) - len(same) + 1, "two rows change the same"
    assert [table.name for table in matrix.tables] == ["2a", "2b", "2c", "2d", "3a", "3b", "3c"]


def test_what_is_asked_for_comes_last_and_tables_are_chosen() -> None:
    found = rows(read_matrix(FILE), "small", "3b, 3c", WORKFLOW, "demo", ["train.steps=3"])
    assert {row.table for row in found} == {"3b", "3c"}
    assert {row.workflow.train.steps for row in found} == {3}
    resolutions = [Job(r.workflow.storage, r.workflow.train, "d").variant.model.rendering for r in found[:3]]
    assert [one.resolution for one in resolutions] == [16, 32, 64]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("smal", None), "--size smal: unknown, did you mean 'small'?"),
        (("small", "2x"), r"--only 2x: no such table"),
        (("small", ""), r"--only : no such table"),
    ],
)
def test_a_choice_that_is_not_there_is_refused(options: tuple[str, str | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows(read_matrix(FILE), *options, WORKFLOW, None, [])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sizess: {}", "ablations.sizess: unknown setting, did you mean 'sizes'?"),
        ("tables: [{name: a, title: b, rows: {r: {train.model.motion.blocsk: 2}}}]", "blocsk"),
    ],
)
def test_a_mistake_in_any_row_is_found_before_the_first_is_trained(
    tmp_path: Path, line: str, message: str
) -> None:
    file = tmp_path / "a.yaml"
    head = "" if line.startswith("sizess") else "sizes: {small: {}}\ncolumns: {CD: chamfer}\n"
    file.write_text(f"{head}{line}\n")
    workflow_at(tmp_path, f"sqlite:///{tmp_path}/m.db")
    with pytest.raises(ValueError, match=message):
        ablations.ablate(
            file, size="small", only=None, path=str(tmp_path / "workflow.yaml"), profile=None, overrides=[]
        )
    assert not (tmp_path / "store" / "train").exists()


@pytest.mark.parametrize(
    ("head", "table", "message"),
    [
        ("sizes: {small: {}}", "{name: a, title: b, rows: {}}", "rows: dictionary should have at least 1"),
        ("sizes: {small: {}}", "{name: a, title: b, rows: {r: {}}}, {name: a, title: c, rows: {s: {}}}",
         "ablations.tables: two are named a; rename one"),
        ("sizes: {small: {}, ../x: {}}", "{name: a, title: b, rows: {r: {}}}", "should match pattern"),
        ("sizes: {small: {}}", '{name: a, title: b, rows: {"r|s": {}}}', "should match pattern"),
        ("sizes: {small: {train.name: x}}", "{name: a, title: b, rows: {r: {}, s: {train.seed: 1}}}",
         "row a r: train.name: all rows would share the training 'x'; set train.name=null"),
        ("sizes: {small: {}}", "{name: a, title: b, rows: {r: {}, s: {storage.root: elsewhere}}}",
         "row a s: storage: is not that of the first row"),
    ],
)  # fmt: skip
def test_a_matrix_whose_tables_could_not_be_written_or_believed_is_refused(
    tmp_path: Path, head: str, table: str, message: str
) -> None:
    (tmp_path / "a.yaml").write_text(f"{head}\ncolumns: {{CD: chamfer}}\ntables: [{table}]\n")
    workflow_at(tmp_path, f"sqlite:///{tmp_path}/m.db")
    with pytest.raises(ValueError, match=message):
        rows(read_matrix(tmp_path / "a.yaml"), "small", None, str(tmp_path / "workflow.yaml"), None, [])


def test_the_tables_have_the_papers_layout_and_say_why_a_number_is_missing() -> None:
    matrix = read_matrix(FILE)
    names = ("w/o D_vid", "w/o D_img", "D_img and D_vid")
    found = [Row("3a", name, workflow=load(WORKFLOW)) for name in names]
    values = {
        "fvd": {"value": None, "reason": "no weights", "direction": "lower"},
        "id": {"value": 0.51, "direction": "higher"},
        "chamfer": {"value": 1.25, "direction": "lower"},
        "warping_error": {"value": 12.0, "direction": "lower"},
    }
    found[0].result = {"metrics": values, "checkpoint": "train/a/checkpoints/1", "step": 1}
    found[1].fault = "training stopped before update 7"
    assert headings(matrix, found) == ["FVD↓", "ID↑", "CD↓", "WE↓"]
    lines = text(matrix, found).splitlines()
    assert lines[:3] == [
        "voxceleb_512, 300,000 updates; 1,000 videos from two sides, 5,000 for FVD", "", "(3a) Discriminators"
    ]
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[6:9]]
    assert shown == [
        ["w/o D_vid", "-[1]", "0.51", "1.25", "12"],
        ["w/o D_img", *["-[2]"] * 4],
        ["D_img and D_vid", *[""] * 4],
    ]
    assert lines[-2:] == ["[1] fvd was not computed: no weights", "[2] training stopped before update 7"]
    assert json.loads(json.dumps(ablations.to_json("small", found)))["rows"][1]["fault"]


def test_a_figure_by_a_network_of_ones_own_stands_in_its_column_with_a_note() -> None:
    row = Row("3a", "w/o D_vid", workflow=load(WORKFLOW))
    found = {"direction": "higher", "value": 0.7, "note": "", "network": ""}
    values = {"id/dlib": found, "id/ir_se50": {**found, "value": 0.6, "note": "by it", "network": "ab12"}}
    row.result = {"metrics": values, "checkpoint": "train/a/checkpoints/1", "step": 1}
    assert headings(read_matrix(FILE), [row])[1] == "ID↑"
    lines = text(read_matrix(FILE), [row]).splitlines()
    assert [cell.strip() for cell in lines[6].strip("|").split("|")][:3] == ["w/o D_vid", "-[1]", "0.6[2]"]
    assert "[2] id/ir_se50: by it" in lines


def test_rows_are_trained_beside_the_stores_own_and_one_that_stops_is_told_in_its_place(
    tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By trainings and evaluations that are only named here: what a row does is tested elsewhere."""
    workflow = workflow_at(tmp_path, database_at(tmp_path, mlflow_database))
    write(workflow.store(), [clip_in(workflow.store(), f"{letter}-0") for letter in "abcd"])
    file, asked = tmp_path / "a.yaml", []
    file.write_text(
        "sizes: {small: {}}\ncolumns: {CD: chamfer}\n"
        "tables: [{name: t, title: T, rows: {early: {train.model.motion.blocks: 2}, middle: {}}}]\n"
    )

    def train(row: Workflow, **how: object) -> None:
        asked.append((row.train.model, how["beside"]))
        if row.train.model:
            raise ValueError("training stopped before update 7")

    figure = {"value": 1.25, "direction": "lower", "network": ""}
    monkeypatch.setattr("pipelines.train.train", train)
    monkeypatch.setattr(
        "pipelines.evaluate.evaluate",
        lambda row: {"metrics": {"chamfer": figure}, "checkpoint": "train/a/checkpoints/1", "step": 1},
    )
    path = str(tmp_path / "workflow.yaml")
    _, said = ablations.ablate(file, size="small", only=None, path=path, profile=None, overrides=[])
    assert asked == [({"motion": {"blocks": 2}}, True), ({}, True)]
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert lines[6:8] == ["| early | -[1] |", "| middle | 1.25 |"]
    assert said.splitlines()[-1] == "[1] training stopped before update 7"
    assert workflow.store().read("ablations/small.md").decode() == f"{said}\n"


def test_equal_weights_are_measured_apart_where_the_rows_use_them_otherwise(
    tmp_path: Path, mlflow_database: Path
) -> None:
    """Non and MapT train alike; they differ in what the mapping network sees afterwards."""
    tracking, found = database_at(tmp_path, mlflow_database), {}
    for how in ("mapt", "non"):
        row = workflow_at(tmp_path, tracking, f"train.model.camera_conditioning={how}")
        begin(row)
        write_checkpoint(row, 1, seed=0)
        found[how] = evaluate(row)["metrics"]["warping_error"]["value"]
    assert found["mapt"] != found["non"]


@pytest.mark.parametrize("how", ["all", "non", "map", "mapt"])
def test_every_camera_condition_is_evaluated_from_the_sides_that_were_asked_for(how: str) -> None:
    torch.manual_seed(0)
    config = replace(tiny().model, camera_conditioning=how)
    made = Generator(config).eval().requires_grad_(False)
    made.backbone.mapping.embed.weight.mul_(3)   # so that the camera of the mapping network shows
    view = multi_view(OpenModel("m", made, clips, camera), 0, 0)
    front, side = view.images[FRONT[0]].astype(int), view.images[SIDE[1]].astype(int)  # of one time
    assert np.abs(front - side).mean() > 1
    lines = [points.reshape(-1, 3).mean(0) for points in view.points]
    assert np.linalg.norm(lines[FRONT[0]] - lines[SIDE[1]]) > 1e-3
