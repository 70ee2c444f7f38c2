"""The benches of memory: what they plan and refuse, one row measured. Figures belong to a machine."""

from __future__ import annotations

import pytest

from pipelines.benches import long, memory
from pipelines.benches.updates import PHASES, Setting, measure


def test_the_rows_of_a_variant_have_each_saving_and_each_stage() -> None:
    rows = list(memory.rows("mid_128", [2, 8], "cpu", 2, savings=True))
    assert {row.batch for row in rows if row.precision == "float32" and not row.extras} >= {2, 8}
    assert [row.zero for row in rows if row.workers == 2] == [0, 1, 2]
    assert {"checkpointing", "chunk_rays 256", "accumulate 4"} <= {row.extras for row in rows}
    assert len({row.key for row in rows}) == len(rows)
    assert all(row.made.recipe.batch == row.batch for row in rows)


def test_every_variant_that_is_shown_has_rows_that_can_be_trained() -> None:
    for device, names in memory.SHOWN.items():
        for name in names.split(","):
            assert all(row.made for row in memory.rows(name, [], device, 0, savings=True))


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 31, 32, 100])
def test_the_largest_that_fits_is_found_to_an_eighth(limit: int) -> None:
    tried: list[int] = []

    def fits(number: int) -> bool:
        tried.append(number)
        return number <= limit

    found = memory.largest_that(fits, 64)
    want = min(limit, 64)
    assert want - max(1, want) // 8 <= found <= want
    assert len(tried) == len(set(tried)) <= 12
    assert max(tried) <= 64


@pytest.mark.slow
def test_a_row_is_measured_and_one_that_does_not_fit_is_told() -> None:
    row = Setting("tiny", 2, checkpointing=True, model={"rendering.chunk_rays": 300})
    found = measure(row, 0)
    assert found is not None
    assert 0 < found["start_gb"] < found["tensors_gb"] < found["peak_gb"] < 4
    assert found["update_s"] < sum(found[f"{phase}_s"] for phase in PHASES) + 1
    large = {"rendering.resolution": 1024, "rendering.samples_coarse": 1024}    # terabytes of features
    huge = Setting("tiny", 2, model=large)
    text = memory.markdown([(row, found), (huge, measure(huge, 0))])
    *_, measured, refused = text.splitlines()
    assert f"0, 1 | checkpointing, chunk_rays 300 | {found['tensors_gb']:.2f} |" in measured
    assert "| does not fit |" in refused
    assert len({line.count("|") for line in text.splitlines()}) == 1


@pytest.mark.parametrize(
    ("bench", "options", "message"),
    [
        (memory, {"variants": "tiny,mid"}, "--variants mid: unknown, did you mean 'mid_128'"),
        (memory, {"batches": "1,x"}, "--batches 1,x: give whole numbers with commas"),
        (memory, {"device": "tpu"}, "--device tpu: is neither cpu nor cuda"),
        (memory, {"updates": -1}, "--updates, --zero-workers and --savings are 0 or more"),
        (memory, {"variants": "tiny", "batches": "3"}, "minibatch-std groups"),
        (long, {"variant": "tine"}, "--variant tine: unknown, did you mean 'tiny'"),
        (long, {"rounds": 0}, "--batch, --updates and --rounds are 1 or more"),
        (long, {"variant": "mid_128", "batch": 2}, "minibatch-std groups of 4"),
    ],
)
def test_what_makes_no_sense_is_one_line_before_any_work(bench, options, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message) as caught:
        bench.run(**options)
    assert "\n" not in str(caught.value)
