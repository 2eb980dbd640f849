"""The scores of trained agents without their true coordinates, as they lie on disk: one run's, or a whole folder's."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from coordrl.console import ProgressLine
from coordrl.errors import BusyError, DivergedError, OutputError, RequestError, ResumableError, StoppedError
from coordrl.files import read_json, write_json
from coordrl.plan import PLAN_FILE, read_plan
from coordrl.results import RunFolder, Spec, find_runs
from coordrl.suites import ABLATIONS, ablations_of

if TYPE_CHECKING:
    from coordrl.evaluation import Evaluation


class Task(NamedTuple):
    """A finished run, and the kinds of coordinates that it has not been scored with yet."""

    folder: RunFolder
    spec: Spec
    kinds: tuple[str, ...]  # "true" among them if it is to be played


class Tally(NamedTuple):
    """What a folder of runs came to."""

    scored: int
    before: int  # that had every score already
    failed: int
    unfinished: int  # that have coordinates, and no result yet


def read_scores(folder: RunFolder, step: int) -> dict[str, Any]:
    """Return what ablation.json says, by kind, if it is of the agent as it was after so many steps; else nothing."""
    data = read_json(folder.ablation_file)
    kinds = ("true", *ABLATIONS) if data.get("step") == step else ()
    return {kind: data[kind] for kind in kinds if isinstance(data.get(kind), dict)}


def write_scores(folder: RunFolder, spec: Spec, step: int, seed: int, scores: Mapping[str, Evaluation]) -> None:
    """Add scores to ablation.json; those of other kinds stay, unless they are of another step.

    Args:
        folder: of the run.
        spec: of the run.
        step: after which the agent was scored.
        seed: of the games, as `coordrl evaluate --seed`.
        scores: by kind.

    Raises:
        OutputError: it cannot be written.
    """
    new = {
        kind: {"mean": score.mean, "half_width_95": score.half_width, "returns": score.returns, "seed": seed}
        for kind, score in scores.items()
    }
    known = {**read_scores(folder, step), **new}
    in_order = {kind: known[kind] for kind in ("true", *ABLATIONS) if kind in known}
    try:
        write_json(folder.ablation_file, {"protocol": spec.protocol, "step": step, **in_order})
    except OSError as error:
        raise OutputError(f"{folder.ablation_file} cannot be written: {error.strerror or error}") from error


def holds_runs(out: Path) -> bool:
    """Say whether a folder is one of several runs, and not a run itself."""
    return not RunFolder(out).spec_file.exists() and ((out / PLAN_FILE).is_file() or bool(find_runs(out)))


def ablate_runs(out: Path, kinds: Sequence[str], *, episodes: int, seed: int, device: str) -> Tally:
    """Score every finished run below a folder that sees coordinates, and write each score when it is there.

    What was scored before, over as many games of the same seed, is not played again. A run that another process
    holds is left to it, so that several processes can share a folder.

    Args:
        out: of a comparison, or any runs.
        kinds: the ablations.
        episodes: whole games for each score.
        seed: of the games, as `coordrl evaluate --seed`.
        device: auto, cpu or cuda.

    Raises:
        RequestError: there is no finished run with coordinates to take away.
        OutputError: a score cannot be written.
        StoppedError: by Ctrl-C; what was scored is kept.
    """
    cells = [RunFolder(cell.path(out)) for cell in read_plan(out).runs] if (out / PLAN_FILE).is_file() else []
    folders = [folder for folder in cells or find_runs(out) if folder.spec_file.is_file()]
    runs = [(folder, folder.read_spec()) for folder in folders]
    runs = [(folder, spec) for folder, spec in runs if set(kinds) & set(ablations_of(spec.extractor))]
    finished = [(folder, spec) for folder, spec in runs if folder.is_finished(spec)]
    if not finished:
        raise RequestError(
            f"{out} holds no finished run with coordinates that --ablate {' '.join(kinds)} could take from it; train one,"
            " for example with --extractor coord"
        )
    every = [Task(folder, spec, _missing(folder, spec, kinds, episodes, seed)) for folder, spec in finished]
    tasks = [task for task in every if task.kinds]
    scored, failed = _ablate(tasks, kinds, episodes, seed, device) if tasks else (0, 0)
    return Tally(scored, len(every) - len(tasks), failed, len(runs) - len(finished))


def _missing(folder: RunFolder, spec: Spec, kinds: Sequence[str], episodes: int, seed: int) -> tuple[str, ...]:
    """Return the kinds, the true coordinates first, without a score over as many games of a seed."""
    known = read_scores(folder, read_json(folder.result_file).get("steps", spec.steps))
    wanted = ("true", *(kind for kind in kinds if kind in ablations_of(spec.extractor)))

    def has(kind: str) -> bool:
        score = known.get(kind, {})
        return score.get("seed") == seed and len(score.get("returns", ())) >= episodes

    return tuple(kind for kind in wanted if not has(kind))


def _ablate(tasks: Sequence[Task], kinds: Sequence[str], episodes: int, seed: int, device: str) -> tuple[int, int]:
    """Score runs one after another; return how many were scored, and how many failed."""
    scored = failed = 0
    before = 0  # games of the runs that are behind us
    with ProgressLine("games", sum(len(task.kinds) for task in tasks) * episodes) as line:
        for number, task in enumerate(tasks, 1):
            try:
                with task.folder.lock():
                    left = _missing(task.folder, task.spec, kinds, episodes, seed)  # another process may have been here
                    games = before + (len(task.kinds) - len(left)) * episodes
                    title = f"run {number} of {len(tasks)}, {task.folder.path}"
                    if left:
                        _ablate_run(task._replace(kinds=left), episodes, seed, device, line, games, title)
                line.say(f"{task.folder.path}: {_describe(task)}")
                scored += 1
            except BusyError as error:
                line.say(f"left alone: {error}")
            except (RequestError, DivergedError, ResumableError) as error:
                line.say(f"not scored: {error}")
                failed += 1
            except KeyboardInterrupt as error:
                raise StoppedError(
                    f"stopped with {scored} of {len(tasks)} runs scored, and every score that was whole is kept; the same"
                    " command goes on",
                    signal.SIGINT,
                ) from error
            before += len(task.kinds) * episodes
    return scored, failed


def _ablate_run(task: Task, episodes: int, seed: int, device: str, line: ProgressLine, before: int, title: str) -> None:
    """Score one run with each of its kinds, writing each score when it is there."""
    from coordrl.ablation import evaluate_ablations  # torch, SB3 and the emulator: seconds to import
    from coordrl.algorithms import environment_seed, load, skip_compiler
    from coordrl.evaluation import describe_games

    skip_compiler()
    model = load(task.folder.path, device=device)
    began = time.monotonic()
    played: dict[str, tuple[int, int]] = {}  # games and steps, by kind

    def on_step(kind: str, returns: list[float], steps: int) -> None:
        played[kind] = len(returns), steps
        games, all_steps = (sum(column) for column in zip(*played.values(), strict=True))

        def describe() -> str:
            return f"{title}, {kind} coordinates · {describe_games(returns, all_steps, time.monotonic() - began)}"

        line.update(before + games, describe)

    def on_score(kind: str, score: Evaluation) -> None:
        write_scores(task.folder, task.spec, model.num_timesteps, seed, {kind: score})

    evaluate_ablations(
        model,
        task.spec,
        task.kinds,
        episodes,
        seed=environment_seed(seed, "evaluate command"),
        on_step=on_step,
        on_score=on_score,
    )


def _describe(task: Task) -> str:
    """Say what a run scores with each kind of coordinates."""
    known = read_scores(task.folder, read_json(task.folder.result_file).get("steps", task.spec.steps))
    return ", ".join(f"{kind} {score['mean']:,.1f}" for kind, score in known.items())
