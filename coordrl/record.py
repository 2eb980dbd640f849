"""One run as its folder shows it: result, learning curve, what it cost. Read row by row, without torch."""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordrl.errors import RequestError
from coordrl.files import read_json, stream_rows
from coordrl.plan import Cell
from coordrl.results import WINDOW, RunFolder, Spec
from coordrl.stats import area_under_curve
from coordrl.suites import ABLATIONS

POINTS = 100  # of a learning curve: at evenly spaced steps, the last of them the end
STATES = ("finished", "diverged", "unfinished", "missing")
Array = NDArray[np.float64]
_BULK = re.compile(r'"games": (\[[][0-9eE.,+ -]*\]|\[\]), "train": \{[^{}]*\}, (?=")')


@dataclass(frozen=True)
class Ablation:
    """What a trained agent scores with one kind of coordinates: true, zero, shuffle, shift."""

    mean: float
    half_width: float | None  # of the 95 % interval of the mean over games; None for a single game
    games: int


@dataclass(frozen=True)
class Run:
    """One run of the matrix."""

    cell: Cell
    state: str  # one of STATES
    note: str = ""  # why it is missing, the sign of its divergence, or what is odd about it
    step: int = 0  # that its log has come to
    games: int = 0  # whole games finished in training
    final_return: float | None = None  # mean of the last (at most 100) training games; None: no result
    final_games: int = 0
    area: float | None = None  # mean height of the learning curve over all steps
    score: float | None = None  # of its last evaluation
    score_games: int = 0
    seconds: float = 0.0  # that it took, in all of its processes
    steps_per_second: float | None = None  # of training itself, without evaluations and checkpoints
    curve: Array = field(default_factory=lambda: np.full(POINTS, np.nan))  # (POINTS,), NaN where it has not been
    ratio: Array | None = None  # (POINTS,), root mean square of the coordinate weights over that of the image weights
    maps: tuple[tuple[Path, int], ...] = ()  # files of position maps, with their steps
    ablation: Mapping[str, Ablation] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)  # see _read_facts; empty if there is no run.json


def read_run(cell: Cell, folder: RunFolder) -> Run:
    """Read the run of a cell from its folder.

    Raises:
        RequestError: another run lies there, or one of its numbers is NaN or infinite.
    """
    if not folder.spec_file.is_file():
        return Run(cell, "missing", note="not started")
    try:
        spec = folder.read_spec()
    except RequestError as error:
        return Run(cell, "missing", note=str(error))
    if spec != cell.spec:
        raise RequestError(f"{folder.path} is another run than planned: {'; '.join(cell.spec.differences(spec))}")
    try:
        return _read(cell, folder, spec)
    except RequestError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, OSError) as error:
        what = f"{type(error).__name__}: {error}"
        raise RequestError(f"the logs in {folder.path} cannot be read: {what}. Mend or remove that folder") from error


def _read(cell: Cell, folder: RunFolder, spec: Spec) -> Run:
    """Read a run whose spec is known."""
    log = _read_log(folder.progress_file, spec.steps)
    run = Run(
        cell,
        "unfinished",
        step=log.step,
        games=log.games,
        seconds=log.seconds,
        steps_per_second=log.step / log.training_seconds if log.training_seconds > 0 else None,
        curve=_forward(log.returns, log.step, spec.steps),
        ratio=_forward(log.ratios, log.step, spec.steps) if log.ratios else None,
        maps=tuple(folder.position_maps()),
        ablation=_read_ablation(folder.ablation_file, spec.steps),
        facts=_read_facts(read_json(folder.spec_file)),
    )
    diverged = read_json(folder.path / "diverged.json")
    if folder.is_finished(spec):
        return _finish(run, read_json(folder.result_file), log, folder)
    if diverged.get("spec") == asdict(spec):
        return _diverge(run, diverged, log, folder)
    return replace(run, note=f"at step {log.step:,} of {spec.steps:,}")


def _read_facts(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what else run.json records, without what is not of its type: somebody may have changed the file by hand.

    The plan is always there, None for a run made alone; parameters, command, versions and hardware where they are
    what they should be, the last two with their sound entries alone.
    """
    plan = data.get("plan")
    facts: dict[str, Any] = {
        "plan": plan if plan is None else _text(plan if isinstance(plan, str) else json.dumps(plan))
    }
    if _is_count(data.get("parameters")):
        facts["parameters"] = data["parameters"]
    if isinstance(data.get("command"), str):
        facts["command"] = _text(data["command"])
    for name in ("versions", "hardware"):
        entries = data.get(name)
        if isinstance(entries, dict):
            sound = {_text(key): _entry(key, value) for key, value in entries.items()}
            facts[name] = {key: value for key, value in sound.items() if value is not None}
    return facts


def _entry(name: str, value: Any) -> str | int | None:
    """Return an entry of versions or hardware if it is a word, or a number where one belongs; else None."""
    if name in ("cores", "torch_threads"):
        return value if _is_count(value) else None
    return _text(value) if isinstance(value, str) else None


def _is_count(value: Any) -> bool:
    """Say whether a value is a whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _text(value: str) -> str:
    """Return a text on one line that can be written to a file: JSON can hold half of a character."""
    return " ".join(value.encode(errors="replace").decode().split())


@dataclass
class _Log:
    """What is kept of progress.jsonl while it streams by."""

    step: int = 0
    games: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    returns: dict[int, float] = field(default_factory=dict)  # by point of the curve, from 1
    ratios: dict[int, float] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)  # of the rows with a mean return
    means: list[float] = field(default_factory=list)
    last: deque[str] = field(default_factory=lambda: deque(maxlen=WINDOW))  # lists of games as text, none empty

    def final_return(self) -> float:
        """Return the mean over the last games; NaN of none."""
        returns = [game[1] for text in self.last for game in json.loads(text)][-WINDOW:]
        return float(np.mean(returns)) if returns else math.nan


