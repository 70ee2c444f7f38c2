"""Fixtures that several test folders share."""

import os
import signal
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:   # a shell's way with what runs in the background;
    signal.signal(signal.SIGINT, signal.default_int_handler)   # what tests start would ignore Ctrl-C too

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))                # ceph_server, fault_proxy
sys.path.append(str(ROOT / "tests" / "pipelines"))  # tiny_stages, by name, here and in workers
sys.path.append(str(ROOT / "tests" / "stages"))     # two_step


@pytest.fixture(scope="session", autouse=True)
def config_folder(tmp_path_factory) -> Path:
    """Where a user keeps things such as the key that signs what is generated: never the real one."""
    folder = tmp_path_factory.mktemp("config")
    os.environ["XDG_CONFIG_HOME"] = str(folder)
    return folder


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
def ray_session(tmp_path_factory):
    """One Ray of two cores for all tests that need one; the file where its workers look for AWS's keys."""
    pytest.importorskip("ray")
    from infra import cluster

    keys = tmp_path_factory.mktemp("aws") / "credentials"
    with pytest.MonkeyPatch.context() as patch:      # workers have the surroundings of this moment
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        cluster.start("local", cpus=2)
    yield keys
    cluster.stop()


@pytest.fixture(scope="session")
def rgw_server():
    """A real S3 server, Ceph's. Who asks for it is marked `s3`."""
    import ceph_server

    if name := ceph_server.missing():
        pytest.skip(f"no {name} here; apt-get install --no-install-recommends radosgw ceph-mon ceph-osd")
    with ceph_server.server() as server:
        yield server


@pytest.fixture
def no_aws(monkeypatch, tmp_path):
    """Nothing of AWS is set for whoever runs the tests. Copies of objects lie in a folder of the test."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def rgw(rgw_server, no_aws, monkeypatch):
    """`rgw_server`, its first user's keys in the environment, and the bucket `pv3d-test`."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", rgw_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", rgw_server.secret_key)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    _make_bucket(rgw_server.endpoint)
    return rgw_server


@pytest.fixture(scope="session")
def moto_server():
    """What stands in for S3 where no real server is; it asks nobody for credentials."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield SimpleNamespace(endpoint=f"http://{host}:{port}", kms_key="key-1")
    server.stop()


@pytest.fixture(params=["moto", pytest.param("ceph", marks=pytest.mark.s3)])
def s3(request, no_aws, monkeypatch):
    """A server with the bucket `pv3d-test`, its keys in the environment: a stand-in, and a real one."""
    if request.param == "ceph":
        return request.getfixturevalue("rgw")
    server = request.getfixturevalue("moto_server")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-nobody")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    _make_bucket(server.endpoint)
    return server


def _make_bucket(endpoint):
    import boto3

    boto3.Session().client("s3", endpoint_url=endpoint).create_bucket(Bucket="pv3d-test")
