"""The README tells the truth: its snippet runs, its commands and tables match what is there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import coordrl
from coordrl.suites import EXTRACTOR_SUMMARIES

ROOT = Path(coordrl.__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_snippet_for_sb3_runs_as_it_stands_and_is_short(tmp_path: Path) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 10
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", snippet],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_picture_and_page_it_links_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_its_table_of_extractors_is_complete() -> None:
    table = README.split("| extractor |")[1].split("\n\n")[0]
    assert set(re.findall(r"`([a-z-]+)`", table)) == set(EXTRACTOR_SUMMARIES)


@pytest.mark.parametrize(
    "command", ["scripts/train", "scripts/test", "scripts/check", "scripts/bench", "scripts/curve", "scripts/learning"]
)
def test_every_script_it_names_is_there_and_can_be_run(command: str) -> None:
    assert command in README
    assert (ROOT / command).stat().st_mode & 0o111


@pytest.mark.slow
@pytest.mark.parametrize(
    "rows",
    [
        "sb3-on-atarivecenv,coordrl-coord,coordrl-general",
        "sb3-dqn-on-atarivecenv,coordrl-dqn,coordrl-apex",
        "sb3-ppo-on-atarivecenv,sb3-ppo-coord",
    ],
)
def test_the_benchmark_follows_what_it_measures(rows: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "scripts" / "bench"),
        "--quick",
        "--rows",
        rows,
        "--out",
        str(tmp_path / "b.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "b.json").read_text())["games"]["MsPacman"]["rows"]
    assert set(measured) == set(rows.split(","))
    assert all(row["steps_per_second"]["median"] > 0 for row in measured.values())


@pytest.mark.slow
def test_the_check_of_what_is_learnt_follows_what_it_trains(tmp_path: Path) -> None:
    words = ["--steps", "6400", "--seeds", "1", "--out", str(tmp_path), "--picture", str(tmp_path / "learning.png")]
    command = [sys.executable, str(ROOT / "scripts" / "learning"), *words]
    for _ in range(2):  # the second time it reads what the first has trained
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert len(re.findall("mean return of the last", done.stdout)) == 2
    assert (tmp_path / "learning.png").stat().st_size > 1000
    (tmp_path / "Breakout-6400-sb3-0.json").write_text("{")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "holds no training; remove it" in done.stderr


def test_no_placeholder_was_left() -> None:
    assert "RESULTS" not in README
