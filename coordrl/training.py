"""One run from its first step, or its last checkpoint, to its result."""

from __future__ import annotations

import math
import os
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from types import FrameType
from typing import Any, final

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from coordrl.algorithms import build_model, check_device, environment_seed, restore, snapshot
from coordrl.atari import AtariVecEnv, available_cores
from coordrl.checkpoint import read_newest, write_checkpoint
from coordrl.console import ProgressLine, format_seconds
from coordrl.coordinates import first_coordconv, position_maps, weight_norms
from coordrl.curves import TensorBoardView
from coordrl.errors import DivergedError, StoppedError
from coordrl.evaluation import evaluate
from coordrl.results import (
    WINDOW,
    RunFolder,
    Spec,
    append_row,
    cut_rows,
    read_rows,
    replace_file,
    write_json,
)
from coordrl.suites import FRAMES_PER_STEP

ROWS = 1_000  # of progress.jsonl in a long run, about
MAPS = 20  # pictures of the position maps over a run
LOSSES = ("train/loss", "train/policy_loss", "train/value_loss", "train/entropy_loss")


@dataclass(frozen=True)
class Options:
    """How a run is carried out; nothing here changes what it learns."""

    device: str
    checkpoint_every: int  # steps
    eval_every: int  # steps; 0 for no evaluations
    eval_episodes: int
    command: str


def train(spec: Spec, recipe: str, folder: RunFolder, options: Options) -> None:
    """Train a run to its end, going on from its last checkpoint if there is one.

    Raises:
        RequestError: another run lies in the folder, or the device does not exist.
        BusyError: another process holds the folder.
        OutputError: the folder cannot be written.
        DivergedError: a loss or a weight is not finite any more.
        StoppedError: SIGINT or SIGTERM; a checkpoint was written.
    """
    check_device(options.device)
    folder.open(spec, _facts(options), recipe)
    with folder.lock(), _StopSignals() as signals:
        checkpoint = read_newest(folder.checkpoints)
        begins_at = checkpoint.step if checkpoint else 0
        n_envs = int(spec.settings["n_envs"])
        # The emulator's state cannot be saved: a resumed run starts new games, from seeds of its own.
        seed = environment_seed(spec.seed, "train", begins_at)
        env = AtariVecEnv(spec.game, n_envs, protocol=spec.protocol)
        try:
            model = build_model(spec, env, device=options.device)
            if checkpoint:
                restore(model, checkpoint)
            env.seed(seed)  # after SB3's constructor, which seeds it with the run's own
            for log in (folder.progress_file, folder.evaluations_file):
                cut_rows(log, begins_at)
            seconds = float(checkpoint.state["seconds"]) if checkpoint else 0.0
            view = TensorBoardView(folder.tensorboard, resumed_at=begins_at if folder.tensorboard.exists() else None)
            with ProgressLine(f"{spec.game} {spec.agent}-{spec.extractor}", spec.steps, start=begins_at) as line:
                _announce(line, spec, folder, model, begins_at, checkpoint.skipped if checkpoint else [])
                view.write_spec(spec, recipe, options.command)
                course = _Course(spec, folder, options, model, view, line, signals, seconds)
                try:
                    # One call, whatever came before: SB3 adds the steps so far to the total by itself, and
                    # calling `learn` in chunks would bend every schedule.
                    learn: Any = model.learn  # SB3's hint forbids the log_interval=None that its code takes
                    learn(spec.steps - begins_at, callback=course, log_interval=None, reset_num_timesteps=False)
                    course.finish()
                except ValueError as error:
                    if "invalid values" in str(error):  # torch's words when it is asked to sample from NaN
                        raise course.diverged("the policy's probabilities are not numbers") from error
                    raise
                finally:
                    view.close()
        finally:
            env.close()


@final
class _StopSignals:
    """While entered, SIGINT and SIGTERM are noted instead of interrupting; a second SIGINT ends at once."""

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> _StopSignals:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT == number:
            os._exit(130)  # asked twice: leave now; the files are whole at any moment
        self.received = number


