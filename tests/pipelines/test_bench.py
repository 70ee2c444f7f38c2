"""`pv3d bench`: a user's mistake is one line, before any work."""

import importlib
import inspect

import pytest

from pipelines.bench import BENCHES, list_benches, run_bench


@pytest.mark.parametrize(("name", "options", "message"), [
    ("vidoes", [], "bench vidoes: unknown, did you mean 'videos'"),
    ("videos", [], "bench videos: --data is missing"),
    ("mutants", ["--count", "x"], "bench mutants: --count: 'x' is no whole number"),
    ("mutants", ["--count=1.5"], "bench mutants: --count: 1.5 is no whole number"),
    ("mutants", ["--count", "0"], "bench mutants: count 0, seed 0"),
    ("cut", ["--seconds", "x"], "bench cut: --seconds: 'x' is no number"),
    ("cut", ["--rounds", "0"], "bench cut: 0 rounds"),
    ("cut", ["--round", "1"], "bench cut: --round: unknown option, did you mean 'rounds'"),
    ("cut", ["--rounds"], "bench cut: --rounds: give a value"),
])  # fmt: skip
def test_mistakes_are_told_in_one_line(name, options, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is checked below
        run_bench(name, None, options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_list_has_every_bench_with_the_options_that_it_takes():
    found = list_benches()[0]["benches"]
    assert list(found) == list(BENCHES)
    for name, row in found.items():
        module, _, function = BENCHES[name].partition(":")
        taken = inspect.signature(getattr(importlib.import_module(module), function)).parameters
        assert set(row["options"]) == {key.replace("_", "-") for key in taken if key != "progress"}
        assert row["what"].endswith(".")
