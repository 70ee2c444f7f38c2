"""A checkpoint is there whole or not at all, and a damaged one is passed over."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from disks import PAGE, small_disk

from infra import checkpoints
from infra.storage import FolderStorage, StorageError

CARD = {"variant": {"name": "x"}}


def tensors(value: float) -> dict[str, torch.Tensor]:
    flat = torch.full((6,), value)
    return {"a": flat[:4].view(2, 2), "b": flat[4:], "scalar": flat[0]}  # views of one buffer, as under ZeRO


@pytest.fixture
def store(tmp_path: Path) -> FolderStorage:
    return FolderStorage(tmp_path)


def save(store: FolderStorage, *steps: int, keep: int = 9) -> list[checkpoints.Checkpoint]:
    files = {"g": tensors, "d": tensors}
    return [
        checkpoints.save(store, "run", step, {n: f(step) for n, f in files.items()}, CARD, keep=keep)
        for step in steps
    ]


def test_what_is_saved_comes_back(store: FolderStorage) -> None:
    save(store, 3)
    found = checkpoints.latest(store, "run")
    assert found is not None
    assert (found.key, found.step, found.card["variant"]) == ("run/00000003", 3, {"name": "x"})
    assert all(torch.equal(found.load("d")[name], value) for name, value in tensors(3).items())


def test_no_checkpoint_is_none(store: FolderStorage) -> None:
    assert checkpoints.latest(store, "run") is None


def test_keeps_the_newest_and_removes_what_is_half_written(store: FolderStorage) -> None:
    store.write("run/00000001/g.safetensors", b"of a run that was killed")
    save(store, 2, 3, 4, keep=2)
    assert {key.split("/")[1] for key in store.list("run")} == {"00000003", "00000004"}


@pytest.mark.parametrize("damage", [
    "cut", "changed", "gone", "no card", "card cut", "other schema", "negative step", "huge step",
])  # fmt: skip
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(
    store: FolderStorage, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(store, 1, 2)
    file, card = store.path("run/00000002/g.safetensors"), store.path("run/00000002/checkpoint.json")
    data = file.read_bytes()
    {
        "cut": lambda: file.write_bytes(data[:-4]),
        "changed": lambda: file.write_bytes(data[:-1] + b"\x01"),
        "gone": file.unlink,
        "no card": card.unlink,
        "card cut": lambda: card.write_bytes(card.read_bytes()[:40]),
        "other schema": lambda: card.write_text('{"schema": 99}'),
        "negative step": lambda: card.write_text(card.read_text().replace('"step": 2', '"step": -2')),
        "huge step": lambda: card.write_text(card.read_text().replace('"step": 2', f'"step": {10**30}')),
    }[damage]()
    found = checkpoints.latest(store, "run")
    assert found is not None
    assert found.step == 1
    assert damage == "no card" or "run/00000002" in caplog.text


def test_a_file_that_changed_after_it_was_found_is_refused(store: FolderStorage) -> None:
    (found,) = save(store, 1)
    path = store.path("run/00000001/g.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match=r"00000001/g.safetensors: its sha256 is not the one written"):
        found.load("g")
    with pytest.raises(ValueError, match="has no nothing; it holds d, g"):
        found.load("nothing")


@pytest.mark.parametrize(
    "change",
    [
        {"files": None}, {"files": ["weights"]}, {"files": {"weights": {}}}, {"step": "1"},
        {"files": {"../../etc/passwd": {"bytes": 1, "sha256": ""}}},
    ],
)  # fmt: skip
def test_a_card_that_lists_no_files_of_its_own_is_refused(change: dict, store: FolderStorage) -> None:
    card = {"schema": 1, "step": 1, "files": {"weights": {"bytes": 1, "sha256": ""}}}
    store.write("a/checkpoint.json", json.dumps(card).encode())
    assert checkpoints.open_checkpoint(store, "a").step == 1
    store.write("a/checkpoint.json", json.dumps(card | change).encode())
    with pytest.raises(ValueError, match=r"a/checkpoint.json: .*; the checkpoint is damaged"):
        checkpoints.open_checkpoint(store, "a")


def test_writing_a_step_again_replaces_it(store: FolderStorage) -> None:
    save(store, 1)
    checkpoints.save(store, "run", 1, {"g": tensors(7)}, CARD, keep=1)
    found = checkpoints.open_checkpoint(store, "run/00000001")
    assert torch.equal(found.load("g")["b"], tensors(7)["b"])


def test_a_folder_without_a_card_is_named_as_no_checkpoint(store: FolderStorage) -> None:
    with pytest.raises(ValueError, match=r"run/00000009 in .* is no checkpoint: it has no checkpoint.json"):
        checkpoints.open_checkpoint(store, "run/00000009")


@pytest.mark.parametrize("full", ["store", "temporary files"])
def test_a_full_disk_is_one_line_and_the_checkpoint_before_stays(
    tmp_path: Path, full: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = {name: {"a": torch.zeros(5 * PAGE // 4)} for name in ("g", "d")}
    with small_disk(tmp_path / "disk") as disk:
        store = FolderStorage(tmp_path / "elsewhere" if full == "temporary files" else disk.path / "store")
        checkpoints.save(store, "run", 1, big, CARD, keep=1)
        if full == "temporary files":
            (disk.path / "tmp").mkdir()
            monkeypatch.setattr(tempfile, "tempdir", str(disk.path / "tmp"))
        refused = []
        for pages in range(30):
            disk.leave(pages)
            try:
                checkpoints.save(store, "run", 2, big, CARD, keep=1)
            except StorageError as error:
                refused.append(str(error))
            before = checkpoints.latest(store, "run")
            assert before is not None
            assert list(store.unfinished()) == []
            if before.step == 2:
                break
            assert before.step == 1
        assert before.step == 2  # there was room for it in the end
        assert refused
        assert not [line for line in refused if "\n" in line or "No space left on device" not in line]
        assert not list(Path(disk.path, "tmp").glob("*"))
