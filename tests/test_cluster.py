"""Comparisons on a real Ray cluster on this machine: its own head and nodes, on loopback."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordrl import __version__
from coordrl.attempts import attempts_file
from coordrl.cluster import Report, pack, recover, train_there, unpack
from coordrl.launch import newest_checkpoint, survey
from coordrl.plan import read_plan
from coordrl.results import RunFolder

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


LAUNCHERS: list[subprocess.Popen[str]] = []


def wait_for(condition: Any, seconds: float = 180) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.1)


class Cluster:
    """A head without cores, and nodes with one core each; see tests/ray_cluster.py."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        program = Path(__file__).parent / "ray_cluster.py"
        self._process = subprocess.Popen(
            [sys.executable, program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env=environment,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        self.address, self.pid = self._from.readline().strip(), self._process.pid

    def do(self, line: str) -> None:
        self._to.write(f"{line}\n")
        self._to.flush()
        assert self._from.readline() == "done\n"

    def close(self) -> None:
        self._to.close()
        self._from.close()
        self._process.wait(timeout=60)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    for launcher in LAUNCHERS:
        if launcher.poll() is None:
            launcher.kill()
        launcher.communicate()
    LAUNCHERS.clear()
    made.close()


def compare(words: str, out: Path, address: str, cwd: Path | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "coordrl.compare", *words.split(), "--out", str(out)]
    launcher = subprocess.Popen(
        [*command, "--backend", "ray", "--address", address],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
    )
    LAUNCHERS.append(launcher)
    return launcher


@pytest.mark.slow
def test_a_node_that_is_lost_costs_at_most_a_checkpoint_interval(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    out.mkdir()
    cluster.do(f"add {out}")  # the node does not see the launcher's folder: checkpoints are sent back
    words = "--suite Pong --extractors coord --seeds 1 --steps 2000 --set n_envs=4 --checkpoint-every 200"
    launcher = compare(words, out, cluster.address)
    run = RunFolder(out / "zoo-v4" / "a2c-coord" / "Pong" / "seed-0")
    wait_for(lambda: newest_checkpoint(run))
    cluster.do("kill")
    kept = newest_checkpoint(run)
    cluster.do("add")  # this one sees the folder
    _, said = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, said
    assert "was lost with its machine; it goes on from its checkpoint" in said
    rows = [json.loads(line) for line in attempts_file(out).read_text().splitlines()]
    assert [row.get("exit_code") for row in rows] == [None, 1000, None, 0]
    assert [state.state for state in survey(read_plan(out), out)] == ["done"]
    log = next((out / "compare" / "logs").iterdir()).read_text()
    found = re.search(r"going on from the checkpoint at step ([\d,]+)", log)
    assert found is not None, log
    # One that the node had sent before it was lost may have been unpacked after we looked.
    assert int(kept) <= int(found[1].replace(",", "")) < 2000


@pytest.mark.slow
def test_a_stopped_launcher_brings_the_checkpoints_home(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    out.mkdir()
    cluster.do(f"add {out}")
    words = "--suite Pong --extractors nature --seeds 1 --steps 1000000 --set n_envs=4 --checkpoint-every 400"
    launcher = compare(words, out, cluster.address)
    run = RunFolder(out / "zoo-v4" / "a2c-nature" / "Pong" / "seed-0")
    wait_for(lambda: newest_checkpoint(run))
    before = newest_checkpoint(run)
    launcher.send_signal(signal.SIGTERM)
    _, said = launcher.communicate(timeout=120)
    assert launcher.returncode == 143, said
    assert newest_checkpoint(run) > before
    assert run.export_file.exists()


@pytest.mark.slow
@pytest.mark.parametrize("sees", [True, False])
def test_a_recipe_given_by_a_relative_path_reaches_a_node(cluster: Cluster, tmp_path: Path, sees: bool) -> None:
    out = tmp_path / "runs"
    out.mkdir()
    recipe = (Path(__file__).parent.parent / "agents" / "a2c.toml").read_text().replace("n_envs = 16", "n_envs = 2")
    (tmp_path / "mine.toml").write_text(recipe)
    cluster.do("add" if sees else f"add {out}")
    words = "--suite Pong --agents mine.toml --extractors nature --seeds 1 --steps 80"
    launcher = compare(words, Path("runs"), cluster.address, cwd=tmp_path)
    _, said = launcher.communicate(timeout=200)
    assert launcher.returncode == 0, said
    run = RunFolder(out / "zoo-v4" / "mine-nature" / "Pong" / "seed-0")
    assert run.result_file.exists()
    assert run.read_spec().settings["n_envs"] == 2


def test_a_node_trains_with_the_content_of_a_recipe_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watch(words: list[str], out: Path, folder: str, mailbox: Any, *, send: bool) -> Report:
        seen.append((Path(words[1]).name, Path(words[1]).read_text(), words[2:], send))
        return Report(0, b"", "here")

    monkeypatch.setattr("coordrl.cluster._watch", watch)
    token = tmp_path / "lock"
    token.touch()
    facts = token.stat()
    words, recipe = ["--agent", "runs/compare/recipes/mine.toml", "--seed", "3"], ("mine.toml", b"n_envs = 2")
    for inode in (facts.st_ino, 0):
        mark = (str(token), inode, facts.st_mtime_ns)
        train_there(list(words), str(tmp_path), "a/b", mark, None, recipe, None, __version__)
    same = ("mine.toml", "n_envs = 2", ["--seed", "3"])
    assert seen == [(*same, False), (*same, True)]


def test_a_packed_run_comes_out_as_it_was_without_partial_files(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / "000000000100").mkdir(parents=True)
    (run / "checkpoints" / "000000000100" / "state.json").write_text("{}")
    (run / "checkpoints" / ".000000000200.partial").mkdir()
    (run / "checkpoints" / ".000000000200.partial" / "state.json").write_text("{")
    (run / "run.json").write_text("1")
    (run / "lock").write_text("17")
    target = tmp_path / "elsewhere" / "run"
    unpack(pack(run), target)
    files = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
    assert files == ["checkpoints/000000000100/state.json", "run.json"]
    (run / "run.json").write_text("2")
    unpack(pack(run), target)
    assert (target / "run.json").read_text() == "2"
    assert [path.name for path in target.parent.iterdir()] == ["run"]


def test_a_crash_between_the_two_moves_of_unpacking_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("old")
    archive = pack(run)
    rename, moves = Path.rename, []

    def crash(path: Path, target: Path) -> Path:
        moves.append(target)
        if len(moves) == 2:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            unpack(archive, run)
    assert not run.exists()
    recover(run)
    assert (run / "run.json").read_text() == "old"
    recover(run)  # nothing to do
    unpack(archive, run)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_packing_passes_over_a_checkpoint_that_is_removed_meanwhile(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "run.json").write_text("1")
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            place = run / "checkpoints" / "000000000100"
            place.mkdir()
            (place / "state.json").write_text("{}")
            shutil.rmtree(place)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(300):
            assert b"run.json" in pack(run)
    finally:
        stop.set()
        thread.join()


def test_an_archive_that_reaches_outside_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        facts = tarfile.TarInfo("../outside")
        facts.size = 1
        tar.addfile(facts, io.BytesIO(b"x"))
    with pytest.raises(tarfile.FilterError):
        unpack(buffer.getvalue(), tmp_path / "run")
    assert not (tmp_path / "outside").exists()
