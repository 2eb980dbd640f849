"""coordrl compare: games x agents x extractors x seeds, planned first, carried out whatever happens."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from coordrl.backends import Backend, LocalBackend
from coordrl.console import (
    NO_WORDS,
    Count,
    Name,
    OptionalCount,
    OptionalName,
    Settings,
    format_seconds,
    parse_arguments,
    run_command,
    tell,
)
from coordrl.errors import RequestError, StoppedError, suggest
from coordrl.files import check_name
from coordrl.footprint import check_memory, memory_needed
from coordrl.launch import CellState, Launcher, Outcome, log_file, survey
from coordrl.plan import PLAN_FILE, Cell, Plan, make_plan, read_plan, recipe_copy, write_plan
from coordrl.process import allowed_cores, check_device_name
from coordrl.results import RunFolder
from coordrl.suites import ATARI, CONTROLS, choose_protocol, find_protocol, find_suite

if TYPE_CHECKING:
    from coordrl.estimate import Rate

BACKENDS = ("local", "ray", "slurm")
_AGENTS = f"(default: {ATARI.agent}; on the controls {CONTROLS.agent})"
_EXTRACTORS = f"(default: {','.join(ATARI.extractors)}; on the controls {','.join(CONTROLS.extractors)})"
_STEPS = f"(default: {ATARI.steps:,}; on the controls {CONTROLS.steps:,})"


@dataclass(frozen=True)
class CompareArguments:
    """Compare extractors on a suite of games with many seeds, for one agent or several: the whole matrix, in one command.

    For example:
        coordrl compare --suite atari9 --agents a2c --extractors nature,coord --seeds 10 --out atari9 --dry-run
        coordrl compare --suite atari9 --agents a2c --extractors nature,coord --seeds 10 --out atari9
        coordrl compare --suite Pong,Breakout --extractors nature,coord,shuffled --seeds 6 --steps 1M --out small
        coordrl compare --suite controls --out controls     does the comparison find an effect that is there?
        coordrl report atari9

    The plan (every run, the question, the tests, what may be left out) is written to plan.json before
    anything runs, and its hash into every run. Stop it with Ctrl-C, or lose the machine: the same command
    goes on, and each run is finished exactly once. More --seeds later extend the plan, which then says so.
    """

    suite: Name = "atari9"
    """the games: a suite that coordrl train --list shows, or games separated by commas"""
    agents: Annotated[Name, tyro.conf.arg(help_behavior_hint=_AGENTS)] = ""
    """recipes, separated by commas"""
    extractors: Annotated[Name, tyro.conf.arg(help_behavior_hint=_EXTRACTORS)] = ""
    """networks before the heads, separated by commas; nature, or else pool, is what others are compared with"""
    seeds: Count = 10
    """runs of each cell; with fewer than 6, no claim about one of nine games is possible at all"""
    steps: Annotated[OptionalCount, tyro.conf.arg(help_behavior_hint=_STEPS)] = None
    """of each run"""
    protocol: Annotated[Name, tyro.conf.arg(help_behavior_hint="(default: the first one for the games)")] = ""
    """the rules of the environment"""
    out: Path = Path("runs")
    """the folder of the plan and all of its runs"""
    set: Settings = NO_WORDS
    """change settings of every agent's recipe, for example --set learning_rate=3e-4"""
    workers: Count = 0
    """runs at a time; 0 for one on each core, or as many as the cluster gives"""
    backend: Name = "local"
    """local: processes of this machine; ray: an existing Ray cluster; slurm: write the script of a job array, and submit nothing"""
    address: OptionalName = ""
    """of the Ray cluster: HOST:PORT, or auto for one that runs on this machine"""
    retries: Count = 3
    """how often a run that crashed is tried again without a new checkpoint; a new one begins the count anew"""
    device: Name = "auto"
    """auto, cpu or cuda"""
    checkpoint_every: Count = 50_000
    """steps between checkpoints"""
    eval_every: Count = 0
    """steps between evaluations; 0 for none: the final return is taken from training games"""
    eval_episodes: Count = 10
    """whole games in an evaluation"""
    dry_run: bool = False
    """show the matrix, what is done, and what the rest will cost on this machine; write nothing"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _compare(parse_arguments(CompareArguments, "compare", words)))


def _compare(arguments: CompareArguments) -> int:
    """Plan, and carry the plan out."""
    check_name(arguments.out)
    _check_numbers(arguments)
    plan = _make_plan(arguments)
    if arguments.dry_run:
        known = read_plan(arguments.out) if (arguments.out / PLAN_FILE).exists() else None
        plan = _agree(known, plan, arguments.out)
        states = survey(plan, arguments.out)
        _print_matrix(plan, states, is_written=known is not None)
        _warn(plan, states)
        _print_cost(plan, arguments)
        return 0
    if (arguments.out / PLAN_FILE).exists():
        _agree(read_plan(arguments.out), plan, arguments.out)  # a wrong request creates nothing
    if arguments.backend == "slurm":
        return _write_slurm(plan, arguments)
    backend = _make_backend(arguments, len(plan.runs))
    if arguments.backend == "local" and (largest := _largest_memory(plan.runs)):
        check_memory(*largest, runs=backend.slots)
    with RunFolder(arguments.out / "compare").lock():
        plan = _settle_plan(plan, arguments)
        outcome = _carry_out(plan, arguments, backend)
    return _conclude(plan, arguments, outcome)


def _check_numbers(arguments: CompareArguments) -> None:
    """Check what the plan does not."""
    check_device_name(arguments.device)
    if arguments.backend not in BACKENDS:
        hint = suggest(arguments.backend, BACKENDS) or f"; there are {', '.join(BACKENDS)}"
        raise RequestError(f'there is no backend "{arguments.backend}"{hint}')
    if (arguments.backend == "ray") != bool(arguments.address):
        raise RequestError(
            "--address names the cluster of --backend ray; give both, for example --address 127.0.0.1:6379"
        )
    for name in ("workers", "retries"):
        if not 0 <= getattr(arguments, name) <= 10_000:
            raise RequestError(f"--{name} is {getattr(arguments, name)}; it is a whole number from 0 to 10,000")


def _make_plan(arguments: CompareArguments) -> Plan:
    """Plan what the arguments ask for, and what is usual for the suite where they do not say."""
    protocol = choose_protocol(find_suite(arguments.suite), arguments.protocol or None)
    world = protocol.world
    return make_plan(
        arguments.suite,
        _split(arguments.agents or world.agent),
        _split(arguments.extractors or ",".join(world.extractors)),
        arguments.seeds,
        world.steps if arguments.steps is None else arguments.steps,
        protocol=protocol.name,
        overrides=arguments.set,
        eval_every=arguments.eval_every,
        eval_episodes=arguments.eval_episodes,
        checkpoint_every=arguments.checkpoint_every,
    )


def _split(names: str) -> list[str]:
    """Split a list at its commas."""
    return [name.strip() for name in names.split(",") if name.strip()]


def _agree(known: Plan | None, wanted: Plan, out: Path) -> Plan:
    """Return the plan to follow: the one that is there, extended if more seeds are wanted.

    Raises:
        RequestError: the folder holds another plan, or one of more seeds.
    """
    if known is None:
        return wanted
    differences = known.differences(wanted)
    if differences:
        raise RequestError(
            f"{out} holds another comparison: {'; '.join(differences)}. Ask for the same, or use another --out"
        )
    if len(wanted.seeds) < len(known.seeds):
        raise RequestError(
            f"--seeds is {len(wanted.seeds)}, and the plan in {out} has {len(known.seeds)}; a plan does not shrink. Ask"
            f" for --seeds {len(known.seeds)} or more, or use another --out"
        )
    if len(wanted.seeds) == len(known.seeds):
        return known
    return known.extended(len(wanted.seeds), datetime.now(UTC).date().isoformat())


def _settle_plan(plan: Plan, arguments: CompareArguments) -> Plan:
    """Write the plan, or an extension of it, before anything runs."""
    out = arguments.out
    known = read_plan(out) if (out / PLAN_FILE).exists() else None
    settled = _agree(known, plan, out)
    _warn(settled, survey(settled, out))  # refuses folders of other runs, before the plan is written
    _copy_recipes(arguments, out)
    if settled != known:
        write_plan(out, settled)
    return settled


def _warn(plan: Plan, states: Sequence[CellState]) -> None:
    """Say, before time is spent, what the report will not be able to say."""
    unknown = [game for game in plan.games if game not in plan.references]
    if unknown:
        tell(
            f"no scores of random and human play are known for {', '.join(unknown)}: compared game by game there, and not in"
            " the verdict over all games"
        )
    alone = sum(state.folder.spec_file.exists() and state.folder.fact("plan") is None for state in states)
    if alone:
        tell(
            f"{alone} of {len(states)} runs were begun before the plan, so the report will describe and give no verdict; for"
            " one, use another --out"
        )


def _copy_recipes(arguments: CompareArguments, out: Path) -> None:
    """Keep the recipes that were given by their paths below a folder of runs: what is at the paths may change."""
    for path in (Path(agent) for agent in _split(arguments.agents) if agent.endswith(".toml")):
        copy = recipe_copy(out, path.stem)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists() or not copy.samefile(path):  # a report's command names the copy itself
            shutil.copyfile(path, copy)


def _make_backend(arguments: CompareArguments, runs: int) -> Backend:
    """Make the backend that the arguments name."""
    if arguments.backend == "ray":
        from coordrl.cluster import RayBackend

        return RayBackend(arguments.address, arguments.workers)
    cores = allowed_cores()
    return LocalBackend(min(arguments.workers or len(cores), runs), cores)


def _write_slurm(plan: Plan, arguments: CompareArguments) -> int:
    """Write the plan and the script of a Slurm array, and say how to submit it."""
    from coordrl.slurm import write_script

    with RunFolder(arguments.out / "compare").lock():
        plan = _settle_plan(plan, arguments)
        script = write_script(
            plan,
            arguments.out,
            workers=arguments.workers,
            retries=arguments.retries,
            memory=memory_needed(*largest) if (largest := _largest_memory(plan.runs)) else 0,
            on_gpu=arguments.device.startswith("cuda"),
            more_words=("--device", arguments.device),
        )
    print(
        f"{len(plan.runs)} runs, plan {plan.hash}; nothing was submitted. Look at the script, then: sbatch {shlex.quote(str(script))}"
    )
    return 0


def _carry_out(plan: Plan, arguments: CompareArguments, backend: Backend) -> Outcome:
    """Run all that waits, and show it."""
    from coordrl.scoreboard import Scoreboard

    tell(f"{len(plan.runs)} runs of {plan.steps:,} steps, plan {plan.hash}, {backend.summary}, into {arguments.out}")
    with Scoreboard(plan.steps) as board:
        launcher = Launcher(
            plan,
            arguments.out,
            backend,
            retries=arguments.retries,
            more_words=("--device", arguments.device),
            show=board.show,
            say=board.say,
        )
        return launcher.run()


def _conclude(plan: Plan, arguments: CompareArguments, outcome: Outcome) -> int:
    """Say how it ended."""
    if outcome.signal_number:
        raise StoppedError(
            f"stopped with {outcome.done + outcome.diverged} of {len(plan.runs)} runs done; the same command goes on",
            outcome.signal_number,
        )
    for folder, code in outcome.failed:
        tell(f"failed: {folder}, exit code {code}; see {log_file(arguments.out, folder)}")
    diverged = f", {outcome.diverged} of them diverged" if outcome.diverged else ""
    tell(f"{outcome.done + outcome.diverged} of {len(plan.runs)} runs done{diverged}")
    tell(f"report: coordrl report {arguments.out}")
    return 1 if outcome.failed else 0


def _print_matrix(plan: Plan, states: list[CellState], *, is_written: bool) -> None:
    """Print the matrix, one mark for each seed, and what is decided."""
    print(f"plan {plan.hash}, {'as written' if is_written else 'not written yet'}: {plan.question}")
    print(f"  {plan.better}")
    print(f"{len(plan.runs)} runs of {plan.steps:,} steps, protocol {plan.protocol}, seeds 0 to {plan.seeds[-1]}")
    marks = {"done": "#", "diverged": "!", "waiting": ".", "begun": "-"}
    print("# done   - begun   . waiting   ! diverged")
    wide = max(len(game) for game in plan.games) + 2
    for arm in plan.arms():
        print(f"{arm.name}:")
        for game in plan.games:
            row = "".join(
                marks["begun" if state.state == "waiting" and state.folder.spec_file.exists() else state.state]
                for state in states
                if state.cell.arm == arm and state.cell.spec.game == game
            )
            print(f"  {game:<{wide}}{row}")


def _largest_memory(cells: Iterable[Cell]) -> tuple[int, int, tuple[int, ...], int] | None:
    """Return what `memory_needed` takes for the largest replay memory of some runs; None if none has one."""
    images = ((cell.spec.settings, find_protocol(cell.spec.protocol).world.image) for cell in cells)
    sizes = {
        (int(settings["buffer_size"]), int(settings["n_envs"]), image, image[0])
        for settings, image in images
        if "buffer_size" in settings
    }
    return max(sizes, key=lambda size: memory_needed(*size), default=None)


def _print_cost(plan: Plan, arguments: CompareArguments) -> None:
    """Measure, and print what the rest will cost on this machine."""
    from coordrl.estimate import add_up, measure

    left = [state.cell for state in survey(plan, arguments.out) if state.state == "waiting"]
    if not left:
        print("nothing is left to run")
        return
    backend = _make_backend(arguments, len(left))
    rates: list[Rate] = measure(plan, backend, tell, lambda out: _copy_recipes(arguments, out))
    for rate in rates:
        print(f"{rate.arm.name}: {rate.steps_per_second:,.0f} steps/s a run, {backend.summary}")
    cost = add_up(plan, left, rates, backend.slots)
    free = shutil.disk_usage(_existing(arguments.out)).free
    total = sum(rate.steps_per_second for rate in rates) / len(rates) * backend.slots
    print(
        f"all together {total:,.0f} steps/s; {len(left)} runs are left: {format_seconds(cost.seconds)} without evaluations"
    )
    replay = 0.0
    if largest := _largest_memory(left):
        replay = memory_needed(*largest) * min(backend.slots, len(left)) / 1e9
        print(f"memory: {replay:,.1f} GB of replay memories at a time, and some 0.5 GB a run beside")
    more = f", and up to {replay:,.1f} GB meanwhile for replay memories" if replay else ""
    print(f"disk: {cost.bytes / 1e9:,.1f} GB{more}; {free / 1e9:,.1f} GB are free there")


def _existing(path: Path) -> Path:
    """Return the nearest folder above that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


if __name__ == "__main__":
    sys.exit(main())
