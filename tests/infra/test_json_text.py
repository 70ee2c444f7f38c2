"""The encoder that is made once says what `json.dumps` says."""

import json
import math

import pytest

from infra.json_text import encoder

VALUES = [
    "", 'quoted "é" \u2028 \ud800', 0, -1.5, 1e22, 0.1, math.inf, True, None, [], {}, (1, 2),
    {"b": [1, {"z": None, "a": "ä"}], "a": {}, 3: 0.30000000000000004}, [[0.0, 1, "x"], {"k": [True, False]}],
]  # fmt: skip


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("sort_keys", [False, True])
@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_values_are_as_dumps_writes_them(value, sort_keys, compact):
    if sort_keys and isinstance(value, dict) and 3 in value:
        value = {str(name): held for name, held in value.items()}
    separators = (",", ":") if compact else None
    expected = json.dumps(value, sort_keys=sort_keys, separators=separators)
    assert encoder(sort_keys=sort_keys, compact=compact)(value) == expected


def test_what_is_no_json_is_refused():
    with pytest.raises(TypeError, match="set"):
        encoder()({"a": {1}})
