import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

mlflow = pytest.importorskip("mlflow")
torch = pytest.importorskip("torch")

from tiny_dataset import clip_in, write  # noqa: E402
from tiny_registry import begin, database_at, free_port, mlflow_server, workflow_at, write_checkpoint  # noqa: E402

from infra.tracking import open_run  # noqa: E402
from pipelines.evaluate import evaluate, training  # noqa: E402
from pipelines.gate import before, decide, history, holder, judge, out_of_reach, rollback, told  # noqa: E402
from pipelines.models import registry  # noqa: E402
from pipelines.plan import describe_plan  # noqa: E402
from pipelines.register import register  # noqa: E402
from pipelines.run import _after_data as after_data  # noqa: E402
from pipelines.run import _closing as closing  # noqa: E402
from pipelines.run import _tell_out_of_reach as tell_out_of_reach  # noqa: E402
from pipelines.settings import GateRule  # noqa: E402
from pipelines.workflow import WorkflowError  # noqa: E402
from stages.shards import open_dataset  # noqa: E402
from stages.video import write_video  # noqa: E402


def figure(value: float | None, direction: str = "lower", reason: str = "") -> dict:
    return {"value": value, "direction": direction, "reason": reason, "samples": 4}


FIGURES = {"fvd": figure(250.0), "id": figure(0.7, "higher"), "chamfer": figure(None, reason="no weights")}


@pytest.mark.parametrize(
    ("name", "rule", "holds", "why"),
    [
        ("fvd", {"max": 250}, True, "fvd 250 keeps to max 250"),
        ("fvd", {"max": 249}, False, "fvd 250 is above max 249"),
        ("id", {"min": 0.6}, True, "id 0.7 keeps to min 0.6"),
        ("id", {"min": 0.75}, False, "id 0.7 is below min 0.75"),
        ("chamfer", {"max": 9}, False, "chamfer was not computed (no weights)"),
        ("chamfr", {"max": 9}, False, "chamfr was not evaluated, did you mean 'chamfer'?"),
        ("fvd", {"not_worse_than": "nobody"}, True, "fvd 250, and no version is nobody yet"),
        ("fvd", {"not_worse_than": "champion"}, False,
         "fvd 250, that of the champion (version 3) 240: worse by 10, tolerance 0"),
        ("fvd", {"not_worse_than": "champion", "tolerance": 10}, True,
         "fvd 250, that of the champion (version 3) 240: worse by 10, tolerance 10"),
        ("id", {"not_worse_than": "champion"}, True,
         "id 0.7, that of the champion (version 3) 0.5: better by 0.2"),
    ],
)  # fmt: skip
def test_a_rule_holds_or_not_and_says_why(name: str, rule: dict, holds: bool, why: str) -> None:
    champion = (3, {"fvd": figure(240.0), "id": figure(0.5, "higher")})
    (found,) = judge({name: GateRule(**rule)}, FIGURES, {"champion": champion, "nobody": None})
    assert (found.holds, found.why) == (holds, why)


def test_a_rule_holds_for_the_figure_by_a_network_of_ones_own_and_says_so() -> None:
    mine = {"id/dlib": figure(0.9, "higher"), "id/ir_se50": {**figure(0.7, "higher"), "network": "ab12"}}
    theirs = {**mine, "id/ir_se50": {**figure(0.6, "higher"), "network": "ab12"}}
    rule = {"id": GateRule(not_worse_than="champion")}
    (found,) = judge(rule, mine, {"champion": (3, theirs)})
    assert (found.holds, found.why) == (
        True, "id/ir_se50 0.7, that of the champion (version 3) 0.6: better by 0.1"
    )  # fmt: skip
    (found,) = judge(rule, mine, {"champion": (3, {"id/dlib": figure(0.5, "higher")})})
    assert not found.holds


def test_a_champion_without_the_figure_cannot_be_compared() -> None:
    rule = {"id": GateRule(not_worse_than="champion")}
    (found,) = judge(rule, FIGURES, {"champion": (3, {"id": figure(None, "higher", "no faces")})})
    assert not found.holds
    assert found.why == (
        "id 0.7 cannot be compared: of the champion (version 3), id was not computed (no faces)"
    )


