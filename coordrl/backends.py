"""Where the runs of a comparison are carried out: as processes of this machine, or as tasks of a Ray cluster.

A backend starts a job and says how it ended; what to run, in which order and how often is the launcher's affair.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

from coordrl.process import module_command, module_environment, worker_environment

LOST = 1000  # stands for the exit code of a job whose machine was lost


@dataclass(frozen=True)
class Work:
    """One attempt at a run: `python -m coordrl.train` with these words."""

    words: tuple[str, ...]  # without --out
    out: Path  # the folder of all runs
    folder: str  # of this run below it, with forward slashes
    log: Path  # gets what the command prints


class Job(Protocol):
    """An attempt under way."""

    @property
    def where(self) -> str:
        """The process or the machine, in words."""
        ...

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs; below 0 for a signal, as subprocess does."""
        ...

    def stop(self) -> None:
        """Ask it to write a checkpoint and end."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


class Backend(Protocol):
    """A place where jobs run."""

    @property
    def slots(self) -> int:
        """How many jobs it takes at a time."""
        ...

    @property
    def summary(self) -> str:
        """What it is, in words."""
        ...

    def start(self, work: Work, slot: int) -> Job:
        """Start a job in a free slot, from 0 to slots - 1."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


@final
class LocalJob:
    """A training as a process of this machine."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def where(self) -> str:
        """The process."""
        return f"process {self._process.pid}"

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask for a checkpoint and the end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()


@final
class LocalBackend:
    """Processes of this machine, the cores divided among them.

    As many workers as cores, with one thread each, is the command's default: runs wait for nobody then. Each
    is kept on its own cores, since threads of two trainings that take turns on one core wait for each other.

    Args:
        workers: how many runs at a time.
        cores: that this process may use.
    """

    def __init__(self, workers: int, cores: Sequence[int]) -> None:
        self.slots = workers
        each = max(1, len(cores) // workers)
        self._cores = [[cores[(slot * each + place) % len(cores)] for place in range(each)] for slot in range(workers)]
        self.summary = f"{workers} at a time here, {each} core{'s' if each > 1 else ''} each"

    def start(self, work: Work, slot: int) -> LocalJob:
        """Start a training on the cores of a slot.

        It gets a session of its own, so that Ctrl-C reaches it through the launcher alone, and ends when
        the launcher does.
        """
        command = [*module_command("coordrl.train"), *work.words, "--out", str(work.out)]
        with work.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**module_environment(), **worker_environment(len(self._cores[slot]), self._cores[slot])},
                start_new_session=True,
            )
        return LocalJob(process)

    def close(self) -> None:
        """Nothing is held."""
