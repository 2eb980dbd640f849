"""Comparisons on a real Ray cluster on this machine: its own head and nodes, on loopback."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordrl.cluster import check_address, pack, unpack
from coordrl.errors import RequestError
from coordrl.launch import attempts_file, newest_checkpoint, survey
from coordrl.plan import read_plan
from coordrl.results import RunFolder

RAY = Path(sys.executable).parent / "ray"
ENVIRONMENT = {
    **os.environ,
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback alone
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}


def wait_for(condition: Any, seconds: float = 180) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.1)


class Cluster:
    """A head without cores, and nodes in mount namespaces of their own, with one core each."""

    def __init__(self, folder: Path, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self._nodes: list[subprocess.Popen[bytes]] = []
        words = ["--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={folder}"]
        self._head = self._start(words, "")

    def add_node(self, hide: Path | None = None) -> subprocess.Popen[bytes]:
        """Add a node; it sees an empty folder in the place of `hide`."""
        before = f"mount -t tmpfs none {hide} && " if hide else ""
        node = self._start([f"--address={self.address}", "--num-cpus=1"], before)
        self._nodes.append(node)
        return node

    def _start(self, words: list[str], before: str) -> subprocess.Popen[bytes]:
        command = f"{before}exec {RAY} start --block --node-ip-address=127.0.0.1 --object-store-memory=80000000 {' '.join(words)}"
        return subprocess.Popen(
            ["unshare", "--mount", "bash", "-c", command],
            env=ENVIRONMENT,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """End a node and all that runs on it, as a power cut does."""
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()

    def close(self) -> None:
        for node in [*self._nodes, self._head]:
            if node.poll() is None:
                os.killpg(node.pid, signal.SIGTERM)
        for node in [*self._nodes, self._head]:
            try:
                node.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.kill(node)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    folder = Path("/tmp") / f"coordrl-ray-{os.getpid()}"  # Ray's sockets need a short path
    made = Cluster(folder, 20_000 + os.getpid() % 10_000)
    yield made
    made.close()


def compare(words: str, out: Path, address: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "coordrl.compare", *words.split(), "--out", str(out)]
    return subprocess.Popen(
        [*command, "--backend", "ray", "--address", address], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )


def wait_until_it_answers(address: str) -> None:
    def answers() -> bool:
        try:
            check_address(address)
        except RequestError:
            return False
        return True

    wait_for(answers)


@pytest.mark.slow
def test_a_node_that_is_lost_costs_at_most_a_checkpoint_interval(cluster: Cluster, tmp_path: Path) -> None:
    wait_until_it_answers(cluster.address)
    out = tmp_path / "runs"
    out.mkdir()
    first = cluster.add_node(hide=out)  # it does not see the launcher's folder: checkpoints are sent back
    words = "--suite Pong --extractors coord --seeds 1 --steps 2000 --set n_envs=4 --checkpoint-every 200"
    launcher = compare(words, out, cluster.address)
    run = RunFolder(out / "zoo-v4" / "a2c-coord" / "Pong" / "seed-0")
    wait_for(lambda: newest_checkpoint(run))
    cluster.kill(first)
    kept = newest_checkpoint(run)
    cluster.add_node()  # this one sees the folder
    _, said = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, said
    assert "was lost with its machine; it goes on from its checkpoint" in said
    codes = [json.loads(line)["exit_code"] for line in attempts_file(out).read_text().splitlines()]
    assert codes == [1000, 0]
    assert [state.state for state in survey(read_plan(out), out)] == ["done"]
    log = next((out / "compare" / "logs").iterdir()).read_text()
    assert f"going on from the checkpoint at step {int(kept):,}" in log


@pytest.mark.slow
def test_a_stopped_launcher_brings_the_checkpoints_home(cluster: Cluster, tmp_path: Path) -> None:
    wait_until_it_answers(cluster.address)
    out = tmp_path / "runs"
    out.mkdir()
    cluster.add_node(hide=out)
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


def test_an_archive_that_reaches_outside_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        facts = tarfile.TarInfo("../outside")
        facts.size = 1
        tar.addfile(facts, io.BytesIO(b"x"))
    with pytest.raises(tarfile.FilterError):
        unpack(buffer.getvalue(), tmp_path / "run")
    assert not (tmp_path / "outside").exists()
