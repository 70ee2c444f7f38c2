"""The image cannot be built in the tests; what can be read from its recipe is checked."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from infra import kuberay

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "infra" / "Dockerfile").read_text()
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
)


def instructions() -> list[tuple[str, str]]:
    """(name, arguments) with continued lines joined and comments left out."""
    lines = [line for line in TEXT.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = [line.strip().split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(name, rest) for name, rest in found]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions by stage, without those of the stages it builds on."""
    by_name: dict[str, list[tuple[str, str]]] = {}
    here: list[tuple[str, str]] = []
    for name, rest in instructions():
        if name == "FROM":
            here = by_name.setdefault(rest.split(" AS ")[1], [])
        here.append((name, rest))
    return by_name


def ignore_lines() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_it_is_made_of_known_instructions_and_named_stages():
    known = {"ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "CMD"}
    assert {name for name, _ in instructions()} == known
    assert list(stages()) == ["base", "data", "train"]           # the last one is built unless told otherwise
    assert "slim" in TEXT.split("ARG BASE=")[1].split("\n")[0]


@pytest.mark.parametrize("name", ["data", "train"])
def test_nobody_is_root_in_it_and_its_user_is_that_of_the_pods(name):
    users = [rest for instruction, rest in stages()[name] if instruction == "USER"]
    assert users[-1] == f"{kuberay.USER}:{kuberay.USER}"         # a number: told to be no root
    last = max(i for i, (what, _) in enumerate(stages()[name]) if what in ("RUN", "COPY"))
    assert ("USER", users[-1]) in stages()[name][last:]


def test_everything_that_is_copied_exists_and_is_not_ignored():
    ignored = ignore_lines()
    assert ignored[0] == "*"
    sources = {s for name, rest in instructions() if name == "COPY" for s in rest.split()[:-1]}
    assert {"pyproject.toml", "constraints.txt", "pipelines", "stages", "model", "infra"} <= sources
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == sources


@pytest.mark.parametrize("path", [".git", "runs", ".venv", ".aws", "cookies.txt", "tests"])
def test_what_is_not_named_stays_outside(path):
    assert not any(line.startswith("!") and fnmatch(path, line[1:]) for line in ignore_lines())


def test_every_package_comes_with_the_pins():
    installs = [c.strip() for _, rest in instructions() for c in re.split("&&|;", rest) if "pip install" in c]
    assert len(installs) == 7
    assert all("-c constraints.txt" in install for install in installs)
    assert PINS["ray"] == kuberay.RAY_VERSION                    # every pod of a cluster has the same Ray
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lists = [found for install in installs for found in re.findall(r"'\.\[(.*?)\]'", install)]
    named = {extra for found in lists for extra in found.split(",")}
    assert named == {"data", "dlib", "mediapipe", "cluster", "all"} <= set(extras)


def test_a_cluster_needs_more_of_ray_and_that_is_pinned_too():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["cluster"][0].startswith("ray[default]")   # jobs, metrics, autoscaler
    names = {name.lower().replace("_", "-") for name in PINS}
    assert {"aiohttp-cors", "colorful", "grpcio", "opencensus", "prometheus-client", "py-spy"} <= names


def test_mediapipe_and_kuberay_find_what_they_need():
    base = " ".join(rest for name, rest in stages()["base"] if name == "RUN")
    for package in ("libegl1", "libgles2", "wget"):
        assert re.search(rf"\b{package}\b", base)


def test_no_secret_is_in_it():
    assert not re.search(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|://[^/\s]*@", TEXT, re.IGNORECASE)
