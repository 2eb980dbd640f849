"""One run from its first step, or its last checkpoint, to its result."""

from __future__ import annotations

import platform
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import get_device

from coordrl.a2c import A2C
from coordrl.algorithms import build_model, check_device, environment_seed, skip_compiler
from coordrl.apex import build_learner, learn_from
from coordrl.checkpoint import Checkpoint, read_newest
from coordrl.console import ProgressLine, time_left
from coordrl.course import Course
from coordrl.curves import TensorBoardView
from coordrl.dqn import DQN
from coordrl.environments import make_env
from coordrl.errors import CheckpointError, DivergedError, ReplayError, ResumableError, StoppedError
from coordrl.exactness import conditions, differences, promise, versions
from coordrl.fast_parts import one_thread
from coordrl.files import cut_rows
from coordrl.fleet import Actors, Fleet
from coordrl.footprint import STEPS, check_memory
from coordrl.marks import Marks
from coordrl.options import Options
from coordrl.process import allowed_cores, processor_name
from coordrl.replay import FrameReplayBuffer
from coordrl.results import RunFolder, Spec
from coordrl.snapshot import restore, restore_games, restore_generators
from coordrl.stopping import StopSignals
from coordrl.suites import find_protocol
from coordrl.vectors import WholeVecEnv
from coordrl.watchdog import Watchdog
from coordrl.workers import Worker, end

WENT_ON = "no: went on at step"
_EMPTY = "an empty replay memory, which fills again before the next update"


def train(
    spec: Spec,
    recipe: str,
    folder: RunFolder,
    options: Options,
    workers: Sequence[Worker] = (),
    actors: Actors | None = None,
) -> None:
    """Train a run to its end, going on from its last checkpoint if there is one.

    Args:
        spec: what the run is.
        recipe: its recipe as text.
        folder: where it lies.
        options: how it is carried out.
        workers: processes to divide it over, which are ended here.
        actors: that play for it, instead of this process.

    Raises:
        RequestError: another run lies in the folder, or the device does not exist.
        ResumableError: no checkpoint can be read, or a worker process was lost.
        BusyError: another process holds the folder.
        OutputError: the folder cannot be written.
        DivergedError: a loss or a weight is not finite any more.
        StoppedError: SIGINT or SIGTERM; a checkpoint was written.
    """
    skip_compiler()
    check_device(options.device)
    if "buffer_size" in spec.settings:  # before there is a folder, of a run that could never be
        image = find_protocol(spec.protocol).world.image
        check_memory(int(spec.settings["buffer_size"]), int(spec.settings["n_envs"]), image, n_stack=image[0])
    patience = _patience(spec, actors.fleet if actors else None)
    with folder.lock(), StopSignals() as signals, Watchdog(folder.stacks_file, patience) as watchdog:
        folder.open(spec, _facts(options), recipe)
        if folder.is_finished(spec):
            return  # by another process, since the caller looked
        if get_device(options.device).type != "cpu":
            end(workers)  # the network is where they cannot reach it
            workers = ()
        model, env = _build(spec, options, workers, actors)
        try:
            processes = (actors.fleet.actors if actors else len(workers)) + 1
            facts: dict[str, Any] = {"parameters": _parameters(model), "processes": processes}
            facts["path"] = model.choose_path() if isinstance(model, A2C) else str(getattr(model, "path", "general"))
            marks = Marks()

            def use(checkpoint: Checkpoint, replay: Path | None) -> None:
                nonlocal marks
                restore(model, checkpoint, replay)
                marks = Marks.of(checkpoint)

            checkpoint, lost = _read_newest(folder, model, use)
            begins_at = checkpoint.step if checkpoint else 0
            replay = checkpoint.replay if checkpoint and not lost and not actors else ()
            if getattr(model, "replay_buffer", None) is not None and not replay and 0 < begins_at < spec.steps:
                why = "what actors fill is not kept" if actors else "the checkpoint holds none"
                lost = lost or f"{_EMPTY}, since {why}"
            marks.check_logs(folder, spec, begins_at)
            _cut_back(folder, marks)
            env.seed(environment_seed(spec.seed, "train"))  # after SB3's constructor, which seeds it with the run's own
            now = conditions(model, processes)
            now |= {"eval_every": options.eval_every, "eval_episodes": options.eval_episodes}
            before = str(folder.fact("exact_resume")) if checkpoint else ""
            facts["exact_resume"] = before if before.startswith(WENT_ON) else promise(model)
            view = _show_again(folder, marks)
            with ProgressLine(f"{spec.game} {spec.agent}-{spec.extractor}", spec.steps, start=begins_at) as line:
                _announce(line, spec, folder, model, begins_at, checkpoint.skipped if checkpoint else [])
                if checkpoint:
                    reasons = differences(checkpoint.state.get("conditions"), now)
                    if not actors:
                        reasons += _play_again(model, checkpoint, spec, line, signals, watchdog)
                    reasons += [lost] if lost else []
                    if reasons and str(facts["exact_resume"]).startswith("yes"):
                        facts["exact_resume"] = f"{WENT_ON} {begins_at:,} with {'; '.join(reasons)}"
                    for reason in reasons:
                        line.say(f"it goes on, but not bit for bit as without the stop: {reason}")
                folder.add_facts(facts)
                view.write_spec(spec, recipe, options.command)
                course = Course(spec, folder, options, model, view, line, signals, watchdog, marks, now, replay)
                # Again: importing rich draws from Python's generator, for one, and happens once in a process.
                if checkpoint:
                    restore_generators(model, checkpoint)
                else:
                    random.seed(spec.seed)
                try:
                    # One call, whatever came before: SB3 adds the steps so far to the total by itself, and
                    # calling `learn` in chunks would bend every schedule.
                    if actors:
                        assert isinstance(model, DQN)
                        line.say(actors.summary)
                        actors.begin(spec, model, fast=not options.general, say=line.say)
                        learn_from(actors, model, course, spec.steps, stopped=lambda: bool(signals.received))
                    else:
                        learn: Any = model.learn  # SB3's hint forbids the log_interval=None that its code takes
                        learn(spec.steps - begins_at, callback=course, log_interval=None, reset_num_timesteps=False)
                    course.finish()
                except DivergedError as error:
                    course.divergence.record(error)
                    raise
                except ValueError as error:
                    if "invalid values" not in str(error):  # torch's words when it is asked to sample from NaN
                        raise
                    diverged = course.divergence.error("the policy's probabilities are not numbers")
                    course.divergence.record(diverged)
                    raise diverged from error
                finally:
                    view.close()
        finally:
            env.close()


