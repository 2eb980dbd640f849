"""Named points at which a test can make a training fail, to see that nothing is lost. Nothing happens without one.

    COORDRL_FAULT=rename:3:kill coordrl train ...

makes the third rename of that process its last act. Points: write (in the middle of a file), fsync, rename, remove (of a
checkpoint), append (in the middle of a row of a log), step (of the environments), update, evaluation. Kinds: kill
(SIGKILL), full (the disk is full: ENOSPC), error (EIO), interrupt (SIGINT), stop (SIGTERM).
"""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter
from dataclasses import dataclass, field

from coordrl.errors import RequestError

POINTS = ("write", "fsync", "rename", "remove", "append", "step", "update", "evaluation")
KINDS = ("kill", "full", "error", "interrupt", "stop")
VARIABLE = "COORDRL_FAULT"


@dataclass
class _Plan:
    """What is to happen, and how often each point was reached."""

    point: str
    occurrence: int
    kind: str
    counts: Counter[str] = field(default_factory=Counter)

    def reach(self, point: str) -> None:
        self.counts[point] += 1
        if point == self.point and self.counts[point] == self.occurrence:
            _fail(self.kind)


_plan: _Plan | None = None


def reach(point: str) -> None:
    """Say that a point is reached; fails if a test asked for that."""
    if _plan is not None:
        _plan.reach(point)


def arm(words: str | None) -> None:
    """Plan a fault, "point:occurrence:kind"; None plans none. "count:0:kill" never fails, and counts all the same.

    Raises:
        RequestError: there is no such point or kind.
    """
    global _plan
    if not words:
        _plan = None
        return
    point, _, rest = words.partition(":")
    number, _, kind = rest.partition(":")
    if point not in (*POINTS, "count") or kind not in KINDS or not number.isdecimal():
        raise RequestError(
            f'{VARIABLE} is "{words}"; it is POINT:NUMBER:KIND, with a point of {", ".join(POINTS)} and a kind of'
            f" {', '.join(KINDS)}"
        )
    _plan = _Plan(point, int(number), kind)


def arm_from_environment() -> None:
    """Plan the fault that the environment variable names, if it does. The processes that this one starts have none."""
    words = os.environ.pop(VARIABLE, None)
    if words:
        arm(words)


def counts() -> dict[str, int]:
    """Return how often each point was reached since a fault was planned."""
    return dict(_plan.counts) if _plan is not None else {}


def _fail(kind: str) -> None:
    """Fail."""
    if kind in ("full", "error"):
        number = errno.ENOSPC if kind == "full" else errno.EIO
        raise OSError(number, os.strerror(number))
    os.kill(os.getpid(), {"kill": signal.SIGKILL, "interrupt": signal.SIGINT, "stop": signal.SIGTERM}[kind])
