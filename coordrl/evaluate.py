"""coordrl evaluate: score a trained agent over whole games, with its coordinates and without."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from coordrl.ablations import ablate_runs, holds_runs, write_scores
from coordrl.console import NO_WORDS, Count, Name, ProgressLine, Words, parse_arguments, run_command
from coordrl.errors import OutputError, RequestError, suggest
from coordrl.results import RunFolder, Spec
from coordrl.suites import ABLATIONS, WITHOUT_COORDINATES

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

    from coordrl.evaluation import Evaluation

Ablations = Annotated[
    Words,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="|".join(ABLATIONS),
        instance_from_str=Words,
        is_instance=lambda value: isinstance(value, Words),
        str_from_instance=list,
    ),
    tyro.conf.arg(help_behavior_hint="(default: none)"),
]


@dataclass(frozen=True)
class EvaluateArguments:
    """Score a trained agent over whole games, under the protocol it was trained with.

    For example:
        coordrl evaluate runs/zoo-v4/a2c-coord/MsPacman/seed-0
        coordrl evaluate RUN --episodes 30 --json > score.json
        coordrl evaluate RUN --ablate zero shuffle
        coordrl evaluate runs --ablate zero shuffle shift       every finished run of a comparison

    Raw rewards, Atari games capped at 108,000 frames, actions sampled as in training (DQN with its recipe's
    evaluation_epsilon). Nothing is written into the run, except that --ablate writes ablation.json there,
    which coordrl report shows; the scores of other kinds in it stay, as long as the agent has not trained on.

    With a folder of runs, --ablate takes every finished one that sees coordinates and plays what is missing.
    Ctrl-C loses the score under way alone, and the same command goes on; started twice, both share the runs.
    """

    run: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """the run's folder, which ends in seed-N; with --ablate also a folder of runs, as compare and train write it"""
    episodes: Count = 100
    """whole games to play"""
    seed: Count = 0
    """of the games and the sampled actions; the same seed gives the same games"""
    ablate: Ablations = NO_WORDS
    """does it use its coordinates? Score it with the true ones, and over the same games with zero (coordinate weights 0),
    shift (the grid rolled by half its height and width) or shuffle (its pixels permuted by a fixed seed)"""
    device: Name = "auto"
    """auto, cpu or cuda"""
    json: bool = False
    """print everything, each game's return and length too, as JSON"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _evaluate(parse_arguments(EvaluateArguments, "evaluate", _join_ablations(words))))


def _join_ablations(argv: Sequence[str]) -> list[str]:
    """Put the values of every --ablate at the end, so that RUN may follow them, and they each other with commas."""
    others: list[str] = []
    values: list[str] = []
    expected = taken = False
    for word in argv:
        if word == "--ablate" or word.startswith("--ablate="):
            values += word.removeprefix("--ablate").removeprefix("=").split(",")
            expected, taken = word == "--ablate", True
        elif (expected or (taken and set(word.split(",")) <= set(ABLATIONS))) and not word.startswith("-"):
            values += word.split(",")
            expected = False
        else:
            others.append(word)
            expected = taken = False
    values = list(dict.fromkeys(value for value in values if value))
    if not values and len(others) < len(argv):
        raise RequestError(f"--ablate takes one or several of {', '.join(ABLATIONS)}")
    return [*others, "--ablate", *values] if values else others


def _evaluate(arguments: EvaluateArguments) -> int:
    """Play the games and print the score."""
    if arguments.episodes < 1:
        raise RequestError(f"--episodes is {arguments.episodes}; it is a whole number from 1")
    if not 0 <= arguments.seed < 2**31:
        raise RequestError(f"--seed is {arguments.seed}; it is a whole number from 0 to 2**31 - 1")
    for kind in arguments.ablate:
        if kind not in ABLATIONS:
            hint = suggest(kind, ABLATIONS)
            raise RequestError(f'there is no ablation "{kind}"; there are {", ".join(ABLATIONS)}{hint}')
    if arguments.ablate and holds_runs(arguments.run):
        return _ablate_runs(arguments)
    folder = RunFolder(arguments.run)
    spec = folder.read_spec()
    if arguments.ablate and spec.extractor in WITHOUT_COORDINATES:
        raise RequestError(
            f'{folder.path} is a run with extractor "{spec.extractor}", which has no coordinates to ablate; evaluate it'
            " without --ablate"
        )
    if arguments.ablate and not os.access(folder.path, os.W_OK):  # said before the games, not after them
        raise OutputError(f"{folder.path} cannot be written, and --ablate writes {folder.ablation_file.name} there")
    from coordrl.algorithms import load, skip_compiler  # torch, SB3 and the emulator: seconds to import

    skip_compiler()
    model = load(arguments.run, device=arguments.device)
    scores = _score(model, spec, arguments)
    if not arguments.ablate:
        _print_score(model, spec, arguments, scores["true"])
        return 0
    try:
        write_scores(folder, spec, model.num_timesteps, arguments.seed, scores)
    finally:
        _print_ablations(model, spec, arguments, scores)
    return 0


def _ablate_runs(arguments: EvaluateArguments) -> int:
    """Score every finished run of a folder, and say what came of it."""
    if arguments.json:
        raise RequestError(
            f"--json is for one run, and {arguments.run} holds several; the scores are in each run's ablation.json, and"
            " coordrl report makes a table of them"
        )
    kinds = arguments.ablate
    tally = ablate_runs(arguments.run, kinds, episodes=arguments.episodes, seed=arguments.seed, device=arguments.device)
    parts = [f"{tally.scored} runs scored with {', '.join(kinds)}", f"{tally.before} had every score before"]
    parts += [f"{tally.failed} failed"] if tally.failed else []
    parts += [f"{tally.unfinished} not finished yet"] if tally.unfinished else []
    print("; ".join(parts))
    print(f"report: coordrl report {shlex.quote(str(arguments.run))}")
    return 1 if tally.failed else 0


def _score(model: BaseAlgorithm, spec: Spec, arguments: EvaluateArguments) -> dict[str, Evaluation]:
    """Play with the true coordinates, and with each ablation."""
    from coordrl.ablation import evaluate_ablations
    from coordrl.algorithms import environment_seed
    from coordrl.evaluation import describe_games

    seed, episodes = environment_seed(arguments.seed, "evaluate command"), arguments.episodes
    done: dict[str, int] = {}
    began = time.monotonic()
    earlier = played = 0
    with ProgressLine(f"evaluating {spec.game}", episodes * (1 + len(arguments.ablate))) as line:

        def on_step(kind: str, returns: list[float], steps: int) -> None:
            nonlocal earlier, played
            if kind not in done:
                earlier += played
            done[kind], played = len(returns), steps

            def describe() -> str:
                games = describe_games(returns, earlier + steps, time.monotonic() - began)
                return f"{kind} coordinates · {games}" if arguments.ablate else games

            line.update(sum(done.values()), describe)

        return evaluate_ablations(model, spec, ("true", *arguments.ablate), episodes, seed=seed, on_step=on_step)


def _print_score(model: BaseAlgorithm, spec: Spec, arguments: EvaluateArguments, evaluation: Evaluation) -> None:
    """Print one score, as text or as JSON."""
    if arguments.json:
        games = {"returns": evaluation.returns, "lengths": evaluation.lengths}
        facts = {**_what(model, spec, arguments), **_summary(evaluation), **games}
        print(json.dumps(facts, indent=2))
        return
    _print_title(model, spec)
    half = evaluation.half_width
    interval = "no interval from one game" if half is None else f"± {half:,.1f}, 95 % interval of the mean"
    print(
        f"  mean return {evaluation.mean:,.1f} ({interval}), spread {evaluation.std:,.1f}, {len(evaluation.returns)} games"
    )
    lengths = [spec.frames(length) for length in evaluation.lengths]
    print(
        f"  from {min(evaluation.returns):,.0f} to {max(evaluation.returns):,.0f};"
        f" mean length {sum(lengths) / len(lengths):,.0f} frames"
    )


def _print_ablations(
    model: BaseAlgorithm, spec: Spec, arguments: EvaluateArguments, scores: Mapping[str, Evaluation]
) -> None:
    """Print the score with true coordinates and with each ablation, as a table or as JSON."""
    from coordrl.ablation import difference

    true = scores["true"]
    differences = {kind: difference(score, true) for kind, score in scores.items() if kind != "true"}
    if arguments.json:
        facts = {**_what(model, spec, arguments), "games": arguments.episodes}
        for kind, score in scores.items():
            facts[kind] = {**_summary(score), "returns": score.returns, "lengths": score.lengths}
            if kind in differences:
                facts[kind]["difference"] = differences[kind].estimate
                facts[kind]["difference_half_width_95"] = differences[kind].half_width
        print(json.dumps(facts, indent=2))
        return
    _print_title(model, spec)
    print(
        f"  {arguments.episodes} games from the same seeds for each row; ± is half the 95 % interval of a mean or a difference, unpaired"
    )
    print(f"  {'coordinates':<12}{'mean':>12}{'±':>10}{'games':>8}{'difference':>14}{'±':>10}")
    for kind, score in scores.items():
        row = f"  {kind:<12}{score.mean:>12,.1f}{_half(score.half_width)}{len(score.returns):>8}"
        if kind in differences:
            row += f"{differences[kind].estimate:>+14,.1f}{_half(differences[kind].half_width)}"
        print(row)


def _half(width: float | None) -> str:
    """Write half an interval into a column; one game has none."""
    return f"{'-' if width is None else f'{width:,.1f}':>10}"


def _what(model: BaseAlgorithm, spec: Spec, arguments: EvaluateArguments) -> dict[str, Any]:
    """Say what was scored, and how."""
    from coordrl.evaluation import evaluation_epsilon

    what = {"run": str(arguments.run), "game": spec.game, "protocol": spec.protocol, "step": model.num_timesteps}
    return {**what, "seed": arguments.seed, "epsilon": evaluation_epsilon(spec)}


def _summary(evaluation: Evaluation) -> dict[str, float | None]:
    """Return the numbers of a score."""
    return {"mean": evaluation.mean, "std": evaluation.std, "half_width_95": evaluation.half_width}


def _print_title(model: BaseAlgorithm, spec: Spec) -> None:
    """Print whose score it is."""
    who = f"{spec.agent} with {spec.extractor}, seed {spec.seed}, after {model.num_timesteps:,} steps"
    print(f"{spec.game} ({spec.protocol}): {who}")


if __name__ == "__main__":
    sys.exit(main())
