"""coordrl train: train an agent on a game, or go on with a run that was stopped."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from coordrl.console import (
    NO_WORDS,
    Count,
    Name,
    OptionalCount,
    OptionalName,
    Settings,
    count_words,
    parse_arguments,
    run_command,
)
from coordrl.errors import RequestError
from coordrl.faults import arm_from_environment
from coordrl.files import MAX_STEP, check_name
from coordrl.footprint import check_parts
from coordrl.options import Options
from coordrl.process import allowed_cores, obey_launcher, tune
from coordrl.recipes import find_recipe, recipe_names
from coordrl.results import RunFolder, Spec, find_runs
from coordrl.stopping import ended_by_interrupt
from coordrl.suites import (
    ATARI,
    CONTROL_GAMES,
    CONTROLS,
    EXTRACTOR_SUMMARIES,
    MAX_RESEED_EVERY,
    PROTOCOLS,
    RESEED_EVERY,
    SUITES,
    check_extractor,
    choose_protocol,
    find_game,
    find_protocol,
    games,
)
from coordrl.workers import default_workers, end, hire

_AGENT = f"(default: {ATARI.agent}; on the controls {CONTROLS.agent})"
_EXTRACTOR = f"(default: {ATARI.extractors[-1]}; on the controls {CONTROLS.extractors[-1]})"
_STEPS = f"(default: {ATARI.steps:,}; on the controls {CONTROLS.steps:,})"

ENVS_PER_ACTOR = 8
MOST_ACTORS = 10_000
_WORKERS = "(default: one a core or OMP thread, with four environments each at least)"


@dataclass(frozen=True)
class TrainArguments:
    """Train an agent on an Atari game, or on a control.

    For example:
        coordrl train --game MsPacman                       CoordConv A2C, 10 million steps
        coordrl train --game MsPacman --steps 1M            a first look: about 25 minutes on two free cores
        coordrl train --game Pong --agent dqn --extractor nature --seed 3
        coordrl train --game Pong --agent apex --backend ray --actors 3     Ape-X, each actor in a process of its own
        coordrl train --game PlaceMatters                   a control: a minute; see the suite controls
        coordrl train --list                                games, agents, extractors, and the runs so far

    Everything goes into runs/PROTOCOL/AGENT-EXTRACTOR/GAME/seed-N. Stop it with Ctrl-C at any time: the
    same command goes on from the last checkpoint. Watch it with: tensorboard --logdir runs
    """

    game: Annotated[Name, tyro.conf.arg(help_behavior_hint="(required)")] = ""
    """the game, in any usual spelling: MsPacman, "Ms. Pac-Man", ALE/MsPacman-v5"""
    agent: Annotated[Name, tyro.conf.arg(help_behavior_hint=_AGENT)] = ""
    """a recipe of coordrl, or the path of a .toml file of your own"""
    extractor: Annotated[Name, tyro.conf.arg(help_behavior_hint=_EXTRACTOR)] = ""
    """the network before the heads; nature is the plain control, pool that of the suite controls"""
    seed: Count = 0
    """of the weights, the environments and everything drawn"""
    steps: Annotated[OptionalCount, tyro.conf.arg(help_behavior_hint=_STEPS)] = None
    """decisions of the agent; on Atari four frames each. 10M, 250k and 1e6 are understood"""
    protocol: Annotated[Name, tyro.conf.arg(help_behavior_hint="(default: the first one for the game)")] = ""
    """the rules of the environment"""
    out: Path = Path("runs")
    """the folder of all runs"""
    set: Settings = NO_WORDS
    """change settings of the recipe, for example --set learning_rate=3e-4 n_envs=8"""
    device: Name = "auto"
    """auto, cpu or cuda"""
    checkpoint_every: Count = 50_000
    """steps between checkpoints"""
    eval_every: Count = 250_000
    """steps between evaluations; there is one at the end as well. 0 for none at all"""
    eval_episodes: Count = 10
    """whole games in an evaluation"""
    general: bool = False
    """computed as SB3 does it, without the fast path: the same algorithm, slower"""
    workers: Annotated[OptionalCount, tyro.conf.arg(help_behavior_hint=_WORKERS)] = None
    """processes that an a2c on Atari is divided over; one seed and one number of processes give one result"""
    backend: Name = "local"
    """of apex: local, where this process plays and learns in turn; ray: actors play in processes of their own, on this machine
    or, with --address, on a Ray cluster"""
    actors: Annotated[
        OptionalCount, tyro.conf.arg(help_behavior_hint="(default: one a core of this machine, less one)")
    ] = None
    """with --backend ray: how many; each takes a core. A run that goes on keeps its number"""
    envs_per_actor: Annotated[OptionalCount, tyro.conf.arg(help_behavior_hint="(default: 8)")] = None
    """with --backend ray: environments of each; each explores on a step of its own of the epsilon ladder"""
    address: OptionalName = ""
    """with --backend ray: HOST:PORT of a Ray cluster that is there, or auto for one on this machine; without it one is started
    on 127.0.0.1 that ends with the run"""
    reseed_every: Count = RESEED_EVERY
    """steps of an Atari environment after which it gets a new seed at its game's end: what a resumed run plays again at most,
    and the rest of a game; a new seed takes 0.1 to 0.2 s. A resumed run keeps the number that it began with"""
    plan: OptionalName = ""
    """the hash of the comparison that the run is part of; coordrl compare sets it, and run.json records it"""
    list: bool = False
    """show games, suites, agents, extractors, protocols, and the runs below --out"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)

    def work() -> int:
        obey_launcher()
        arm_from_environment()
        arguments = parse_arguments(TrainArguments, "train", words)
        if arguments.list:
            _print_list(arguments.out)
            return 0
        check_name(arguments.out)
        crew = _choose_crew(arguments, _crew_before(arguments))
        spec, recipe = _specify(arguments, crew)
        folder = RunFolder(spec.folder(arguments.out))
        if folder.spec_file.exists():
            folder.read_spec()  # damaged, it is no run to call finished
        if folder.is_finished(spec):
            shutil.rmtree(folder.replay, ignore_errors=True)  # if it was killed between its result and that
            print(
                f"{folder.path} is finished; see its curves with: tensorboard --logdir {shlex.quote(str(folder.path))}"
            )
            return 0
        count = _count_workers(spec, arguments, folder)
        options = Options(
            device=arguments.device,
            checkpoint_every=arguments.checkpoint_every,
            eval_every=arguments.eval_every,
            eval_episodes=arguments.eval_episodes,
            command="coordrl train " + shlex.join(words),
            general=arguments.general,
            workers=count,
            plan=arguments.plan or None,
            reseed_every=arguments.reseed_every,
            actors=crew[0] if crew else 0,
            address=arguments.address or None,
        )
        tune()  # before torch is imported
        workers = hire("coordrl.divided_worker", count)  # they import it while this process does
        try:
            with ended_by_interrupt():
                from coordrl.training import train  # torch, SB3 and the emulator: seconds to import

            if crew:
                from coordrl.fleet import Actors, Fleet

                with closing(Actors(Fleet(*crew, arguments.address or None))) as actors:
                    train(spec, recipe, folder, options, actors=actors)
            else:
                train(spec, recipe, folder, options, workers)
        finally:
            end(workers)
        return 0

    return run_command(work)