def test_an_identity_of_videos_without_faces_passes_no_gate() -> None:
    figures = {"id/dlib": figure(0.99, "higher"), "faces_found/dlib": figure(0.0, "higher")}
    (found,) = judge({"id/dlib": GateRule(min=0.5)}, figures, {})
    assert (found.holds, found.why) == (False, "id/dlib: faces found in 0 of 16 frames: says nothing")


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ([1, 2, 3], [1, 2]), ([1, 2, -1], []), ([1, 2, 3, -2], [1]), ([1, 2, 3, -2, 4], [1, 2]),
        ([1, 2, 3, -2, -1, 3], [1]),
    ],
)  # fmt: skip
def test_each_roll_back_goes_one_further(changes: list[int], left: list[int]) -> None:
    """A negative number is a version that was gone back to."""
    events = [{"version": abs(n), "by": "rollback" if n < 0 else "gate"} for n in changes]
    assert before(events, abs(changes[-1])) == left


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("{fdv: {max: 3}}", "register.gate.fdv: no figure of evaluate.metrics, did you mean 'fvd'?"),
        ("{id: {max: 3}}", "register.gate.id: no figure of evaluate.metrics; known: chamfer, fvd"),
        ("{fvd: {mx: 3}}", "register.gate.fvd.mx: unknown setting, did you mean 'max'?"),
        ("{fvd: {}}", "register.gate.fvd: asks for nothing; write max, min or not_worse_than"),
        ("{fvd: {max: 3, tolerance: 1}}", "register.gate.fvd: tolerance belongs to not_worse_than"),
        ("{fvd: {min: 4, max: 3}}", "register.gate.fvd: min 4 is above max 3"),
        ("{fvd: {max: low}}", 'register.gate.fvd.max: should be a valid number, not "low"'),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused_with_its_place(
    tmp_path: Path, gate: str, message: str
) -> None:
    with pytest.raises(WorkflowError, match=re.escape(message)) as error:
        workflow_at(tmp_path, "sqlite:///m.db", gate=gate)
    assert re.match(rf"{tmp_path}/workflow.yaml:8:\d+: ", str(error.value))


def test_a_rule_of_null_is_none(tmp_path: Path) -> None:
    gate = workflow_at(tmp_path, "sqlite:///m.db", "register.gate.fvd=null", gate="{fvd: {max: 3}}").register
    assert gate.gate == {}
    assert workflow_at(tmp_path, "sqlite:///m.db", gate="null").register.gate == {}


def test_rules_that_no_version_can_keep_are_told_before_the_training(tmp_path: Path) -> None:
    gate = "{fvd: {max: 3}, chamfer: {max: 9}}"
    missing = workflow_at(tmp_path, "sqlite:///m.db", gate=gate)
    (text,) = out_of_reach(missing)
    assert text.startswith("register.gate.fvd: weights file i3d_torchscript.pt missing")
    write_video(tmp_path / "v.mp4", [np.zeros((64, 64, 3), np.uint8)] * 4, 25.0)    # a plan asks the source
    assert text in describe_plan(missing, None)[1]
    assert "register.gate" not in describe_plan(missing, "evaluate")[1]

    torch.jit.save(torch.jit.script(torch.nn.Identity()), str(tmp_path / "mine.pt"))
    named = f"evaluate.networks.i3d={tmp_path}/mine.pt"
    assert out_of_reach(workflow_at(tmp_path, "sqlite:///m.db", named, gate=gate)) == []
    assert out_of_reach(workflow_at(tmp_path, "sqlite:///m.db", named, gate="{fvd/mine: {max: 3}}")) == []


