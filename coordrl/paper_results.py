"""The folder of a run of one of the paper's tasks, and its result as a table. Standard library only.

run.json         the spec, versions, hardware; another spec on this folder is refused
progress.jsonl   the curves: a row for each point
positions.csv    hit and error of every position, in the end
result.json      written last; finished means that it is there and has the spec of run.json
stopped.json     instead of it, of a run that was stopped: what it had measured
picture.png      and picture.svg
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coordrl.console import format_seconds
from coordrl.errors import RequestError
from coordrl.files import append_row, load_json, read_rows, write_json
from coordrl.paper_tasks import TASKS, PaperSpec, parse_spec

GOOD = 0.99  # the table says when this much of the test was first reached


@dataclass(frozen=True)
class PaperFolder:
    """The paths of a run's files, and their state."""

    path: Path

    @property
    def run_file(self) -> Path:
        """run.json: the spec, versions, hardware."""
        return self.path / "run.json"

    @property
    def progress_file(self) -> Path:
        """progress.jsonl: the curves."""
        return self.path / "progress.jsonl"

    @property
    def positions_file(self) -> Path:
        """positions.csv: what became of every position."""
        return self.path / "positions.csv"

    @property
    def result_file(self) -> Path:
        """result.json: of a finished run."""
        return self.path / "result.json"

    @property
    def stopped_file(self) -> Path:
        """stopped.json: of a run that was stopped."""
        return self.path / "stopped.json"

    @property
    def picture_stem(self) -> Path:
        """The picture's path without its ending."""
        return self.path / "picture"

    def check(self, spec: PaperSpec) -> bool:
        """Say whether anything was begun here, and check that it was this run.

        Raises:
            RequestError: another run lies here, or something else.
        """
        if not self.run_file.exists():
            if self.path.exists() and not self.path.is_dir():
                raise RequestError(f"{self.path} is a file; name a folder with --out")
            return False
        try:
            there = parse_spec(load_json(self.run_file).get("spec"))
        except (OSError, ValueError) as error:
            raise RequestError(
                f"{self.run_file} cannot be read: {error}. Name another folder with --out, or remove this one"
            ) from error
        differences = there.differences(spec)
        if differences:
            raise RequestError(
                f"{self.path} holds another run: {'; '.join(differences)}. Ask for the same, or use another --out"
            )
        return True

    def read_result(self, spec: PaperSpec) -> dict[str, Any] | None:
        """Return the result of this run if it is finished."""
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):  # whoever wrote it
            result = load_json(self.result_file)
            if parse_spec(result["spec"]) == spec:
                describe_result(result)  # as whole as a table needs it
                return result
        return None

    def begin(self, spec: PaperSpec, facts: Mapping[str, Any]) -> None:
        """Take away what an unfinished run left, and write run.json."""
        pictures = [self.picture_stem.with_suffix(suffix) for suffix in (".png", ".svg")]
        for file in (self.progress_file, self.positions_file, self.result_file, self.stopped_file, *pictures):
            file.unlink(missing_ok=True)
        write_json(self.run_file, {"spec": asdict(spec), **facts})

    def append(self, row: Mapping[str, Any]) -> None:
        """Append a point of a curve; "step" counts the updates of all arms so far."""
        append_row(self.progress_file, row)

    def rows(self) -> list[dict[str, Any]]:
        """Return the points of all curves."""
        return read_rows(self.progress_file)


def first_good(rows: list[dict[str, Any]], arm: str) -> float | None:
    """Return after how many seconds of training an arm first had GOOD of the test; None if it never had."""
    for row in rows:
        if row["arm"] == arm and row["test"]["hits"] >= GOOD:
            return float(row["seconds"])
    return None


def describe_result(result: Mapping[str, Any]) -> list[str]:
    """Return a result as the lines of a table.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    spec = parse_spec(result["spec"])
    task, sizes = TASKS[spec.task], result["sizes"]
    lines = [
        f"{spec.task} ({task.summary}), {spec.split} split: {sizes['train']:,} positions to train on,"
        f" {sizes['test']:,} to test on; seed {spec.seed}"
    ]
    unit = f" {task.unit}" if task.unit else ""
    error = f"test error{', px' if unit else ''}"
    lines.append(
        f"  {'arm':<6}{'train ' + task.measure:>16}{'test ' + task.measure:>16}{error:>16}{'parameters':>12}"
        f"{'epochs':>8}{'seconds':>9}{f'to {GOOD:.0%} of test':>17}"
    )
    for arm, one in result["arms"].items():
        reached = "never" if one["seconds_to_good"] is None else f"{one['seconds_to_good']:.1f} s"
        lines.append(
            f"  {arm:<6}{percent(one['train']['hits'], task.measure):>16}{percent(one['test']['hits'], task.measure):>16}"
            f"{one['test']['error']:>16.3f}{one['parameters']:>12,}{one['epochs']:>8,.4g}{one['seconds']:>9,.1f}{reached:>17}"
        )
    return lines


def percent(share: float, measure: str) -> str:
    """Write an accuracy in percent, and an IoU as it is; only what is perfect is written as 100.0 % or 1.000."""
    digits = 1 if measure == "accuracy" else 3
    value = 100 * share if measure == "accuracy" else share
    step = 10**-digits
    whole = 100 if measure == "accuracy" else 1
    if value < whole:
        value = min(value, whole - step)
    return f"{value:.{digits}f} %" if measure == "accuracy" else f"{value:.{digits}f}"


def describe_stop(arm: str, updates: int, total: int, seconds: float) -> str:
    """Say in a few words where a training was stopped."""
    return f"{arm} at update {updates:,} of {total:,}, after {format_seconds(seconds)}"
