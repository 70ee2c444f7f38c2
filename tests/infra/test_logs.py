"""What a command logs."""

import logging
import subprocess
import sys

import pytest

from infra import logs


def log_of(message, **environment):
    start = "import logging; from infra import logs; logs.start(); "
    program = f"{start}logging.getLogger('x').info({message!r})"
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False
    )


def test_a_message_is_one_line_without_escape_codes():
    done = log_of("a\x1b[31m\nb")
    assert done.stderr.endswith(" INFO x: a\\x1b[31m b\n")
    assert len(done.stderr.splitlines()) == 1


def test_the_level_is_that_of_the_variable():
    assert log_of("a", PV3D_LOG="warning").stderr == ""
    assert log_of("a", PV3D_LOG="").stderr != ""


def test_a_level_that_is_none_names_the_variable(monkeypatch):
    monkeypatch.setenv("PV3D_LOG", "nonsense")
    with pytest.raises(ValueError, match="PV3D_LOG: 'nonsense' is no level; give DEBUG, INFO, WARNING"):
        logs.start()
    assert set(logs.LEVELS) <= set(logging.getLevelNamesMapping())


def test_lines_stay_lines():
    assert logs.shown("a\n  b\x1b[0m\n") == "a\n  b\\x1b[0m\n"
