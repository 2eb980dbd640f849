"""A run that is killed and goes on is the run that was never killed, bit for bit."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from trainings import unlike

from coordrl.checkpoint import Checkpoint, read_newest
from coordrl.errors import CheckpointError
from coordrl.files import read_rows, write_json
from coordrl.marks import Marks
from coordrl.results import RunFolder
from coordrl.train import main

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "coordrl.train"]
# New seeds come several times, games end, evaluations lie between and not at checkpoints.
WORDS = "--steps 1600 --seed 7 --set n_envs=4 --eval-every 600 --eval-episodes 1 --reseed-every 100"
EVERY = ["--checkpoint-every", "200"]
NEVER = ["--checkpoint-every", "100000"]

# A memory that is full before the end, and holds more than a segment.
REPLAY = "--set learning_starts=200 buffer_size=900"
ARMS = {
    "one process": "--game Breakout",
    "two processes": "--game Breakout --workers 2",
    "the general path": "--game Pong --general --extractor nature",
    "sticky actions": "--game Seaquest --protocol machado-v5",
    "a control": "--game PlaceMatters",
    "dqn": f"--game Breakout --agent dqn {REPLAY}",
    "prioritised replay": f"--game Pong --agent per {REPLAY}",
    "all extensions": f"--game PlaceMatters --agent rainbow-lite {REPLAY}",
    "Ape-X": f"--game Breakout --agent apex {REPLAY} train_freq=20 batch_size=16",
}
QUICK = ("a control",)


def find(out: Path) -> RunFolder:
    return RunFolder(next(out.glob("*/*/*/seed-*/run.json")).parent)


def start(words: list[str], out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *words, "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def run(words: list[str], out: Path) -> str:
    process = start(words, out)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors


def start_and_wait(words: list[str], out: Path, fault: str) -> int:
    """Run a training that fails at a point; returns its exit code."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COORDRL_FAULT": fault}
    done = subprocess.run(
        [*COMMAND, *words, "--out", str(out)], env=environment, capture_output=True, timeout=300, check=False
    )
    return done.returncode


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in out.glob("*/*/*/seed-*/checkpoints/[0-9]*"))


def stop_after_a_checkpoint(words: list[str], out: Path, number: signal.Signals, moment: float) -> bool:
    """Start a run, wait for a new checkpoint and a moment more, and send it a signal; says whether it was still there."""
    before = checkpoints(out)
    process = start(words, out)
    while process.poll() is None and checkpoints(out) == before:
        time.sleep(0.01)
    time.sleep(moment)
    hit = process.poll() is None
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    if hit and process.returncode != 0:
        assert process.returncode in (-number, 128 + number), errors
    return hit


@pytest.mark.parametrize("arm", [pytest.param("one process", marks=pytest.mark.slow), "a control"])
def test_taking_checkpoints_changes_nothing(arm: str, tmp_path: Path) -> None:
    words = [*ARMS[arm].split(), *WORDS.split()]
    for name, more in (("every", EVERY), ("never", NEVER)):
        assert main([*words, *more, "--out", str(tmp_path / name)]) == 0
    assert unlike(find(tmp_path / "every").path, find(tmp_path / "never").path) == []


@pytest.mark.parametrize("arm", [pytest.param(arm, marks=[] if arm in QUICK else pytest.mark.slow) for arm in ARMS])
def test_a_run_that_is_killed_again_and_again_is_the_one_that_never_was(arm: str, tmp_path: Path) -> None:
    words = [*ARMS[arm].split(), *WORDS.split()]
    run([*words, *NEVER], tmp_path / "whole")
    rng = random.Random(arm)
    hits = [
        stop_after_a_checkpoint([*words, *EVERY], tmp_path / "killed", signal.SIGKILL, rng.uniform(0, 0.4))
        for _ in range(4)
    ]
    assert sum(hits) >= 2
    said = run([*words, *EVERY], tmp_path / "killed")
    assert "not bit for bit" not in said
    assert unlike(find(tmp_path / "whole").path, find(tmp_path / "killed").path) == []
    assert find(tmp_path / "killed").fact("exact_resume") == "yes"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_goes_on_as_if_it_were_not(number: signal.Signals, tmp_path: Path) -> None:
    words = [*ARMS["a control"].split(), *WORDS.split(), "--set", "n_steps=1", *EVERY]
    run(words, tmp_path / "whole")
    rng = random.Random(number)
    hits = [stop_after_a_checkpoint(words, tmp_path / "stopped", number, rng.uniform(0, 0.05)) for _ in range(2)]
    run(words, tmp_path / "stopped")
    assert any(hits)
    assert unlike(find(tmp_path / "whole").path, find(tmp_path / "stopped").path) == []