def _parse(line: str) -> Any:
    """Parse a row of a log without its bulk, two thirds of the time: losses, and the games, which stay text.

    A line that is written otherwise is parsed as a whole.
    """
    bulk = _BULK.search(line)
    if bulk is not None:
        row = json.loads(line[: bulk.start()] + line[bulk.end() :])
        return {**row, "games": bulk.group(1)}
    row = json.loads(line)
    return {**row, "games": json.dumps(row["games"])} if isinstance(row, dict) and "games" in row else row


def _read_log(file: Path, steps: int) -> _Log:
    """Read a log of training, bin it, and keep no more than that."""
    log = _Log()
    for row in stream_rows(file, _parse):
        step = row["step"]
        if row["steps_per_second"] > 0:
            log.training_seconds += (step - log.step) / row["steps_per_second"]
        log.step, log.games, log.seconds = step, row["games_finished"], row["seconds"]
        if row["games"] != "[]":
            log.last.append(row["games"])
        point = min(max(round(step / steps * POINTS), 1), POINTS)
        if row["return_mean"] is not None:
            mean = _number(row["return_mean"], file, "return_mean", step)
            log.returns[point] = mean
            log.steps.append(step)
            log.means.append(mean)
        ratio = row["coordinates"].get("coordinates/ratio")
        if ratio is not None:
            log.ratios[point] = _number(ratio, file, "coordinates/ratio", step)
    return log


def _forward(values: Mapping[int, float], step: int, steps: int) -> Array:
    """Put values on the points of a curve, (POINTS,), each holding until the next, up to a step."""
    curve = np.full(POINTS, np.nan)
    value = math.nan
    for point in range(1, min(round(step / steps * POINTS), POINTS) + 1):
        value = values.get(point, value)
        curve[point - 1] = value
    return curve


def _finish(run: Run, result: Mapping[str, Any], log: _Log, folder: RunFolder) -> Run:
    """Add what result.json says, and check it against the log."""
    file = folder.result_file
    final, evaluation = result.get("final_return"), result.get("evaluation") or {}
    steps = run.cell.spec.steps
    run = replace(
        run,
        state="finished",
        final_return=None if final is None else _number(final, file, "final_return"),
        final_games=int(result.get("final_return_games", 0)),
        games=int(result.get("games_finished", run.games)),
        seconds=float(result.get("seconds", run.seconds)),
        score=_number(evaluation["mean"], file, "the evaluation's mean") if evaluation else None,
        score_games=len(evaluation.get("returns", ())),
        area=area_under_curve(log.steps, log.means, steps) if log.means else None,
    )
    if final is None:
        return replace(run, note="no game was finished")
    if log.step < steps:
        return replace(run, note=f"its log ends at step {log.step:,}, its result is of step {steps:,}")
    logged = log.final_return()
    if not math.isclose(logged, final, rel_tol=1e-6, abs_tol=1e-6):
        contradiction = f"its result says {final:,.2f}, the last games of its log {logged:,.2f}"
        return replace(run, final_return=None, final_games=0, note=f"{contradiction}: it counts as no result")
    return run


def _diverge(run: Run, diverged: Mapping[str, Any], log: _Log, folder: RunFolder) -> Run:
    """Add what diverged.json says: the run counts with the games that it finished before."""
    returns = [_number(value, folder.path / "diverged.json", "a return") for value in diverged.get("returns", ())]
    # The sign is the message that ended the run: of it, what stands before advice and paths.
    sign = re.sub(r"^the training diverged (at|by) step [\d,]+: ", "", str(diverged.get("sign", "no reason given")))
    sign = f"at step {diverged.get('step', log.step):,}: {re.split(r'[.;] ', sign)[0]}"
    if not returns:
        return replace(run, state="diverged", note=f"{sign}; no game was finished")
    final = float(np.mean(returns))
    held = run.curve.copy()
    held[round(log.step / run.cell.spec.steps * POINTS) :] = final  # a curve that left it out would flatter the arm
    return replace(
        run,
        state="diverged",
        note=sign,
        final_return=final,
        final_games=len(returns),
        curve=held,
        area=area_under_curve([*log.steps, log.step], [*log.means, final], run.cell.spec.steps),
    )


def _read_ablation(file: Path, steps: int) -> dict[str, Ablation]:
    """Read ablation.json, if it is there and of the trained agent: not of one that trained on afterwards."""
    found: dict[str, Ablation] = {}
    data = read_json(file)
    step = data.get("step")
    if not isinstance(step, int) or step < steps:
        return found
    for name in ("true", *ABLATIONS):
        scores = data.get(name)
        if isinstance(scores, dict) and "mean" in scores:
            half = scores.get("half_width_95")
            found[name] = Ablation(
                _number(scores["mean"], file, f"the mean of {name}"),
                None if half is None else _number(half, file, f"the interval of {name}"),
                len(scores.get("returns", ())),
            )
    return found


def _number(value: Any, file: Path, what: str, step: int | None = None) -> float:
    """Return a finite number.

    Raises:
        RequestError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        at = "" if step is None else f" at step {step:,}"
        raise RequestError(
            f"{file}: {what}{at} is {value}; a report takes finite numbers alone. Run it again, elsewhere"
        )
    return float(value)
