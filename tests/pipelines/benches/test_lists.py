"""The bench of lists reads every row of what it makes."""

import math

from pipelines.bench import run_bench


def test_every_list_gives_a_rate_and_a_size():
    answer, _ = run_bench("lists", None, ["--rows", "500"])
    figures = answer["figures"]
    kinds = {"csv", "tubes", "voxceleb"}
    assert set(figures) == {f"{k}_{what}" for k in kinds for what in ("rows_per_s", "bytes_per_row")}
    assert all(math.isfinite(value) and value > 0 for value in figures.values())