def _crew_before(arguments: TrainArguments) -> tuple[int, int] | None:
    """Return which actors a run that is there began with, and how many environments each; None if there is none."""
    if arguments.backend != "ray":
        return None
    spec, _ = _specify(arguments, (1, 1))
    folder = RunFolder(spec.folder(arguments.out))
    options = folder.fact("options") if folder.spec_file.exists() else None
    actors = options.get("actors") if isinstance(options, dict) else None
    if not isinstance(actors, int) or actors < 1:
        return None
    return actors, max(1, int(folder.read_spec().settings["n_envs"]) // actors)


def _choose_crew(arguments: TrainArguments, before: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return how many actors play on Ray, and how many environments each; None where the training itself plays.

    Args:
        arguments: what is asked for.
        before: what the run that goes on began with.

    Raises:
        RequestError: they do not fit together.
    """
    if arguments.backend not in ("local", "ray"):
        raise RequestError(f'--backend is "{arguments.backend}"; it is local or ray')
    asked = {
        "actors": arguments.actors,
        "envs-per-actor": arguments.envs_per_actor,
        "address": arguments.address or None,
    }
    if arguments.backend == "local":
        for name, value in asked.items():
            if value is not None:
                raise RequestError(f"--{name} is {value}, which is of --backend ray; give both, or leave it out")
        return None
    if any(word.replace(" ", "").startswith("n_envs=") for word in arguments.set):
        raise RequestError("n_envs is set, but with --backend ray it is --actors times --envs-per-actor; leave it out")
    if arguments.workers is not None:
        raise RequestError("--workers divides an a2c; with --backend ray --actors says how many processes play")
    cores = len(allowed_cores())
    actors, each = before or (max(1, cores - 1), ENVS_PER_ACTOR)
    actors = actors if arguments.actors is None else arguments.actors
    each = each if arguments.envs_per_actor is None else arguments.envs_per_actor
    for name, value in (("actors", actors), ("envs-per-actor", each)):
        if not 1 <= value <= MOST_ACTORS:
            raise RequestError(f"--{name} is {value}; it is from 1 to {MOST_ACTORS:,}")
    if actors * each > MOST_ACTORS:
        raise RequestError(
            f"{actors} actors of {each} environments are {actors * each:,}; there are {MOST_ACTORS:,} at most"
        )
    if not arguments.address and actors > cores:
        raise RequestError(
            f"--actors is {actors}, and this machine has {count_words(cores, 'core')}: an actor takes one. Ask for fewer, or"
            " give the --address of a Ray cluster"
        )
    return actors, each


def _specify(arguments: TrainArguments, crew: tuple[int, int] | None = None) -> tuple[Spec, str]:
    """Check a request, without any slow import, and return the run it asks for and its recipe as text."""
    if not arguments.game:
        raise RequestError("which game? For example: coordrl train --game MsPacman. See them all with: --list")
    game = find_game(arguments.game)
    protocol = choose_protocol([game], arguments.protocol or None)
    world = protocol.world
    extractor = arguments.extractor or world.extractors[-1]
    check_extractor(extractor, world)
    changes = (*arguments.set, f"n_envs={crew[0] * crew[1]}") if crew else arguments.set
    recipe = find_recipe(arguments.agent or world.agent, changes)
    if crew and recipe.algorithm != "apex":
        raise RequestError(f"--backend ray is for --agent apex; {recipe.name} plays in the process that learns")
    if crew:
        check_parts(int(recipe.settings["buffer_size"]), crew[0] * crew[1], int(recipe.settings["n_steps"]))
    steps = world.steps if arguments.steps is None else arguments.steps
    if not 1 <= steps <= MAX_STEP:
        raise RequestError(f"--steps is {steps}; it is a whole number from 1 to {MAX_STEP:,}")
    for name, lowest in (("checkpoint_every", 1), ("eval_every", 0), ("eval_episodes", 1)):
        if getattr(arguments, name) < lowest:
            raise RequestError(
                f"--{name.replace('_', '-')} is {getattr(arguments, name)}; it is a whole number from {lowest}"
            )
    if not 1 <= arguments.reseed_every <= MAX_RESEED_EVERY:
        raise RequestError(f"--reseed-every is {arguments.reseed_every}; it is from 1 to {MAX_RESEED_EVERY:,}")
    if not 0 <= arguments.seed < 2**31:
        raise RequestError(f"--seed is {arguments.seed}; it is a whole number from 0 to 2**31 - 1")
    spec = Spec(
        game=game,
        agent=recipe.name,
        algorithm=recipe.algorithm,
        extractor=extractor,
        protocol=protocol.name,
        seed=arguments.seed,
        steps=steps,
        settings=dict(recipe.settings),
    )
    return spec, recipe.to_toml()


def _count_workers(spec: Spec, arguments: TrainArguments, folder: RunFolder) -> int:
    """Return over how many processes a run is divided; one that goes on, over as many as before unless asked otherwise.

    Raises:
        RequestError: more than one was asked for where one is all there can be.
    """
    reasons = {
        "the general path has one process": arguments.general,
        f"{spec.algorithm} has one process": spec.algorithm != "a2c",
        f"{spec.game} is played in one process": find_protocol(spec.protocol).world is not ATARI,
        "the network is not on a CPU": arguments.device not in ("auto", "cpu"),
    }
    reason = next((reason for reason, holds in reasons.items() if holds), "")
    asked, n_envs = arguments.workers, int(spec.settings["n_envs"])
    if asked is not None and not 1 <= asked <= (1 if reason else n_envs):
        rule = f"{reason}; leave it out" if reason else f"it is from 1 to the number of environments, {n_envs}"
        raise RequestError(f"--workers is {asked}, but {rule}")
    if reason:
        return 1
    before = folder.fact("processes")
    known = isinstance(before, int) and 1 <= before <= n_envs
    return asked or (before if known else default_workers(n_envs))


def _print_list(out: Path) -> None:
    """Print what can be asked for, and the runs below a folder with their state."""
    print(f"games ({len(games())}):")
    print(_columns(list(games())))
    print(f"\ncontrols:\n  {', '.join(CONTROL_GAMES)}")
    print("\nsuites:")
    for name, members in SUITES.items():
        print(f"  {name:<12} {', '.join(members)}")
    print("\nagents:")
    for name in recipe_names():
        print(f"  {name:<12} {find_recipe(name).summary}")
    print("\nextractors:")
    for name, summary in EXTRACTOR_SUMMARIES.items():
        print(f"  {name:<12} {summary}")
    print("\nprotocols:")
    for protocol in PROTOCOLS.values():
        frames = protocol.world.frames_per_step
        print(f"  {protocol.name:<12} {protocol.summary}; {frames} frame{'s' if frames > 1 else ''} a step")
    runs = find_runs(out)
    print(f"\nruns in {out} ({len(runs)}):")
    for run in runs:
        print(f"  {run.path}  {run.state()}")


def _columns(names: Sequence[str], width: int = 100) -> str:
    """Set names in columns, read downwards."""
    wide = max(map(len, names)) + 2
    across = max(1, width // wide)
    down = -(-len(names) // across)
    rows = (names[row::down] for row in range(down))
    return "\n".join("  " + "".join(name.ljust(wide) for name in row).rstrip() for row in rows)


if __name__ == "__main__":
    sys.exit(main())
