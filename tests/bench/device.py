"""How long one look at the device's sockets takes, beside psutil's: many sockets, many processes, in turns.

python -m tests.bench.device SOCKETS PROCESSES ROUNDS: what runs inside a network namespace of its own, where nobody
else opens sockets; prints JSON. Owns those sockets and processes and their end. Refuses to judge: the page does.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psutil

from monitor.capture.device import DeviceReader
from monitor.detect.device import blocks
from tests.bench import programs
from tests.bench.watcher import Unmeasured

if TYPE_CHECKING:
    from monitor.detect.device import DeviceReading

SOCKETS: Final = 5_000
PROCESSES: Final = 500
LISTENERS_OF_TEN: Final = 2
"""And as many that take datagrams."""
CONNECTIONS_OF_TEN: Final = 3
"""Both ends of each; half of all sockets are IPv6."""
FAMILIES: Final = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
LIMIT_S: Final = 300


@dataclass(frozen=True)
class Looks:
    """Looks, one right after the other, nanoseconds."""

    sockets: int
    """That psutil found, the kernel's own included."""
    processes: int
    """Of the machine."""
    rounds: list[tuple[int, int, int]]
    """psutil.net_connections; ours, the reading and the blocks made of it; of that the reading."""


def looks(rounds: int) -> Looks:
    """Measure. Raises Unmeasured."""
    command = ["unshare", "--net", sys.executable, "-m", __name__, str(SOCKETS), str(PROCESSES), str(rounds)]
    ran = subprocess.run(command, cwd=programs.ROOT, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    if ran.returncode != 0:
        raise Unmeasured((ran.stderr.strip() or f"exit code {ran.returncode}").splitlines()[-1])
    seen = json.loads(ran.stdout)
    return Looks(
        seen["sockets"], seen["processes"], [(theirs, ours, reading) for theirs, ours, reading in seen["rounds"]]
    )


def _open(family: int, address: str, count: int, stack: ExitStack) -> None:
    """Open so many sockets, tens of them."""
    for _ in range(0, count, 10):
        servers = [stack.enter_context(socket.socket(family, socket.SOCK_STREAM)) for _ in range(LISTENERS_OF_TEN)]
        for server in servers:
            server.bind((address, 0))
            server.listen()
            stack.enter_context(socket.socket(family, socket.SOCK_DGRAM)).bind((address, 0))
        for _ in range(CONNECTIONS_OF_TEN):
            stack.enter_context(socket.create_connection(servers[0].getsockname()[:2]))
            stack.enter_context(servers[0].accept()[0])


def _child(number: int, count: int, ready: int) -> None:
    """Hold sockets until the parent ends it."""
    with ExitStack() as stack:
        _open(*FAMILIES[number % len(FAMILIES)], count, stack)
        os.write(ready, b"x")
        signal.pause()


def _measure(sockets: int, processes: int, rounds: int) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    children = []
    ready, tell = os.pipe()
    try:
        share = sockets // processes
        for number in range(processes):
            pid = os.fork()
            if pid == 0:
                try:
                    _child(number, share, tell)
                finally:
                    os._exit(1)
            children.append(pid)
        os.close(tell)
        for _ in children:
            if os.read(ready, 1) != b"x":
                raise Unmeasured("a process with sockets has ended")
        reader, measured = DeviceReader(), []
        before: DeviceReading | None = None
        found: list[object] = []
        for _ in range(rounds):
            began = time.perf_counter_ns()
            found = list(psutil.net_connections(kind="inet"))
            between = time.perf_counter_ns()
            reading = reader.read()
            read = time.perf_counter_ns()
            blocks(before, reading)
            measured.append((between - began, time.perf_counter_ns() - between, read - between))
            before = reading
        print(json.dumps({"sockets": len(found), "processes": len(psutil.pids()), "rounds": measured}))
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    _measure(*(int(word) for word in sys.argv[1:4]))
