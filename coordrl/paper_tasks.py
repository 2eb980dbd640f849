"""The paper's supervised tasks as data: their names, what each measures, and what determines a run of one.

Liu et al. 2018 (arXiv 1807.03247), sections 3 and 4: "Not-so-Clevr". Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from coordrl.errors import RequestError, suggest

MAX_EPOCHS = 100_000
BATCH = 16  # positions an update; chosen
ARMS = ("coord", "plain")
SPLITS = {
    "uniform": "four fifths of the positions to train on, the others to test on, drawn once for all seeds",
    "quadrant": "tested where both coordinates lie in the last half of the canvas, trained on the other three quadrants",
}


@dataclass(frozen=True)
class Task:
    """One of the tasks.

    Attributes:
        summary: what goes in and what comes out.
        measure: what is counted of each position, as a name.
        unit: of a position's error; "" for none.
        deepest: the error with which the picture's colours end.
        epochs: of the default run.
        rates: learning rate of each arm.
    """

    summary: str
    measure: str
    unit: str
    deepest: float
    epochs: int
    rates: Mapping[str, float]


# Epochs and learning rates are chosen here. Those of plain are the best of three tried for classification, which rendering
# takes too, and of two for regression; of coord, one was tried for classification and rendering.
TASKS = {
    "classification": Task(
        "(row, column) to one of 4,096 pixels", "accuracy", "px", 8.0, 10, {"coord": 5e-3, "plain": 2e-3}
    ),
    "regression": Task(
        "an image of one pixel to its (row, column)", "accuracy", "px", 2.0, 20, {"coord": 2e-2, "plain": 1e-3}
    ),
    "rendering": Task("(row, column) to a square of 9 x 9 pixels", "IoU", "", 1.0, 10, {"coord": 5e-3, "plain": 2e-3}),
}


@dataclass(frozen=True)
class PaperSpec:
    """Everything that determines a run of a task, beside the machine and the versions."""

    task: str
    split: str
    seed: int
    epochs: int
    batch: int
    rates: Mapping[str, float]  # of each arm that is trained

    def differences(self, other: PaperSpec) -> list[str]:
        """Say in words where another spec differs from this one."""
        mine, theirs = asdict(self), asdict(other)
        return [
            f"{name} is {mine[name]!r} there and {theirs[name]!r} here" for name in mine if mine[name] != theirs[name]
        ]


def specify(task: str, split: str, arms: Sequence[str], seed: int, epochs: int | None) -> PaperSpec:
    """Check a request and return the run that it asks for.

    Args:
        task: a name of TASKS.
        split: a name of SPLITS.
        arms: names of ARMS; they are trained in the order of ARMS.
        seed: of the weights and of the order of the batches, from 0 to 2**31 - 1.
        epochs: passes over the training positions; None for the task's own number.

    Raises:
        RequestError: a part is not what it may be.
    """
    if not task:
        raise RequestError(f"which task? {', '.join(TASKS)}. For example: coordrl paper classification")
    _check_word("task", task, TASKS)
    _check_word("split", split, SPLITS)
    for arm in arms:
        _check_word("arm", arm, ARMS)
    if not 0 <= seed < 2**31:
        raise RequestError(f"--seed is {seed}; it is a whole number from 0 to 2**31 - 1")
    count = TASKS[task].epochs if epochs is None else epochs
    if not 1 <= count <= MAX_EPOCHS:
        raise RequestError(f"--epochs is {count}; it is a whole number from 1 to {MAX_EPOCHS:,}")
    rates = {arm: TASKS[task].rates[arm] for arm in ARMS if arm in arms}
    return PaperSpec(task, split, seed, count, BATCH, rates)


def parse_spec(data: Any) -> PaperSpec:
    """Return the spec that a file holds.

    Raises:
        ValueError: it holds none.
    """
    if not isinstance(data, dict) or set(data) != {field.name for field in fields(PaperSpec)}:
        raise ValueError("it has no spec of one of the paper's tasks")
    return PaperSpec(**data)


def _check_word(what: str, word: str, known: Sequence[str] | Mapping[str, Any]) -> None:
    """Check that a word is one of those that are known."""
    if word not in known:
        hint = suggest(word, known) or f"; there are {', '.join(known)}"
        raise RequestError(f'there is no {what} "{word}"{hint}')
