"""The bench of the loader measures what it says, and leaves nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import boto3
import pytest

from pipelines.benches import loader


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loader, "FRAMES", 16)
    monkeypatch.setattr(loader, "STEPS", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.mark.s3
def test_rates_from_disk_and_from_s3(rgw: Any, tmp_path: Path) -> None:
    figures = loader.run(rounds=1, store="s3://pv3d-test/bench", endpoint=rgw.endpoint)["figures"]
    over = ["disk_over_bare_decode", "s3_range_over_bare_decode", "s3_over_bare_decode"]
    assert set(figures) == {*over, "s3_copy_s", "pairs_per_second"}
    assert all(figures[name] > 0.01 for name in over)
    client = boto3.Session().client("s3", endpoint_url=rgw.endpoint)
    left = client.list_objects_v2(Bucket="pv3d-test", Prefix="bench")
    assert left["KeyCount"] == 0
    assert list(tmp_path.glob("pv3d*")) == []


def test_too_little_to_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="give at least --clips 16"):
        loader.run(clips=3)
