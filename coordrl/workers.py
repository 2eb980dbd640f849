"""A worker process: how it is started, how one speaks with it, and that it never outlives who started it.

Not multiprocessing: its `fork` is unsafe once threads run, its `spawn` and `forkserver` import the caller's script
again (which an unguarded script or a notebook does not survive), and all leave semaphores or helper processes
behind when the parent is killed. A worker here is an ordinary process with one end of a socket pair and memory that
has no name: when the parent ends, whatever ended it, the worker ends within a second and nothing is left.
"""

from __future__ import annotations

import array
import contextlib
import json
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import starmap
from typing import Any, final

from coordrl.errors import RequestError, ResumableError
from coordrl.process import allowed_cores, module_command, module_environment

Message = Mapping[str, Any]
Answer = Callable[[Message, Sequence[int]], dict[str, Any]]

_HEADER = struct.Struct("!I")  # the length of the JSON that follows
_MAX_FDS = 4
_MAX_BYTES = 1 << 28  # of a message; more is none
_KNOWN = ("builtins", "coordrl.errors")  # modules whose errors are raised again as what they were
_GRACE_SECONDS = 10.0


@final
class Memory:
    """Shared memory without a name: gone with the last process that holds it.

    Args:
        size: in bytes.
        fd: a file descriptor of such memory, which is closed here; None makes new memory.
    """

    def __init__(self, size: int, fd: int | None = None) -> None:
        self.size = size
        if fd is not None:
            self.buffer = mmap.mmap(fd, size)
            os.close(fd)
            return
        if hasattr(os, "memfd_create"):
            self._fd = os.memfd_create("coordrl")
        else:  # macOS: a file that has lost its name
            with tempfile.TemporaryFile() as file:
                self._fd = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._fd)
        os.ftruncate(self._fd, size)
        self.buffer = mmap.mmap(self._fd, size)

    @property
    def fd(self) -> int:
        """Its file descriptor, where it was made."""
        return self._fd


class _Outgoing:
    """A message on its way: what of it was sent is noted by the C code that sends it, so that Ctrl-C cannot part the two.

    (`sendall` would not do: it may raise for a signal when everything is sent.)
    """

    def __init__(self, number: int, message: Message, fds: Sequence[int]) -> None:
        self.number = number
        data = json.dumps({**message, "number": number}).encode()
        self._data = memoryview(_HEADER.pack(len(data)) + data)
        self._fds = array.array("i", fds)
        self._sent: list[int] = []

    @property
    def is_begun(self) -> bool:
        """Whether some of it was sent."""
        return bool(self._sent)

    def send(self, end: socket.socket) -> None:
        """Send the rest.

        Raises:
            ConnectionError: nobody listens any more.
        """
        while (done := sum(self._sent)) < len(self._data):
            rest = self._data[done:]
            if done == 0 and self._fds:  # they go with the first byte
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, self._fds)]
                self._sent.extend(starmap(end.sendmsg, (([rest], ancillary),)))
            else:
                self._sent.extend(starmap(end.send, ((rest,),)))


class _Channel:
    """Messages over a socket: JSON objects, each with a number, and file descriptors with them.

    An interruption loses nothing: what has come is noted by the C code that receives it, and stays until `take`.
    """

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self._inbox: list[tuple[bytes, list[Any], int, Any]] = []  # as recvmsg returns them, of one message

    def receive(self, max_fds: int = 0) -> tuple[dict[str, Any], list[int]]:
        """Wait for a message and return it; again and again the same one, until it is taken.

        Raises:
            EOFError: the other end is closed, or what comes from it is no message.
        """
        room = socket.CMSG_LEN(max_fds * array.array("i").itemsize) if max_fds else 0
        while (missing := self._wanted() - self._received()) > 0:
            try:
                self._inbox.extend(starmap(self.end.recvmsg, ((missing, room),)))
            except ConnectionError as error:
                raise EOFError from error
            if not self._inbox[-1][0]:
                raise EOFError
        try:
            message: dict[str, Any] = json.loads(b"".join(part[0] for part in self._inbox)[_HEADER.size :])
        except ValueError as error:
            raise EOFError from error
        fds = array.array("i")
        for _, ancillary, _, _ in self._inbox:
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        return message, [*fds]

    def take(self) -> None:
        """Be done with the message that was received."""
        self._inbox.clear()

    def _received(self) -> int:
        """Return how many bytes have come."""
        return sum(len(part[0]) for part in self._inbox)

    def _wanted(self) -> int:
        """Return how long the message is, as far as that is known."""
        if self._received() < _HEADER.size:
            return _HEADER.size
        head = self._inbox[0][0]
        if len(head) < _HEADER.size:
            head = b"".join(part[0] for part in self._inbox)
        size = int(_HEADER.unpack_from(head)[0])
        if size > _MAX_BYTES:
            raise EOFError
        return _HEADER.size + size


