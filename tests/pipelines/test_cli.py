import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.storage import FolderStorage

TINY = str(Path(__file__).parent)


def pv3d(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it, in a process of its own."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, env=surroundings(**environment)
    )


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from pipelines.cli import main; main()", *map(str, arguments)]


def surroundings(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": TINY, "RAY_AUTH_MODE": "disabled", **changes}


def run(tiny, *arguments):
    return pv3d("run", tiny.path, "--until", "Write", "--in-process", *arguments)


def one_line(answer, status=2):
    """The refusal: one line on stderr, nothing on stdout."""
    assert answer.returncode == status, answer.stderr
    assert answer.stdout == ""
    (line,) = answer.stderr.strip().splitlines()
    assert line.startswith("pv3d: ")
    return line


@pytest.mark.parametrize(
    "words",
    ["", "run", "describe", "status", "report", "generate", "weights", "weights list", "weights fetch",
     "weights verify", "bench", "check-cameras", "view", "inspect", "pack"],
)  # fmt: skip
def test_every_command_explains_itself_with_an_example(words):
    from click.testing import CliRunner

    from pipelines.cli import main

    answer = CliRunner().invoke(main, [*words.split(), "--help"])
    assert answer.exit_code == 0
    assert re.search(r"Examples?:\s+pv3d", answer.output)


def test_a_run_prints_one_object_last_and_status_agrees(tiny):
    answer = run(tiny, "--json", "--set", "stages.Mark.drop=[v01-0]", "--set", "stages.Cut.short=true")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout.splitlines()[-1])["kept"] == 3
    status = pv3d("status", tiny.path, "--json", "--set", "stages.Mark.drop=[v01-0]",
                  "--set", "stages.Cut.short=true")  # fmt: skip
    (line,) = status.stdout.splitlines()
    found = json.loads(line)
    assert found["stages"] == {
        "Cut": {"ok": 4, "rejected": 4, "failed": 0, "todo": 0},
        "Mark": {"ok": 3, "rejected": 1, "failed": 0, "todo": 0},
        "Second": {"ok": 3, "rejected": 0, "failed": 0, "todo": 0},
        "Keep": {"ok": 3, "rejected": 0, "failed": 0, "todo": 0},
        "Write": {"ok": 3, "rejected": 0, "failed": 0, "todo": 0},
    }
    assert len(found["units"]) == 8
    assert {
        "source": "list/v01.mp4", "clip": "v01-0", "stage": "Mark", "state": "rejected",
        "reason": "two faces", "identity": "", "detail": "2",
    } in found["units"]  # fmt: skip
    assert sum(unit["state"] == "ok" and unit["stage"] == "Write" for unit in found["units"]) == 3


def test_before_a_run_every_video_is_to_do(tiny):
    found = json.loads(pv3d("status", tiny.path, "--json").stdout)
    assert found["stages"]["Cut"] == {"ok": 0, "rejected": 0, "failed": 0, "todo": 4}
    ends = {(unit["clip"], unit["stage"], unit["state"]) for unit in found["units"]}
    assert ends == {(None, "Cut", "todo")}


def test_a_dry_run_says_what_is_done_and_does_nothing(tiny):
    run(tiny)
    tiny.calls()
    answer = pv3d("run", tiny.path, "--dry-run", "--json", "--set", "stages.Second.value=2")
    stages = json.loads(answer.stdout)["stages"]
    assert stages["Mark"] == {"done": 8, "stale": 0, "todo": 0}
    assert stages["Second"] == {"done": 0, "stale": 8, "todo": 8}
    assert tiny.calls() == []


def test_describe_names_every_stage_with_its_settings(tiny):
    found = json.loads(pv3d("describe", tiny.path, "--json", "--profile", "more").stdout)
    assert [stage["name"] for stage in found["stages"]] == ["Cut", "Mark", "Second", "Keep", "Write"]
    assert found["source"]["settings"]["count"] == 6
    assert "reads   face_boxes" in pv3d("describe", tiny.path).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "stages.Mark.valeu=1"], "did you mean 'value'?"),
        (["--profile", "mor"], "did you mean 'more'?"),
        (["--until", "Writ"], "--until Writ: no such stage, did you mean 'Write'?"),
        (["--set", "storage.root=/proc/none"], "storage.root: cannot write to /proc/none"),
        (["--set", "stages.Mark.refuse='weights file x is missing'", "--in-process"],
         "stage Mark: weights file x is missing"),
        (["--ray-address", "127.0.0.1:1"], "--ray-address 127.0.0.1:1: nothing answers"),
        (["--in-process", "--ray-address", "auto"], "--in-process, --ray-address: contradict each other"),
    ],
)  # fmt: skip
def test_a_mistake_of_the_user_is_one_line_and_status_2(tiny, arguments, message):
    assert message in one_line(pv3d("run", tiny.path, *arguments))


def test_a_missing_workflow_is_one_line(tmp_path):
    assert "none.yaml: no such file" in one_line(pv3d("run", tmp_path / "none.yaml"))


