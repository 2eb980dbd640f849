"""The README tells the truth: its snippet runs, its commands and tables match what is there."""

from __future__ import annotations

import json
import os
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


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """Return the anchors that the headings of a page get."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_picture_and_page_it_links_to_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def test_every_page_and_picture_is_linked_from_one() -> None:
    links = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text())
    }
    assert {path.resolve() for path in (ROOT / "docs").iterdir() if path.is_file()} <= links


def test_its_table_of_extractors_is_complete() -> None:
    table = README.split("| extractor |")[1].split("\n\n")[0]
    assert set(re.findall(r"`([a-z-]+)`", table)) == set(EXTRACTOR_SUMMARIES)


@pytest.mark.parametrize(
    "command",
    [
        "scripts/train",
        "scripts/test",
        "scripts/check",
        "scripts/bench",
        "scripts/curve",
        "scripts/learning",
        "scripts/limits",
    ],
)
def test_every_script_it_names_is_there_and_can_be_run(command: str) -> None:
    assert command in README
    assert (ROOT / command).stat().st_mode & 0o111


@pytest.mark.slow
@pytest.mark.parametrize(
    "rows",
    [
        "sb3-on-atarivecenv,coordrl-coord,coordrl-general@cpu",
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
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "b.json").read_text())["games"]["MsPacman"]["rows"]
    assert set(measured) == set(rows.split(","))
    assert all(row["steps_per_second"]["median"] > 0 for row in measured.values())


@pytest.mark.slow
def test_a_row_of_the_benchmark_can_have_a_device_of_its_own(tmp_path: Path) -> None:
    def run(device: str) -> subprocess.CompletedProcess[str]:
        words = [
            "--quick",
            "--rows",
            f"coordrl-general{device}",
            "--device",
            "cuda:99",
            "--out",
            str(tmp_path / "b.json"),
        ]
        command = [sys.executable, str(ROOT / "scripts" / "bench"), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)

    assert run("@cpu").returncode == 0
    row = json.loads((tmp_path / "b.json").read_text())["games"]["MsPacman"]["rows"]["coordrl-general@cpu"]
    assert row["device"] == "cpu"
    done = run("")
    assert done.returncode == 1
    assert done.stderr.startswith('bench: row coordrl-general cannot be built: device "cuda:99" cannot be used here: ')
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_what_limits_a_training_is_measured_part_by_part() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "limits"), "--device", "cpu", "--envs", "1,64", "--rollouts", "6"]
    one = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
    }  # two threads wait for each other longer than 64 images take, on a busy machine
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=one)
    assert done.returncode == 0, done.stderr
    number = r" +([\d.,]+) │"
    rows = {
        name.strip(): [float(value.replace(",", "")) for value in values]
        for name, *values in re.findall(rf"│ ([^│\d]*?) │{number}{number}", done.stdout)
    }
    parts = [rows[f"- {part}, ms"] for part in ("emulation", "acting", "learning", "the rest")]
    assert all(value > 0 for part in parts for value in part)
    for n_envs, rate, rollout in zip((1, 64), rows["steps/s"], rows["rollout, ms"], strict=True):
        assert rate == pytest.approx(5 * n_envs * 1000 / rollout, rel=0.02)
    assert all(part[1] > part[0] for part in parts[:3])  # of one environment and of 64


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["limits", "--envs", "16,x"], 'limits: --envs is "16,x"; it is one whole number or several, with commas'),
        (
            ["limits", "--envs", "16,2000"],
            "limits: --envs names 2000 environments: agent a2c: n_envs is 2000; it is a whole number from 1 to 1024",
        ),
        (["limits", "--rollouts", "0"], "limits: --rollouts is 0; it is at least 1"),
        (["limits", "--game", "PlaceMatters"], "limits: PlaceMatters is no Atari game"),
        (["limits", "--device", "warp"], 'limits: there is no device "warp" here; there are auto, cpu and cuda'),
        (["bench", "--rows", "sb3-dummy@warp"], 'bench: there is no device "warp" here; there are auto, cpu and cuda'),
        (["bench", "--rows", "sb3-dummy,"], "bench: --rows lacks a name before, after or between its commas"),
        (["bench", "--games", "PlaceMatters"], "bench: PlaceMatters is no Atari game; name one of those"),
        (["bench", "--rows", "sb3-dummy@"], 'bench: "sb3-dummy@" names no device; after the @ comes auto, cpu or cuda'),
        (["bench", "--rows", "network@cpu"], 'bench: "network@cpu" cannot be measured: network is on the CPU always'),
        (["bench", "--rows", "sb3-dumy@cpu"], 'bench: there is no row "sb3-dumy"; did you mean sb3-dummy'),
        (["bench", "--rows", "sb3-dummy,sb3-dqn@cpu"], "bench: rows of DQN, PPO and A2C have no common reference"),
    ],
)
def test_a_script_says_in_one_line_what_it_cannot_measure(words: list[str], reason: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / words[0]), *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(reason)
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_check_of_what_is_learnt_follows_what_it_trains(tmp_path: Path) -> None:
    words = ["--steps", "6400", "--seeds", "1", "--out", str(tmp_path), "--picture", str(tmp_path / "learning.png")]
    command = [sys.executable, str(ROOT / "scripts" / "learning"), *words]
    for _ in range(2):  # the second time it reads what the first has trained
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr
        assert len(re.findall("mean return of the last", done.stdout)) == 2
    assert (tmp_path / "learning.png").stat().st_size > 1000
    (tmp_path / "Breakout-6400-sb3-0.json").write_text("{")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "holds no training; remove it" in done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_placeholder_was_left(page: Path) -> None:
    assert not re.search(r"\b(RESULTS|LONGRUN|PLACEHOLDER|TODO|FIXME|TBD)\b", page.read_text())
