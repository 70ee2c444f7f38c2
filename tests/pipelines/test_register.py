import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

mlflow = pytest.importorskip("mlflow")
torch = pytest.importorskip("torch")

from mlflow import MlflowClient  # noqa: E402
from tiny_registry import answering, free_port  # noqa: E402

from model.camera import canonical_camera, orbit  # noqa: E402
from model.clips import render_clip, to_uint8  # noqa: E402
from model.config import tiny  # noqa: E402
from model.generator import Generator  # noqa: E402
from pipelines.register import Version, code_version, copy_code, register_generator  # noqa: E402

CHECKPOINT = "train/checkpoints/00000024"


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(tiny().model).eval()


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(
        experiment_id=mlflow.create_experiment("t", artifact_location=str(folder / "artifacts"))
    )
    yield uri
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def run_id(tracking: str) -> str:
    with mlflow.start_run() as run:
        return run.info.run_id


def register(generator: Generator, run_id: str, **changes: str) -> Version:
    options = {"name": "faces", "alias": "candidate", "checkpoint": CHECKPOINT} | changes
    return register_generator(
        generator, run_id=run_id, tags={"data": "abc", "licences": "CC0-1.0"}, **options
    )


@pytest.fixture(scope="module")
def version(generator: Generator, run_id: str) -> Version:
    return register(generator, run_id)


def test_a_registered_version_has_alias_tags_and_signature(version: Version, run_id: str) -> None:
    found = MlflowClient().get_model_version_by_alias("faces", "candidate")
    assert (int(found.version), found.run_id) == (version.version, run_id)
    assert found.tags["data"] == "abc"
    assert found.tags["code"] == code_version()
    assert found.tags["checkpoint"] == CHECKPOINT
    info = mlflow.models.get_model_info(version.uri)
    assert {column.name for column in info.signature.inputs} == {
        "seed",
        "time",
        "yaw_deg",
        "pitch_deg",
        "camera",
    }
    assert {param.name for param in info.signature.params} == {"psi", "mapping"}


def test_the_same_checkpoint_is_registered_once(version: Version, generator: Generator, run_id: str) -> None:
    again = register(generator, run_id)
    assert (again.version, again.created) == (version.version, False)
    assert len(MlflowClient().search_model_versions("name = 'faces'")) == 1


def test_another_checkpoint_becomes_a_new_version_with_the_alias(version: Version, run_id: str) -> None:
    torch.manual_seed(1)
    other = register(Generator(tiny().model).eval(), run_id, name="moved", checkpoint="train/checkpoints/1")
    third = register(Generator(tiny().model).eval(), run_id, name="moved", checkpoint="train/checkpoints/2")
    assert (other.version, third.version, third.created) == (1, 2, True)
    assert int(MlflowClient().get_model_version_by_alias("moved", "candidate").version) == 2


def test_a_run_with_nothing_new_takes_the_alias_from_no_later_version(run_id: str) -> None:
    torch.manual_seed(2)
    first, second = Generator(tiny().model).eval(), Generator(tiny().model).eval()
    register(first, run_id, name="idle", checkpoint="train/checkpoints/1")
    register(second, run_id, name="idle", checkpoint="train/checkpoints/2")
    again = register(first, run_id, name="idle", checkpoint="train/checkpoints/1")
    assert (again.version, again.created) == (1, False)
    assert int(MlflowClient().get_model_version_by_alias("idle", "candidate").version) == 2


def test_predictions_are_the_generators_own_pixels(version: Version, generator: Generator) -> None:
    loaded = mlflow.pyfunc.load_model("models:/faces@candidate")
    rows = {"seed": [5, 2, 5], "time": [0.0, 0.0, 1.0], "yaw_deg": [10.0, 0.0, 10.0]}
    import pandas

    frames = loaded.predict(pandas.DataFrame(rows), params={"psi": 0.7})
    cameras = np.stack([orbit(10.0).encode()] * 2)
    parts = render_clip(generator, 5, cameras, np.array([0, 1], np.float32), psi=0.7)
    expected = np.concatenate([to_uint8(part.image[0]) for part in parts])
    np.testing.assert_array_equal(frames[[0, 2]], expected)
    assert frames.shape == (3, 64, 64, 3)
    with pytest.raises(mlflow.exceptions.MlflowException, match="seed"):
        loaded.predict(pandas.DataFrame({"time": [0.0]}))


