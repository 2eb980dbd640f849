"""The package as users get it: a wheel that trains from any folder, and a set-up that is done once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

import coordrl

ROOT = Path(coordrl.__file__).parent.parent


def run(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, **options)


@pytest.mark.slow
def test_a_wheel_carries_the_recipes_and_trains_from_any_folder(tmp_path: Path) -> None:
    built = run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT))
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("coordrl-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    carried = {"coordrl/agents/a2c.toml", "coordrl/agents/dqn.toml", "coordrl/reference_scores.csv", "coordrl/py.typed"}
    assert carried <= set(names)
    assert all(name.startswith(("coordrl/", "coordrl-")) for name in names)  # no top-level package called agents
    target = tmp_path / "target"
    installed = run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel))
    assert installed.returncode == 0, installed.stderr
    # PYTHONPATH comes before the editable install, so that it is the wheel's coordrl that runs.
    environment = {**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}
    where = run(sys.executable, "-c", "import coordrl; print(coordrl.__file__)", cwd="/", env=environment)
    assert where.stdout.startswith(str(target))
    words = [
        "-m",
        "coordrl.train",
        "--game",
        "MsPacman",
        "--steps",
        "160",
        "--eval-every",
        "0",
        "--out",
        str(tmp_path / "runs"),
    ]
    trained = run(sys.executable, *words, cwd="/", env=environment)
    assert trained.returncode == 0, trained.stderr


def test_a_set_up_that_is_up_to_date_is_silent_and_costs_nothing() -> None:
    if not (ROOT / ".venv" / ".coordrl-test").is_file():
        pytest.skip("this environment was not made by scripts/setup")
    began = time.monotonic()
    done = run(str(ROOT / "scripts" / "setup"), "test")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - began < 5


def test_an_unknown_set_up_is_refused() -> None:
    done = run(str(ROOT / "scripts" / "setup"), "everything")
    assert done.returncode == 2
    assert 'there is no set-up "everything"' in done.stderr


def test_a_python_that_is_too_old_or_missing_is_named(tmp_path: Path) -> None:
    environment = {**os.environ, "COORDRL_VENV": str(tmp_path / "venv"), "PYTHON": "no-such-python"}
    done = run(str(ROOT / "scripts" / "setup"), env=environment)
    assert done.returncode == 2
    assert "needs Python 3.11 or newer" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_every_dependency_of_the_set_up_has_its_exact_version() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(line.startswith("#") or line.count("==") == 1 for line in lines if line)
    assert "torch==2.13.0" in lines
