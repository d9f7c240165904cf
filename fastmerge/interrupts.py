"""Ctrl-C and SIGTERM end the command line without a traceback, whenever they come."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal that came while there was something to tidy up."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


def end_at_once() -> None:
    """From now on a signal ends the process: an exception might be raised in, and lost by, the import of a library."""
    _handle(_end)


@contextmanager
def raised() -> Iterator[None]:
    """In here the first signal raises Interrupted, so that files are left in order; a second one ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        _handle(_raise)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as in a background job
            signal.signal(number, handler)


def _raise(number: int, _: FrameType | None) -> None:
    end_at_once()
    raise Interrupted(number)


def _end(number: int, _: FrameType | None) -> None:
    os.write(2, b"stopped\n")
    os._exit(128 + number)
