"""What is in a run's folder is data: it is never run, and a training that goes wrong leaves it whole."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import coordrl
from coordrl.arrays import parse_array
from coordrl.errors import RequestError
from coordrl.files import read_rows, write_json
from coordrl.recipes import find_recipe
from coordrl.results import RunFolder, Spec
from coordrl.train import main
from coordrl.training import _patience

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

# Refuses every class that a pickle asks for, every torch.load, and every code that is compiled from text while a run is
# used: what is imported first is ours.
GUARD = """
import runpy, sys
import torch, ale_py, stable_baselines3, matplotlib, tyro, rich.progress, imageio_ffmpeg
import coordrl.training, coordrl.evaluate, coordrl.play, coordrl.train, coordrl.ablation, coordrl.lockstep, coordrl.video
from pathlib import Path
def refuse(*_, **__):
    raise SystemExit("torch.load was called")
torch.load = refuse
run = str(Path(sys.argv[1]).resolve())
def hook(event, arguments):
    if event == "pickle.find_class":
        print("UNPICKLED", arguments, file=sys.stderr, flush=True); import os; os._exit(99)
    if event in ("exec", "compile") and run in str(getattr(arguments[0], "co_filename", arguments[-1])):
        print("EXECUTED", arguments, file=sys.stderr, flush=True); import os; os._exit(98)
    if event == "import" and run in str(arguments[1]):
        print("IMPORTED", arguments, file=sys.stderr, flush=True); import os; os._exit(97)
sys.addaudithook(hook)
module = __import__("importlib").import_module("coordrl." + sys.argv[2])
sys.exit(module.main(sys.argv[3:]))
"""


class Betrayal:
    """Makes a file when it is unpickled."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> Any:
        return Path.touch, (self.sign,)


@pytest.fixture
def planted(finished_run: RunFolder, tmp_path: Path) -> tuple[RunFolder, Path, list[str]]:
    """A copy of a run that could go on, with files in it that betray themselves if they are run."""
    out = tmp_path / "runs"
    folder = RunFolder(finished_run.read_spec().folder(out))
    shutil.copytree(finished_run.path, folder.path)
    folder.result_file.unlink()
    shutil.rmtree(folder.checkpoints / "000000002400")
    sign = tmp_path / "betrayed"
    poison = pickle.dumps(Betrayal(sign))
    for name in ("model.zip", "replay_buffer.pkl", "policy.pth", "data.pkl", "vecnormalize.pkl", "recipe.pkl"):
        (folder.path / name).write_bytes(poison)
    code = f"open({str(sign)!r}, 'w').close()\n"
    for name in (
        "sitecustomize.py",
        "usercustomize.py",
        "torch.py",
        "coordrl.py",
        "conftest.py",
        "json.py",
        "policy.py",
    ):
        (folder.path / name).write_text(code)
    (folder.path / "evil.pth").write_text(f"import os; {code}")
    words = json.loads(folder.spec_file.read_text())["command"].split()[2:]
    return folder, sign, [*words[: words.index("--out")], "--out", str(out)]


