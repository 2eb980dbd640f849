"""Carry out a plan: start its runs, try crashed ones again, and know at any moment what is done.

The run folders are the truth: a cell is done when its result is there. The launcher keeps no state of its own
but a record of attempts, so that it can be killed at any moment and started again.
"""

from __future__ import annotations

import json
import signal
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from coordrl.attempts import count_attempts, record_end, record_start
from coordrl.backends import LOST, Backend, Job, Work
from coordrl.errors import RequestError
from coordrl.files import load_json, open_own
from coordrl.plan import PLAN_FILE, Cell, Plan, recipe_copy
from coordrl.results import RunFolder, Spec

POLL_SECONDS = 0.2
BUSY_SECONDS = 5.0  # another process still holds the run's folder: most often one that is ending
GRACE_SECONDS = 60.0  # for the workers to write a checkpoint when the launcher is stopped
_DIVERGED, _BUSY, _REQUEST = 70, 75, 2
_LONGEST = 200  # bytes of a log's name, for file systems that take 255
_TAIL = 1 << 16  # bytes from a log's end that hold its last row


@dataclass
class CellState:
    """How far a cell is."""

    cell: Cell
    folder: RunFolder
    state: str = "waiting"  # waiting, running, done, diverged, failed
    crashes: int = 0  # in a row, without a new checkpoint between them
    attempts: int = 0  # of all launchers
    not_before: float = 0.0  # time.monotonic()
    job: Job | None = None
    slot: int = -1
    began: float = 0.0
    checkpoint: str = ""  # the newest when the attempt began
    last_exit: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What a launcher leaves."""

    done: int
    diverged: int
    failed: list[tuple[str, int | None]]  # folders and the last exit codes
    waiting: int  # if it was stopped
    signal_number: int = 0


def survey(plan: Plan, out: Path) -> list[CellState]:
    """Look at every cell of a plan: done, diverged, or waiting.

    Raises:
        RequestError: a folder holds another run than the plan's.
    """
    attempts = count_attempts(out)
    states = []
    for cell in plan.runs:
        folder = RunFolder(cell.path(out))
        if folder.spec_file.exists():
            differences = folder.read_spec().differences(cell.spec)
            if differences:
                raise RequestError(
                    f"{folder.path} holds another run than the plan's: {'; '.join(differences)}. Use another --out"
                )
            theirs = folder.fact("plan")
            if theirs not in (None, *plan.hashes):  # a report would refuse it, after all the others were trained
                raise RequestError(
                    f"{folder.path} belongs to the plan {ascii(theirs)[:60]}, and this one is {plan.hash}; runs of two plans are"
                    f" never mixed. Put back the {PLAN_FILE} that it was made with, or use another --out"
                )
        state = CellState(cell, folder, attempts=attempts.get(cell.folder, 0))
        if folder.is_finished(cell.spec):
            state.state = "done"
        elif _has_diverged(folder, cell):
            state.state = "diverged"
        states.append(state)
    return states


def log_file(out: Path, folder: str) -> Path:
    """Return where what a run's command prints goes.

    Args:
        out: the folder of all runs.
        folder: the run's below it, with forward slashes.
    """
    name = folder.replace("/", "--")
    if len(name.encode()) > _LONGEST:  # a recipe's name may be as long as a file's, and the log's holds more than that
        name = f"{name.encode()[:_LONGEST].decode(errors='ignore')}--{zlib.crc32(folder.encode()):08x}"
    return out / "compare" / "logs" / f"{name}.log"


def train_words(plan: Plan, cell: Cell, out: Path) -> list[str]:
    """Return the words after `coordrl train` that make a cell's run, without --out."""
    spec, copy = cell.spec, recipe_copy(out, cell.spec.agent)
    agent = str(copy) if copy.is_file() else spec.agent
    words = ["--game", spec.game, "--agent", agent, "--extractor", spec.extractor, "--seed", str(spec.seed)]
    words += ["--steps", str(spec.steps), "--protocol", spec.protocol]
    words += ["--checkpoint-every", str(plan.checkpoint_every)]
    words += ["--eval-every", str(plan.eval_every), "--eval-episodes", str(plan.eval_episodes)]
    for override in plan.overrides:
        words += ["--set", override]
    return [*words, "--plan", plan.hash]