ENVS_PER_WORKER = 4  # with fewer, a network's batch is too small to be worth a core


def default_workers(n_envs: int) -> int:
    """Return into how many processes some environments are best divided here, this one among them.

    One a core, but for somebody who keeps the computation to fewer threads by OMP_NUM_THREADS, as many as those.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    cores = min(len(allowed_cores()), int(asked) if asked.isdecimal() else n_envs)
    return max(1, min(cores, n_envs // ENVS_PER_WORKER)) if can_start() else 1


def can_start() -> bool:
    """Whether this system can pass open files to a process, as Linux and macOS can."""
    return hasattr(socket, "send_fds")


@final
class Worker:
    """A worker process, seen from where it was started.

    Args:
        module: has a function `main` that calls `serve`.
        name: of the worker, for messages.

    Raises:
        RequestError: this system cannot pass files to a process.
    """

    def __init__(self, module: str, name: str) -> None:
        if not can_start():
            raise RequestError("worker processes need Linux or macOS; use one process here")
        self.name = name
        mine, its = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [*module_command("coordrl.workers"), str(its.fileno()), str(os.getpid()), module],
                stdin=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
                env={**module_environment(), "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C in a terminal is the parent's affair
            )
        except BaseException:
            mine.close()
            raise
        finally:
            its.close()
        self._channel = _Channel(mine)
        self._request = _Outgoing(0, {}, ())  # the last one; numbered, so that no answer is taken for another's
        self._answered = 0  # the number of the last one that was
        self._forsaken = False  # the answer that comes is nobody's any more
        self._end = weakref.finalize(self, _end, mine, self._process)
        self._mine = mine

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def tell(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a request, after the answer to the one before it.

        Raises:
            RequestError: the worker was ended by `close`.
            ResumableError: the worker has ended.
            Exception: what the request before it ended in; see `answer`.
        """
        if not self._end.alive:
            raise RequestError(f"worker process {self.name} was closed; start another one")
        self.settle()
        self._forsaken = False
        self._request = _Outgoing(self._request.number + 1, message, fds)
        self._send()

    def has_answered(self, seconds: float) -> bool:
        """Wait for the answer to the last request to begin to come, but not for long; says whether it does."""
        return bool(select.select([self._mine], [], [], seconds)[0])

    def answer(self) -> dict[str, Any]:
        """Wait for the answer to the last request.

        Raises:
            ResumableError: the worker has ended.
            Exception: what the worker raised, as itself where it is Python's or coordrl's own.
        """
        assert self._answered < self._request.number, "nothing was asked"
        self._send()
        while self._answered < self._request.number:
            try:
                answer, _ = self._channel.receive()
            except EOFError:
                raise self._lost() from None
            # In this order: one that counts as given and was not taken is passed over here.
            self._answered = max(self._answered, answer["number"])
            self._channel.take()
        if "error" in answer:
            raise _revive(answer["error"])
        return answer

    def settle(self) -> None:
        """Wait for the answer to the last request, if it has not been given; after `forsake`, whatever it is.

        One that was interrupted before anything of it was sent was never made.
        """
        if self._answered < self._request.number and self._request.is_begun:
            try:
                self.answer()
            except ResumableError:
                raise
            except Exception:
                if not self._forsaken:
                    raise

    def forsake(self) -> None:
        """Want no answer to the last request, after an interruption."""
        self._forsaken = True

    def hang_up(self) -> None:
        """Let the worker end, and do not wait for it."""
        if (
            not self._request.is_begun and self._request.number <= 1
        ):  # it may still be importing, for seconds, and hears of nothing before
            self._process.kill()
        self._mine.close()

    def close(self) -> None:
        """End the worker; a second call does nothing."""
        self.hang_up()
        self._end()

    def _send(self) -> None:
        """Send what has not been sent of the last request."""
        try:
            self._request.send(self._channel.end)
        except ConnectionError as error:
            raise self._lost() from error

    def _lost(self) -> ResumableError:
        """Say how the worker ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_GRACE_SECONDS)
        code = self._process.returncode
        how = "closed its socket" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was ended by signal {-code}" + (", as when memory runs out" if code == -signal.SIGKILL else "")
        return ResumableError(f"worker process {self.name} {how}. A training goes on from its last checkpoint")


def hire(module: str, count: int) -> list[Worker]:
    """Start the processes for a division into `count`, but for this one; they import while this one goes on."""
    return [Worker(module, f"{number} of {count}") for number in range(2, count + 1)]


def end(workers: Sequence[Worker]) -> None:
    """End several workers, all at the same time."""
    for worker in workers:
        worker.hang_up()
    for worker in workers:
        worker.close()


def _end(mine: socket.socket, process: subprocess.Popen[bytes]) -> None:
    """Close the socket, at which the worker ends, and wait for that."""
    mine.close()
    try:
        process.wait(timeout=_GRACE_SECONDS)
    except subprocess.TimeoutExpired:  # it computes, or was stopped: it holds nothing that could be lost
        process.kill()
        process.wait()


def serve(answer: Answer) -> None:
    """Answer requests until the parent closes its end. For the function `main` of a worker's module."""
    channel = _Channel(socket.socket(fileno=int(sys.argv[1])))
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            request, fds = channel.receive(_MAX_FDS)
            channel.take()
            try:
                found = answer(request, fds)
            except Exception as error:  # passed on, whatever it is
                found = {"error": _describe(error)}
            _Outgoing(request["number"], found, ()).send(channel.end)


