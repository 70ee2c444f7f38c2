"""Who has a store, for whoever only wants to know: reads leases, takes none."""

from __future__ import annotations

import time
from dataclasses import dataclass

from infra.json_values import parsed_object
from infra.lease import FOLDER, Owner, last_number, owner_of
from infra.storage import Storage


@dataclass(frozen=True)
class Holder:
    """The last lease of a store."""

    number: int
    owner: Owner
    beat: str                                # when it last showed that it lives, by its own clock
    quiet_s: float                           # since then, by the clocks of the store and of this machine
    ended: bool                              # it has said so

    @property
    def alive(self) -> bool:
        """Of a run elsewhere: whether its lease has not expired. Clocks that differ may deceive."""
        if self.ended:
            return False
        return self.owner.alive if self.owner.here else self.quiet_s <= self.owner.expires_s


def holder(store: Storage) -> Holder | None:
    """None where no run ever was."""
    entries = {entry.key: entry for entry in store.entries(FOLDER)}
    number = last_number(entries)
    if not number:
        return None
    stem = f"{FOLDER}/{number:08d}"
    owner = owner_of(_read(store, f"{stem}.json"))
    beat = _beat(_read(store, f"{stem}.beat.json")) or owner.started
    newest = max(e.modified_s for key, e in entries.items() if key.startswith(f"{stem}."))
    return Holder(number, owner, beat, max(0.0, time.time() - newest), f"{stem}.end.json" in entries)


def _beat(data: bytes) -> str:
    try:
        at = parsed_object(data).get("at")
    except ValueError:
        return ""
    return at if isinstance(at, str) else ""


def _read(store: Storage, key: str) -> bytes:
    try:
        return store.read(key)
    except FileNotFoundError:
        return b""
