"""The runs of a comparison as tasks of a Ray cluster that is there already. Needs the extra `ray`.

Where the nodes see the launcher's folder, they write into it. Where they do not, each run lies in a temporary
folder of its node, and every new checkpoint is sent back: a lost node costs at most one checkpoint interval.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from coordrl import __version__
from coordrl.backends import LOST, Work
from coordrl.joining import import_ray, join
from coordrl.launch import newest_checkpoint
from coordrl.process import module_command, module_environment, worker_environment
from coordrl.results import RunFolder

POLL_SECONDS = 1.0  # between two looks of a node at its run
LOG_BYTES = 1 << 16  # of a log's end that are sent back


@dataclass(frozen=True)
class Report:
    """What a task says at its end."""

    code: int
    log: bytes
    host: str


class Mailbox:
    """Lives beside the launcher: holds what the nodes send, and tells them when to stop. A Ray actor."""

    def __init__(self) -> None:
        self._archives: dict[str, bytes] = {}
        self._stopped: set[str] = set()

    def send(self, folder: str, archive: bytes) -> None:
        """Leave the newest state of a run."""
        self._archives[folder] = archive

    def take(self, folder: str) -> bytes | None:
        """Take the newest state of a run, if there is one that was not taken yet."""
        return self._archives.pop(folder, None)

    def stop(self, folder: str) -> None:
        """Ask a run to stop."""
        self._stopped.add(folder)

    def is_stopped(self, folder: str) -> bool:
        """Say whether a run was asked to stop."""
        return folder in self._stopped

    def forget(self, folder: str) -> None:
        """Begin anew with a run."""
        self._stopped.discard(folder)
        self._archives.pop(folder, None)


@final
class RayJob:
    """A training as a task of a cluster."""

    def __init__(self, ray: Any, reference: Any, mailbox: Any, work: Work) -> None:
        self._ray, self._reference, self._mailbox, self._work = ray, reference, mailbox, work
        self._code: int | None = None
        self._host = "a node of the cluster"

    @property
    def where(self) -> str:
        """The node."""
        return self._host

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs; takes in what the node sent."""
        if self._code is not None:
            return self._code
        ready, _ = self._ray.wait([self._reference], timeout=0)
        if ready:
            try:
                report: Report = self._ray.get(self._reference)
            except self._ray.exceptions.RayError:  # the node or its worker is gone
                self._take_in()
                self._code = LOST
                return self._code
            self._host = report.host
            with self._work.log.open("ab") as log:
                log.write(report.log)
            self._take_in()
            self._code = report.code
            return self._code
        self._take_in()
        return None

    def stop(self) -> None:
        """Ask for a checkpoint and the end."""
        self._mailbox.stop.remote(self._work.folder)

    def kill(self) -> None:
        """End it at once."""
        self._ray.cancel(self._reference, force=True)

    def _take_in(self) -> None:
        """Put the newest state that the node sent into the run's folder."""
        archive = self._ray.get(self._mailbox.take.remote(self._work.folder))
        if archive is not None:
            unpack(archive, self._work.out / self._work.folder)


