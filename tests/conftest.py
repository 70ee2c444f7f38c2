"""Fixtures that several test folders share."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests" / "pipelines"))  # tiny_stages, by name, here and in workers
sys.path.append(str(ROOT / "tests" / "stages"))     # two_step


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real videos, photographs and weights that are not part of the project."""
    folder = Path(os.environ.get("PV3D_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "videos").is_dir():
        pytest.skip(f"no real videos at {folder}; set PV3D_TEST_DATA")
    return folder


@pytest.fixture
def store(tmp_path):
    """An empty folder store."""
    from infra.storage import FolderStorage

    return FolderStorage(tmp_path / "store")


@pytest.fixture(scope="session")
def ray_session():
    """One Ray of two cores for all tests that need one."""
    pytest.importorskip("ray")
    from infra import cluster

    cluster.start("local", cpus=2)
    yield
    cluster.stop()
