"""What stages yield and raise is checked where they run: a bug names stage and clip, whatever it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from misbehaving import YIELDS, Misbehave

from infra.storage import FolderStorage
from pipelines import work
from pipelines.work import Chain, StageBugError
from stages.clip import Clip


def run(folder: Path, how: str, unit: str = "v01") -> list[work.Piece]:
    chain = Chain([Misbehave(how)], ["Misbehave"], FolderStorage(folder), exits=False)
    return chain.run(Clip(unit, "list/v.mp4", "/none/v.mp4"), 0, 0)


@pytest.mark.parametrize("how", [*YIELDS, "twice"])
def test_what_no_stage_may_yield_or_raise_is_a_bug_of_the_stage(tmp_path: Path, how: str) -> None:
    with pytest.raises(StageBugError, match="stage Misbehave failed on v01"):
        run(tmp_path, how)
    (piece,) = run(tmp_path, how, "v02")
    assert [out.id for out in piece.outputs] == ["v02"]


def test_a_stage_that_yields_without_end_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "MOST_OUTPUTS", 50)
    with pytest.raises(StageBugError, match=r"failed on v01.*\n.*more than 50 clips"):
        run(tmp_path, "endless")


def test_an_exit_of_setup_does_not_end_the_run_as_if_all_were_well(tmp_path: Path) -> None:
    with pytest.raises(StageBugError, match="stage Misbehave failed on setup"):
        run(tmp_path, "setup")


def test_an_exit_ends_a_worker_that_may_end(tmp_path: Path) -> None:
    chain = Chain([Misbehave("exit")], ["Misbehave"], FolderStorage(tmp_path))
    with pytest.raises(SystemExit):
        chain.run(Clip("v01", "s", "v"), 0, 0)
