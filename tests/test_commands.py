"""The commands as a tired user types them: help, lists, mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coordrl.board import BoardArguments
from coordrl.compare import CompareArguments
from coordrl.console import ProgressLine, _count, format_seconds, parse_arguments, time_left
from coordrl.errors import RequestError
from coordrl.evaluate import EvaluateArguments
from coordrl.paper import PaperArguments
from coordrl.play import PlayArguments
from coordrl.report import ReportArguments
from coordrl.results import RunFolder
from coordrl.train import TrainArguments


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("command", ["train", "evaluate", "play", "paper"])
def test_help_teaches_with_examples_and_exits_with_0(command: str) -> None:
    done = run(f"coordrl.{command}", "--help")
    assert done.returncode == 0
    assert f"coordrl {command}" in done.stdout
    assert "For example:" in done.stdout


@pytest.mark.parametrize(
    "kind",
    [
        BoardArguments,
        CompareArguments,
        EvaluateArguments,
        PaperArguments,
        PlayArguments,
        ReportArguments,
        TrainArguments,
    ],
)
def test_help_shows_no_empty_default(kind: type, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(kind, "this", ["--help"])
    words = " ".join(word for word in capsys.readouterr().out.split() if word != "│")
    assert "(default:" in words
    assert "(default: )" not in words
    assert "(default: '')" not in words
    assert "(default: None)" not in words


def test_the_console_script_is_the_same_as_the_modules() -> None:
    script = Path(sys.executable).parent / "coordrl"
    done = subprocess.run([script, "train", "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == run("coordrl.train", "--help").stdout
    assert "train" in run("coordrl").stdout
    assert run("coordrl", "--version").stdout.startswith("coordrl 0.")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("coordrl trian", 'no command "trian"; did you mean train?'),
        ("coordrl.train", "which game?"),
        ("coordrl.train --game MsPacmn", 'no game "MsPacmn"; did you mean MsPacman'),
        ("coordrl.train --game Pong --agent a2", 'no agent "a2"; did you mean a2c?'),
        ("coordrl.train --game Pong --extractor cord", 'no extractor "cord"; did you mean coord'),
        ("coordrl.train --game Pong --protocol zoo", 'no protocol "zoo"; there are zoo-v4, machado-v5'),
        ("coordrl.train --game Pong --protocol controls-v1", "Pong is not played under controls-v1"),
        ("coordrl.train --game PlaceMatters --protocol zoo-v4", "PlaceMatters is not played under zoo-v4"),
        ("coordrl.train --game PlaceMatters --extractor nature", "use pool or coord-pool"),
        ("coordrl.train --game Pong --set learning_rat=1", 'no setting "learning_rat"; did you mean learning_rate?'),
        ("coordrl.train --game Pong --set gamma=1 --set n_envs=0", "n_envs is 0; it is a whole number from 1"),
        ("coordrl.train --game Pong --steps 0", "--steps is 0; it is a whole number from 1"),
        ("coordrl.train --game Pong --steps ten", 'Error parsing --steps: "ten" is no whole number'),
        ("coordrl.train --game Pong --steps 1.5", '"1.5" is no whole number'),
        ("coordrl.train --game Pong --seed -1", "--seed is -1"),
        ("coordrl.train --gaem Pong", "Perhaps you meant: --game"),
        ("coordrl.evaluate", "RUN"),
        ("coordrl.evaluate nowhere", "nowhere is no run: it has no run.json"),
        ("coordrl.evaluate nowhere --episodes 0", "--episodes is 0"),
        ("coordrl.play nowhere", "nowhere is no run: it has no run.json"),
        ("coordrl.paper", "which task? classification, regression, rendering"),
        ("coordrl.paper clasification", 'no task "clasification"; did you mean classification?'),
        ("coordrl.paper rendering --split quarter", 'no split "quarter"; did you mean quadrant?'),
        ("coordrl.paper rendering --arms coord,", 'no arm ""; there are coord, plain'),
        ("coordrl.paper rendering --epochs 0", "--epochs is 0; it is a whole number from 1 to 100,000"),
        ("coordrl.paper rendering --seed -1", "--seed is -1"),
        ("coordrl.paper rendering --device gpu", 'no device "gpu"; there are auto, cpu and cuda'),
    ],
)
def test_a_mistake_gets_one_clear_line_and_exit_code_2(words: str, complaint: str) -> None:
    done = run(*words.split())
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_steps_are_read_as_people_write_them() -> None:
    for text in ("1e6", "1M", "1m", "1000k", "1_000_000", "1,000,000", "1000000"):
        assert parse_arguments(TrainArguments, "train", ["--steps", text]).steps == 1_000_000


def test_a_set_without_a_value_is_refused() -> None:
    with pytest.raises(RequestError, match="--set takes NAME=VALUE"):
        parse_arguments(TrainArguments, "train", ["--game", "Pong", "--set"])


def test_set_can_be_given_several_times_with_one_or_several_values() -> None:
    words = ["--set", "a=1", "--game", "Pong", "--set", "b=2", "c=3", "--set=d=4"]
    assert parse_arguments(TrainArguments, "train", words).set == ("a=1", "b=2", "c=3", "d=4")


def test_list_shows_everything_that_can_be_asked_for_and_the_runs(finished_run: RunFolder) -> None:
    out = finished_run.path.parents[3]
    shown = run("coordrl.train", "--list", "--out", str(out)).stdout
    for word in (
        "MsPacman",
        "atari9",
        "PlaceMatters, PlaceIsNoise",
        "controls-v1",
        "; 1 frame a step",
        "a2c",
        "dqn",
        "coord-all",
        "zoo-v4",
        "machado-v5",
        f"{finished_run.path}  finished",
    ):
        assert word in shown


def test_list_into_a_closed_pipe_is_silent() -> None:
    shell = f"{sys.executable} -m coordrl.train --list | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", shell], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.startswith("games")
    assert done.stderr == ""


def test_evaluate_scores_whole_games_and_the_same_seed_gives_the_same(finished_run: RunFolder) -> None:
    words = ("coordrl.evaluate", str(finished_run.path), "--episodes", "2", "--device", "cpu")
    first = run(*words, "--json")
    assert first.returncode == 0, first.stderr
    score = json.loads(first.stdout)
    assert (score["game"], score["protocol"], score["step"]) == ("Breakout", "zoo-v4", 2400)
    assert len(score["returns"]) == 2
    assert json.loads(run(*words, "--json").stdout) == score
    assert json.loads(run(*words, "--json", "--seed", "1").stdout)["lengths"] != score["lengths"]
    assert "mean return" in run(*words).stdout


def test_durations_read_as_people_say_them() -> None:
    assert [format_seconds(s) for s in (0.4, 59, 61, 3599, 3600 * 3 + 300, 3600 * 52)] == [
        "0 s",
        "59 s",
        "1 min",
        "1 h 00 min",
        "3 h 05 min",
        "2 d 4 h",
    ]


def test_without_a_unit_done_no_time_left_is_claimed(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine("working", 100, start=50, quiet_seconds=0.0) as line:
        line.update(50, lambda: "fine")
    assert capsys.readouterr().err == "working: 50 of 100 (50.0 %) · fine · time left: no estimate yet\n"
    assert [time_left(done, 10, 30.0) for done in (0, 3, 10)] == [
        "time left: no estimate yet",
        "1 min left",
        "0 s left",
    ]


def test_the_plain_progress_line_says_how_far_and_how_long(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine("working", 100, start=50, quiet_seconds=0.0) as line:
        time.sleep(0.01)
        line.update(75, lambda: "fine")
        line.update(80, lambda: "too soon to be said")
    assert capsys.readouterr().err == "working: 75 of 100 (75.0 %) · fine · 0 s left\n"


@pytest.mark.parametrize(
    ("text", "number"),
    [("1,000,000", 10**6), ("1.001k", 1001), ("2.5M", 2_500_000), ("1e6", 10**6), ("1_000", 1000), ("-5", -5)],
)
def test_counts_are_read_as_people_write_them(text: str, number: int) -> None:
    assert _count(text) == number


@pytest.mark.parametrize("text", ["0,1,2", "1,5M", "3,14", "1.5", "nan", "inf", "1e999999999", "", "k"])
def test_what_is_no_count_is_no_other_number(text: str) -> None:
    with pytest.raises(ValueError, match="no whole number"):
        _count(text)


STREAMS = """
import os, subprocess, sys
from coordrl.console import run_command, tell
def work():
    if "child" in sys.argv:  # what it opens is not what its libraries print into
        code = "import os; print(os.open(os.devnull, os.O_RDONLY), file=open('number', 'w'))"
        return subprocess.run([sys.executable, "-c", code], check=True).returncode
    if "quiet" not in sys.argv: print("score 1 ± 2")
    tell("progress")
    return 0