def test_without_held_out_people_a_rule_for_a_distance_to_them_is_told(tmp_path: Path, monkeypatch) -> None:
    workflow = workflow_at(tmp_path, "sqlite:///m.db", gate="{fvd: {max: 3}}")
    monkeypatch.setattr("pipelines.gate._without_network", lambda *given: "")
    store = workflow.store()
    write(store, [clip_in(store, "a-0")])
    (text,) = out_of_reach(workflow, open_dataset(store))
    assert "no clip of held-out people" in text
    write(store, [clip_in(store, "a-0"), clip_in(store, "b-0", listed={"split": "test"})])
    assert out_of_reach(workflow, open_dataset(store)) == []


def test_a_run_warns_of_each_such_rule_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    workflow = workflow_at(tmp_path, "sqlite:///m.db", gate="{fvd: {max: 3}, chamfer: {max: 9}}")
    write(workflow.store(), [clip_in(workflow.store(), "a-0")])
    tell_out_of_reach(workflow, "evaluate")
    assert not caplog.records
    tell_out_of_reach(workflow, None)
    tell_out_of_reach(workflow, None, open_dataset(workflow.store()))
    (said,) = (record.getMessage() for record in caplog.records)
    assert re.match(r"register\.gate\.fvd: weights file .* missing.*; no version of this run becomes", said)


def test_champion_is_no_alias_of_ones_own(tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match="champion is given by the gate alone"):
        workflow_at(tmp_path, "sqlite:///m.db", "register.alias=champion")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("register.alias=latest", "register.alias: latest means a version by itself to MLflow"),
        ("register.alias=V12", "means a version by itself to MLflow"),
        ("register.gate={chamfer: {not_worse_than: v1}}", "not_worse_than: v1 means a version by itself"),
        ("register.name=\"Anna's\"", "register.name: string should match pattern"),
    ],
)
def test_what_the_registry_would_refuse_after_the_training_is_refused_before_it(
    tmp_path: Path, change: str, message: str
) -> None:
    with pytest.raises(WorkflowError, match=re.escape(message)):
        workflow_at(tmp_path, "sqlite:///m.db", change)


@pytest.mark.parametrize(("tag", "value"), [("step", "x"), ("step", "-1"), ("checkpoint", None)])
def test_a_version_whose_tags_somebody_damaged_is_refused_in_one_line(
    tmp_path: Path, mlflow_database: Path, tag: str, value: str | None
) -> None:
    workflow = workflow_at(tmp_path, database_at(tmp_path, mlflow_database), gate=RULES)
    begin(workflow)
    client = mlflow.MlflowClient(workflow.storage.tracking)
    client.create_registered_model("pv3d")
    tags = {"ema": "0", "step": "24", "checkpoint": "x", tag: value}
    given = {name: text for name, text in tags.items() if text is not None}
    client.create_model_version("pv3d", f"{tmp_path}/model", tags=given)
    with pytest.raises(ValueError, match="models:/pv3d/1: was not registered by `pv3d run`"):
        decide(workflow, version=1)


RULES = "{warping_error: {not_worse_than: champion}, chamfer: {max: 1000000}}"


@pytest.fixture(params=["database", pytest.param("server", marks=pytest.mark.slow)])
def tracking(request, tmp_path: Path, mlflow_database: Path):
    if request.param == "database":
        yield database_at(tmp_path, mlflow_database)
    else:
        with mlflow_server(tmp_path, mlflow_database) as address:
            yield address


