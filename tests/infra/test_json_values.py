"""JSON of others is a value or a ValueError."""

import pytest

from infra.json_values import is_number, parsed, parsed_object

DEEP = b"[" * 200_000


@pytest.mark.parametrize("data", [DEEP, b'{"a":' * 200_000, b"", b"\xff", b"{", b"\x00"], ids=range(6))
def test_what_is_no_json_is_a_value_error(data):
    with pytest.raises(ValueError, match=r"\w"):
        parsed(data)


def test_what_is_no_object_is_a_value_error():
    assert parsed_object(b'{"a": 1}') == {"a": 1}
    with pytest.raises(ValueError, match="an object was expected, not list"):
        parsed_object(b"[1]")


def test_numbers_are_finite():
    assert all(is_number(value) for value in (0, -1, 2.5))
    assert not any(is_number(v) for v in (True, "1", None, [], float("nan"), float("inf"), 10**400, 1e300))
