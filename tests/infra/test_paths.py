"""Local paths as people write them."""

from pathlib import Path

from infra.paths import expanded


def test_the_home_of_somebody_unknown_stays_as_it_is() -> None:
    assert expanded("~nobody-here/x") == Path("~nobody-here/x")
    assert expanded("~/x") == Path.home() / "x"