def test_the_gate_takes_the_better_refuses_the_worse_and_says_why(tmp_path: Path, tracking: str) -> None:
    workflow = workflow_at(tmp_path, tracking, gate=RULES)
    begin(workflow)
    measured = {}
    for step, seed in enumerate((0, 1), start=1):
        write_checkpoint(workflow, step, seed)
        measured[seed] = evaluate(workflow)["metrics"]["warping_error"]["value"]
    better, worse = sorted(measured, key=measured.__getitem__)
    assert measured[better] < measured[worse]

    def next_version(step: int, seed: int):
        write_checkpoint(workflow, step, seed)
        evaluate(workflow)
        assert register(workflow).created
        return decide(workflow)

    client = mlflow.MlflowClient(tracking)
    first = next_version(11, worse)
    assert (first.accepted, first.champion) == (True, 1)
    assert "no version is champion yet" in first.text

    second = next_version(12, better)
    assert (second.accepted, second.version, second.champion) == (True, 2, 2)
    gap = measured[worse] - measured[better]
    assert f"that of the champion (version 1) {measured[worse]:.4g}: better by {gap:.4g}" in second.text

    third = next_version(13, worse)
    assert (third.accepted, third.version, third.champion) == (False, 3, 2)
    assert third.reasons == [
        f"warping_error {measured[worse]:.4g}, that of the champion (version 2) {measured[better]:.4g}: "
        f"worse by {gap:.4g}, tolerance 0"
    ]
    assert (holder(client, "pv3d", "candidate"), holder(client, "pv3d", "champion")) == (3, 2)
    tags = client.get_model_version("pv3d", "3").tags
    assert tags["gate"] == third.text
    assert [value for key, value in tags.items() if key.startswith("gate.2")] == [third.text]
    assert float(tags["eval/warping_error"].split()[0]) == pytest.approx(measured[worse], rel=1e-5)
    assert tags["eval/fvd"].startswith("not computed: ")
    assert [event["version"] for event in history(client, "pv3d")] == [1, 2]

    # Back by one command; what was rolled back does not return by itself.
    assert rollback("pv3d", tracking) == (2, 1)
    assert holder(client, "pv3d", "champion") == 1
    again = decide(workflow, version=2)
    assert not again.accepted
    assert "it was rolled back at" in again.text
    answer, _ = told(workflow, 3, promote=True)
    assert (answer["accepted"], answer["champion"]) == (True, 3)  # as good as version 1
    assert decide(workflow, version=2, by_hand=True).champion == 2
    assert rollback("pv3d", tracking) == (2, 3)
    events = [(event["version"], event["by"]) for event in history(client, "pv3d")]
    assert events == [(1, "gate"), (2, "gate"), (1, "rollback"), (3, "gate"), (2, "gate"), (3, "rollback")]


def test_a_history_that_somebody_damaged_is_one_line(tmp_path: Path, mlflow_database: Path) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{shutil.copy(mlflow_database, tmp_path)}")
    client.create_registered_model("faces")
    event = '[{"version": %s, "at": "", "by": "gate"}]'
    for tag in ("no json", "1", "[1]", "[{}]", event % '"x"', event % "1e999", "[" * 4000):
        client.set_registered_model_tag("faces", "champion.history", tag)
        with pytest.raises(ValueError, match=r"faces: its tag champion\.history is damaged; delete the tag"):
            history(client, "faces")


def test_a_figure_that_was_not_computed_keeps_the_gate_shut(tmp_path: Path, mlflow_database: Path) -> None:
    workflow = workflow_at(tmp_path, database_at(tmp_path, mlflow_database), gate="{fvd: {max: 300}}")
    begin(workflow)
    write_checkpoint(workflow, 24, 0)
    reason = evaluate(workflow)["metrics"]["fvd"]["reason"]
    register(workflow)
    assert decide(workflow).reasons == [f"fvd was not computed ({reason})"]
    answer, _ = told(workflow, None, promote=True)
    assert answer["fault"] == f"pv3d version 1 refused: fvd was not computed ({reason})"
    client = mlflow.MlflowClient(workflow.storage.tracking)
    assert holder(client, "pv3d", "champion") is None
    assert len([key for key in client.get_model_version("pv3d", "1").tags if key.startswith("gate.")]) == 1

    # The card and the tags of the same version.
    tags = client.get_model_version("pv3d", "1").tags
    assert {"data", "config", "code", "licences", "ema", "step", "checkpoint", "weights"} <= tags.keys()
    with registry(workflow.storage.tracking):
        found = mlflow.artifacts.download_artifacts("models:/pv3d/1")
    (card,) = (path.read_text() for path in Path(found).rglob("model_card.md"))
    for said in ("must not be used for", "without their consent", "not balanced", tags["data"], tags["code"],
                 reason, "`chamfer`", "update 24", "fvd`: max 300"):  # fmt: skip
        assert said in card
    assert client.get_model_version("pv3d", "1").description == card[:5000]