def _build(
    spec: Spec, options: Options, workers: Sequence[Worker], actors: Actors | None
) -> tuple[BaseAlgorithm, WholeVecEnv]:
    """Build the model of a run, and the games that it plays or, with actors, what stands for them."""
    if actors:
        return build_learner(spec, actors.fleet, device=options.device, fast=not options.general)
    n_envs = int(spec.settings["n_envs"])
    env = make_env(spec.game, n_envs, protocol=spec.protocol, workers=workers, reseed_every=options.reseed_every)
    try:
        with one_thread() if workers else nullcontext():  # the cores are busy with starting the workers
            return build_model(spec, env, device=options.device, fast=not options.general), env
    except BaseException:
        env.close()
        raise


def _patience(spec: Spec, fleet: Fleet | None = None) -> float:
    """Return how many times longer than usual nothing need move: where a single rollout or update is a long one."""
    settings = spec.settings
    if "buffer_size" not in settings:
        return float(max(1.0, settings["n_envs"] * settings["n_steps"] / 5_000))
    # Between two steps of the vector: those gradient steps that its transitions, or the recipe's, are worth.
    transitions = max(STEPS * fleet.n_envs if fleet else settings["n_envs"], settings["train_freq"])
    samples = settings["batch_size"] * settings["gradient_steps"] * transitions / settings["train_freq"]
    return float(max(1.0, samples / 32_000))


