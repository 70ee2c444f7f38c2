import os
import re
from pathlib import Path

import pytest

pytest.importorskip("av")
pytest.importorskip("cv2")
pytest.importorskip("mlflow")

from tiny_report import Page, make_workflow, page

from model.camera import orbit
from pipelines.report import collect, report
from pipelines.report_tables import STATES
from pipelines.runner import prepare
from pipelines.workflow import Workflow, load
from stages.cameras import euler_degrees


@pytest.fixture
def workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workflow:
    return make_workflow(tmp_path, monkeypatch)


def test_the_report_of_nothing_says_so(workflow: Workflow) -> None:
    empty = page(workflow)
    for words in (
        "6 units wait for a stage",
        "No clip has come through",
        "Nothing was rejected",
        "Not trained yet",
        "Not evaluated yet",
        "Nothing is registered yet",
    ):
        assert words in empty.text


def test_stages_reasons_figures_and_pictures_are_shown(workflow: Workflow) -> None:
    prepare(workflow, in_process=True)
    shown = page(workflow)
    for words in (
        "two faces 1",
        "too short 1",
        "cannot decode 1",
        "<b>at 0.4 s</b>",
        "Yaw",
        "Clips per person",
        "2 people, 3 clips",
        "Keep the first second, reject the rest.",
        "96×64",
        "limit 20",
    ):
        assert words in shown.text, words
    pictures = [link for link in shown.links if link.startswith("data:image/webp;base64,")]
    # Kept clips, cameras over frames of each, and rejected ones; one of these cannot be decoded.
    assert len(pictures) == 3 + 3 + 3
    assert shown.text.count("no picture: cannot decode") == 1
    cameras = shown.text[shown.text.index("Cameras over frames") :]
    yaw = abs(float(euler_degrees(orbit(20).encode()[None])[0][0]))  # of the first and the last frame
    assert f"largest yaw ({yaw:.0f}°)" in cameras
    assert shown.text.count("5 to 95 %") == 6  # yaw, pitch, roll, face, length in frames and in seconds


def test_the_counts_are_those_of_status(workflow: Workflow) -> None:
    from pipelines.status import workflow_status

    prepare(workflow, until="Cut", in_process=True)
    data = collect(workflow, workflow.store())
    stages = workflow_status(workflow)[0]["stages"]
    assert {row["name"]: {state: row[state] for state in STATES} for row in data["stages"]} == stages
    assert stages["Pose"]["todo"] == 4 == data["todo"]
    assert [row["count"] for row in data["flow"]] == [6, 4, 0]
    assert [(row["text"], row["count"]) for row in data["by_reason"]] == [
        ("cannot decode · Cut", 1),
        ("frozen · Cut", 1),
        ("too short · Cut", 1),
    ]


def test_in_the_middle_of_a_run_the_clips_so_far_are_shown(workflow: Workflow) -> None:
    prepare(workflow, until="Cut", in_process=True)
    shown = page(workflow)
    assert (
        "No clip has come through all stages yet. Shown are clips that have come out of Cut ." in shown.text
    )
    assert "4 of 4 clips were read" in shown.text
    assert "Clip length in frames" in shown.text
    assert len([link for link in shown.links if link.startswith("data:image/webp")]) == 4 + 2


def test_the_page_is_one_file_and_escapes_what_videos_are_called(workflow: Workflow) -> None:
    prepare(workflow, in_process=True)
    path = Path(report(workflow))
    text = path.read_text()
    shown = Page(text)
    ids = {value for name, value in shown.attributes if name == "id"}
    assert {"stages", "lost", "figures", "kept", "cameras", "rejected"} <= ids
    assert all(link.startswith("data:") or link[1:] in ids for link in shown.links)
    assert not {"script", "iframe", "object", "embed", "form"} & set(shown.tags)
    assert not [name for name, _ in shown.attributes if name.startswith("on")]
    assert "default-src 'none'" in dict(shown.attributes)["content"] or "default-src 'none'" in text
    assert "<b>at 0.4 s</b>" not in text
    assert "http" not in re.sub(r"data:[^\"]*|http-equiv", "", text)
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]


def test_every_picture_and_plot_says_what_it_shows(workflow: Workflow) -> None:
    prepare(workflow, in_process=True)
    shown = page(workflow)
    assert shown.tags.count("img") == len(
        [name for name, value in shown.attributes if name == "alt" and value]
    )
    labels = [value for name, value in shown.attributes if name == "aria-label"]
    assert any(label.startswith("Yaw: median") for label in labels if label)
    assert {value for name, value in shown.attributes if name == "scope"} == {"col", "row"}


def test_it_is_written_where_it_is_asked_for(workflow: Workflow, tmp_path: Path) -> None:
    assert report(workflow, tmp_path / "mine.html") == str(tmp_path / "mine.html")
    assert "No clip has come through" in (tmp_path / "mine.html").read_text()
    assert not workflow.store().exists("report/index.html")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for out, words in (
        (tmp_path, "is a folder"), (tmp_path / "no" / "a.html", "there is no folder"),
        (tmp_path / "pipe", "is neither a file nor free"), (tmp_path / "link", "is neither a file nor free"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            report(workflow, out)


def test_what_was_taken_down_is_not_shown(workflow: Workflow, tmp_path: Path) -> None:
    prepare(workflow, in_process=True)
    (tmp_path / "list.txt").write_text("clip:" + cut_of(workflow, "a-2", 1) + "\nvideo:c-frozen.mp4\n")
    swept = load(tmp_path / "workflow.yaml", None, [f"policy.takedown={tmp_path / 'list.txt'}"])
    sheets = collect(swept, swept.store())["sheets"]
    rows = [clip for stage in sheets for sheet in stage["sheets"] for clip in sheet["clips"]]
    assert sorted(row["source"] for row in rows) == ["b-unwanted.mp4", "no <script>alert(1) video.mp4"]


def cut_of(workflow: Workflow, name: str, number: int) -> str:
    clip = next(c for c in workflow.source.clips(workflow.store()) if name in c.source)
    return f"{clip.id}_{number}"


def test_a_page_holds_so_many_pictures_and_says_what_it_leaves_out(
    workflow: Workflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines import report_sheets

    prepare(workflow, in_process=True)
    monkeypatch.setattr(report_sheets, "PICTURE_BYTES", 1)  # the first fills it
    shown = page(workflow)
    assert len([link for link in shown.links if link.startswith("data:image")]) == 1
    assert "9 pictures left out: the page holds 0 MB of pictures at most" in shown.text


def test_a_file_name_that_is_no_text_does_not_stop_the_report(workflow: Workflow) -> None:
    video = Path(next(iter(workflow.source.clips(workflow.store()))).video)
    video.rename(video.with_name("odd\udcff-frozen.mp4"))
    prepare(workflow, in_process=True)
    assert r"odd\udcff-frozen.mp4" in Path(report(workflow)).read_text()
