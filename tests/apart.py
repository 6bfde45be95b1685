"""Where suites run beside each other on one machine, each has its own places that a device has once.

Owns a worker's mount namespace and its end. What the kernel has once (programs, processes, sockets) is shared, so tests
look at their own: names are of their process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Final

CLONE_NEWNS: Final = 0x00020000  # sched.h
PR_SET_PDEATHSIG: Final = 1  # prctl.h
ONCE: Final = (("tmpfs", "/run/kinwatch"), ("bpf", "/sys/fs/bpf"))
LOCK: Final = Path("/run/kinwatch.lock")


def stand_apart() -> None:
    """This process and whom it starts from here on have their own pins, control socket and lock. Needs root.

    It gets a SIGTERM when who started it ends, so that what its tests started ends too. Raises OSError and
    CalledProcessError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM) or libc.unshare(CLONE_NEWNS):
        error = ctypes.get_errno()
        raise OSError(error, f"a worker cannot stand apart: {os.strerror(error)}; run the tests as root")
    _mount("--make-rprivate", "/")
    for kind, place in ONCE:
        Path(place).mkdir(parents=True, exist_ok=True)
        _mount("-t", kind, kind, place)
    with tempfile.NamedTemporaryFile(prefix="kinwatch-lock-") as own:  # what is mounted outlives its name
        LOCK.touch()
        _mount("--bind", own.name, str(LOCK))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)
