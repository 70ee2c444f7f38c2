"""SIGTERM and SIGHUP end a command as Ctrl-C does: by KeyboardInterrupt in the main thread.

A scheduler that takes a machine back sends SIGTERM and, some seconds later, SIGKILL; a terminal that closes
sends SIGHUP. SIGINT itself is left alone: a shell has it ignored by what it starts in the background.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGHUP)
AGAIN_S = 10.0                   # a second one so soon is the same: a group's comes beside the process's own

_came: signal.Signals | None = None
_at = 0.0


@contextlib.contextmanager
def caught() -> Iterator[None]:
    """Raise KeyboardInterrupt for SIGTERM and SIGHUP while the context lasts.

    Elsewhere than in the main thread, and for a SIGHUP that is ignored (nohup), nothing changes.
    """
    global _came
    if not _in_main():
        yield
        return
    if signal.getsignal(signal.SIGTERM) is not _interrupt:
        _came = None
    with contextlib.ExitStack() as restored:
        for number in SIGNALS:
            before = signal.getsignal(number)
            if number == signal.SIGHUP and before == signal.SIG_IGN:
                continue
            signal.signal(number, _interrupt)
            restored.callback(signal.signal, number, signal.SIG_DFL if before is None else before)
        yield


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keep the handler of SIGTERM while a library starts that sets its own, which leaves by `sys.exit`."""
    if not _in_main() or signal.getsignal(signal.SIGTERM) is not _interrupt:
        yield
        return
    try:
        yield
    except SystemExit:
        _note(signal.SIGTERM)
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGTERM, _interrupt)


def stop_main() -> None:
    """From another thread: end what the main thread does inside `caught`."""
    main = threading.main_thread().ident
    if main is not None and signal.getsignal(signal.SIGTERM) is _interrupt:
        signal.pthread_kill(main, signal.SIGTERM)


def last() -> signal.Signals:
    """What the KeyboardInterrupt in hand came from."""
    return _came or signal.SIGINT


def _in_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _came is None or time.monotonic() - _at >= AGAIN_S:
        _note(signal.Signals(number))
        raise KeyboardInterrupt


def _note(number: signal.Signals) -> None:
    global _came, _at
    _came, _at = number, time.monotonic()