def _read_newest(
    folder: RunFolder, model: BaseAlgorithm, use: Callable[[Checkpoint, Path | None], None]
) -> tuple[Checkpoint | None, str]:
    """Read the newest checkpoint that can be used; where only the replay memory cannot be read, one without it.

    Returns the checkpoint, and why it comes without its replay memory, or "".
    """
    try:
        return read_newest(folder.checkpoints, lambda checkpoint: use(checkpoint, folder.replay)), ""
    except CheckpointError as error:
        if getattr(model, "replay_buffer", None) is None:
            raise
        checkpoint = read_newest(folder.checkpoints, lambda checkpoint: use(checkpoint, None))
        return checkpoint, f"{_EMPTY}, since the one that was kept is damaged: {error}"


def _play_again(
    model: BaseAlgorithm,
    checkpoint: Checkpoint,
    spec: Spec,
    line: ProgressLine,
    signals: StopSignals,
    watchdog: Watchdog,
) -> list[str]:
    """Bring the games to where they were at a checkpoint; where that cannot be, begin new ones and say why."""
    began = time.monotonic()

    def on_step(done: int, total: int) -> None:
        watchdog.beat()
        if signals.received:
            raise StoppedError(
                f"stopped at step {checkpoint.step:,}, where its checkpoint is; the same command goes on from there",
                signals.received,
            )
        line.update(
            checkpoint.step,
            lambda: f"playing its games again, {done:,} of {total:,} steps",
            lambda: time_left(done, total, time.monotonic() - began),
        )

    try:
        restore_games(model, checkpoint, on_step)
    except ReplayError as error:
        env = model.get_env()
        assert env is not None
        model._last_obs = None  # `learn` begins new games
        memory = getattr(model, "replay_buffer", None)
        if isinstance(memory, FrameReplayBuffer):
            memory.cut()  # no return reaches from the old ones into these
        env.seed(environment_seed(spec.seed, "train", checkpoint.step))
        return [str(error)]
    return []


def _cut_back(folder: RunFolder, marks: Marks) -> None:
    """Take back what an earlier process logged after its checkpoint: it will come again, otherwise."""
    cut_rows(folder.progress_file, marks.row)
    cut_rows(folder.evaluations_file, marks.evaluation)
    for file, step in folder.position_maps():
        if step > marks.map:
            file.unlink()


def _show_again(folder: RunFolder, marks: Marks) -> TensorBoardView:
    """Make the TensorBoard view of a run's logs.

    Raises:
        ResumableError: they hold what no training wrote.
    """
    try:
        return TensorBoardView(folder, marks.seconds)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ResumableError(
            f"the logs in {folder.path} hold what no training wrote ({type(error).__name__}: {error}). Restore them from a"
            " copy, or remove the run's folder to start over"
        ) from error


def _announce(
    line: ProgressLine, spec: Spec, folder: RunFolder, model: BaseAlgorithm, begins_at: int, skipped: list[str]
) -> None:
    """Say what is about to happen."""
    for fault in skipped:
        line.say(f"checkpoint skipped: {fault}")
    parameters = _parameters(model)
    what = f"{spec.agent} with {spec.extractor} on {spec.game}, {spec.protocol}, seed {spec.seed}"
    line.say(f"{what}: {spec.steps:,} steps, {parameters:,} parameters, {model.device}, into {folder.path}")
    if begins_at:
        line.say(f"going on from the checkpoint at step {begins_at:,}")


def _parameters(model: BaseAlgorithm) -> int:
    """Count the weights that are learnt: those that the optimiser holds, so not DQN's target network."""
    groups = model.policy.optimizer.param_groups
    return sum(parameter.numel() for group in groups for parameter in group["params"])


def _facts(options: Options) -> dict[str, Any]:
    """Return what run.json records beside the spec."""
    return {
        "command": options.command,
        "plan": options.plan,
        "options": {name: value for name, value in asdict(options).items() if name not in ("command", "plan")},
        "versions": versions(),
        "hardware": {
            "machine": platform.machine(),
            "processor": processor_name(),
            "system": platform.system(),
            "cores": len(allowed_cores()),
            "torch_threads": torch.get_num_threads(),
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }
