"""Counts as people write them."""


def many(count: int, one: str, several: str = "") -> str:
    """"1 clip", "1,200 clips"; `several` where it is not `one` with an s."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"
