"""What a comparison will cost on this machine: measured by real, short trainings in a folder of their own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from coordrl.backends import Backend, Job, Work
from coordrl.errors import CoordrlError
from coordrl.files import stream_rows
from coordrl.launch import train_words
from coordrl.plan import Arm, Cell, Plan
from coordrl.results import ROWS, RunFolder

MEASURED_STEPS = 4_000  # of each short training


@dataclass(frozen=True)
class Rate:
    """What one run of an arm takes."""

    arm: Arm
    steps_per_second: float  # of one run, with all slots busy
    start_seconds: float  # from the command to the first step, and from the last step to the end
    fixed_bytes: int  # checkpoints, export, TensorBoard's pictures
    row_bytes: float  # of a row of the log, TensorBoard's share included


@dataclass(frozen=True)
class Cost:
    """What the cells that are left take together."""

    seconds: float  # wall time, with all slots busy; without evaluations
    bytes: int


def measure(plan: Plan, backend: Backend, say: Callable[[str], None], prepare: Callable[[Path], None]) -> list[Rate]:
    """Train each arm for a few thousand steps on the first game, as many at a time as there are slots.

    `prepare` puts into a folder of runs what they need beside the plan.

    Raises:
        CoordrlError: a training did not succeed.
    """
    rates = []
    steps = min(plan.steps, MEASURED_STEPS)
    short = replace(plan, steps=steps, eval_every=0, checkpoint_every=steps)
    for arm in plan.arms():
        say(f"measuring {arm.name}: {steps:,} steps, {backend.slots} at a time")
        cell = next(cell for cell in plan.runs if cell.arm == arm)
        with TemporaryDirectory(prefix="coordrl-") as folder:
            prepare(Path(folder))
            rates.append(_measure_arm(short, cell, backend, Path(folder)))
    return rates


def _measure_arm(plan: Plan, cell: Cell, backend: Backend, out: Path) -> Rate:
    """Train one arm in every slot at once."""
    short = replace(cell, spec=replace(cell.spec, steps=plan.steps))
    words = tuple(train_words(plan, short, out))
    starts = 0
    if "learning_starts" in cell.spec.settings:  # steps without updates are a hundred times as fast, and a hundredth
        starts = plan.steps // 4
        words += ("--set", f"learning_starts={starts}", f"buffer_size={plan.steps}")
    places = [out / str(slot) for slot in range(backend.slots)]
    jobs: list[Job] = []
    began = time.monotonic()
    try:
        for slot, place in enumerate(places):
            place.mkdir()
            jobs.append(backend.start(Work(words, place, cell.folder, place / "log"), slot))
        while any(job.poll() is None for job in jobs):
            time.sleep(0.1)
    finally:
        for job in jobs:
            job.stop()
    seconds = time.monotonic() - began
    if any(job.poll() != 0 for job in jobs):
        said = (places[0] / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise CoordrlError(f"the measurement of {cell.arm.name} failed: {said[-1] if said else 'it said nothing'}")
    folders = [RunFolder(cell.path(place)) for place in places]
    rate = fmean(_trained_rate(folder, starts) for folder in folders)
    logged = folders[0].progress_file.stat().st_size
    whole = sum(file.stat().st_size for file in folders[0].path.rglob("*") if file.is_file())
    rows = sum(1 for _ in stream_rows(folders[0].progress_file))
    # TensorBoard's file grows with the log, at about the same pace.
    return Rate(cell.arm, rate, max(seconds - plan.steps / rate, 0.0), whole - logged, 2 * logged / rows)


def _trained_rate(folder: RunFolder, starts: int) -> float:
    """Return the steps/s of a short training between its first row after the learning started and its last."""
    rows = [(row["step"], row["seconds"]) for row in stream_rows(folder.progress_file) if row["step"] >= starts]
    (first, began), (last, ended) = rows[0], rows[-1]
    return float((last - first) / max(ended - began, 1e-9)) if last > first else float(last / max(ended, 1e-9))


def add_up(plan: Plan, left: list[Cell], rates: list[Rate], slots: int) -> Cost:
    """Add up what the cells that are left take, with all slots busy all the time."""
    by_arm = {rate.arm: rate for rate in rates}
    seconds = sum(plan.steps / by_arm[cell.arm].steps_per_second + by_arm[cell.arm].start_seconds for cell in left)
    rows = min(plan.steps, ROWS)
    size = sum(by_arm[cell.arm].fixed_bytes + rows * by_arm[cell.arm].row_bytes for cell in left)
    return Cost(seconds / min(slots, max(len(left), 1)), int(size))