def test_a_run_ends_with_what_the_gate_says(tmp_path: Path, mlflow_database: Path) -> None:
    """Of a training that is done, so that nothing is trained."""
    tracking = database_at(tmp_path, mlflow_database)
    workflow = workflow_at(tmp_path, tracking, "evaluate.analyses={mixing: 2}", gate=RULES)
    store = workflow.store()
    write_video(tmp_path / "v.mp4", [np.zeros((64, 64, 3), np.uint8)] * 4, 25.0)  # the report asks the source
    write(store, [clip_in(store, name) for name in ("a-0", "b-0", "c-0", "d-0")])
    write_checkpoint(workflow, 24, 0)
    uri, key = workflow.storage.tracking, training(workflow).tracking_key
    open_run(store, key, uri=uri, experiment="t", name="t").close()
    found = after_data(workflow, None, None, SimpleNamespace(phase=""))
    assert found["model"] == {"name": "pv3d", "version": 1, "alias": "candidate"}
    assert (found["gate"]["accepted"], found["gate"]["champion"]) == (True, 1)
    lines = closing(workflow, {**found, "seconds": 1.0, "waited_s": 0.0}).splitlines()
    assert f"evaluation  {found['evaluation']['page']}" in lines
    assert Path(found["evaluation"]["page"]).is_file()
    assert "champion    pv3d version 1 (models:/pv3d@champion)" in lines
    said = re.compile(r"gate +accepted: warping_error .*, and no version is champion yet")
    assert any(map(said.match, lines))
    assert f"analysis    mixing: {found['analyses']['mixing']['page']}" in lines


def test_a_champion_measured_under_other_settings_is_measured_again(
    tmp_path: Path, mlflow_database: Path
) -> None:
    tracking = database_at(tmp_path, mlflow_database)
    workflow = workflow_at(tmp_path, tracking, gate=RULES)
    begin(workflow)
    for step, seed in ((1, 0), (2, 0)):
        write_checkpoint(workflow, step, seed)
        evaluate(workflow)
        register(workflow)
        decide(workflow)
    other = workflow_at(tmp_path, tracking, "evaluate.seed=5", "evaluate.clips=1", gate=RULES)
    write_checkpoint(other, 3, 0)
    evaluate(other)
    register(other)
    found = decide(other)
    assert found.accepted
    assert ": equal" in found.text
    store = other.store()
    keys = [key for key in store.list("evaluate") if key.endswith(".json")]
    results = [json.loads(store.read(key)) for key in keys]
    assert sum(result["settings"]["clips"] == 1 for result in results) == 2  # the candidate and the champion


def test_what_is_not_there_is_named(tmp_path: Path, mlflow_database: Path) -> None:
    tracking = database_at(tmp_path, mlflow_database)
    workflow = workflow_at(tmp_path, tracking, gate=RULES)
    with pytest.raises(ValueError, match="nothing is registered as 'pv3d'"):
        decide(workflow)
    with pytest.raises(ValueError, match=r"register\.gate: has no rules"):
        decide(workflow_at(tmp_path, tracking))
    with pytest.raises(ValueError, match="nothing is registered under this name"):
        rollback("pv3d", tracking)
    begin(workflow)
    write_checkpoint(workflow, 24, 0)
    register(workflow)
    with pytest.raises(ValueError, match="--version 7: 'pv3d' has the versions 1"):
        decide(workflow, version=7)
    with pytest.raises(ValueError, match="no version is champion"):
        rollback("pv3d", tracking)
    decide(workflow)
    with pytest.raises(ValueError, match="version 1 is the first champion"):
        rollback("pv3d", tracking)


def test_a_registry_that_is_away_is_refused_with_the_cause(tmp_path: Path) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    workflow = workflow_at(tmp_path, away, gate=RULES)
    for asked in (lambda: decide(workflow), lambda: rollback("pv3d", away)):
        with pytest.raises(ValueError, match=f"{away}: nothing answers") as error:
            asked()
        assert len(str(error.value).splitlines()) == 1