@final
class _Course(BaseCallback):
    """What happens beside the learning: rows, evaluations, checkpoints, stopping.

    Everything happens between two updates (SB3 calls `on_rollout_start` there), where the weights, the
    optimiser and the counters belong together.
    """

    def __init__(
        self,
        spec: Spec,
        folder: RunFolder,
        options: Options,
        model: BaseAlgorithm,
        view: TensorBoardView,
        line: ProgressLine,
        signals: _StopSignals,
        seconds: float,
    ) -> None:
        super().__init__()
        self.spec, self.folder, self.options, self.view, self.line = spec, folder, options, view, line
        self._signals = signals
        self._layer = first_coordconv(model)
        self._games: list[list[float]] = []  # [step, return, length] of those finished since the last row
        begins_at = model.num_timesteps
        rows = read_rows(folder.progress_file)
        self._games_finished: int = rows[-1]["games_finished"] if rows else 0
        self._row_every = max(spec.steps // ROWS, 1)
        self._map_every = max(spec.steps // MAPS, 1)
        self._last_row = self._last_checkpoint = self._last_evaluation = self._last_map = begins_at
        evaluations = read_rows(folder.evaluations_file)
        self._last_evaluation = evaluations[-1]["step"] if evaluations else 0
        self._seconds_before = seconds
        self._began = self._row_time = time.monotonic()
        self._busy = 0.0  # seconds in evaluations and checkpoints since the last row
        model.set_logger(Logger(folder=None, output_formats=[]))  # SB3's values are read from it, see _row

    def _on_training_start(self) -> None:
        if self.num_timesteps == 0:
            self._draw_maps()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self._games.append([self.num_timesteps, info["episode"]["r"], info["episode"]["l"]])
        return True

    def _on_rollout_start(self) -> None:
        step = self.model.num_timesteps
        self._check_losses()
        self.line.update(step, lambda: self._describe(step))
        if step - self._last_row >= self._row_every:
            self._write_row()
        if step - self._last_map >= self._map_every:
            self._draw_maps()
        if self._signals.received:
            self._stop()
        if 0 < self.options.eval_every <= step - self._last_evaluation:
            self._evaluate()
        if step - self._last_checkpoint >= self.options.checkpoint_every:
            self._write_checkpoint()

    def finish(self) -> None:
        """Write the last row, the last evaluation, the last checkpoint, SB3's export, and the result."""
        self._check_losses()
        step = self.model.num_timesteps
        if step > self._last_row:
            self._write_row()
        if step > self._last_map:
            self._draw_maps()
        evaluation = read_rows(self.folder.evaluations_file)[-1:]
        if self.options.eval_every > 0 and step > self._last_evaluation:
            evaluation = [self._evaluate()]
        self._write_checkpoint()
        self._export()
        returns = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        seconds = self._seconds()
        result = {
            "spec": asdict(self.spec),
            "steps": step,
            "frames": step * FRAMES_PER_STEP,
            "games_finished": self._games_finished,
            "final_return": float(np.mean(returns)) if returns else None,
            "final_return_games": len(returns),
            "final_returns": returns,
            "evaluation": evaluation[0] if evaluation else None,
            "seconds": round(seconds, 3),
            "steps_per_second": round(step / seconds, 1),
        }
        write_json(self.folder.result_file, result)
        self.line.say(f"done in {format_seconds(seconds)}: {_final_return(returns)}")
        if evaluation:
            row = evaluation[0]
            self.line.say(f"score {row['mean']:,.1f} ± {row['std']:,.1f} over {len(row['returns'])} whole games")
        self.line.say(f"curves: tensorboard --logdir {self.folder.path}")
        self.line.say(f"video:  coordrl play {self.folder.path}")

    def _check_losses(self) -> None:
        """Stop where a loss is not a number any more: nothing good comes after it."""
        for name in LOSSES:
            value = self.model.logger.name_to_value.get(name, 0.0)
            if not math.isfinite(value):
                raise self.diverged(f"{name} is {value}")

    def _check_weights(self) -> None:
        """Stop where a weight is not a number any more: such a checkpoint would be worth nothing."""
        for name, parameter in self.model.policy.named_parameters():
            if not torch.isfinite(parameter).all():
                raise self.diverged(f"{name} is not finite")

    def diverged(self, sign: str) -> DivergedError:
        """Make the error that says how the training diverged."""
        kept = f"The last good checkpoint is kept in {self.folder.checkpoints}"
        if not self.folder.checkpoints.is_dir():
            kept = "There was no checkpoint yet"
        return DivergedError(
            f"the training diverged at step {self.model.num_timesteps:,}: {sign}. {kept}; try a smaller learning rate, in"
            " another folder: --set learning_rate=... --out ..."
        )

    def _describe(self, step: int) -> str:
        """Say where the training is."""
        rate = (step - self._last_row) / max(time.monotonic() - self._row_time - self._busy, 1e-9)
        returns = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        mean = f"mean return {np.mean(returns):,.1f} (last {len(returns)} games)" if returns else "no game finished yet"
        speed = f"{rate:,.0f} steps/s" if step > self._last_row else ""
        return " · ".join(part for part in (f"{step * FRAMES_PER_STEP:,} frames", speed, mean) if part)

    def _row(self) -> dict[str, Any]:
        """Make the row of progress.jsonl for the steps since the last one."""
        model, step = self.model, self.model.num_timesteps
        window = model.ep_info_buffer or ()
        elapsed = time.monotonic() - self._row_time - self._busy
        losses = {name: value for name, value in model.logger.name_to_value.items() if name.startswith("train/")}
        if "rollout/exploration_rate" in model.logger.name_to_value:
            losses["rollout/exploration_rate"] = model.logger.name_to_value["rollout/exploration_rate"]
        norms = weight_norms(self._layer) if self._layer is not None else {}
        return {
            "step": step,
            "frames": step * FRAMES_PER_STEP,
            "seconds": round(self._seconds(), 3),
            "steps_per_second": round((step - self._last_row) / max(elapsed, 1e-9), 1),
            "return_mean": _mean(episode["r"] for episode in window),
            "length_mean": _mean(episode["l"] for episode in window),
            "games_finished": self._games_finished,
            "games": self._games,
            "train": {name: _finite(value) for name, value in losses.items()},
            "coordinates": {f"coordinates/{name}": value for name, value in norms.items()},
        }

    def _write_row(self) -> None:
        self._games_finished += len(self._games)
        row = self._row()
        append_row(self.folder.progress_file, row)
        self.view.write_row(row)
        self._games = []
        self._last_row = row["step"]
        self._row_time, self._busy = time.monotonic(), 0.0

    def _draw_maps(self) -> None:
        """Keep the position maps of this moment, and show them in TensorBoard."""
        self._last_map = step = self.model.num_timesteps
        if self._layer is None:
            return
        _, height, width = self.model.observation_space.shape or (0, 0, 0)
        maps = position_maps(self._layer, height, width)
        self.folder.coordinates.mkdir(exist_ok=True)
        file = self.folder.coordinates / f"maps-{step:012d}.npy"
        replace_file(file, lambda partial: np.save(partial, maps, allow_pickle=False))
        self.view.write_maps(maps, step)

    @contextmanager
    def _pause(self) -> Iterator[None]:
        """Count time that is not training's, so that steps/s means what it says."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._busy += time.monotonic() - began

    def _evaluate(self) -> dict[str, Any]:
        """Play whole games and log their returns."""
        step = self.model.num_timesteps
        episodes = self.options.eval_episodes

        def on_step(games: int, steps: int) -> None:
            self.line.update(step, lambda: f"evaluating: {games} of {episodes} games")
            if self._signals.received:
                self._stop()

        with self._pause():
            seed = environment_seed(self.spec.seed, "evaluate", step)
            evaluation = evaluate(self.model, self.spec, episodes, seed=seed, on_step=on_step)
            row = {
                "step": step,
                "frames": step * FRAMES_PER_STEP,
                "protocol": self.spec.protocol,
                "mean": evaluation.mean,
                "std": evaluation.std,
                "returns": evaluation.returns,
                "lengths": evaluation.lengths,
            }
            append_row(self.folder.evaluations_file, row)
            self.view.write_evaluation(row)
            self._last_evaluation = step
        return row

    def _write_checkpoint(self) -> None:
        if self.model.num_timesteps > self._last_row:
            self._write_row()  # a resumed run cuts the log at its checkpoint: no game may fall between
        with self._pause():
            self._check_weights()
            self.view.flush()
            write_checkpoint(self.folder.checkpoints, snapshot(self.model, {"seconds": round(self._seconds(), 3)}))
            self._last_checkpoint = self.model.num_timesteps

    def _export(self) -> None:
        """Write model.zip for SB3."""
        replace_file(self.folder.export_file, self.model.save)

    def _stop(self) -> None:
        """Keep everything and leave."""
        self._write_checkpoint()
        self._export()
        raise StoppedError(
            f"stopped at step {self.model.num_timesteps:,} with a checkpoint; the same command goes on from there",
            self._signals.received,
        )

    def _seconds(self) -> float:
        """Return the run's time so far, in all of its processes."""
        return self._seconds_before + time.monotonic() - self._began


def _announce(
    line: ProgressLine, spec: Spec, folder: RunFolder, model: BaseAlgorithm, begins_at: int, skipped: list[str]
) -> None:
    """Say what is about to happen."""
    for fault in skipped:
        line.say(f"checkpoint skipped: {fault}")
    parameters = sum(parameter.numel() for parameter in model.policy.parameters())
    what = f"{spec.agent} with {spec.extractor} on {spec.game}, {spec.protocol}, seed {spec.seed}"
    line.say(f"{what}: {spec.steps:,} steps, {parameters:,} parameters, {model.device}, into {folder.path}")
    if begins_at:
        line.say(f"going on from the checkpoint at step {begins_at:,}")
        if "buffer_size" in spec.settings:
            line.say("the replay memory is not part of a checkpoint: it fills up again from here")


def _facts(options: Options) -> dict[str, Any]:
    """Return what run.json records beside the spec."""
    packages = ("coordrl", "torch", "stable_baselines3", "gymnasium", "ale-py", "numpy", "tensorboard", "safetensors")
    return {
        "command": options.command,
        "options": {name: value for name, value in asdict(options).items() if name != "command"},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cores": available_cores(),
            "torch_threads": torch.get_num_threads(),
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "exact_resume": "no: a resumed run starts new games, from seeds of its own",
    }


def _final_return(returns: list[float]) -> str:
    """Say the final return and over how many games."""
    if not returns:
        return "no game was finished, so there is no return yet"
    few = "" if len(returns) == WINDOW else f" (fewer than {WINDOW})"
    return f"mean return of the last {len(returns)} games{few} {np.mean(returns):,.1f}"


def _mean(values: Iterator[float]) -> float | None:
    """Return the mean, or None of nothing."""
    listed = list(values)
    return float(np.mean(listed)) if listed else None


def _finite(value: Any) -> float | None:
    """Return a number that JSON can hold; explained variance is NaN where all returns are equal."""
    return float(value) if math.isfinite(value) else None