def test_a_camera_may_be_given_as_its_25_numbers(version: Version) -> None:
    import pandas

    loaded = mlflow.pyfunc.load_model(version.uri)
    by_angle = loaded.predict(pandas.DataFrame({"seed": [1], "yaw_deg": [15.0]}))
    camera = [float(x) for x in orbit(15.0).encode()]
    np.testing.assert_array_equal(
        loaded.predict(pandas.DataFrame({"seed": [1], "camera": [camera]})), by_angle
    )
    front = loaded.predict(pandas.DataFrame({"seed": [1], "yaw_deg": [15.0]}), params={"mapping": "front"})
    assert (front != by_angle).any()


ELSEWHERE = """
import importlib.abc, sys
sys.path[:] = [path for path in sys.path if path != {root!r}]
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in repr(finder)]
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pipelines", "stages", "infra", "ray", "deepspeed"):
            raise ImportError(name + " must not be needed")
sys.meta_path.insert(0, Refuse())
"""


@pytest.mark.slow
def test_a_version_is_served_without_this_project_from_a_folder_with_another_model_py(
    version: Version, tracking: str, tmp_path: Path
) -> None:
    """`mlflow models serve`, in processes that can import neither the project nor Ray nor DeepSpeed."""
    Path(tmp_path, "model.py").write_text("raise ImportError('the wrong model')\n")
    Path(tmp_path, "site").mkdir()
    root = str(Path(__file__).parents[2])
    Path(tmp_path, "site", "sitecustomize.py").write_text(ELSEWHERE.format(root=root))
    environment = dict(os.environ) | {
        "PYTHONPATH": str(tmp_path / "site"), "MLFLOW_TRACKING_URI": tracking,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    port = free_port()
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", version.uri, "--env-manager",
        "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    rows = {"seed": [3, 3], "time": [0.0, 1.0], "yaw_deg": [0.0, 20.0]}
    with answering(command, port, "/ping", cwd=tmp_path, env=environment) as address:
        served = np.array(asked(address, rows, {"psi": 0.7})["predictions"], np.uint8)
        with pytest.raises(urllib.error.HTTPError) as refused:
            asked(address, {"time": [0.0]}, {})
        reason = refused.value.read()
    import pandas

    loaded = mlflow.pyfunc.load_model(version.uri)
    np.testing.assert_array_equal(served, loaded.predict(pandas.DataFrame(rows), params={"psi": 0.7}))
    assert refused.value.code == 400
    assert b"seed" in reason


def asked(address: str, rows: dict, params: dict) -> dict:
    """What a server answers to a table of rows."""
    table = {"columns": list(rows), "data": list(zip(*rows.values(), strict=True))}
    body = json.dumps({"dataframe_split": table, "params": params}).encode()
    request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


@pytest.mark.parametrize(
    ("rows", "params", "message"),
    [
        ({"seed": [-1]}, {}, "seed -1: give a whole number"),
        ({"seed": [1], "time": [1.5]}, {}, r"times reach from 1\.5 to 1\.5"),
        ({"seed": [1], "camera": [[1.0] * 24]}, {}, "25"),
        ({"seed": [1]}, {"psi": float("nan")}, "psi nan: give a finite number"),
        ({"seed": [1]}, {"mapping": "side"}, "mapping 'side': give first or front"),
        ({"seed": [1.5]}, {}, "seed"),
    ],
)
def test_what_no_frame_can_be_made_of_is_refused(
    version: Version, rows: dict, params: dict, message: str
) -> None:
    import pandas

    loaded = mlflow.pyfunc.load_model(version.uri)
    with pytest.raises((ValueError, mlflow.exceptions.MlflowException), match=message):
        loaded.predict(pandas.DataFrame(rows), params=params)


@pytest.mark.gpu
def test_a_version_runs_on_a_gpu(version: Version, generator: Generator) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    import pandas

    loaded = mlflow.pyfunc.load_model(version.uri)
    assert next(loaded.unwrap_python_model().generator.parameters()).is_cuda
    frames = loaded.predict(pandas.DataFrame({"seed": [5]}))
    (part,) = render_clip(generator, 5, canonical_camera().encode()[None], np.zeros(1, np.float32))
    assert np.abs(frames.astype(int) - to_uint8(part.image[0])).mean() < 1  # another order of sums


def test_the_copied_code_imports_nothing_by_the_projects_names(tmp_path: Path) -> None:
    package = copy_code(tmp_path)
    assert package.name.startswith("pv3d_model_")
    for path in package.glob("*.py"):
        lines = path.read_text().splitlines()
        bad = [
            line
            for line in lines
            if line.strip().startswith(("from model", "import model", "from stages", "from infra"))
        ]
        assert not bad, f"{path.name}: {bad}"


def test_the_licence_travels_with_the_code(tmp_path: Path) -> None:
    assert "Apache License" in (copy_code(tmp_path) / "LICENSE").read_text()
