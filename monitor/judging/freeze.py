"""Stopping what an alarm is about: SIGSTOP to processes, or the freezer of a cgroup.

Owns the look that makes sure that a process is the one that is meant. Refuses to decide when.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

from monitor.capture.rules import cgroup2_mount, unit_cgroup
from monitor.judging.kin import kin_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from monitor.watch import Watch

_STOPPED: Final = "tTZX"
"""States of proc(5) in which there is nothing to stop: stopped, traced, dead."""


def descendants(tree: bytes, watch: str, root: str = "") -> list[str]:
    """Process ids of the live descendants of a watch. `tree`: as Engine.tree; `root`: of this root only."""
    return [
        one.process_id
        for one, place in kin_of(tree, watch)
        if not place.root and (not root or place.root_process_id == root)
    ]


def stop(process_id: str, spared: Collection[int]) -> bool:
    """SIGSTOP to a process. False: it has ended, is stopped already or is spared. Raises OSError: it could not be."""
    pid, _, start = process_id.partition("-")
    if int(pid) in spared:
        return False
    try:
        fd = os.pidfd_open(int(pid))
    except ProcessLookupError:
        return False
    try:
        # The descriptor holds whoever has the pid now; if that is not who is meant, the pid went round.
        state, begun = _stat(int(pid))
        if begun != start or state in _STOPPED:
            return False
        signal.pidfd_send_signal(fd, signal.SIGSTOP)
    except (ProcessLookupError, FileNotFoundError):
        return False
    finally:
        os.close(fd)
    return True


def _stat(pid: int) -> tuple[str, str]:
    """State and start in clock ticks since boot (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return fields[0], fields[19]


class NoCgroup(Exception):
    """A watch cannot be frozen; the message says why."""


def hindrance() -> str:
    """Why no cgroup can be frozen by this process, and what to do; "" when nothing stands against it."""
    mount = cgroup2_mount()
    try:
        if mount is None or not os.statvfs(mount).f_flag & os.ST_RDONLY:
            return ""
    except OSError:
        return ""
    return (
        f"{mount} is read-only here; under systemd let the unit have ProtectControlGroups=no and ReadWritePaths={mount}"
    )


def freeze(watch: Watch) -> bool:
    """Freeze the cgroup of a watch. False: it is frozen. Raises NoCgroup, OSError."""
    if watch.kind not in {"unit", "cgroup"}:
        raise NoCgroup(f"it is watched by {watch.kind} and has no cgroup of its own")
    mount = cgroup2_mount()
    if mount is None:
        raise NoCgroup("no cgroup2 hierarchy is mounted")
    path = unit_cgroup(watch.value) if watch.kind == "unit" else watch.value
    mine = Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="replace").rpartition("::")[2].strip()
    if f"{mine}/".startswith(f"{path.rstrip('/')}/"):
        raise NoCgroup(f"kinwatch itself is in {path}")
    switch = mount / path.lstrip("/") / "cgroup.freeze"
    if switch.read_text(encoding="ascii").strip() == "1":
        return False
    switch.write_text("1", encoding="ascii")
    return True
