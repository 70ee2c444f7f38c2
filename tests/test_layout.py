"""What keeps the four folders apart, light and ours."""

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {
    "torch", "ray", "mlflow", "cv2", "av", "scipy", "sklearn", "skimage", "boto3", "deepspeed", "matplotlib",
}  # fmt: skip


def imported_by(code: str) -> set[str]:
    """Top-level modules of a fresh interpreter after `code`."""
    program = f"{code}\nimport sys; print(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(answer.stdout.split())


@pytest.mark.parametrize("name", ["pipelines", "stages", "model", "infra"])
def test_the_four_names_belong_to_this_distribution_alone(name):
    assert set(importlib.metadata.packages_distributions()[name]) == {"pv3d-pipeline"}


def test_imports_point_only_downwards():
    command = shutil.which("lint-imports", path=Path(sys.executable).parent)
    if command is None:
        pytest.skip("import-linter is not installed")
    answer = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import pipelines.cli",
        "import stages, infra, infra.storage, infra.weights",
        "from pipelines.workflow import load; load('workflow.yaml'); load('workflow.yaml', 'demo')",
    ],
)
def test_the_driver_starts_without_heavy_packages(code):
    assert imported_by(code) & HEAVY == set()


def test_the_command_answers_help_with_click_alone():
    found = imported_by("import pipelines.cli")
    assert found & {"numpy", "pydantic", "yaml", "rich", "jinja2"} == set()
