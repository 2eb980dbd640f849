"""coordrl evaluate: score a trained agent over whole games."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from coordrl.console import Count, Name, ProgressLine, parse_arguments, run_command
from coordrl.errors import RequestError
from coordrl.results import RunFolder
from coordrl.suites import FRAMES_PER_STEP


@dataclass(frozen=True)
class EvaluateArguments:
    """Score a trained agent over whole games, under the protocol it was trained with.

    For example:
        coordrl evaluate runs/zoo-v4/a2c-coord/MsPacman/seed-0
        coordrl evaluate RUN --episodes 30 --json > score.json

    Raw rewards, games capped at 108,000 frames, actions sampled as in training (DQN with its recipe's
    evaluation_epsilon). Nothing is written into the run.
    """

    run: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """the run's folder, which ends in seed-N"""
    episodes: Count = 100
    """whole games to play"""
    seed: int = 0
    """of the games and the sampled actions; the same seed gives the same games"""
    device: Name = "auto"
    """auto, cpu or cuda"""
    json: bool = False
    """print everything, each game's return and length too, as JSON"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _evaluate(parse_arguments(EvaluateArguments, "evaluate", words)))


def _evaluate(arguments: EvaluateArguments) -> int:
    """Play the games and print the score."""
    if arguments.episodes < 1:
        raise RequestError(f"--episodes is {arguments.episodes}; it is a whole number from 1")
    if not 0 <= arguments.seed < 2**31:
        raise RequestError(f"--seed is {arguments.seed}; it is a whole number from 0 to 2**31 - 1")
    spec = RunFolder(arguments.run).read_spec()
    from coordrl.algorithms import (
        environment_seed,
        load,
        skip_compiler,
    )  # torch, SB3 and the emulator: seconds to import
    from coordrl.evaluation import describe_games, evaluate, evaluation_epsilon

    skip_compiler()
    model = load(arguments.run, device=arguments.device)
    seed = environment_seed(arguments.seed, "evaluate command")
    began = time.monotonic()
    with ProgressLine(f"evaluating {spec.game}", arguments.episodes) as line:
        evaluation = evaluate(
            model,
            spec,
            arguments.episodes,
            seed=seed,
            on_step=lambda returns, steps: line.update(
                len(returns), lambda: describe_games(returns, steps, time.monotonic() - began)
            ),
        )
    if arguments.json:
        scores = {"mean": evaluation.mean, "std": evaluation.std, "half_width_95": evaluation.half_width}
        games = {"returns": evaluation.returns, "lengths": evaluation.lengths}
        what = {"run": str(arguments.run), "game": spec.game, "protocol": spec.protocol, "step": model.num_timesteps}
        rest = {"seed": arguments.seed, "epsilon": evaluation_epsilon(spec), **scores, **games}
        print(json.dumps({**what, **rest}, indent=2))
        return 0
    who = f"{spec.agent} with {spec.extractor}, seed {spec.seed}, after {model.num_timesteps:,} steps"
    print(f"{spec.game} ({spec.protocol}): {who}")
    half = evaluation.half_width
    interval = "no interval from one game" if half is None else f"± {half:,.1f}, 95 % interval of the mean"
    print(
        f"  mean return {evaluation.mean:,.1f} ({interval}), spread {evaluation.std:,.1f}, {len(evaluation.returns)} games"
    )
    lengths = [length * FRAMES_PER_STEP for length in evaluation.lengths]
    print(
        f"  from {min(evaluation.returns):,.0f} to {max(evaluation.returns):,.0f};"
        f" mean length {sum(lengths) / len(lengths):,.0f} frames"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