def test_a_second_ctrl_c_leaves_at_once_and_does_no_harm(tmp_path: Path) -> None:
    words = [*ARMS["a control"].split(), *WORDS.split(), *EVERY]
    run(words, tmp_path / "whole")
    process = start(words, tmp_path / "stopped")
    while process.poll() is None and not checkpoints(tmp_path / "stopped"):
        time.sleep(0.01)
    for _ in range(2):  # the second while the first is being obeyed, or before it is noticed
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    run(words, tmp_path / "stopped")
    assert unlike(find(tmp_path / "whole").path, find(tmp_path / "stopped").path) == []


def test_another_number_of_threads_is_said_and_recorded(tmp_path: Path) -> None:
    words = ["--game", "PlaceMatters", "--steps", "800", "--set", "n_envs=4", *EVERY, "--out", str(tmp_path)]
    assert main(words) == 0
    folder = find(tmp_path)
    assert folder.fact("exact_resume") == "yes"
    go_on_from(folder, 600)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert main(words) == 0
    finally:
        torch.set_num_threads(before)
    assert (
        folder.fact("exact_resume")
        == f"no: went on at step 600 with torch_threads {before} before and {before + 1} now"
    )
    assert read_rows(folder.progress_file)[-1]["step"] == 800


def go_on_from(folder: RunFolder, step: int) -> None:
    """Make a finished run one that has come to a step, as if its later checkpoints had not been written."""
    folder.result_file.unlink()
    for place in folder.checkpoints.iterdir():
        if int(place.name) > step:
            shutil.rmtree(place)


def test_games_that_cannot_be_played_again_begin_anew_and_the_run_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--game", "Pong", "--steps", "240", "--set", "n_envs=2", "--checkpoint-every", "80", "--eval-every", "0"]
    words += ["--out", str(tmp_path)]
    assert main(words) == 0
    folder = find(tmp_path)
    go_on_from(folder, 160)
    place = folder.checkpoints / "000000000160"
    state = json.loads((place / "state.json").read_text())
    state["games_played"]["digests"][1] = "0" * 32  # another emulator would show other pictures
    forge(place, state)
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "it goes on, but not bit for bit as without the stop: Pong played again" in said
    assert str(folder.fact("exact_resume")).startswith("no: went on at step 160 with Pong played again")


