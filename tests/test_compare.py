"""coordrl.compare from end to end: real trainings as worker processes, real signals, real files."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trainings import workers_of

from coordrl.attempts import attempts_file, count_attempts, record_start
from coordrl.backends import LocalBackend, Work
from coordrl.compare import main
from coordrl.files import write_json
from coordrl.launch import Launcher, read_progress, survey, train_words
from coordrl.plan import make_plan, read_plan, write_plan
from coordrl.process import allowed_cores, available_memory
from coordrl.results import RunFolder
from coordrl.slurm import write_script
from coordrl.suites import CONTROLS

COMMAND = [sys.executable, "-m", "coordrl.compare"]
# Two games, two arms, one seed: four runs of a few seconds each.
WORDS = "--suite Pong,Breakout --extractors nature,coord --seeds 1 --steps 160 --set n_envs=2 --checkpoint-every 40"


def compare(words: str, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words.split(), "--out", str(out)], capture_output=True, text=True, timeout=400, check=False
    )


STARTED: list[subprocess.Popen[Any]] = []


@pytest.fixture(autouse=True)
def _end_what_a_failed_test_leaves() -> Iterator[None]:
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()
        process.communicate()


def start(words: str, out: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*COMMAND, *words.split(), "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    STARTED.append(process)
    return process


def wait_for(condition: Any, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.05)


def attempts(out: Path, event: str = "end") -> list[dict[str, Any]]:
    file = attempts_file(out)
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [row for row in rows if row["event"] == event]


def assert_each_cell_is_finished_once(out: Path) -> None:
    plan = read_plan(out)
    assert {state.state for state in survey(plan, out)} == {"done"}
    done = Counter(row["cell"] for row in attempts(out) if row["state"] == "done")
    assert set(done) <= {cell.folder for cell in plan.runs}
    assert set(done.values()) == {1}
    for cell in plan.runs:
        facts = json.loads((cell.path(out) / "run.json").read_text())
        assert facts["plan"] == plan.hash


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("compared")
    return out, compare(WORDS, out)


def test_every_cell_of_the_matrix_is_run_and_carries_the_hash_of_the_plan(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, done = finished
    assert done.returncode == 0, done.stderr
    assert "4 of 4 runs done" in done.stderr
    assert f"coordrl report {out}" in done.stderr
    assert "Traceback" not in done.stderr
    assert_each_cell_is_finished_once(out)
    assert len(attempts(out)) == 4
    assert sorted(row["cell"] for row in attempts(out, "start")) == sorted(row["cell"] for row in attempts(out))


def test_the_arms_of_a_seed_and_game_are_started_as_a_block(finished: tuple[Path, Any]) -> None:
    plan = read_plan(finished[0])
    assert [(cell.spec.game, cell.arm.extractor) for cell in plan.runs] == [
        ("Pong", "nature"),
        ("Pong", "coord"),
        ("Breakout", "nature"),
        ("Breakout", "coord"),
    ]


def test_a_worker_has_one_thread_and_its_own_core(finished: tuple[Path, Any]) -> None:
    out, _ = finished
    hardware = [json.loads((cell.path(out) / "run.json").read_text())["hardware"] for cell in read_plan(out).runs]
    each = max(1, len(allowed_cores()) // min(len(allowed_cores()), 4))
    assert {(facts["torch_threads"], facts["cores"]) for facts in hardware} == {(each, each)}


def test_the_same_command_again_runs_nothing(finished: tuple[Path, Any]) -> None:
    out, _ = finished
    before = attempts(out)
    again = compare(WORDS, out)
    assert again.returncode == 0
    assert "4 of 4 runs done" in again.stderr
    assert attempts(out) == before


def test_a_dry_run_shows_the_matrix_and_what_is_done_and_writes_nothing(
    finished: tuple[Path, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    out, _ = finished
    files = sorted(out.rglob("*"))
    assert main([*WORDS.split(), "--out", str(out), "--dry-run"]) == 0
    shown = capfd.readouterr().out
    assert "as written" in shown
    assert shown.count("#\n") == 4
    assert "nothing is left to run" in shown
    assert sorted(out.rglob("*")) == files


@pytest.mark.slow
def test_a_dry_run_measures_what_the_rest_will_cost(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = "--suite Pong --extractors nature,coord --seeds 2 --steps 800 --set n_envs=4 --workers 2 --dry-run"
    assert main([*words.split(), "--out", str(tmp_path / "runs")]) == 0
    shown = capfd.readouterr().out
    assert "not written yet" in shown
    assert shown.count("..\n") == 2
    for arm in ("a2c-nature: ", "a2c-coord: "):
        assert arm in shown
    assert "4 runs are left: " in shown
    assert "GB are free there" in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_dry_run_tells_what_replay_memories_take(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = "--suite Pong --agents dqn --extractors coord --seeds 3 --steps 400 --workers 2 --dry-run"
    assert main([*words.split(), "--out", str(tmp_path / "runs")]) == 0
    shown = capfd.readouterr().out
    assert "memory: 1.5 GB of replay memories at a time" in shown  # two of 100,000 transitions
    assert "and up to 1.5 GB meanwhile for replay memories" in shown


def test_replay_memories_that_fit_alone_but_not_together_are_refused_before_anything_runs(tmp_path: Path) -> None:
    free = available_memory()
    assert free is not None
    size = int(0.7 * free / 7_400)  # bytes a transition
    words = f"--suite Pong --agents dqn --extractors coord --seeds 2 --steps 400 --set buffer_size={size}"
    done = compare(f"{words} --workers 2", tmp_path / "runs")
    assert done.returncode == 2
    assert "2 runs at a time take" in done.stderr
    assert "and so would --workers 1" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_more_seeds_extend_the_plan_openly_and_fewer_are_refused(tmp_path: Path) -> None:
    plan = make_plan("Pong", ["a2c"], ["nature"], 1, 80, overrides=["n_envs=2"], eval_every=0)
    write_plan(tmp_path, plan)
    words = "--suite Pong --extractors nature --steps 80 --set n_envs=2"
    done = compare(f"{words} --seeds 2", tmp_path)
    assert done.returncode == 0, done.stderr
    extended = read_plan(tmp_path)
    assert extended.seeds == (0, 1)
    assert [extension.hash_before for extension in extended.extensions] == [plan.hash]
    assert_each_cell_is_finished_once(tmp_path)
    fewer = compare(f"{words} --seeds 1", tmp_path)
    assert fewer.returncode == 2
    assert "a plan does not shrink" in fewer.stderr


@pytest.mark.slow
def test_a_killed_worker_goes_on_from_its_checkpoint_with_the_same_seed(tmp_path: Path) -> None:
    words = "--suite Pong --extractors coord --seeds 1 --steps 1500 --set n_envs=4 --checkpoint-every 100"
    launcher = start(words, tmp_path)
    run = RunFolder(tmp_path / "zoo-v4" / "a2c-coord" / "Pong" / "seed-0")
    wait_for(lambda: len(list(run.checkpoints.glob("0*"))) > 1)
    os.kill(workers_of(tmp_path)[0], signal.SIGKILL)
    _, said = launcher.communicate(timeout=200)
    assert launcher.returncode == 0, said
    assert "was ended by signal 9; it goes on from its checkpoint" in said
    assert [row["exit_code"] for row in attempts(tmp_path)] == [-9, 0]
    assert "going on from the checkpoint at step" in next((tmp_path / "compare" / "logs").iterdir()).read_text()
    assert_each_cell_is_finished_once(tmp_path)


@pytest.mark.parametrize(
    "how",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_launcher_leaves_no_worker_and_the_same_command_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    words = "--suite Pong --extractors nature,coord --seeds 1 --steps 1500 --set n_envs=4 --checkpoint-every 100"
    launcher = start(words, tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("zoo-v4/*/Pong/seed-0/checkpoints/0*"))) > 1)
    launcher.send_signal(how)
    _, said = launcher.communicate(timeout=100)
    assert launcher.returncode == (-9 if how == signal.SIGKILL else 128 + how)
    if how != signal.SIGKILL:
        assert "the same command goes on" in said
        assert workers_of(tmp_path) == []
    wait_for(lambda: workers_of(tmp_path) == [], seconds=60)
    again = compare(words, tmp_path)
    assert again.returncode == 0, again.stderr
    plan = read_plan(tmp_path)
    assert {state.state for state in survey(plan, tmp_path)} == {"done"}
    # An attempt that was killed together with its launcher has a start and no end.
    assert count_attempts(tmp_path) == dict(Counter(row["cell"] for row in attempts(tmp_path, "start")))
    assert max(count_attempts(tmp_path).values()) == 2
    assert len(attempts(tmp_path, "start")) > len(attempts(tmp_path)) or how != signal.SIGKILL
    for cell in plan.runs:
        rows = [json.loads(line) for line in (cell.path(tmp_path) / "progress.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})


@pytest.mark.slow
def test_two_launchers_on_one_folder_do_not_collide(tmp_path: Path) -> None:
    words = "--suite Pong --extractors nature --seeds 1 --steps 100000 --set n_envs=4"
    first = start(words, tmp_path)
    wait_for(lambda: list(tmp_path.glob("zoo-v4/*/Pong/seed-0/run.json")))
    second = compare(words, tmp_path)
    assert second.returncode == 75
    assert f"in use by process {first.pid}" in second.stderr
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=100)


@pytest.mark.slow
def test_a_run_that_never_succeeds_is_given_up_and_reported_and_the_others_are_done(tmp_path: Path) -> None:
    words = "--suite Pong --extractors nature,coord --seeds 1 --steps 80 --set n_envs=2 --retries 1"
    broken = tmp_path / "zoo-v4" / "a2c-coord" / "Pong" / "seed-0"
    (broken / "checkpoints" / "000000000040").mkdir(parents=True)  # with nothing in it: no checkpoint can be read
    done = compare(words, tmp_path)
    assert done.returncode == 1
    assert "given up after 2 crashes without progress" in done.stderr
    assert "failed: zoo-v4/a2c-coord/Pong/seed-0, exit code 74" in done.stderr
    assert "1 of 2 runs done" in done.stderr
    (broken / "checkpoints" / "000000000040").rmdir()
    again = compare(words, tmp_path)
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_a_run_that_diverges_counts_and_is_not_tried_again(tmp_path: Path) -> None:
    words = (
        "--suite Pong --extractors nature --seeds 1 --steps 4000 --set n_envs=2 learning_rate=1e5 max_grad_norm=1e30"
    )
    done = compare(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 runs done, 1 of them diverged" in done.stderr
    assert [row["exit_code"] for row in attempts(tmp_path)] == [70]
    assert compare(words, tmp_path).returncode == 0
    assert len(attempts(tmp_path)) == 1


def test_a_suite_alone_is_enough_for_a_plan_with_what_is_usual_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from coordrl import compare as command

    monkeypatch.setattr(command, "_print_cost", lambda plan, arguments: None)
    planned = []
    monkeypatch.setattr(command, "_print_matrix", lambda plan, states, is_written: planned.append(plan))
    for words in ("--suite controls", "--suite atari9"):
        assert main([*words.split(), "--dry-run", "--out", "/nonexistent"]) == 0
    controls, atari = planned
    assert (controls.agents, controls.extractors) == (("a2c-controls",), ("pool", "coord-pool"))
    assert (controls.protocol, controls.steps, len(controls.seeds)) == ("controls-v1", CONTROLS.steps, 10)
    assert (atari.agents, atari.extractors) == (("a2c",), ("nature", "coord"))
    assert (atari.protocol, atari.steps) == ("zoo-v4", 10_000_000)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--suite atari8", 'no suite "atari8"; did you mean atari9'),
        ("--suite Pong,PlaceMatters", "PlaceMatters is not played under zoo-v4; its protocol is controls-v1"),
        ("--suite controls --protocol zoo-v4", "PlaceMatters is not played under zoo-v4"),
        ("--suite controls --extractors nature,coord", "too small for the extractor nature"),
        ("--agents a2", 'no agent "a2"; did you mean a2c?'),
        ("--extractors nature,cord", 'no extractor "cord"; did you mean coord'),
        ("--extractors nature,nature", "--extractors has nature twice"),
        ("--extractors ,", "--extractors is empty"),
        ("--seeds 0", "--seeds is 0"),
        ("--steps 0", "--steps is 0"),
        ("--workers -1", "--workers is -1"),
        ("--backend rey", 'no backend "rey"; did you mean ray?'),
        ("--backend ray", "--address names the cluster"),
        ("--address 127.0.0.1:6379", "--address names the cluster"),
        ("--backend ray --address nowhere", '--address is "nowhere"; it is HOST:PORT'),
        ("--backend ray --address 127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1"),
    ],
)
def test_a_wrong_request_is_one_line_exit_2_and_nothing_started(
    words: str, complaint: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    assert main([*words.split(), "--out", str(out)]) == 2
    said = capfd.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_the_folder_of_another_comparison_or_run_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_plan(tmp_path, make_plan("Pong", ["a2c"], ["nature"], 1, 80, eval_every=0))
    assert (
        main(["--suite", "Pong", "--extractors", "nature", "--seeds", "1", "--steps", "90", "--out", str(tmp_path)])
        == 2
    )
    assert "holds another comparison: steps is 80 there and 90 here" in capfd.readouterr().err
    other = tmp_path / "other"
    plan = make_plan("Pong", ["a2c"], ["nature"], 1, 80, eval_every=0)
    run = plan.runs[0].path(other)
    run.mkdir(parents=True)
    spec = {**plan._data()["runs"][0]["spec"], "steps": 7}
    (run / "run.json").write_text(json.dumps({"spec": spec}))
    words = ["--suite", "Pong", "--extractors", "nature", "--seeds", "1", "--steps", "80", "--out", str(other)]
    assert main(words) == 2
    assert "holds another run than the plan's: steps is 7" in capfd.readouterr().err
    assert not (other / "plan.json").exists()


@pytest.mark.slow
def test_a_recipe_of_ones_own_is_copied_beside_the_plan(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        (Path(__file__).parent.parent / "agents" / "a2c.toml").read_text().replace("n_envs = 16", "n_envs = 2")
    )
    out = tmp_path / "runs"
    done = compare(f"--suite Pong --agents {recipe} --extractors nature --seeds 1 --steps 80", out)
    assert done.returncode == 0, done.stderr
    assert (out / "compare" / "recipes" / "mine.toml").read_text() == recipe.read_text()
    copy = out / "compare" / "recipes" / "mine.toml"  # as a report's command names it
    again = compare(f"--suite Pong --agents {copy} --extractors nature --seeds 1 --steps 80", out)
    assert "1 of 1 runs done" in again.stderr
    assert (out / "zoo-v4" / "mine-nature" / "Pong" / "seed-0" / "result.json").exists()


def test_runs_of_another_plan_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    first = make_plan("PlaceMatters", ["a2c-controls"], ["coord-pool"], 1, 80, overrides=["n_envs=2"], eval_every=0)
    words = "--suite PlaceMatters,PlaceIsNoise --extractors coord-pool --seeds 1 --steps 80 --set n_envs=2"
    (cell,) = first.runs
    folder = RunFolder(cell.path(tmp_path))
    folder.path.mkdir(parents=True)
    write_json(folder.spec_file, {"spec": asdict(cell.spec), "plan": first.hash})
    for more in ("--dry-run", ""):
        done = compare(f"{words} {more}", tmp_path)
        assert done.returncode == 2
        assert f"belongs to the plan '{first.hash}', and this one is" in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "plan.json").exists()


def test_what_the_report_will_not_say_is_said_before_time_is_spent(tmp_path: Path) -> None:
    words = "--suite Enduro,Pong --extractors nature --seeds 1 --steps 80 --set n_envs=2 --backend slurm"
    plan = make_plan("Enduro,Pong", ["a2c"], ["nature"], 1, 80, overrides=["n_envs=2"], eval_every=0)
    folder = RunFolder(plan.runs[0].path(tmp_path))
    folder.path.mkdir(parents=True)
    write_json(folder.spec_file, {"spec": asdict(plan.runs[0].spec), "plan": None})
    done = compare(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no scores of random and human play are known for Enduro: compared game by game there" in done.stderr
    assert "1 of 2 runs were begun before the plan, so the report will describe and give no verdict" in done.stderr


def test_the_slurm_script_asks_for_what_the_runs_need(tmp_path: Path) -> None:
    words = "--suite Pong --agents dqn --extractors nature --seeds 1 --steps 80 --backend slurm --device cuda"
    assert compare(f"{words} --set buffer_size=1_000_000", tmp_path).returncode == 0
    text = (tmp_path / "compare" / "slurm.sh").read_text()
    assert "#SBATCH --mem=11G\n#SBATCH --gres=gpu:1\n" in text


@pytest.mark.slow
def test_an_agent_with_a_name_as_long_as_a_files_is_compared(tmp_path: Path) -> None:
    recipe = tmp_path / f"{'m' * 215}.toml"
    recipe.write_text((Path(__file__).parent.parent / "agents" / "a2c.toml").read_text())
    done = compare(f"--suite Pong --agents {recipe} --extractors nature --seeds 1 --steps 80 --set n_envs=2", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 runs done" in done.stderr


def test_the_slurm_script_is_sound_and_each_of_its_tasks_makes_one_run(tmp_path: Path) -> None:
    done = compare(f"{WORDS} --backend slurm --workers 3", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nothing was submitted" in done.stdout
    script = tmp_path / "compare" / "slurm.sh"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    text = script.read_text()
    assert "#SBATCH --array=0-3%3" in text
    assert "#SBATCH --requeue" in text
    task = {**os.environ, "SLURM_ARRAY_TASK_ID": "2"}
    for _ in range(2):  # a second time says that it is finished
        assert subprocess.run(["bash", script], env=task, capture_output=True, timeout=120, check=False).returncode == 0
    states = [state.state for state in survey(read_plan(tmp_path), tmp_path)]
    assert states == ["waiting", "waiting", "done", "waiting"]
    unset = {name: value for name, value in os.environ.items() if name != "SLURM_ARRAY_TASK_ID"}
    assert subprocess.run(["bash", script], env=unset, capture_output=True, timeout=60, check=False).returncode != 0


@pytest.mark.slow
def test_a_slurm_task_that_gets_sigterm_writes_a_checkpoint_and_asks_to_be_queued_again(tmp_path: Path) -> None:
    words = "--suite Pong --extractors nature --seeds 1 --steps 100000 --set n_envs=4 --backend slurm"
    assert compare(words, tmp_path / "runs").returncode == 0
    fake = tmp_path / "bin" / "scontrol"  # Slurm itself does not run here
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    fake.chmod(0o755)
    environment = {
        **os.environ,
        "SLURM_ARRAY_TASK_ID": "0",
        "SLURM_JOB_ID": "17",
        "PATH": f"{fake.parent}:{os.environ['PATH']}",
    }
    task = subprocess.Popen(
        ["bash", tmp_path / "runs" / "compare" / "slurm.sh"], env=environment, stderr=subprocess.DEVNULL
    )
    run = RunFolder(tmp_path / "runs" / "zoo-v4" / "a2c-nature" / "Pong" / "seed-0")
    wait_for(lambda: read_progress(run).step > 0)
    task.send_signal(signal.SIGTERM)
    assert task.wait(timeout=60) == 143
    assert list(run.checkpoints.glob("0*"))
    assert (tmp_path / "asked").read_text() == "requeue 17\n"


class Slurm:
    """Runs the first task of a script with a stand-in for the training, which ends with the code that it is told to."""

    def __init__(self, out: Path, place: Path, retries: int) -> None:
        plan = make_plan("Pong", ["a2c"], ["nature"], 1, 1000, eval_every=0)
        self.script = write_script(plan, out, workers=0, retries=retries)
        self.checkpoints = RunFolder(plan.runs[0].path(out)).checkpoints
        self.checkpoints.mkdir(parents=True)
        self._place = place
        training = place / "training"
        training.write_text(
            f'#!/bin/sh\nread -r code <"{place}/code"\n[ "$code" != wait ] || exec sleep 5\nexit "$code"\n'
        )
        scontrol = place / "scontrol"
        scontrol.write_text(f'#!/bin/sh\necho "$@" >> "{place}/asked"\n')
        for program in (training, scontrol):
            program.chmod(0o755)
        text = self.script.read_text().replace(
            f"\n{shlex.quote(sys.executable)} -P", f"\n{shlex.quote(str(training))} -P"
        )
        self.script.write_text(text)

    def start(self, code: str, restarts: int = 0) -> subprocess.Popen[str]:
        (self._place / "code").write_text(f"{code}\n")
        environment = {
            **os.environ,
            "SLURM_ARRAY_TASK_ID": "0",
            "SLURM_JOB_ID": "17",
            "PATH": f"{self._place}:/usr/bin:/bin",
        }
        task = subprocess.Popen(
            ["bash", self.script],
            env={**environment, "SLURM_RESTART_COUNT": str(restarts)},
            stderr=subprocess.DEVNULL,
            text=True,
        )
        STARTED.append(task)
        return task

    def requeued(self, code: str, restarts: int = 0) -> bool:
        """Run the task, and say whether it asked to be queued again."""
        asked = self.asked()
        self.start(code, restarts).wait(timeout=30)
        return self.asked() > asked

    def asked(self) -> int:
        file = self._place / "asked"
        return file.read_text().count("requeue 17\n") if file.exists() else 0


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    (tmp_path / "bin").mkdir()
    return Slurm(tmp_path / "runs of 1 plan", tmp_path / "bin", retries=2)


def test_a_slurm_task_that_crashes_uses_up_its_retries(slurm: Slurm) -> None:
    assert subprocess.run(["bash", "-n", slurm.script], check=False).returncode == 0
    assert [slurm.requeued("1") for _ in range(3)] == [True, True, False]
    assert [slurm.requeued(code) for code in ("74", "1", "137")] == [True, True, False]  # submitted again by hand


def test_a_slurm_task_whose_node_failed_or_that_was_preempted_keeps_its_retries(slurm: Slurm) -> None:
    assert [slurm.requeued("1", restarts=restarts) for restarts in (40, 41)] == [True, True]
    for restarts in (42, 43):  # preempted: Slurm sends SIGTERM, and the training ends with 143 after a checkpoint
        assert slurm.requeued("143", restarts=restarts)
    failed = slurm.start(
        "wait", restarts=44
    )  # the node fails: the script ends with it, and Slurm itself queues it again
    time.sleep(0.5)
    failed.kill()
    failed.wait()
    assert not slurm.requeued("1", restarts=45)  # the third crash


def test_a_slurm_task_that_came_to_a_new_checkpoint_begins_its_count_anew(slurm: Slurm) -> None:
    assert [slurm.requeued("1") for _ in range(2)] == [True, True]
    (slurm.checkpoints / "000000000100").mkdir()
    (slurm.checkpoints / ".000000000200.partial").mkdir()
    assert [slurm.requeued("1") for _ in range(3)] == [True, True, False]


def test_a_slurm_task_that_is_done_refused_or_diverged_is_not_queued_again(slurm: Slurm) -> None:
    assert not any(slurm.requeued(code) for code in ("0", "2", "70"))
    assert slurm.start("70").wait(timeout=30) == 0


def test_the_words_of_a_cell_make_exactly_its_spec(tmp_path: Path) -> None:
    from coordrl.console import parse_arguments
    from coordrl.train import TrainArguments, _specify

    plan = make_plan("Pong,Qbert", ["a2c", "dqn"], ["nature", "coord-r"], 2, 1000, overrides=["gamma=0.9"])
    for cell in plan.runs:
        arguments = parse_arguments(TrainArguments, "train", train_words(plan, cell, tmp_path))
        assert _specify(arguments)[0] == cell.spec
        assert arguments.plan == plan.hash


class Scripted:
    """A backend whose jobs end at once; only the first is a crash, the others are refused."""

    slots, summary = 1, "scripted"

    def __init__(self) -> None:
        self.started: list[str] = []

    def start(self, work: Work, slot: int) -> Any:
        self.started.append(work.folder)
        code = 1 if len(self.started) == 1 else 2
        return SimpleNamespace(where="nowhere", poll=lambda: code, stop=lambda: None, kill=lambda: None)

    def close(self) -> None:
        """Nothing is held."""


def test_a_crashed_run_keeps_its_place_beside_the_other_arms_of_its_seed(tmp_path: Path) -> None:
    plan = make_plan("Pong", ["a2c"], ["nature", "coord"], 10, 1000, eval_every=0)
    backend = Scripted()
    Launcher(plan, tmp_path, backend, retries=3).run()
    first = plan.runs[0].folder
    assert backend.started.count(first) == 2
    # It waits a second, in which a few others pass: not all of them.
    assert backend.started.index(first, 1) < 15 < len(backend.started) == 21


def test_attempts_are_numbered_on_after_a_launcher_that_was_killed(tmp_path: Path) -> None:
    plan = make_plan("Pong", ["a2c"], ["nature"], 2, 1000, eval_every=0)
    first, second = (cell.folder for cell in plan.runs)
    (tmp_path / "compare").mkdir()
    record_start(tmp_path, first, 1)  # and the launcher was killed
    backend = Scripted()
    Launcher(plan, tmp_path, backend, retries=3).run()
    assert backend.started == [first, second, first]
    numbers = [(row["cell"], row["attempt"]) for row in attempts(tmp_path, "start")]
    assert numbers == [(first, 1), (first, 2), (second, 1), (first, 3)]
    assert [(row["cell"], row["attempt"], row["exit_code"]) for row in attempts(tmp_path)] == [
        (first, 2, 1),
        (second, 1, 2),
        (first, 3, 2),
    ]
    assert count_attempts(tmp_path) == {first: 3, second: 1}


@pytest.mark.slow
def test_a_launcher_that_fails_itself_stops_its_workers(tmp_path: Path) -> None:
    plan = make_plan("Pong", ["a2c"], ["nature"], 1, 50_000, overrides=["n_envs=2"], eval_every=0)
    write_plan(tmp_path, plan)
    (tmp_path / "compare").mkdir()

    def show(states: list[Any]) -> None:
        if states[0].job is not None and read_progress(states[0].folder).step:
            raise ZeroDivisionError

    launcher = Launcher(plan, tmp_path, LocalBackend(1, allowed_cores()), retries=1, show=show)
    with pytest.raises(ZeroDivisionError):
        launcher.run()
    assert workers_of(tmp_path) == []
