import random

from pipelines.report_walk import MOST_REASONS, Sample, Tally, chance


def test_a_sample_is_the_same_whatever_the_order_and_counts_what_it_was_offered() -> None:
    names = [f"clip-{n}" for n in range(500)]
    found = []
    for seed in range(3):
        random.Random(seed).shuffle(names)
        sample: Sample[str] = Sample(20)
        for name in names:
            sample.offer(chance(name), name)
        found.append(sample.items())
        assert sample.offered == 500
    assert found[0] == found[1] == found[2] == sorted(names, key=chance)[:20]


def test_a_sample_is_even() -> None:
    sample: Sample[int] = Sample(1000)
    for number in range(10_000):
        sample.offer(chance(f"clip-{number}"), number)
    tenths = [0] * 10
    for number in sample.items():
        tenths[number // 1000] += 1
    assert min(tenths) > 60
    assert max(tenths) < 140


def test_items_with_one_key_stay_in_their_order() -> None:
    sample: Sample[int] = Sample(3)
    for number in range(9):
        sample.offer("same", number)
    assert sample.items() == [0, 1, 2]


def test_a_name_that_is_no_text_has_a_chance_too() -> None:
    assert chance("odd\udcff") != chance("odd")


def test_reasons_beyond_the_most_are_counted_together() -> None:
    tally = Tally(step=_step())
    for number in range(MOST_REASONS + 50):
        tally.sheet("rejected", f"score {number}").count += 1
    assert len(tally.sheets) == MOST_REASONS + 1
    assert tally.by_count()[0].reason == "other reasons"
    assert tally.by_count()[0].count == 50
    assert tally.sheet("rejected", "score 3").count == 1


def _step():
    from pathlib import Path

    from pipelines.workflow import load

    return load(Path(__file__).parents[2] / "workflow.yaml", "demo").steps[0]
