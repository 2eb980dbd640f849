"""A thread that ends a process whose work has come to a standstill, after saying where it stands."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self, final

from coordrl.errors import ResumableError

STALL_SECONDS = 300.0  # a step takes milliseconds, a new seed a second, the slowest disk some more


@final
class Watchdog:
    """While entered, ends the process with exit code 74 if `beat` is not called for some time.

    An emulator that hangs does so in C++, where no exception reaches: the stacks of all threads go to a file and to
    stderr, and the process leaves as if it were killed, which a run survives. Time in which the process itself was
    stopped (Ctrl-Z, a laptop asleep) does not count.

    Args:
        file: that gets the stacks.
        patience: how many times STALL_SECONDS may go by without a beat.
    """

    def __init__(self, file: Path, patience: float = 1.0) -> None:
        self._file, self._seconds = file, STALL_SECONDS * patience
        self._tick = min(1.0, self._seconds / 5)
        self._quiet = 0  # ticks since the last beat
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Watch no more."""
        self._ended.set()
        self._thread.join()

    def beat(self) -> None:
        """Say that the work goes on."""
        self._quiet = 0

    def _watch(self) -> None:
        while not self._ended.wait(self._tick):
            self._quiet += 1  # not read from a clock: that of a process that was stopped goes on
            if self._quiet * self._tick >= self._seconds:
                self._leave()

    def _leave(self) -> None:
        """Say where every thread stands, and leave without any clean-up, which would hang as well."""
        try:
            with self._file.open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file)
            faulthandler.dump_traceback()
            print(
                f"coordrl: nothing has moved for {self._seconds:,.0f} s, most likely the emulator hangs. Where every thread"
                f" stands is in {self._file}; the same command goes on from the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
        finally:
            os._exit(ResumableError.exit_code)
