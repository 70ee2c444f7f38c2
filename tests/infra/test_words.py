"""Text of others is shown on one line."""

import pytest

from infra.words import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no face", "no face"), ("é 日本", "é 日本"), ("a\nb\tc", "a b c"), ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b2J\x07\x00", "\\x9b2J\\x07\\x00"), ("\u202egpj", "\\u202egpj"), ("\ud800", "\\ud800"), (5, "5"),
    ],
)  # fmt: skip
def test_nothing_moves_the_cursor(text, shown):
    assert printable(text) == shown


def test_what_is_long_is_cut():
    assert printable("x" * 200) == "x" * 200
    assert printable("x" * 5_000_000) == "x" * 197 + "..."
    assert len(printable("\x1b" * 150)) == 200
