"""Every error coordrl raises on purpose, and the exit code with which a command reports it.

A message names the value, the rule and the next move, on one line.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class CoordrlError(Exception):
    """Base of every deliberate error; the commands print it as one line, without a traceback."""

    exit_code = 1


class RequestError(CoordrlError, ValueError):
    """What was asked for is wrong: a name, a number, a space, a folder of another run."""

    exit_code = 2


class DivergedError(CoordrlError):
    """The training produced NaN or infinity; the last good checkpoint is kept."""

    exit_code = 70


class OutputError(CoordrlError):
    """The run folder cannot be created or written."""

    exit_code = 73


class ResumableError(CoordrlError):
    """Reading or writing failed half-way; once that is mended, the same command goes on."""

    exit_code = 74


class CheckpointError(ResumableError):
    """A checkpoint is damaged, or holds what no training wrote; an older one may be sound."""


class ReplayError(CoordrlError):
    """Games that were to be played again cannot be, or led elsewhere than before."""


class BusyError(CoordrlError):
    """Another process holds the run folder."""

    exit_code = 75


class StoppedError(CoordrlError):
    """A signal asked the command to stop; `signal_number` is 2 (SIGINT) or 15 (SIGTERM)."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


def suggest(wrong: str, known: Iterable[str], *, key: dict[str, str] | None = None) -> str:
    """Return "; did you mean A, B or C?" for the (up to three) names closest to `wrong`, or "".

    `key` maps what `wrong` is compared with to what is shown; by default both are `known`.
    """
    shown = key if key is not None else {name.lower(): name for name in known}
    close = get_close_matches(wrong.lower(), list(shown), n=3, cutoff=0.6)
    if not close:
        return ""
    names = [shown[match] for match in close]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
    return f"; did you mean {listed}?"
