"""Counts as people write them, and text of others as it can be shown."""


def many(count: int, one: str, several: str = "") -> str:
    """"1 clip", "1,200 clips"; `several` where it is not `one` with an s."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def printable(text: object, most: int = 200) -> str:
    """Text of others on one line of at most `most` characters: what moves a cursor, colours, hides or turns
    text around is written as an escape, blanks of any kind are a space."""
    whole = str(text)
    parts = (c if c.isprintable() else " " if c.isspace() else _escaped(c) for c in whole[:most])
    shown = "".join(parts)
    return shown if len(whole) <= most and len(shown) <= most else f"{shown[:most - 3]}..."


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