def guarded(folder: RunFolder, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the guard, in the run's own folder."""
    return subprocess.run(
        [sys.executable, "-P", "-c", GUARD, str(folder.path), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        cwd=folder.path,
    )


@pytest.mark.slow
def test_nothing_in_a_run_is_unpickled_or_run_while_it_is_used(planted: tuple[RunFolder, Path, list[str]]) -> None:
    folder, sign, words = planted
    run = str(folder.path)
    for command in (
        ["evaluate", run, "--episodes", "1"],
        ["play", run, "--max-steps", "20", "--video", str(sign.with_name("game.mp4"))],
        ["train", *words],
    ):
        done = guarded(folder, *command)
        assert done.returncode == 0, done.stderr
        assert not sign.exists()
    assert folder.is_finished(folder.read_spec())
    model = coordrl.load(run, device="cpu")
    model.get_env().close()  # type: ignore[union-attr]
    assert not sign.exists()


def test_the_guard_itself_would_notice(planted: tuple[RunFolder, Path, list[str]]) -> None:
    folder, _, _ = planted
    guard = GUARD.replace(
        'module = __import__("importlib").import_module("coordrl." + sys.argv[2])', sign_reader(folder)
    )
    words = [sys.executable, "-P", "-c", guard, str(folder.path), "evaluate"]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=300, env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 99, done.stderr
    assert "UNPICKLED" in done.stderr


def sign_reader(folder: RunFolder) -> str:
    return f"import pickle; pickle.loads(Path({str(folder.export_file)!r}).read_bytes())"


@pytest.mark.parametrize("name", ["progress.jsonl", "lock", "checkpoints", "tensorboard", "anything"])
def test_links_in_a_run_are_refused_and_nothing_is_written_through_them(
    name: str, planted: tuple[RunFolder, Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, words = planted
    precious = tmp_path / "precious"
    precious.write_text("mine\n")
    place = folder.path / name
    if place.is_dir():
        shutil.rmtree(place)
        precious.unlink()
        precious.mkdir()
        (precious / "mine").write_text("mine\n")
    else:
        place.unlink(missing_ok=True)
    place.symlink_to(precious)
    assert main(words) == 2
    assert f"{place} is no file of its own but a link" in capsys.readouterr().err
    with pytest.raises(RequestError, match="is no file of its own but a link"):
        coordrl.load(folder.path, device="cpu")
    assert (precious / "mine" if precious.is_dir() else precious).read_text() == "mine\n"


def test_a_hard_link_in_a_run_is_refused(
    planted: tuple[RunFolder, Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, words = planted
    (tmp_path / "backup.jsonl").hardlink_to(folder.progress_file)
    before = folder.progress_file.read_bytes()
    assert main(words) == 2
    assert "is the same file as one elsewhere (a hard link)" in capsys.readouterr().err
    assert (tmp_path / "backup.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["checkpoints", "coordinates", "tensorboard", "diverged"])
def test_a_file_where_a_folder_belongs_is_named(
    name: str, planted: tuple[RunFolder, Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, words = planted
    shutil.rmtree(folder.path / name, ignore_errors=True)
    (folder.path / name).write_text("")
    assert main(words) == 2
    assert f"{folder.path / name} is a file, where a training has a folder" in capsys.readouterr().err


def test_the_workers_of_a_comparison_import_nothing_from_the_folder_it_is_started_in(tmp_path: Path) -> None:
    sign = tmp_path / "betrayed"
    for name in ("torch", "json", "coordrl", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(sign)!r}, 'w').close()\n")
    words = "--suite PlaceMatters --extractors coord-pool --seeds 1 --steps 80 --set n_envs=4 --out ."
    done = subprocess.run(
        [sys.executable, "-P", "-m", "coordrl.compare", *words.split()],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("*/*/*/seed-0/result.json"))
    assert not sign.exists()


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("game", "../../etc", "there is no game"),
        ("game", 3, "object has no attribute"),
        ("agent", "../../../tmp/x", 'agent is "../../../tmp/x"'),
        ("extractor", "os.system", "there is no extractor"),
        ("protocol", "zoo-v5", "there is no protocol"),
        ("protocol", "controls-v1", "too small"),
        ("seed", "7", "seed is '7'"),
        ("seed", -1, "seed is -1"),
        ("steps", 1e300, "steps is 1e+300"),
        ("steps", True, "steps is True"),
        ("settings", {"n_envs": 10**9}, "with other settings"),
    ],
)
def test_a_spec_that_no_training_wrote_is_refused(
    name: str, value: Any, complaint: str, finished_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from coordrl.evaluate import main as evaluate

    shutil.copytree(finished_run.path, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    facts = json.loads(folder.spec_file.read_text())
    facts["spec"][name] = value
    write_json(folder.spec_file, facts)
    assert evaluate([str(folder.path), "--episodes", "1"]) == 2
    said = capsys.readouterr().err
    assert "run.json cannot be read" in said
    assert complaint in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("setting", [("n_envs", 10**9), ("n_envs", "4"), ("learning_rate", -1.0), ("gamma", [])])
def test_a_setting_against_its_rule_in_run_json_is_refused(
    setting: tuple[str, Any], finished_run: RunFolder, tmp_path: Path
) -> None:
    shutil.copytree(finished_run.path, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    facts = json.loads(folder.spec_file.read_text())
    facts["spec"]["settings"][setting[0]] = setting[1]
    write_json(folder.spec_file, facts)
    with pytest.raises(RequestError, match=f"{setting[0]} is "):
        folder.read_spec()


@pytest.mark.parametrize(
    "line", ['{"step": 0}', '{"step": 0, "seconds": "x", "steps_per_second": []}', '{"step": 0, "train": 3}']
)
def test_a_log_that_no_training_wrote_is_a_line_and_no_traceback(
    line: str, planted: tuple[RunFolder, Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, words = planted
    folder.progress_file.write_text(line + "\n" + folder.progress_file.read_text())
    assert main(words) == 74
    said = capsys.readouterr().err
    assert "hold what no training wrote" in said
    assert "Traceback" not in said


def test_a_row_cut_in_the_middle_costs_nothing(tmp_path: Path) -> None:
    words = ["--game", "PlaceMatters", "--steps", "800", "--set", "n_envs=4", "--checkpoint-every", "200"]
    words += ["--eval-every", "0", "--out", str(tmp_path)]
    assert main(words) == 0
    folder = RunFolder(next(tmp_path.glob("*/*/*/seed-*/run.json")).parent)
    whole = read_rows(folder.progress_file)
    folder.result_file.unlink()
    shutil.rmtree(folder.checkpoints / "000000000800")
    folder.progress_file.write_bytes(folder.progress_file.read_bytes()[:-30])
    assert main(words) == 0
    again = read_rows(folder.progress_file)
    assert [(row["step"], row["games"], row["train"]) for row in again] == [
        (row["step"], row["games"], row["train"]) for row in whole
    ]


def test_a_diverged_training_leaves_the_batch_it_stumbled_over(tmp_path: Path) -> None:
    words = "--game PlaceMatters --steps 4000 --eval-every 0 --checkpoint-every 40 --set n_envs=4 learning_rate=1e5"
    assert main([*words.split(), "max_grad_norm=1e30", "--out", str(tmp_path)]) == 70
    folder = RunFolder(next(tmp_path.glob("*/*/*/seed-*/run.json")).parent)
    batch = {file.stem: parse_array(file.read_bytes()) for file in folder.diverged_batch.glob("*.npy")}
    n_steps = folder.read_spec().settings["n_steps"]
    assert batch["observations"].shape == (n_steps, 4, 1, 8, 8)
    assert batch["observations"].dtype == np.uint8
    for name in ("rewards", "returns", "advantages", "values", "log_probs", "episode_starts"):
        assert batch[name].shape == (n_steps, 4)


HANG = """
import sys, threading, numpy as np
import coordrl.watchdog, coordrl.atari
coordrl.watchdog.STALL_SECONDS = 5.0
real, count = coordrl.atari.AtariVecEnv.step_async, 0
def step_async(self, actions):
    global count
    count += 1
    real(self, actions)
    if count == 120:  # the emulator waits for ever for a step that nobody asked for
        self._ale.recv()
coordrl.atari.AtariVecEnv.step_async = step_async
from coordrl.train import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("agent", "overrides", "times"),
    [
        ("a2c", [], 1.0),
        ("a2c", ["n_envs=500", "n_steps=100"], 10.0),
        ("dqn", ["n_steps=1000"], 1.0),  # of its returns: nothing waits for them
        ("dqn", ["gradient_steps=2000", "n_envs=1"], 2.0),
        ("apex", [], 1.0),
    ],
)
def test_the_watchdog_waits_longer_where_a_single_turn_is_a_long_one(
    agent: str, overrides: list[str], times: float
) -> None:
    recipe = find_recipe(agent, overrides)
    spec = Spec("Pong", agent, recipe.algorithm, "coord", "zoo-v4", 0, 1000, recipe.settings)
    assert _patience(spec) == times


def test_a_hanging_emulator_is_left_with_its_stacks_and_the_run_goes_on(tmp_path: Path) -> None:
    request = "--game Pong --steps 400 --set n_envs=2 --checkpoint-every 80 --eval-every 0 --workers 1"
    words = [*request.split(), "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", HANG, *words], capture_output=True, text=True, check=False, timeout=120, env=ENVIRONMENT
    )
    assert done.returncode == 74, done.stderr
    assert "nothing has moved for 5 s, most likely the emulator hangs" in done.stderr
    folder = RunFolder(next(tmp_path.glob("*/*/*/seed-*/run.json")).parent)
    assert "in _receive" in folder.stacks_file.read_text()
    assert max(path.name for path in folder.checkpoints.iterdir()) == "000000000160"
    assert main(words) == 0


@pytest.mark.slow
def test_a_process_that_was_stopped_for_a_while_is_no_hanging_one(tmp_path: Path) -> None:
    script = "import sys, coordrl.watchdog as w; w.STALL_SECONDS = 3.0; from coordrl.train import main; sys.exit(main(sys.argv[1:]))"
    words = "--game PlaceMatters --steps 6000 --set n_envs=4 --eval-every 0"
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words.split(), "--out", str(tmp_path)], stderr=subprocess.PIPE, env=ENVIRONMENT
    )
    while not list(tmp_path.glob("*/*/*/seed-*/progress.jsonl")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGSTOP)
    time.sleep(5)
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def test_a_clock_that_is_set_back_a_day_bends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "--game",
        "PlaceMatters",
        "--steps",
        "1600",
        "--set",
        "n_envs=4",
        "--eval-every",
        "400",
        "--eval-episodes",
        "1",
    ]
    words += ["--out", str(tmp_path)]
    real, calls = time.time, 0

    def set_back() -> float:
        nonlocal calls
        calls += 1
        return real() - (86_400 if calls > 60 else 0)  # in the middle of the training

    monkeypatch.setattr(time, "time", set_back)
    assert main(words) == 0
    monkeypatch.undo()
    assert calls > 200
    folder = RunFolder(next(tmp_path.glob("*/*/*/seed-*/run.json")).parent)
    rows = read_rows(folder.progress_file)
    assert 0 < json.loads(folder.result_file.read_text())["seconds"] < 600
    assert all(row["steps_per_second"] > 0 for row in rows)
    accumulator = EventAccumulator(str(folder.tensorboard), size_guidance={"scalars": 0})
    accumulator.Reload()
    assert [event.step for event in accumulator.Scalars("train/value_loss")] == [row["step"] for row in rows]


@pytest.mark.slow
def test_nothing_listens_but_on_loopback(tmp_path: Path, finished_run: RunFolder) -> None:
    shutil.copytree(finished_run.path, finished_run.read_spec().folder(tmp_path / "c"))
    trainings = [
        f"train --game Pong --steps 100000 --workers 2 --eval-every 0 --out {tmp_path / 'a'}",
        f"compare --suite Pong --seeds 1 --steps 100000 --out {tmp_path / 'b'}",
        f"board {tmp_path / 'c'} --port 0",
    ]
    for words in map(str.split, trainings):
        process = subprocess.Popen(
            [sys.executable, "-m", f"coordrl.{words[0]}", *words[1:]],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
            start_new_session=True,
        )
        try:
            heard: set[str] = set()
            until = time.monotonic() + (90 if words[0] == "board" else 12)
            while time.monotonic() < until and process.poll() is None:
                heard |= listening(tree(process.pid))
                if words[0] == "board" and heard:
                    break
                time.sleep(0.2)
            assert process.poll() is None
            assert heard <= {"127.0.0.1", "::1"}, words
            assert bool(heard) == (words[0] == "board")  # this test does see sockets that listen
        finally:
            for pid in reversed(tree(process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def tree(pid: int) -> list[int]:
    """Return a process and all that came from it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue
        for child in children:
            found += tree(int(child))
    return found


def listening(pids: list[int]) -> set[str]:
    """Return the addresses on which processes wait for TCP connections, and those of all their UDP sockets."""
    inodes = set()
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = str(fd.readlink())
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            waits = fields[3] == "0A" or table.startswith("udp")
            if waits and fields[9] in inodes:
                found.add(readable(fields[1].split(":")[0]))
    return found


def readable(address: str) -> str:
    import ipaddress

    words = [bytes.fromhex(address[start : start + 8])[::-1] for start in range(0, len(address), 8)]
    return str(ipaddress.ip_address(b"".join(words)))
