"""The trainings that run on this machine, for tests and scripts/torment. Linux."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from coordrl.files import read_rows
from coordrl.results import RunFolder

CLOCK = (
    "seconds",
    "steps_per_second",
    "updates_per_second",
    "samples_per_second",
)  # columns that hang on the time of day alone


def workers_of(out: Path) -> list[int]:
    """Return the processes that train into a folder, whoever started them, and the workers of such that are no more.

    A worker does not say where its trainer wrote to. Within a test only those that the same test has started count:
    the tests beside it end trainers too, and their workers live on for up to a second.
    """
    found = []
    parents = {}
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0].encode()  # "… (call)", "… (setup)"
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
            state = (place / "stat").read_text().rpartition(")")[2].split()[0]
            environment = (place / "environ").read_bytes()
        except OSError:
            continue
        if b"coordrl.train" in words and str(out).encode() in words and state != "Z":
            found.append(int(place.name))
        if b"coordrl.divided_worker" in words and state != "Z" and test in environment:
            parents[int(place.name)] = int(words[words.index(b"coordrl.workers") + 2])
    return [*found, *(worker for worker, parent in parents.items() if not Path(f"/proc/{parent}").exists())]


def unlike(one: Path, other: Path) -> list[str]:
    """Say where two finished runs differ, bit for bit, but for what the clock says: nothing, if resuming is exact."""
    runs = [RunFolder(path) for path in (one, other)]
    found = []
    for name in ("progress_file", "evaluations_file"):
        rows = [[_without_clock(row) for row in read_rows(getattr(run, name))] for run in runs]
        if rows[0] != rows[1]:
            place = next((i for i, (a, b) in enumerate(zip(*rows, strict=False)) if a != b), min(map(len, rows)))
            found.append(
                f"{name} differs from row {place} of {len(rows[0])} and {len(rows[1])}: {[r[place : place + 1] for r in rows]}"
            )
    results = [_without_clock(json.loads(run.result_file.read_text())) for run in runs]
    for result in results:
        result["evaluation"] = _without_clock(result["evaluation"] or {})
    if results[0] != results[1]:
        found.append(f"results differ: {results}")
    maps = [{file.name: file.read_bytes() for file, _ in run.position_maps()} for run in runs]
    if maps[0] != maps[1]:
        found.append(f"position maps differ: {[sorted(m) for m in maps]}")
    return found + _unlike_checkpoints(*(max(run.checkpoints.iterdir()) for run in runs))


def _unlike_checkpoints(one: Path, other: Path) -> list[str]:
    """Say where two checkpoints differ."""
    names = [{file.name for file in place.iterdir()} for place in (one, other)]
    if names[0] != names[1] or one.name != other.name:
        return [f"checkpoints differ: {one.name} with {names[0]}, {other.name} with {names[1]}"]
    states = []
    for place in (one, other):
        state = json.loads((place / "state.json").read_text())
        state["marks"].pop("seconds")
        state["marks"].pop("evaluation")  # before it, in a run that was stopped in its last evaluation
        states.append(state)
    found = [f"state differs: {key}" for key in states[0] if states[0][key] != states[1].get(key)]
    others = names[0] - {"state.json", "manifest.json"}
    return found + [
        f"{name} differs" for name in sorted(others) if (one / name).read_bytes() != (other / name).read_bytes()
    ]


def _without_clock(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in CLOCK}
