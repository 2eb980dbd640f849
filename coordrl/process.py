"""The process and the machine it runs on: settings for speed, what a launcher asked for, the processor's name."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from coordrl.errors import RequestError

_SPINS = "100000"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_KEEP = 1 << 30  # bytes
_PR_SET_PDEATHSIG = 1  # Linux's sys/prctl.h
_CORES, _LAUNCHER = "COORDRL_CORES", "COORDRL_LAUNCHER"


def tune() -> None:
    """Tune OpenMP and malloc for a training; call it before torch is imported. Changes no result.

    - libgomp's threads spin for milliseconds after each parallel region, on the very cores that the
      emulator's threads wait for. They spin a hundred thousand times here: still long enough for the
      next layer of a network. A GOMP_SPINCOUNT or OMP_WAIT_POLICY in the environment is left alone.
    - glibc gives the memory of large tensors back to the system after each update, and takes a page
      fault for every page of the next one. It keeps up to 1 GiB of it here.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            libc.mallopt(parameter, _KEEP)


def worker_environment(threads: int, cores: Sequence[int] = ()) -> Mapping[str, str]:
    """Return the variables by which a launcher keeps a worker to some threads and cores, and ties it to its own life."""
    return {"OMP_NUM_THREADS": str(threads), _CORES: ",".join(map(str, cores)), _LAUNCHER: str(os.getpid())}


def module_command(module: str) -> list[str]:
    """Return the words that run a module of ours as a program.

    With -P, because -m alone would put the current folder in front of everything: in a stranger's folder, what lies
    there would be imported. To go with `module_environment`.
    """
    return [sys.executable, "-P", "-m", module]


def module_environment() -> dict[str, str]:
    """Return the environment for `module_command`: this process's, and its paths in their order."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}


def obey_launcher() -> None:
    """Do what the launcher that started this process asked for, if one did; call it before torch is imported.

    The process keeps to its cores, and the kernel sends it SIGTERM when the launcher ends, however it ends:
    no worker goes on without one, and none loses more than a SIGTERM loses.
    """
    cores, launcher = os.environ.pop(_CORES, ""), os.environ.pop(_LAUNCHER, "")
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    if launcher and platform.system() == "Linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(launcher):  # it ended before we could ask
            os.kill(os.getpid(), signal.SIGTERM)


def check_device_name(device: str) -> None:
    """Check that torch may know a device of this name, without importing it.

    Raises:
        RequestError: it knows none.
    """
    if device.partition(":")[0] not in ("auto", "cpu", "cuda", "mps", "xpu"):
        raise RequestError(f'there is no device "{device}"; there are auto, cpu and cuda')


def allowed_cores() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def processor_name() -> str:
    """Return what the processor calls itself, or "" where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def available_memory() -> int | None:
    """Return how many bytes this process can still get here, its control group's limit included; None if unknown."""
    found = []
    with suppress(OSError, ValueError, IndexError):
        found.append(_read_fields(Path("/proc/meminfo"))["MemAvailable:"] * 1024)
    root, own = Path("/sys/fs/cgroup"), ""
    with suppress(OSError, IndexError):
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8").partition("0::/")[2].splitlines()[0]
    for group in (root / own, *(root / own).parents):  # each holds the ones below it
        with suppress(OSError, ValueError, KeyError):  # "max" is no number: no limit
            limit, used = (int((group / name).read_text(encoding="utf-8")) for name in ("memory.max", "memory.current"))
            files = _read_fields(group / "memory.stat")
            found.append(limit - used + files["inactive_file"] + files["active_file"])  # given back when asked for
    return min(found, default=None)


def _read_fields(file: Path) -> dict[str, int]:
    """Read a file of the kernel's with a name and a number in each line."""
    words = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    return {word[0]: int(word[1]) for word in words}