@final
class Launcher:
    """Runs the waiting cells of a plan on a backend, in the plan's order.

    Args:
        plan: what to run.
        out: the folder of all runs.
        backend: where.
        retries: how many crashes in a row, without a new checkpoint between them, a run may have; after
            one more it is given up, and reported.
        more_words: for `coordrl train`, beyond the plan's (--device).
        show: called a few times a second with all states; what people see is its affair.
        say: called with a line for people where something happens.
    """

    def __init__(
        self,
        plan: Plan,
        out: Path,
        backend: Backend,
        *,
        retries: int,
        more_words: Iterable[str] = (),
        show: Callable[[list[CellState]], None] = lambda states: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.plan, self.out, self.backend, self.retries = plan, out, backend, retries
        self.states = survey(plan, out)
        self._more_words = tuple(more_words)
        self._show, self._say = show, say
        self._free = list(range(backend.slots))
        self._received = 0

    def run(self) -> Outcome:
        """Run until nothing waits any more, or SIGINT or SIGTERM asks to stop; a second SIGINT kills the workers."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        queue = deque(state for state in self.states if state.state == "waiting")
        try:
            while (queue or self._running()) and not self._received:
                self._fill(queue)
                self._collect(queue)
                self._show(self.states)
                time.sleep(POLL_SECONDS)
        finally:
            self._stop_workers()
            for number, handler in before.items():
                signal.signal(number, handler)
            self._show(self.states)
        return self._outcome()

    def _note(self, number: int, _: Any) -> None:
        if self._received:
            for state in self._running():
                assert state.job is not None
                state.job.kill()
        self._received = number

    def _running(self) -> list[CellState]:
        return [state for state in self.states if state.state == "running"]

    def _fill(self, queue: deque[CellState]) -> None:
        """Start waiting cells in free slots; one that has to wait a while lets the others pass."""
        for state in list(queue):
            if not self._free:
                return
            if state.not_before <= time.monotonic():  # else it keeps its place, beside the other arms of its seed
                queue.remove(state)
                self._start(state)

    def _start(self, state: CellState) -> None:
        state.slot = self._free.pop(0)
        state.checkpoint = newest_checkpoint(state.folder)
        log = log_file(self.out, state.cell.folder)
        log.parent.mkdir(parents=True, exist_ok=True)
        words = (*train_words(self.plan, state.cell, self.out), *self._more_words)
        state.attempts += 1
        record_start(self.out, state.cell.folder, state.attempts)
        state.job = self.backend.start(Work(words, self.out, state.cell.folder, log), state.slot)
        state.state, state.began = "running", time.monotonic()

    def _collect(self, queue: deque[CellState]) -> None:
        """Look which jobs ended, and put back those that have to go on."""
        for state in self._running():
            assert state.job is not None
            code = state.job.poll()
            if code is None:
                continue
            self._free.append(state.slot)
            self._free.sort()
            self._judge(state, code)
            self._record(state, code)
            if state.state == "waiting":
                queue.appendleft(state)

    def _judge(self, state: CellState, code: int) -> None:
        """Say what an exit code means for a cell."""
        state.last_exit = code
        name = state.cell.folder
        if state.folder.is_finished(state.cell.spec):
            state.state = "done"
        elif code == _DIVERGED:
            state.state = "diverged"
            self._say(f"{name} diverged; it counts with the games it finished before")
        elif self._received:
            state.state = "waiting"
        elif code == _BUSY:
            state.state, state.not_before = "waiting", time.monotonic() + BUSY_SECONDS
        elif code == _REQUEST:
            state.state = "failed"
            self._say(f"{name} was refused: {_last_line(self.out, name)}")
        else:
            if newest_checkpoint(state.folder) > state.checkpoint:
                state.crashes = 0
            state.crashes += 1
            again = state.crashes <= self.retries
            state.state, state.not_before = "waiting" if again else "failed", time.monotonic() + state.crashes
            how = _describe_exit(code)
            then = (
                "it goes on from its checkpoint"
                if again
                else f"given up after {state.crashes} crashes without progress"
            )
            self._say(f"{name} {how}; {then}")

    def _record(self, state: CellState, code: int) -> None:
        assert state.job is not None
        record_end(
            self.out,
            state.cell.folder,
            state.attempts,
            exit_code=code,
            state=state.state,
            seconds=time.monotonic() - state.began,
            where=state.job.where,
        )

    def _stop_workers(self) -> None:
        """Ask the workers for a checkpoint and the end, and wait for them; kill those that do not come."""
        for state in self._running():
            assert state.job is not None
            state.job.stop()
        until = time.monotonic() + GRACE_SECONDS
        while self._running() and time.monotonic() < until:
            self._collect(deque())
            time.sleep(POLL_SECONDS)
        for state in self._running():
            assert state.job is not None
            state.job.kill()
            self._judge(state, LOST)
            self._record(state, LOST)
        self.backend.close()

    def _outcome(self) -> Outcome:
        def count(kind: str) -> int:
            return sum(state.state == kind for state in self.states)

        failed = [(state.cell.folder, state.last_exit) for state in self.states if state.state == "failed"]
        return Outcome(count("done"), count("diverged"), failed, count("waiting"), self._received)


@dataclass(frozen=True)
class Progress:
    """The last row of a run's log, as far as people want to see it."""

    step: int = 0
    steps_per_second: float = 0.0
    return_mean: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def read_progress(folder: RunFolder) -> Progress:
    """Read how far a run is from the end of its log, however long that is."""
    try:
        with open_own(folder.progress_file) as handle:
            size = handle.seek(0, 2)
            handle.seek(max(0, size - _TAIL))
            lines = handle.read().splitlines(keepends=True)
    except (OSError, ValueError):
        return Progress()
    for line in reversed(lines):
        try:
            row = json.loads(line)
            mean = row["return_mean"]
            return Progress(int(row["step"]), float(row["steps_per_second"]), None if mean is None else float(mean))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):  # cut short, at either end
            continue
    return Progress()


def newest_checkpoint(folder: RunFolder) -> str:
    """Return the name of the newest checkpoint, or "" where there is none; names sort by step."""
    try:
        names = [path.name for path in folder.checkpoints.iterdir() if path.name.isdigit()]
    except OSError:
        return ""
    return max(names, default="")


def _has_diverged(folder: RunFolder, cell: Cell) -> bool:
    """Say whether the run of a cell diverged before."""
    try:
        return Spec(**load_json(folder.diverged_file)["spec"]) == cell.spec
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _describe_exit(code: int) -> str:
    """Say how a job ended."""
    if code == LOST:
        return "was lost with its machine"
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _last_line(out: Path, name: str) -> str:
    """Return the last line of a cell's log."""
    log = log_file(out, name)
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else f"see {log}"