def test_a_checkpoint_of_format_1_is_gone_on_from_with_new_games(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--game", "PlaceMatters", "--steps", "800", "--set", "n_envs=4", *EVERY, "--out", str(tmp_path)]
    assert main(words) == 0
    folder = find(tmp_path)
    go_on_from(folder, 600)
    place = max(folder.checkpoints.iterdir())
    state = json.loads((place / "state.json").read_text())
    state["seconds"] = state.pop("marks")["seconds"]
    for name in ("conditions", "games_played"):
        del state[name]
    for name in ("actions.npy", "episode_starts.npy"):
        (place / name).unlink()
    forge(place, state, version=1)
    assert main(words) == 0
    assert "the checkpoint holds no state of the games" in capsys.readouterr().err
    rows = read_rows(folder.progress_file)
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    assert rows[-1]["step"] == 800


def forge(place: Path, state: dict[str, object], version: int = 2) -> None:
    """Write another state into a checkpoint, with a manifest that fits."""
    import hashlib

    (place / "state.json").write_text(json.dumps(state))
    files = {}
    for file in place.iterdir():
        if file.name != "manifest.json":
            data = file.read_bytes()
            files[file.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_json(place / "manifest.json", {"format": version, "step": int(place.name), "files": files})


def test_a_replay_memory_that_cannot_be_read_costs_no_more_than_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*ARMS["all extensions"].split(), "--steps", "1200", "--set", "n_envs=4", *EVERY, "--eval-every", "0"]
    assert start_and_wait(words, tmp_path, "update:250:kill") == -signal.SIGKILL  # at step 996: learning has begun
    folder = find(tmp_path)
    newest = max(folder.checkpoints.glob("[0-9]*"))
    updates = json.loads((newest / "state.json").read_text())["counters"]["_n_updates"]
    assert updates > 0
    for file in folder.replay.iterdir():
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    assert main([*words, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert (
        "an empty replay memory, which fills again before the next update, since the one that was kept is damaged"
        in said
    )
    assert "has changed since it was written" in said
    assert "with an empty replay memory" in str(folder.fact("exact_resume"))
    after = json.loads((max(folder.checkpoints.iterdir()) / "state.json").read_text())["counters"]["_n_updates"]
    left = 1200 - int(newest.name)
    assert updates + (left - 200) // 4 - 3 <= after <= updates + (left - 200) // 4 + 3  # it held back for 200 steps


def test_a_replay_memory_that_the_disk_does_not_give_now_is_not_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*ARMS["all extensions"].split(), "--steps", "480", "--set", "n_envs=4", *EVERY, "--eval-every", "0"]
    assert start_and_wait(words, tmp_path, "update:110:kill") == -signal.SIGKILL
    folder = find(tmp_path)
    before = {file.name: file.read_bytes() for file in folder.replay.iterdir()}
    read = Path.read_bytes

    def fail(self: Path) -> bytes:
        if self.parent == folder.replay:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert main([*words, "--out", str(tmp_path)]) == 74
    assert "cannot be read: Input/output error; mend that" in capsys.readouterr().err
    monkeypatch.undo()
    assert {file.name: file.read_bytes() for file in folder.replay.iterdir()} == before
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert folder.fact("exact_resume") == "yes"


def test_a_checkpoint_without_the_replay_memory_that_it_had_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*ARMS["all extensions"].split(), "--steps", "480", "--set", "n_envs=4", *EVERY, "--eval-every", "0"]
    assert start_and_wait(words, tmp_path, "update:110:kill") == -signal.SIGKILL
    folder = find(tmp_path)
    for place in folder.checkpoints.glob("[0-9]*"):
        state = json.loads((place / "state.json").read_text())
        del state["replay"]
        forge(place, state, version=3)  # nor is it in the manifest
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert "an empty replay memory, which fills again before the next update" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("row", 101),
        ("row", -1),
        ("map", 0.5),
        ("evaluation", True),
        ("games", [[1, 2]]),
        ("games", 3),
        ("seconds", "1"),
    ],
)
def test_marks_that_no_course_made_are_refused(name: str, value: object) -> None:
    marks = {"row": 80, "map": 0, "evaluation": 0, "games": [], "games_finished": 3, "seconds": 1.0}
    assert Marks.of(Checkpoint(100, {}, {}, {"marks": marks})).row == 80
    with pytest.raises(CheckpointError, match="it holds what no training wrote"):
        Marks.of(Checkpoint(100, {}, {}, {"marks": {**marks, name: value}}))


@pytest.mark.slow
def test_every_point_at_which_a_training_can_fail_loses_nothing(tmp_path: Path) -> None:
    words = "--game PlaceMatters --steps 800 --set n_envs=8 --checkpoint-every 160 --eval-every 400 --eval-episodes 1"
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "scripts" / "faults"),
            "--out",
            str(tmp_path),
            "--sample",
            "2",
            "--",
            *words.split(),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "48 trials" in done.stdout


def test_a_resumed_run_reads_the_newest_checkpoint_that_can_be_used(tmp_path: Path) -> None:
    words = ["--game", "PlaceMatters", "--steps", "800", "--set", "n_envs=4", *EVERY, "--out", str(tmp_path)]
    assert main(words) == 0
    folder = find(tmp_path)
    shutil.copytree(folder.path, tmp_path / "whole")
    folder.result_file.unlink()
    newest = max(folder.checkpoints.iterdir())
    state = json.loads((newest / "state.json").read_text())
    forge(newest, {**state, "counters": {**state["counters"], "num_timesteps": "many"}})
    assert main(words) == 0
    assert unlike(tmp_path / "whole", folder.path) == []
    found = read_newest(folder.checkpoints)
    assert found is not None
    assert found.skipped == []