def test_a_bug_shows_stage_clip_and_the_original_traceback(tiny):
    answer = run(tiny, "--set", "stages.Mark.bug=[v02-1]")
    assert answer.returncode == 1
    assert "stage Mark failed on v02-1" in answer.stderr
    assert "KeyError: 'no such thing'" in answer.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_run_that_was_ended_continues_to_the_same_bytes(tiny, tmp_path_factory, how):
    slow = ("--set", "stages.Mark.seconds=0.1", "--set", "source.count=20")
    words = ("run", tiny.path, "--until", "Write", "--in-process", *slow)
    with subprocess.Popen(command(*words), stderr=subprocess.PIPE, text=True, env=surroundings()) as process:
        while process.poll() is None and sum(line.startswith("Mark") for line in lines(tiny)) < 8:
            time.sleep(0.02)
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
    kept = how != signal.SIGKILL
    assert process.returncode == (128 + how if kept else -how)
    if kept:
        what = "interrupted" if how == signal.SIGINT else f"ended by {how.name}"
        assert "Traceback" not in errors
        assert errors.strip().splitlines()[-1].startswith(f"pv3d: {what}; what is done is kept")
        held = [key for key in FolderStorage(tiny.root).list("lease") if "progress" not in key]
        assert held[-2:] == ["lease/00000001.end.json", "lease/00000001.json"]
    first = [line for line in tiny.calls() if line.startswith("Mark")]
    again = pv3d(*words)
    assert again.returncode == 0, again.stderr
    if kept:  # every unit that had ended is kept
        assert len([line for line in tiny.calls() if line.startswith("Mark")]) <= 40 - len(first) + 1
    other = type(tiny)(tmp_path_factory.mktemp("other"))
    assert pv3d("run", other.path, *words[2:]).returncode == 0
    assert tiny.output() == other.output()


def test_only_a_command_that_goes_on_says_so_when_it_is_stopped(monkeypatch, tiny):
    from click.testing import CliRunner

    from pipelines import run as running
    from pipelines import watch
    from pipelines.cli import main

    def stopped(*_, **__):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(running, "run_workflow", stopped)
    monkeypatch.setattr(watch, "status", stopped)
    said = {name: CliRunner().invoke(main, [name, str(tiny.path)]) for name in ("run", "status")}
    assert {answer.exit_code for answer in said.values()} == {128 + signal.SIGTERM}
    assert said["status"].stderr == "pv3d: ended by SIGTERM\n"
    assert said["run"].stderr.endswith("; what is done is kept, the same command continues\n")


def lines(tiny):
    log = tiny.root / "calls.log"
    return log.read_text().splitlines() if log.exists() else []


def test_weights_are_listed_and_verified(tmp_path):
    own = {"PV3D_WEIGHTS": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    rows = json.loads(pv3d("weights", "list", "--json", **own).stdout)["weights"]
    assert {"i3d", "arcface", "yunet"} <= {row["name"] for row in rows}
    assert all(row["licence"] and row["source"] for row in rows)
    assert pv3d("weights", "verify", **own).returncode == 0
    (tmp_path / "yunet_n_dynamic.onnx").write_bytes(b"other")
    assert "sha256" in one_line(pv3d("weights", "verify", **own))
    assert "missing" in one_line(pv3d("weights", "verify", "i3d", **own))
    assert "--sha256" in one_line(pv3d("weights", "fetch", "deep3d", **own))


def test_a_bench_answers_with_figures_of_this_machine():
    found = json.loads(pv3d("bench", "help", "--runs", "2", "--json").stdout.splitlines()[-1])
    assert found["bench"] == "help"
    assert 0 < found["figures"]["help_s"] < 60
    assert found["machine"]["cores"] == os.cpu_count()


def test_an_unknown_bench_or_option_is_one_line():
    assert "bench hlp: unknown, did you mean 'help'?" in one_line(pv3d("bench", "hlp"))
    assert "--run: unknown option, did you mean 'runs'?" in one_line(pv3d("bench", "help", "--run", "3"))


@pytest.mark.parametrize(("text", "seeds"), [("0-3", [0, 1, 2, 3]), ("1,5, 9", [1, 5, 9]), ("7", [7])])
def test_seeds_are_lists_and_ranges(text, seeds):
    from pipelines.cli_parts import seed_list

    assert seed_list(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1-", "3-1", "-3", "²", "9" * 30, "0-99999999999"])
def test_seeds_that_are_none_are_refused(text):
    from pipelines.cli_parts import seed_list

    with pytest.raises(ValueError, match="--seeds"):
        seed_list(text)


@pytest.mark.parametrize("arguments", [["check-cameras", "a" * 5000], ["weights", "list"]])
def test_a_name_that_no_file_can_have_is_refused_in_one_line(arguments):
    assert "File name too long" in one_line(pv3d(*arguments, PV3D_WEIGHTS="a" * 5000))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_stdout_that_is_full_is_told_as_that(options):
    with Path("/dev/full").open("w") as full:
        words = command("weights", "list", *options)
        answer = subprocess.run(
            words, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=surroundings()
        )
    assert answer.returncode == 2
    assert answer.stderr == "pv3d: cannot write to stdout (No space left on device); send it elsewhere\n"
