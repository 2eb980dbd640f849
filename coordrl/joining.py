"""Join a Ray cluster, or start one of this machine alone. Needs the extra `ray`."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any

from coordrl.errors import RequestError

CONNECT_SECONDS = 5.0
JOIN_SECONDS = 30.0  # Ray itself never gives up where something answers that is no cluster; it looks every 40 s at most
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": False}


def import_ray() -> Any:
    """Import ray, or say how to install it."""
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise RequestError("the backend ray needs Ray; install it with: pip install 'coordrl[ray]'") from error
    return ray


def check_address(address: str) -> None:
    """Check that something answers at a cluster's address: Ray itself tries for minutes.

    Raises:
        RequestError: nothing does, or it is no address.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in address:
        raise RequestError(f'--address is "{address}"; it is HOST:PORT of a running Ray cluster, or auto')
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise RequestError(
            f"no Ray cluster answers at {address}: {error}. Start one with: ray start --head --node-ip-address"
            " 127.0.0.1 --port 6379"
        ) from error


def join(address: str) -> Any:
    """Join a cluster that is there already, and return the module ray.

    Args:
        address: of the cluster's head, HOST:PORT, or auto for one that runs on this machine.

    Raises:
        RequestError: ray is not installed, or no cluster that lets us in answers at the address.
    """
    check_address(address)
    if address.startswith(("127.", "localhost:")):
        _stay_on_loopback()
    ray = import_ray()
    with _nothing_of_this_folder(), _patience(address):
        _init(ray, f'the Ray cluster at "{address}" cannot be joined', address=address)
    return ray


def start(cores: int) -> Any:
    """Start a cluster of this machine alone, which ends with this process, and return the module ray.

    It listens on 127.0.0.1, asks everyone for a token that it makes up, and has no dashboard.

    Raises:
        RequestError: ray is not installed, or does not start.
    """
    _stay_on_loopback()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=_own_token())
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, sys.path))  # what we import, its processes can
    ray = import_ray()
    with _nothing_of_this_folder():
        words = {"num_cpus": cores, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        _init(ray, "Ray does not start on this machine", address="local", **words)
    return ray


@cache
def _own_token() -> str:
    """Make up a token, once: Ray reads it once in a process."""
    return secrets.token_hex(32)


def shows_token() -> bool:
    """Whether this process shows a token to the cluster that it joins."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def _init(ray: Any, failure: str, **words: Any) -> None:
    """Call ray.init; what goes wrong becomes one line."""
    try:
        ray.init(**words, **_QUIET)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())[:400]
        hint = "" if shows_token() else ". If it asks for a token: set RAY_AUTH_MODE=token here, as on its nodes"
        raise RequestError(f"{failure}: {reason}{hint if isinstance(error, ConnectionError) else ''}") from error


@contextmanager
def _nothing_of_this_folder() -> Iterator[None]:
    """Stand in the root folder, where no stranger can put a module.

    Ray has every process of a cluster import from the folder that it is called in, before all others.
    """
    before = os.open(".", os.O_RDONLY)
    os.chdir("/")
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)


@contextmanager
def _patience(address: str) -> Iterator[None]:
    """Give up after some time, where signals can be had."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(number: int, frame: FrameType | None) -> None:
        raise RequestError(f"what answers at {address} is no Ray cluster, or does not let us in")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, JOIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _stay_on_loopback() -> None:
    """Keep Ray from taking a loopback address for this machine's outer one."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