def _be_worker() -> None:
    """Be a worker process: tie it to its parent before anything else, for the imports take seconds."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a job: the parent decides
        signal.signal(number, signal.SIG_IGN)
    # The end of the socket says that the parent has ended, unless somebody has a copy of its other end: a process
    # that the parent forked. Not prctl's PDEATHSIG: that is sent when the starting *thread* ends.
    threading.Thread(target=_watch, args=(int(sys.argv[2]),), daemon=True).start()
    try:
        main = import_module(sys.argv[3]).main
    except Exception as error:  # raised where something is asked, not printed by each process
        failure = error

        def fail(request: Message, fds: Sequence[int]) -> dict[str, Any]:
            raise failure

        serve(fail)
    else:
        main()


def _watch(parent: int) -> None:
    """End this process when it is no child of its parent any more."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _describe(error: Exception) -> dict[str, Any]:
    """Take an error apart."""
    kinds = [[kind.__module__, kind.__qualname__] for kind in type(error).__mro__]
    words = [word for word in error.args if isinstance(word, str | int | float)]
    return {"kinds": kinds, "words": words, "trace": traceback.format_exc()}


def _revive(described: Message) -> Exception:
    """Make the error of a worker again; one that is neither Python's nor coordrl's, as the nearest that is."""
    kinds = [getattr(import_module(module), name) for module, name in described["kinds"] if module in _KNOWN]
    for kind in kinds:
        with contextlib.suppress(TypeError):  # needs other words
            error: Exception = kind(*described["words"])
            error.add_note(f"In a worker process:\n{described['trace']}")
            return error
    raise AssertionError(f"no error takes the words {described['words']}")  # Exception takes all


if __name__ == "__main__":
    _be_worker()