@final
class RayBackend:
    """Tasks of an existing Ray cluster, one core each.

    Args:
        address: of the cluster's head, HOST:PORT, or auto for one that runs on this machine.
        workers: runs at a time; 0 for as many as the cluster has cores.

    Raises:
        RequestError: ray is not installed, or nothing answers at the address.
    """

    def __init__(self, address: str, workers: int) -> None:
        self._ray = ray = join(address)
        cores = int(ray.cluster_resources().get("CPU", 0))
        self.slots = workers or max(cores, 1)
        nodes = sum(node["Alive"] for node in ray.nodes())
        self.summary = (
            f"{self.slots} at a time on a Ray cluster of {nodes} node{'s' if nodes != 1 else ''} and {cores} cores"
        )
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._mailbox = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
        self._task = ray.remote(train_there).options(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")

    def start(self, work: Work, slot: int) -> RayJob:
        """Start a training on some node."""
        folder = work.out / work.folder
        token = work.out / "compare" / "lock"  # a node that sees this file, held by us, sees our folders
        token.parent.mkdir(parents=True, exist_ok=True)
        token.touch()  # there already, but for a measurement
        facts = token.stat()
        recover(folder)
        self._ray.get(self._mailbox.forget.remote(work.folder))
        archive = pack(folder) if RunFolder(folder).spec_file.exists() else None
        recipe = Path(work.words[work.words.index("--agent") + 1])  # a path, or the name of one that nodes have too
        reference = self._task.remote(
            list(work.words),
            str(work.out.absolute()),
            work.folder,
            (str(token.absolute()), facts.st_ino, facts.st_mtime_ns),
            archive,
            (recipe.name, recipe.read_bytes()) if recipe.suffix == ".toml" else None,
            self._mailbox,
            __version__,
        )
        return RayJob(self._ray, reference, self._mailbox, work)

    def close(self) -> None:
        """Leave the cluster, which goes on."""
        self._ray.shutdown()


def train_there(
    words: list[str],
    out: str,
    folder: str,
    token: tuple[str, int, int],
    archive: bytes | None,
    recipe: tuple[str, bytes] | None,
    mailbox: Any,
    version: str,
) -> Report:
    """Run one attempt on a node: in the launcher's own folder if the node sees it, else in one of its own.

    Args:
        words: after `coordrl train`, without --out.
        out: the launcher's folder of all runs.
        folder: of the run below it.
        token: a file of the launcher's, its inode and time, by which the node knows whether it sees the same.
        archive: the run so far, if there is one.
        recipe: the name and the content of the file that the words call --agent, if they name a file: the node may
            not see it, or not under this path.
        mailbox: the actor beside the launcher.
        version: of the launcher's coordrl.
    """
    host = socket.gethostname()
    if version != __version__:
        text = f"coordrl: this node has coordrl {__version__}, the launcher {version}; install the same on all nodes\n"
        return Report(2, text.encode(), host)
    with tempfile.TemporaryDirectory(prefix="coordrl-") as place:
        if recipe is not None:
            copy = Path(place) / recipe[0]
            copy.write_bytes(recipe[1])
            words[words.index("--agent") + 1] = str(copy)
        if _is_same_file(token):
            return _watch(words, Path(out), folder, mailbox, send=False)
        if archive is not None:
            unpack(archive, Path(place) / folder)
        return _watch(words, Path(place), folder, mailbox, send=True)


def _watch(words: list[str], out: Path, folder: str, mailbox: Any, *, send: bool) -> Report:
    """Run a training to its end, sending what it writes and stopping it when asked to."""
    ray = import_ray()
    run = RunFolder(out / folder)
    command = [*module_command("coordrl.train"), *words, "--out", str(out)]
    sent = newest_checkpoint(run)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**module_environment(), **worker_environment(1)},
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                if send and newest_checkpoint(run) > sent:
                    sent = newest_checkpoint(run)
                    mailbox.send.remote(folder, pack(run.path))
                if ray.get(mailbox.is_stopped.remote(folder)):
                    process.send_signal(signal.SIGTERM)
        finally:
            if process.poll() is None:  # the launcher, and its mailbox, are gone: nobody waits for this training
                process.terminate()
                process.wait()
        if send and run.path.is_dir():
            ray.get(mailbox.send.remote(folder, pack(run.path)))
        size = log.seek(0, os.SEEK_END)
        log.seek(max(0, size - LOG_BYTES))
        return Report(process.returncode, log.read(), socket.gethostname())


def pack(folder: Path) -> bytes:
    """Pack a run's folder; files that come and go meanwhile (partial ones) are left out."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        # os.walk passes over a checkpoint's folder that goes while it is listed; Path.rglob raises.
        files = sorted(Path(place) / file for place, _, names in os.walk(folder) for file in names)
        for path in files:
            name = path.relative_to(folder)
            if path.is_file() and not any(part.startswith(".") for part in name.parts) and path.name != "lock":
                try:
                    tar.add(path, arcname=name.as_posix(), recursive=False)
                except FileNotFoundError:
                    continue
    return buffer.getvalue()


def recover(folder: Path) -> None:
    """Put a run's folder back, if `unpack` was killed after it had moved the old one away."""
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)


def unpack(archive: bytes, folder: Path) -> None:
    """Put a packed run in place of a folder; a crash meanwhile leaves the old one, for `recover`, or the new one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    recover(folder)
    for path in (partial, old):
        shutil.rmtree(path, ignore_errors=True)
    partial.mkdir()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(partial, filter="data")
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _is_same_file(token: tuple[str, int, int]) -> bool:
    """Say whether this node sees the launcher's file."""
    try:
        facts = Path(token[0]).stat()
    except OSError:
        return False
    return (facts.st_ino, facts.st_mtime_ns) == token[1:]
