"""SIGINT and SIGTERM: while everything is imported they end a command, and then it comes to a place where it can stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import final


@final
class StopSignals:
    """While entered, SIGINT and SIGTERM are noted instead of interrupting; a second SIGINT ends at once."""

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT == number:
            os._exit(130)  # asked twice: leave now; the files are whole at any moment
        self.received = number


@contextmanager
def ended_by_interrupt() -> Iterator[None]:
    """While entered, SIGINT ends this process, with the exit code of one that was interrupted.

    For imports that take seconds: libraries swallow a KeyboardInterrupt there, and go on half imported. Nothing is there
    yet that could be lost, and worker processes end with their parent.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        os.write(2, b"coordrl: stopped\n")
        os._exit(130)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
