import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest

from infra import weights
from infra.weights import WeightsError


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """A folder of one's own, an empty cache, and one pinned file in the table."""
    monkeypatch.setenv("PV3D_WEIGHTS", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "own").mkdir()
    (tmp_path / "file").write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    pinned = replace(weights.entry("yunet"), sha256=sha256, url=(tmp_path / "file").as_uri())
    others = tuple(known for known in weights.FILES if known.name != "yunet")
    monkeypatch.setattr(weights, "FILES", (pinned, *others))
    return tmp_path


def test_a_missing_file_is_named_with_its_cure():
    message = r"w600k_r50\.onnx missing in .*own and .*; see `pv3d weights list`"
    with pytest.raises(WeightsError, match=message):
        weights.require("arcface-onnx")
    assert weights.find("w600k_r50.onnx") is None
    with pytest.raises(WeightsError, match=r"yunet_n_dynamic\.onnx missing in .*`pv3d weights fetch yunet`"):
        weights.require("yunet")


def test_the_named_folder_comes_before_the_cache(folders):
    weights.cache().mkdir(parents=True)
    (weights.cache() / "yunet_n_dynamic.onnx").write_bytes(b"weights")
    assert weights.require("yunet") == weights.cache() / "yunet_n_dynamic.onnx"
    (folders / "own" / "yunet_n_dynamic.onnx").write_bytes(b"weights")
    assert weights.require("yunet_n_dynamic.onnx") == folders / "own" / "yunet_n_dynamic.onnx"


def test_another_file_of_the_name_is_refused_in_one_line(folders):
    (folders / "own" / "yunet_n_dynamic.onnx").write_bytes(b"other")
    with pytest.raises(WeightsError, match=r"sha256 is [0-9a-f]{64}, not [0-9a-f]{64}") as error:
        weights.require("yunet")
    assert "\n" not in str(error.value)


def test_a_file_is_fetched_once_and_checked():
    path = weights.fetch("yunet")
    assert path.read_bytes() == b"weights"
    assert weights.fetch("yunet") == path
    assert [file.name for file in weights.cache().iterdir()] == ["yunet_n_dynamic.onnx"]


def test_a_download_of_another_file_leaves_nothing(folders):
    (folders / "file").write_bytes(b"other")
    with pytest.raises(WeightsError, match="sha256"):
        weights.fetch("yunet")
    assert list(weights.cache().iterdir()) == []


def test_what_nobody_pinned_is_fetched_only_with_a_checksum():
    with pytest.raises(WeightsError, match="not pinned; give the one you trust with --sha256"):
        weights.fetch("deep3d")


def test_a_folder_that_cannot_be_made_is_one_line(folders, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(weights, "places", lambda known: [tmp_path / "file" / "weights"])
    with pytest.raises(WeightsError, match=r"weights i3d: no folder .*weights \(Not a directory\)"):
        weights.fetch("i3d")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(WeightsError, match=r"'nothing': not in the table; known: yunet, i3d"):
        weights.entry("nothing")


def test_the_files_of_an_installed_package_are_found_without_importing_it():
    pytest.importorskip("dlib")
    assert weights.require("dlib-identity").name == "dlib_face_recognition_resnet_model_v1.dat"


def test_the_table_pins_the_files_that_tests_use(shared_data, monkeypatch):
    monkeypatch.undo()
    for known in weights.FILES:
        path = shared_data / "weights" / known.file
        if path.is_file() and known.sha256:
            assert weights.digest(path) == known.sha256
            assert path.stat().st_size == known.size


def test_what_a_library_reads_from_torch_s_cache_is_looked_for_and_put_there(folders, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(folders / "torch"))
    known = weights.entry("fan")
    (folders / "own" / known.file).write_bytes(b"weights")
    with pytest.raises(WeightsError, match=r"missing in .*torch.hub.checkpoints; get it there from https://"):
        weights.require("fan")
    (folders / "file").write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    local = replace(known, url=(folders / "file").as_uri())
    monkeypatch.setattr(weights, "FILES", (local, *weights.FILES))
    path = weights.fetch("fan", sha256)
    assert path == folders / "torch" / "hub" / "checkpoints" / known.file
    assert weights.find("fan") == path


def test_all_that_are_missing_are_named_at_once(folders):
    own = folders / "own"
    (own / "mine.onnx").write_bytes(b"")
    weights.require_all(["mine.onnx", "dlib-identity"])
    with pytest.raises(WeightsError) as error:
        weights.require_all(["yunet", "mine.onnx", "fan", "other.onnx", "yunet"])
    text = str(error.value)
    assert text.startswith("weights files missing in ")
    assert "yunet_n_dynamic.onnx (`pv3d weights fetch yunet` brings it" in text
    assert "2DFAN4-11f355bf06.pth.tar (get it there from https" in text
    assert "other.onnx (put it there)" in text
    assert text.count("yunet_n") == 1
    assert "mine.onnx" not in text
    assert "\n" not in text


def test_every_file_that_a_backend_asks_for_is_looked_for_before_workers_start():
    from stages import backends

    folder = Path(backends.__file__).parent
    table: dict[str, set[str]] = {}
    for path, names in backends.WEIGHTS.items():
        assert {weights.entry(name).name for name in names} == set(names)
        module = path.partition(":")[0].rpartition(".")[2]
        table.setdefault(module, set()).update(names)
    for module, names in table.items():
        source = (folder / f"{module}.py").read_text()
        asked = set(re.findall(r"weights\.require\(\"([\w-]+)\"\)", source))
        asked |= {known.name for known in weights.FILES if known.package and known.file in source}
        asked |= {"yunet"} if "import YuNet" in source else set()
        assert asked == names, module
    asking = {file.stem for file in folder.glob("*.py") if "weights.require(" in file.read_text()}
    assert asking <= set(table)
