"""Where a run has come to beside its model: how far its logs reach, and the games that stand in none of them yet."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from coordrl.checkpoint import Checkpoint
from coordrl.errors import CheckpointError, ResumableError
from coordrl.files import read_rows
from coordrl.results import ROWS, RunFolder, Spec


@dataclass
class Marks:
    """Where a course has come to, beside the model: part of a checkpoint, so that taking one changes nothing else."""

    row: int = 0  # step of the last row of progress.jsonl
    map: int = 0  # of the last position maps
    evaluation: int = 0
    games: list[list[float]] = field(default_factory=list)  # [step, return, length] of those finished since the row
    games_finished: int = 0  # up to the row
    seconds: float = 0.0  # that the run took, in all of its processes

    @staticmethod
    def of(checkpoint: Checkpoint) -> Marks:
        """Return the marks of a checkpoint. One of format 1 has none; it stands behind a row of its own.

        Raises:
            CheckpointError: they are none.
        """
        step, state = checkpoint.step, checkpoint.state
        try:
            if "marks" not in state:  # what it does not say is in the logs
                return Marks(step, step, -1, [], -1, float(state["seconds"]))
            if set(state["marks"]) != {entry.name for entry in fields(Marks)}:
                raise ValueError(f"marks are {', '.join(state['marks'])[:200]}")
            found = Marks(**state["marks"])
            steps = (found.row, found.map, found.evaluation)
            whole = all(type(number) is int and 0 <= number <= step for number in steps)
            games = [type(of) is type(length) is int and type(r) in (int, float) for of, r, length in found.games]
            counted = type(found.games_finished) is int and 0 <= found.games_finished < 2**53
            if not whole or not all(games) or not counted or not 0 <= found.seconds < 1e12:
                raise ValueError(f"marks are at steps {steps}")
            return found
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"it holds what no training wrote ({type(error).__name__}: {error})") from error

    def check_logs(self, folder: RunFolder, spec: Spec, step: int) -> None:
        """Check that the logs reach to where the marks say, and fill in what those of format 1 do not say.

        Raises:
            ResumableError: they do not: they would be cut, and nobody would know what is missing.
        """
        rows, evaluations = read_rows(folder.progress_file), read_rows(folder.evaluations_file)
        if self.evaluation < 0:
            self.evaluation = max((row["step"] for row in evaluations if row["step"] <= step), default=0)
        if self.games_finished < 0:
            counts = [row.get("games_finished") for row in rows if row["step"] <= step]
            self.games_finished = counts[-1] if counts and type(counts[-1]) is int else 0
        for file, found, mark in (
            (folder.progress_file, rows, self.row),
            (folder.evaluations_file, evaluations, self.evaluation),
        ):
            if mark > 0 and all(row["step"] != mark for row in found):
                raise ResumableError(
                    f"{file} does not reach to step {mark:,}, where the checkpoint stands on it: it is damaged. Restore it"
                    " from a copy, or remove the run's folder to start over"
                )
        if is_due(max(spec.steps // ROWS, 1), self.row, step):
            raise ResumableError(
                f"the checkpoint of step {step:,} says that {folder.progress_file} ends at {self.row:,}"
            )


def is_due(every: int, last: int, step: int) -> bool:
    """Say whether a multiple of `every` lies after `last` and not after `step`; never if `every` is 0.

    Counted from step 0, so that arms whose rollouts are longer or shorter do it at the same steps.
    """
    return every > 0 and step // every > last // every
