"""coordrl paper: the supervised tasks of the CoordConv paper, trained with CoordConv and with plain convolution."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from coordrl.console import Count, Name, OptionalCount, parse_arguments, run_command, tell
from coordrl.errors import RequestError, ResumableError
from coordrl.faults import arm_from_environment
from coordrl.files import check_name
from coordrl.paper_results import PaperFolder, describe_result
from coordrl.paper_tasks import SPLITS, TASKS, specify
from coordrl.process import check_device_name, tune
from coordrl.results import RunFolder
from coordrl.stopping import ended_by_interrupt

_TASKS = Annotated[str, tyro.conf.arg(metavar="|".join(TASKS), help_behavior_hint="(required)")]
_EPOCHS = f"(default: {', '.join(f'{name} {task.epochs}' for name, task in TASKS.items())})"
_OUT = "(default: paper/TASK-SPLIT-seed-N)"


@dataclass(frozen=True)
class PaperArguments:
    """Train the paper's toy tasks, with CoordConv and with plain convolution, and show what each learns.

    For example:
        coordrl paper classification                        (row, column) to one pixel of 64 x 64
        coordrl paper regression --split quadrant           one pixel to (row, column), in a quadrant never seen
        coordrl paper rendering --seed 3                    (row, column) to a square of 9 x 9 pixels
        coordrl paper classification --arms plain --epochs 200 --out plain-200

    Liu et al. 2018, sections 3 and 4: a square at all 3,136 places of a canvas. Prints a table and draws a picture: the
    curves of both arms, and maps of what becomes of every position. Both get the same positions, batches and epochs;
    coord is trained first. A few minutes on one core. Ctrl-C keeps what was measured; begun again, it begins anew.
    """

    task: tyro.conf.Positional[_TASKS] = ""
    """what is learnt"""
    split: Annotated[Name, tyro.conf.arg(metavar="|".join(SPLITS))] = "uniform"
    """which positions are tested on: a fifth of them anywhere, or a whole quadrant"""
    seed: Count = 0
    """of the weights and the order of the batches; the split is the same for all"""
    epochs: Annotated[OptionalCount, tyro.conf.arg(help_behavior_hint=_EPOCHS)] = None
    """passes of each arm over the positions to train on"""
    arms: Annotated[Name, tyro.conf.arg(metavar="NAMES")] = "coord,plain"
    """coord, plain, or both with a comma"""
    device: Name = "auto"
    """auto, cpu or cuda"""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint=_OUT)] = None
    """the folder to write to"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)

    def work() -> int:
        arm_from_environment()
        return _paper(parse_arguments(PaperArguments, "paper", words), "coordrl paper " + shlex.join(words))

    return run_command(work)


def _paper(arguments: PaperArguments, command: str) -> int:
    """Train, unless that is done already, and print the table."""
    arms = arguments.arms.split(",")
    spec = specify(arguments.task, arguments.split, arms, arguments.seed, arguments.epochs)
    check_device_name(arguments.device)
    out = arguments.out or Path("paper") / f"{spec.task}-{spec.split}-seed-{spec.seed}"
    check_name(out)
    folder = PaperFolder(out)
    if folder.check(spec):
        result = folder.read_result(spec)
        if result is not None:
            print(f"{out} is finished; its picture is {folder.picture_stem}.png")
            print("\n".join(describe_result(result)))
            return 0
    tune()  # before torch is imported
    with ended_by_interrupt():
        from coordrl.paper_course import Course  # torch, SB3 and matplotlib: seconds to import

        course = Course(spec, folder, arguments.device, command)
    with RunFolder(out).lock():
        if folder.check(spec):
            if folder.read_result(spec) is not None:
                raise RequestError(f"{out} was finished by another process just now; the same command prints its table")
            tell(f"{out} was begun and not finished; it begins anew")
        try:
            result = course.run()
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            raise ResumableError(
                f"reading or writing in {out} failed{where}: {error.strerror or error}; mend that, and the same command"
                " begins anew"
            ) from error
    print("\n".join(describe_result(result)))
    print(f"picture: {folder.picture_stem}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
