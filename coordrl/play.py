"""coordrl play: a video of one whole game, played by a trained agent, in the game's own colours."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from coordrl.console import Count, Name, ProgressLine, parse_arguments, run_command
from coordrl.errors import OutputError, RequestError
from coordrl.files import replace_file
from coordrl.results import RunFolder, Spec
from coordrl.suites import ATARI, FRAMES_PER_STEP, MAX_GAME_FRAMES, find_protocol

if TYPE_CHECKING:
    from PIL import Image
    from stable_baselines3.common.base_class import BaseAlgorithm

    from coordrl.lockstep import Lockstep, Turn
    from coordrl.video import Card, ContactSheet, Moment

MAX_STEPS = MAX_GAME_FRAMES // FRAMES_PER_STEP
_LAST_PICTURE = 2  # seconds for which the game's last picture stays
_VIDEO = "(default: RUN/video/GAME-step-N-seed-N.mp4, N being the checkpoint's step and --seed)"
_SHEET = "(default: beside the video, as .png)"


@dataclass(frozen=True)
class PlayArguments:
    """Make a video of one whole game, played by a trained agent.

    For example:
        coordrl play runs/zoo-v4/a2c-coord/MsPacman/seed-0
        coordrl play runs/zoo-v4/a2c-coord/MsPacman/seed-0 --seed 1     another game
        coordrl play runs/zoo-v4/a2c-coord/MsPacman/seed-0 --video game.mp4 --max-steps 900

    The newest checkpoint plays under the rules of its run, with actions sampled as in training; a run that
    is still being trained will do. The video (H.264, real time) shows the game in its own colours, the
    score, the value estimate, the probability of every action (an agent of Q values: these), and what the
    agent sees. Beside it comes a picture of the whole game. The same seed gives the same game.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """a run's folder: runs/PROTOCOL/AGENT-EXTRACTOR/GAME/seed-N. See them with: coordrl train --list"""
    video: Annotated[Path | None, tyro.conf.arg(metavar="FILE.mp4", help_behavior_hint=_VIDEO)] = None
    """where the video goes"""
    sheet: Annotated[Path | None, tyro.conf.arg(metavar="FILE.png", help_behavior_hint=_SHEET)] = None
    """where the picture of the whole game goes"""
    seed: Count = 0
    """of the game and of the agent's choices: another number, another game"""
    max_steps: Count = MAX_STEPS
    """stop after so many decisions, 15 a second; the rules end a game after 27,000, which is half an hour"""
    device: Name = "auto"
    """auto, cpu or cuda"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)

    def work() -> int:
        arguments = parse_arguments(PlayArguments, "play", words)
        spec = _check(arguments)
        _play(arguments, spec)
        return 0

    return run_command(work)


def _check(arguments: PlayArguments) -> Spec:
    """Check a request, without any slow import, and return the run that it is about."""
    folder = RunFolder(arguments.run)
    spec = folder.read_spec()
    if find_protocol(spec.protocol).world is not ATARI:
        raise RequestError(
            f"{spec.game} is no Atari game, so there is nothing to film. Score it with: coordrl evaluate {shlex.quote(str(folder.path))}"
        )
    if not any(folder.checkpoints.glob("[0-9]*")):
        raise RequestError(
            f"{folder.path} has no checkpoint; a training writes one every --checkpoint-every steps, when it is stopped"
            " with Ctrl-C, and at its end"
        )
    for name, file, suffix in (("--video", arguments.video, ".mp4"), ("--sheet", arguments.sheet, ".png")):
        if file is not None and file.suffix != suffix:
            raise RequestError(f'{name} is "{file}"; its name ends in {suffix}')
    if arguments.max_steps < 1:
        raise RequestError(f"--max-steps is {arguments.max_steps}; it is a whole number from 1")
    if not 0 <= arguments.seed < 2**31:
        raise RequestError(f"--seed is {arguments.seed}; it is a whole number from 0 to 2**31 - 1")
    return spec


def _play(arguments: PlayArguments, spec: Spec) -> None:
    """Load the agent, let it play, write both files, and say where they are."""
    from coordrl.algorithms import (
        environment_seed,
        load,
        skip_compiler,
    )  # torch, SB3 and the emulator: seconds to import
    from coordrl.lockstep import Lockstep
    from coordrl.video import ContactSheet, make_room, write_sheet

    skip_compiler()
    model = load(arguments.run, device=arguments.device)
    video, picture = _places(arguments, spec, model.num_timesteps)
    for file in (video, picture):
        make_room(file)
    seed = environment_seed(arguments.seed, "play")
    try:
        with Lockstep(spec.game, protocol=spec.protocol, seed=seed) as game:
            start = game.reset()
            card = make_card(spec, model, game.env.action_meanings, start)
            sheet = ContactSheet(card)
            moments = play_game(model, spec, game, start, seed=seed, max_steps=arguments.max_steps)
            last = _film(moments, card, sheet, video, arguments.max_steps)
    finally:
        env = model.get_env()
        if env is not None:
            env.close()
    _write_whole(picture, lambda file: write_sheet(file, sheet))
    over = "" if last.ending == "GAME OVER" else f" ({last.ending.lower()})"
    print(
        f"score {last.score:,.0f} in {last.step:,} steps = {last.step * FRAMES_PER_STEP:,} frames ="
        f" {last.step * FRAMES_PER_STEP / 60:,.1f} s of play{over}, {spec.protocol}, checkpoint of step"
        f" {model.num_timesteps:,}, seed {arguments.seed}: {video} and {picture}"
    )


def _places(arguments: PlayArguments, spec: Spec, step: int) -> tuple[Path, Path]:
    """Return where the video and the contact sheet go."""
    standard = arguments.run / "video" / f"{spec.game}-step-{step}-seed-{arguments.seed}.mp4"
    video = arguments.video or standard
    return video, arguments.sheet or video.with_suffix(".png")


def make_card(spec: Spec, model: BaseAlgorithm, actions: tuple[str, ...], start: Turn) -> Card:
    """Gather what every picture of a game shows."""
    from stable_baselines3.common.policies import ActorCriticPolicy

    from coordrl.video import Card

    return Card(
        game=spec.game,
        agent=f"{spec.agent}-{spec.extractor}",
        protocol=spec.protocol,
        training_steps=model.num_timesteps,
        actions=actions,
        is_policy=isinstance(model.policy, ActorCriticPolicy),
        counts_lives=start.lives > 0,
    )


def play_game(
    model: BaseAlgorithm, spec: Spec, game: Lockstep, start: Turn, *, seed: int, max_steps: int
) -> Iterator[Moment]:
    """Play one game, decision by decision; the last moment is its end and holds the last decision again."""
    from coordrl.evaluation import Player, evaluation_epsilon
    from coordrl.video import Moment

    player = Player(model, seed=seed, epsilon=evaluation_epsilon(spec))
    turn, score, step = start, 0.0, 0
    while True:
        decision = player.decide(turn.observations)
        after = game.step(decision.actions)
        moment = Moment(
            step=step,
            frame=turn.frame,
            seen=turn.observations[0, -1],
            score=score,
            lives=turn.lives,
            value=float(decision.values[0]),
            preferences=decision.preferences[0],
            action=after.sent,
            forced=after.forced,
        )
        yield moment
        turn, score, step = after, score + after.reward, step + 1
        ending = turn.over or (f"STOPPED AFTER {step:,} STEPS" if step >= max_steps else "")
        if ending:
            end = replace(moment, step=step, frame=turn.frame, seen=turn.observations[0, -1], forced=False)
            yield replace(end, score=score, lives=turn.lives, ending=ending)
            return


def _film(moments: Iterator[Moment], card: Card, sheet: ContactSheet, video: Path, max_steps: int) -> Moment:
    """Write the video of a game, fill its contact sheet, and return its last moment."""
    from coordrl.video import STEPS_PER_SECOND, Painter, write_video

    painter = Painter(card)
    last: list[Moment] = []

    def pictures(line: ProgressLine) -> Iterator[Image.Image]:
        for moment in moments:
            last[:] = [moment]
            sheet.add(moment)
            line.update(moment.step, partial(_describe, moment))
            picture = painter.paint(moment)
            for _ in range(_LAST_PICTURE * STEPS_PER_SECOND if moment.ending else 1):
                yield picture

    # Nobody knows how long the game will last: counted from its own end, the line shows no time left.
    with ProgressLine(card.game, max_steps, start=max_steps) as line:
        line.say(f"{card.agent} plays {card.game} until the game is over, or to step {max_steps:,}")
        _write_whole(video, lambda file: write_video(file, pictures(line)))
    return last[0]


def _describe(moment: Moment) -> str:
    """Say how the game stands."""
    from coordrl.video import clock

    return f"score {moment.score:,.0f} · {clock(moment.step)} of play"


def _write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    begun: list[Path] = []

    def remember(beside: Path) -> None:
        begun.append(beside)
        write(beside)

    try:
        replace_file(file, remember)
    except OSError as error:
        raise OutputError(
            f"{file} cannot be written: {error.strerror or error}. Choose another place for it"
        ) from error
    finally:
        for beside in begun:  # gone, if it was moved to its place
            beside.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
