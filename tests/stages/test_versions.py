"""What a version of the dataset says of itself, or that it is damaged."""

import json

import pytest

from infra.storage import FolderStorage
from stages.members import TOMBSTONE, DamagedError
from stages.shards import commit_dataset
from stages.versions import figures_of, latest_version

DEEP = b"[" * 200_000


@pytest.fixture
def store(tmp_path):
    return FolderStorage(tmp_path)


def test_figures_are_those_of_the_commit(store):
    assert latest_version(store) is None
    version = commit_dataset(store, [])
    assert latest_version(store) == version
    found = figures_of(store, version)
    assert (found.version, found.samples, found.fps, found.manifests) == (version, 0, 0.0, ())
    store.write(f"dataset/{version}.json", json.dumps({TOMBSTONE: "takedown/a.json"}).encode())
    assert figures_of(store, version) is None


@pytest.mark.parametrize(
    "data",
    [DEEP, b"{", b"[1]", b'{"version": 5}', b'{"version": "../../x"}', b'{"version": "a b"}', b"\xff"],
    ids=range(7),
)  # fmt: skip
def test_a_damaged_pointer_is_named_in_one_line(store, data):
    store.write("dataset/latest.json", data)
    with pytest.raises(ValueError, match=r"^dataset/latest.json in .* is damaged; bring it back[^\n]*$"):
        latest_version(store)


@pytest.mark.parametrize(
    "change",
    [
        {"samples": "5"}, {"bytes": -1}, {"frames": 1.5}, {"shards": True}, {"fps": float("nan")},
        {"fps": None}, {"manifests": "abc"}, {"manifests": [5]}, {"manifests": ["../x"]}, {"size": 10**400},
        None,
    ],
    ids=range(11),
)  # fmt: skip
def test_a_damaged_version_is_named_in_one_line(store, change):
    version = commit_dataset(store, [])
    content = json.loads(store.read(f"dataset/{version}.json"))
    data = DEEP if change is None else json.dumps({**content, **change}).encode()
    store.write(f"dataset/{version}.json", data)
    with pytest.raises(DamagedError, match=rf"^dataset/{version}.json in .* is damaged; bring it back"):
        figures_of(store, version)
