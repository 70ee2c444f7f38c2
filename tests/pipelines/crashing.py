"""A real SplitShots whose decoder dies, or never comes back, in the middle of the files that are named."""

import ctypes
import time
from dataclasses import dataclass
from typing import ClassVar

from stages import decoder
from stages.shots import SplitShots

BEFORE = 20                      # frames


@dataclass
class Dying(SplitShots):
    crash: tuple[str, ...] = ()
    hang: tuple[str, ...] = ()
    name: ClassVar[str] = "SplitShots"

    def process(self, clip):
        decode = decoder.Reader._decode

        def die(reader, packets):
            for number, one in enumerate(decode(reader, packets)):
                if number == BEFORE and clip.id in self.crash:
                    ctypes.string_at(0)
                if number == BEFORE and clip.id in self.hang:
                    time.sleep(3600)
                yield one

        decoder.Reader._decode = die
        try:
            yield from super().process(clip)
        finally:
            decoder.Reader._decode = decode
