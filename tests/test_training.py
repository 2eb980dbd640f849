"""coordrl.train from end to end: real games, real files, real signals."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from stable_baselines3 import A2C, DQN
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import coordrl
from coordrl.console import ProgressLine
from coordrl.files import read_rows
from coordrl.results import RunFolder
from coordrl.suites import FRAMES_PER_STEP
from coordrl.train import main

COMMAND = [sys.executable, "-m", "coordrl.train"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(words: str, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words.split(), "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=300,
        env=ENVIRONMENT,
        check=False,
    )


def start(words: str, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *words.split(), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.02)


def scalars(folder: RunFolder) -> dict[str, list[Any]]:
    accumulator = EventAccumulator(str(folder.tensorboard), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return {tag: accumulator.Scalars(tag) for tag in accumulator.Tags()["scalars"]}


def test_the_run_folder_holds_what_the_design_lists(finished_run: RunFolder) -> None:
    names = {path.name for path in finished_run.path.iterdir()}
    files = {"run.json", "recipe.toml", "progress.jsonl", "evaluations.jsonl", "model.zip", "result.json"}
    assert files | {"coordinates", "tensorboard", "checkpoints"} <= names
    assert names <= files | {"coordinates", "tensorboard", "checkpoints", "lock"}
    last = finished_run.checkpoints / "000000002400"
    assert {"policy.safetensors", "optimizer.safetensors", "state.json", "manifest.json"} <= {
        p.name for p in last.iterdir()
    }


def test_run_json_holds_spec_versions_and_hardware(finished_run: RunFolder) -> None:
    facts = json.loads(finished_run.spec_file.read_text())
    assert facts["spec"]["game"] == "Breakout"
    assert facts["spec"]["settings"]["n_envs"] == 4
    assert (
        facts["versions"]["torch"] == torch.__version__.split("+")[0] or facts["versions"]["torch"] == torch.__version__
    )
    assert facts["hardware"]["cores"] >= 1
    assert facts["command"].startswith("coordrl train --game Breakout")


def test_run_json_counts_the_weights_that_are_learnt(finished_run: RunFolder) -> None:
    convolutions = (8 * 8 * 4 * 32 + 32) + (4 * 4 * 32 * 64 + 64) + (3 * 3 * 64 * 64 + 64)
    coordinates = 8 * 8 * 2 * 32
    linear = 7 * 7 * 64 * 512 + 512
    heads = (512 * 4 + 4) + (512 + 1)  # Breakout has four actions
    counted = json.loads(finished_run.spec_file.read_text())["parameters"]
    assert counted == convolutions + coordinates + linear + heads


def test_the_log_counts_steps_frames_and_whole_games(finished_run: RunFolder) -> None:
    rows = read_rows(finished_run.progress_file)
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == 2400
    assert all(row["frames"] == row["step"] * FRAMES_PER_STEP for row in rows)
    games = [game for row in rows for game in row["games"]]
    assert len(games) == rows[-1]["games_finished"] > 4
    assert all(length > 50 and score >= 0 and 0 < step <= 2400 for step, score, length in games)
    window = [score for _, score, _ in games][-100:]
    assert rows[-1]["return_mean"] == pytest.approx(np.mean(window))
    assert all(
        math.isfinite(rows[-1]["train"][name])
        for name in ("train/policy_loss", "train/value_loss", "train/entropy_loss")
    )


def test_the_result_is_the_mean_over_the_last_games_and_says_how_many(finished_run: RunFolder) -> None:
    result = json.loads(finished_run.result_file.read_text())
    games = [game for row in read_rows(finished_run.progress_file) for game in row["games"]]
    assert result["final_returns"] == [score for _, score, _ in games][-100:]
    assert result["final_return"] == pytest.approx(np.mean(result["final_returns"]))
    assert result["final_return_games"] == len(result["final_returns"])
    assert result["spec"]["seed"] == 7
    assert finished_run.is_finished(finished_run.read_spec())


def test_evaluations_play_whole_games_with_raw_scores(finished_run: RunFolder) -> None:
    rows = read_rows(finished_run.evaluations_file)
    assert [row["step"] for row in rows] == [1200, 2400]
    for row in rows:
        assert len(row["returns"]) == len(row["lengths"]) == 2
        assert row["mean"] == pytest.approx(np.mean(row["returns"]))
        assert min(row["lengths"]) > 100  # five lives: a single one would be far shorter
        assert row["protocol"] == "zoo-v4"


def test_position_maps_and_norms_are_kept_over_training(finished_run: RunFolder) -> None:
    maps = [np.load(file, allow_pickle=False) for file in sorted(finished_run.coordinates.glob("maps-*.npy"))]
    assert len(maps) >= 10
    assert all(one.shape == (32, 20, 20) and one.dtype == np.float32 for one in maps)
    assert not np.array_equal(maps[0], maps[-1])
    first = read_rows(finished_run.progress_file)[0]["coordinates"]
    assert first["coordinates/ratio"] == pytest.approx(math.sqrt(2), rel=0.1)


def test_tensorboard_shows_the_log(finished_run: RunFolder) -> None:
    accumulator = EventAccumulator(str(finished_run.tensorboard), size_guidance={"scalars": 0})
    accumulator.Reload()
    tags = accumulator.Tags()
    wanted = {
        "rollout/ep_rew_mean",
        "rollout/ep_len_mean",
        "time/fps",
        "time/frames",
        "train/policy_loss",
        "train/value_loss",
    }
    wanted |= {
        "eval/mean_reward",
        "eval/std_reward",
        "coordinates/ratio",
        "coordinates/coordinate_norm",
        "coordinates/image_norm",
    }
    assert wanted <= set(tags["scalars"])
    assert "coordinates/position_maps" in tags["images"]
    assert {"recipe/text_summary", "command/text_summary"} <= set(tags["tensors"])
    logged = {row["step"]: row["return_mean"] for row in read_rows(finished_run.progress_file)}
    for event in accumulator.Scalars("rollout/ep_rew_mean"):
        assert event.value == pytest.approx(logged[event.step])
    metadata = accumulator.SummaryMetadata("_hparams_/experiment")
    assert metadata.plugin_data.plugin_name == "hparams"


def test_sb3_loads_the_export(finished_run: RunFolder) -> None:
    model = A2C.load(finished_run.export_file, device="cpu")
    assert model.num_timesteps == 2400


def test_a_finished_run_is_said_to_be_finished_and_left_alone(
    finished_run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    words = json.loads(finished_run.spec_file.read_text())["command"].split()[2:]
    before = {path: path.stat().st_mtime_ns for path in finished_run.path.rglob("*")}
    assert main(words) == 0
    assert "is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished_run.path.rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ("--steps 4800", "steps is 2400 there and 4800 here"),
        ("--set n_envs=4 learning_rate=1e-3", "learning_rate is 0.0007 there and 0.001 here"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(
    change: str, difference: str, finished_run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    words = json.loads(finished_run.spec_file.read_text())["command"].split()[2:]
    assert main([*words, *change.split()]) == 2
    assert difference in capsys.readouterr().err


def test_two_runs_of_one_spec_are_equal(finished_run: RunFolder, tmp_path: Path) -> None:
    words = json.loads(finished_run.spec_file.read_text())["command"].split()[2:]
    assert main([*words[: words.index("--out")], "--out", str(tmp_path)]) == 0
    again = RunFolder(finished_run.read_spec().folder(tmp_path))
    for name in ("policy", "optimizer"):
        file = Path("checkpoints") / "000000002400" / f"{name}.safetensors"
        one, other = (safetensors.torch.load_file(folder.path / file) for folder in (finished_run, again))
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert [row["games"] for row in read_rows(again.progress_file)] == [
        row["games"] for row in read_rows(finished_run.progress_file)
    ]
    for one, other in zip(*(read_rows(folder.evaluations_file) for folder in (finished_run, again)), strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_stopped_run_leaves_a_loadable_model_and_the_same_command_goes_on(
    number: signal.Signals, tmp_path: Path
) -> None:
    import coordrl

    words = "--game Pong --steps 2400 --set n_envs=4 --checkpoint-every 100000 --eval-every 0"
    folder = RunFolder(tmp_path / "zoo-v4" / "a2c-coord" / "Pong" / "seed-0")
    process = start(words, tmp_path)
    wait_for(lambda: len(read_rows(folder.progress_file)) > 3, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert "the same command goes on from there" in errors
    stopped_at = read_rows(folder.progress_file)[-1]["step"]
    model = coordrl.load(folder.path, device="cpu")
    assert model.num_timesteps == stopped_at < 2400
    environment = model.get_env()
    assert environment is not None
    environment.close()
    A2C.load(folder.export_file, device="cpu")

    done = run(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"going on from the checkpoint at step {stopped_at:,}" in done.stderr
    assert not folder.path.joinpath("result.json.partial").exists()
    steps = [row["step"] for row in read_rows(folder.progress_file)]
    assert steps == sorted(set(steps))
    assert steps[-1] == 2400
    curve = [event.step for event in scalars(folder)["train/value_loss"]]
    assert curve == steps  # one line in TensorBoard too


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_checkpoint_and_its_curves_stay_one_line(tmp_path: Path) -> None:
    words = "--game Breakout --steps 3000 --set n_envs=4 --checkpoint-every 400 --eval-every 400 --eval-episodes 1"
    folder = RunFolder(tmp_path / "zoo-v4" / "a2c-coord" / "Breakout" / "seed-0")
    process = start(words, tmp_path)
    wait_for(lambda: any(row["step"] > 600 for row in read_rows(folder.progress_file)), process)
    process.kill()
    process.communicate()
    with folder.progress_file.open("a") as log:
        log.write('{"step": 99')  # as a crash in mid-line would leave it
    done = run(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "going on from the checkpoint at step" in done.stderr
    rows = read_rows(folder.progress_file)
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == 3000
    assert sum(len(row["games"]) for row in rows) == rows[-1]["games_finished"]
    evaluated = [row["step"] for row in read_rows(folder.evaluations_file)]
    assert evaluated == sorted(set(evaluated))
    curve = [event.step for event in scalars(folder)["train/value_loss"]]
    assert curve == steps
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)


def test_a_damaged_newest_checkpoint_is_skipped_and_said(finished_run: RunFolder, tmp_path: Path) -> None:
    copy = tmp_path / "zoo-v4" / "a2c-coord" / "Breakout" / "seed-7"
    shutil.copytree(finished_run.path, copy)
    (copy / "result.json").unlink()
    (copy / "checkpoints" / "000000002400" / "policy.safetensors").write_bytes(b"")
    words = json.loads((copy / "run.json").read_text())["command"].split()[2:]
    done = run(" ".join(words[: words.index("--out")]), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "checkpoint skipped: 000000002400: policy.safetensors has changed" in done.stderr
    assert "going on from the checkpoint at step 1,600" in done.stderr


def test_evaluating_says_in_a_line_that_the_newest_checkpoint_was_skipped(
    finished_run: RunFolder, tmp_path: Path
) -> None:
    shutil.copytree(finished_run.path, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "000000002400" / "policy.safetensors").write_bytes(b"")
    words = [sys.executable, "-m", "coordrl.evaluate", str(tmp_path / "run"), "--episodes", "1", "--device", "cpu"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (said,) = (line for line in done.stderr.splitlines() if "skipped" in line)
    assert said.startswith("coordrl: checkpoint skipped: 000000002400: policy.safetensors has changed")
    assert said.endswith("this is the one of step 1,600")


def test_during_the_last_evaluation_the_time_left_is_that_of_the_games(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[int, str, str]] = []

    def update(line: ProgressLine, done: int, describe: Any, left: Any = None) -> None:
        said.append((done, describe(), left() if left else "by steps"))

    monkeypatch.setattr(ProgressLine, "update", update)
    words = "--game Breakout --steps 80 --set n_envs=2 --eval-every 40 --eval-episodes 2 --device cpu"
    assert main([*words.split(), "--out", str(tmp_path)]) == 0
    games = [(done, left) for done, text, left in said if text.startswith("evaluating: ")]
    first = [left for done, left in games if done < 80]
    last = [left for done, left in games if done == 80]
    assert set(first) == {"by steps"}
    assert last[0] == "time left: no estimate yet"
    assert last[-1] == "0 s left"
    assert "by steps" not in last


def test_dqn_runs_from_end_to_end_and_its_schedule_ends_where_it_should(tmp_path: Path) -> None:
    words = "--game Pong --agent dqn --extractor nature --steps 600 --eval-every 600 --eval-episodes 1"
    words += " --set buffer_size=500 learning_starts=100 exploration_fraction=0.5"
    done = run(words, tmp_path)
    assert done.returncode == 0, done.stderr
    folder = RunFolder(tmp_path / "zoo-v4" / "dqn-nature" / "Pong" / "seed-0")
    rows = read_rows(folder.progress_file)
    assert rows[-1]["train"]["rollout/exploration_rate"] == pytest.approx(0.01)
    early = next(row for row in rows if row["step"] >= 148)
    assert early["train"]["rollout/exploration_rate"] == pytest.approx(1 - 0.99 * early["step"] / 300, abs=0.02)
    assert math.isfinite(rows[-1]["train"]["train/loss"])
    assert rows[-1]["coordinates"] == {}
    model = DQN.load(folder.export_file, device="cpu")
    assert model._n_updates == 126  # (600 - 96) / 4: all of the eight transitions with which learning starts
    assert len(read_rows(folder.evaluations_file)) == 1
    loaded: Any = coordrl.load(folder.path, device="cpu")  # without the memory, until it learns on
    assert (loaded.buffer_size, loaded.replay_buffer) == (500, None)
    loaded.learn(40, reset_num_timesteps=False)
    assert loaded.replay_buffer.buffer_size == 500
    assert loaded.replay_buffer.transitions == 40
    loaded.get_env().close()


@pytest.mark.slow
def test_a_stopped_dqn_goes_on_with_its_replay_and_its_schedule_stays_straight(tmp_path: Path) -> None:
    words = "--game Pong --agent dqn --steps 800 --eval-every 0 --set buffer_size=500 learning_starts=100"
    folder = RunFolder(tmp_path / "zoo-v4" / "dqn-coord" / "Pong" / "seed-0")
    process = start(words, tmp_path)
    wait_for(lambda: len(read_rows(folder.progress_file)) > 30, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    done = run(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not bit for bit" not in done.stderr
    assert not folder.replay.exists()  # it is finished: nobody needs it any more
    rows = read_rows(folder.progress_file)
    expected = [max(0.01, 1 - 0.99 * row["step"] / 80) for row in rows]
    assert [row["train"]["rollout/exploration_rate"] for row in rows] == pytest.approx(expected, abs=0.06)
    model = DQN.load(folder.export_file, device="cpu")
    assert model._n_updates == (800 - 96) / 4
    assert model.gradient_steps == 1


def test_a_diverged_training_stops_with_70_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    words = "--game Pong --steps 4000 --eval-every 0 --checkpoint-every 10 --set n_envs=2 learning_rate=1e5 max_grad_norm=1e30"
    done = run(words, tmp_path)
    assert done.returncode == 70, done.stderr
    assert "the training diverged at step" in done.stderr
    assert "Traceback" not in done.stderr
    folder = RunFolder(tmp_path / "zoo-v4" / "a2c-coord" / "Pong" / "seed-0")
    assert not folder.result_file.exists()
    diverged = json.loads(folder.diverged_file.read_text())
    assert diverged["spec"] == json.loads(folder.spec_file.read_text())["spec"]
    assert diverged["sign"] in done.stderr
    assert f"at step {diverged['step']:,}" in done.stderr
    for place in folder.checkpoints.iterdir():
        saved = safetensors.torch.load_file(place / "policy.safetensors")
        assert all(torch.isfinite(tensor).all() for tensor in saved.values())


def test_a_second_command_on_a_running_folder_is_told_who_holds_it(tmp_path: Path) -> None:
    words = "--game Pong --steps 100000 --set n_envs=2 --eval-every 0"
    folder = RunFolder(tmp_path / "zoo-v4" / "a2c-coord" / "Pong" / "seed-0")
    process = start(words, tmp_path)
    wait_for(lambda: read_rows(folder.progress_file), process)
    second = run(words, tmp_path)
    assert second.returncode == 75
    assert f"in use by process {process.pid}" in second.stderr
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_an_out_that_cannot_be_written_exits_with_73(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("--game Pong --steps 80", tmp_path / "file")
    assert done.returncode == 73
    assert done.stderr.count("\n") == 1


def test_a_missing_device_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    done = run("--game Pong --steps 80 --device warp", tmp_path)
    assert done.returncode == 2
    assert 'there is no device "warp"; there are auto, cpu and cuda' in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_machado_runs_lie_elsewhere_and_have_all_actions(tmp_path: Path) -> None:
    done = run("--game Pong --protocol machado-v5 --steps 80 --eval-every 0", tmp_path)
    assert done.returncode == 0, done.stderr
    folder = RunFolder(tmp_path / "machado-v5" / "a2c-coord" / "Pong" / "seed-0")
    result = json.loads(folder.result_file.read_text())
    assert result["final_return"] is None
    assert result["final_return_games"] == 0
    saved = safetensors.torch.load_file(folder.checkpoints / "000000000080" / "policy.safetensors")
    assert saved["action_net.weight"].shape == (18, 512)


def test_a_full_disk_exits_with_74_and_the_same_command_goes_on(tmp_path: Path) -> None:
    words = "--game Pong --steps 400 --set n_envs=2 --checkpoint-every 200 --eval-every 0"
    folder = RunFolder(tmp_path / "zoo-v4" / "a2c-coord" / "Pong" / "seed-0")
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, resource.RLIM_INFINITY));"
    limit += " from coordrl.train import main; sys.exit(main(sys.argv[1:]))"  # no file may grow beyond 5 MB
    done = subprocess.run(
        [sys.executable, "-c", limit, *words.split(), "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env=ENVIRONMENT,
        check=False,
    )
    assert done.returncode == 74
    assert "File too large; mend that, and the same command goes on" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(folder.checkpoints.iterdir()) == []
    done = run(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_rows(folder.progress_file)[-1]["step"] == 400


@pytest.mark.slow
def test_a_training_goes_on_when_nobody_listens_to_its_progress(tmp_path: Path) -> None:
    words = "--game Pong --steps 400 --set n_envs=2 --eval-every 0"
    process = start(words, tmp_path)
    assert process.stderr is not None
    process.stderr.close()  # as after: coordrl train ... 2>&1 | head -1
    assert process.wait(timeout=120) == 0
    folder = RunFolder(tmp_path / "zoo-v4" / "a2c-coord" / "Pong" / "seed-0")
    assert folder.is_finished(folder.read_spec())
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.parametrize("agent", ["per", "apex"])
def test_a_diverged_agent_with_a_replay_memory_stops_with_70_and_leaves_its_batch(agent: str, tmp_path: Path) -> None:
    words = f"--game PlaceMatters --agent {agent} --steps 1200 --set n_envs=4 buffer_size=800 learning_starts=80"
    words += " train_freq=4 learning_rate=1e30 max_grad_norm=1e30 --eval-every 0"
    done = run(words, tmp_path)
    assert done.returncode == 70, done.stderr
    assert "diverged" in done.stderr
    assert "Traceback" not in done.stderr
    folder = RunFolder(tmp_path / "controls-v1" / f"{agent}-coord-pool" / "PlaceMatters" / "seed-0")
    assert json.loads(folder.diverged_file.read_text())["step"] > 80
    batch = {file.stem: np.load(file) for file in folder.diverged_batch.iterdir()}
    assert {"observations", "next_observations", "actions", "rewards", "dones"} <= set(batch)
    assert batch["observations"].shape[1:] == (1, 8, 8)


def test_a_training_that_diverged_in_its_last_update_is_not_evaluated(tmp_path: Path) -> None:
    words = "--game Pong --steps 10 --set n_envs=2 learning_rate=1e30 max_grad_norm=1e30 --eval-episodes 1"
    done = run(words, tmp_path)
    assert done.returncode == 70, done.stderr
    assert "Traceback" not in done.stderr


def test_the_recorded_command_can_be_typed_again(tmp_path: Path) -> None:
    assert main(["--game", "Ms. Pac-Man", "--steps", "80", "--eval-every", "0", "--out", str(tmp_path)]) == 0
    folder = RunFolder(tmp_path / "zoo-v4" / "a2c-coord" / "MsPacman" / "seed-0")
    assert json.loads(folder.spec_file.read_text())["command"].startswith("coordrl train --game 'Ms. Pac-Man'")


def test_a_resumed_run_drops_what_came_after_its_checkpoint(finished_run: RunFolder, tmp_path: Path) -> None:
    copy = RunFolder(tmp_path / "zoo-v4" / "a2c-coord" / "Breakout" / "seed-7")
    shutil.copytree(finished_run.path, copy.path)
    copy.result_file.unlink()
    shutil.rmtree(copy.checkpoints / "000000002400")
    before = [step for _, step in copy.position_maps()]
    words = json.loads(copy.spec_file.read_text())["command"].split()[2:]
    assert main([*words[: words.index("--out")], "--out", str(tmp_path)]) == 0
    assert [step for _, step in copy.position_maps()] == before
    again = [row["step"] for row in read_rows(copy.progress_file)]
    assert again == [row["step"] for row in read_rows(finished_run.progress_file)]
    curve = [event.step for event in scalars(copy)["train/value_loss"]]
    assert curve == again
    events = list(copy.tensorboard.iterdir())
    assert len(events) == 1  # made anew: the viewer's own server does not know how to take events back
    images = EventAccumulator(str(copy.tensorboard), size_guidance={"images": 0})
    images.Reload()
    assert [image.step for image in images.Images("coordinates/position_maps")] == before
