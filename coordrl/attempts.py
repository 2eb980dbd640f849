"""The record of attempts at runs: a row when one starts, and one when it ends. compare/attempts.jsonl.

An attempt whose launcher was killed has a start alone, and counts like any other.
"""

from __future__ import annotations

import json
from pathlib import Path

from coordrl.files import append_row, open_own


def attempts_file(out: Path) -> Path:
    """Return where the launchers of a folder of runs record attempts."""
    return out / "compare" / "attempts.jsonl"


def record_start(out: Path, cell: str, attempt: int) -> None:
    """Record that an attempt starts: before it does, so that no crash comes between.

    Args:
        out: the folder of all runs.
        cell: the run's folder below it.
        attempt: its number among the attempts at this run, from 1.
    """
    append_row(attempts_file(out), {"cell": cell, "attempt": attempt, "event": "start"})


def record_end(out: Path, cell: str, attempt: int, *, exit_code: int, state: str, seconds: float, where: str) -> None:
    """Record that an attempt has ended: how, what became of the run by it, after how long, and where it was."""
    end = {"exit_code": exit_code, "state": state, "seconds": round(seconds, 3), "where": where}
    append_row(attempts_file(out), {"cell": cell, "attempt": attempt, "event": "end", **end})


def count_attempts(out: Path) -> dict[str, int]:
    """Return how often each run was started, by its folder; an empty dict where no launcher recorded anything."""
    try:
        with open_own(attempts_file(out)) as file:
            lines = file.read().decode(errors="replace").splitlines()
    except (OSError, ValueError):
        return {}
    counts: dict[str, int] = {}
    for line in lines:
        try:
            row = json.loads(line)
            cell, attempt = str(row["cell"]), int(row["attempt"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):  # cut short by a crash
            continue
        counts[cell] = max(counts.get(cell, 0), attempt)  # not the rows: one may be lost, and an attempt has two
    return counts