sys.exit(run_command(work))
"""


@pytest.mark.parametrize(
    ("shell", "code", "out"),
    [
        ("{} 2>&-", 0, "score 1 ± 2\n"),  # progress does not go where results go
        ("{} >&-", 74, ""),  # a result that nobody gets
        ("{} quiet >&-", 0, ""),
        ("{} <&- >&- 2>&-", 74, ""),
        ("{} >/dev/full", 74, ""),
        ("PYTHONIOENCODING=ascii {}", 0, "score 1 \\xb1 2\n"),
    ],
)
def test_a_stream_that_is_closed_or_narrow_loses_no_result_in_silence(
    shell: str, code: int, out: str, tmp_path: Path
) -> None:
    (tmp_path / "work.py").write_text(STREAMS)
    words = shell.format(f"{sys.executable} {tmp_path / 'work.py'}")
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (code, out)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_process_that_is_started_with_closed_streams_has_streams(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(STREAMS)
    words = f"{sys.executable} {tmp_path / 'work.py'} child <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", words], cwd=tmp_path, timeout=60, check=False).returncode == 0
    assert int((tmp_path / "number").read_text()) > 2


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--steps", "1e16"], "--steps is 10000000000000000; it is a whole number from 1 to 1,000,000,000,000,000"),
        (["--out", os.fsdecode(b"q\xff")], "is not UTF-8, which logs are; choose another"),
        (["--set", "learning_rate=" + "[" * 5000], "is not a TOML value"),
        (["--set", "learning_rate=" + "1" * 5000], "is not a TOML value"),
    ],
)
def test_what_no_training_could_keep_is_refused_before_anything_is_made(
    words: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("coordrl.train", "--game", "PlaceMatters", *words)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("command", ["train", "compare", "report", "evaluate", "board", "play"])
def test_help_comes_to_its_end_however_narrow_the_terminal_is(command: str) -> None:
    """tyro draws for ever, and takes all memory, where a box does not fit."""
    words = [sys.executable, "-m", f"coordrl.{command}", "--help"]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=30, check=False, env={**os.environ, "COLUMNS": "3"}
    )
    assert done.returncode == 0
    assert f"usage: coordrl {command}" in done.stdout
