"""What one watched application is: its name, what it is matched by, what is done about what is not normal for it.

Owns the rules of a watch's value and the looks at /proc and the file system that they need. Refuses to know TOML, flags
and how processes are matched.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args

import msgspec

from monitor.expect import MAX_PATH_BYTES, Expect, ImpossibleValue, mode_of

if TYPE_CHECKING:
    from collections.abc import Callable

WatchKind = Literal["process", "exe", "pid", "unit", "cgroup", "cmdline"]
Enforce = Literal["off", "dry-run", "kill"]

KINDS: Final[tuple[WatchKind, ...]] = get_args(WatchKind)
MAX_PROCESS_BYTES = 63  # KW_NAME_BYTES in ebpf/event.h, less the terminating zero
MAX_CGROUP_BYTES = 255  # struct kw_cgroup_path in ebpf/table.h, less the terminating zero
MAX_PID = 4_194_304  # PID_MAX_LIMIT of 64-bit kernels, include/linux/threads.h
COMMAND_PID = "0"
"""Value of the watch of `-- COMMAND`: the process does not exist yet, whoever starts it puts its pid here."""

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}\Z")
_UNIT = re.compile(r"[a-zA-Z0-9:_.\\@-]{1,255}\Z")  # systemd.unit(5)
_UNITS_WITH_PROCESSES = (".service", ".scope", ".slice")
_OTHER_UNITS = (".socket", ".device", ".mount", ".automount", ".swap", ".target", ".path", ".timer")


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """One watched application."""

    name: str
    """In lines and metric names; matches `[a-zA-Z0-9_-]{1,64}` and is unique."""
    kind: WatchKind
    value: str
    """Of `kind`, made canonical: an absolute path, a unit with its suffix, a decimal pid (COMMAND_PID: not yet)."""
    expect: Expect = Expect()
    enforce: Enforce = "off"

    @property
    def child_limit(self) -> int | None:
        """Most descendants alive before an alarm; None: no limit."""
        return self.expect.child_processes


def is_name(text: str) -> bool:
    """Whether `text` may name a watch."""
    return _NAME.match(text) is not None


def legal_name(text: str) -> str:
    """Make a watch name of a base name: characters outside [a-zA-Z0-9_-] are `_`, cut to 64. May be empty."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", text)[:64]


def canonical(kind: WatchKind, value: str | int) -> str:
    """Bring the value of a watch into its one form. Raises ImpossibleValue."""
    if isinstance(value, int):
        return _pid(value)
    try:
        value.encode()
    except UnicodeEncodeError:
        what = f"expected UTF-8, found {value!r}"
        raise ImpossibleValue(what, "rename it, or watch it by something else") from None
    if not value or "\0" in value:
        what = f"expected text, found {value!r}"
        raise ImpossibleValue(what, "empty text and zero bytes match nothing")
    return _RULES[kind](value)


def derived_name(kind: WatchKind, value: str) -> str:
    """Name a watch that was given no name after its canonical value, a pid after its executable in /proc.

    Raises ImpossibleValue when there is nothing to name it after.
    """
    if kind == "cmdline":
        what = "a watch by cmdline needs a name"
        raise ImpossibleValue(what, 'add name = "..."')
    base = _executable_name(value) if kind == "pid" else value.rpartition("/")[2]
    if kind == "unit":
        base = base.rpartition(".")[0]
    return legal_name(base)


def _pid(value: int) -> str:
    if not 1 <= value <= MAX_PID:
        what = f"expected a pid of 1 to {MAX_PID}, found {value}"
        raise ImpossibleValue(what, "see `ps -e`")
    try:
        status = Path(f"/proc/{value}/status").read_bytes()
    except OSError:
        return str(value)  # nothing there yet: a watch that matches nothing is normal
    leader = re.search(rb"^Tgid:\t(\d+)$", status, re.MULTILINE)
    if leader and int(leader[1]) != value:
        what = f"expected a process, found {value}, a thread of process {leader[1].decode()}"
        raise ImpossibleValue(what, f"watch pid {leader[1].decode()}")
    return str(value)


def _executable_name(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/exe").readlink().name.removesuffix(" (deleted)")
    except OSError:
        pass  # a kernel thread, a zombie, another user's: comm is all there is
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        what = f"expected a running process, found no process {pid}"
        raise ImpossibleValue(what, "give the pid of one, or watch by name") from None


def _process(value: str) -> str:
    if "/" in value:
        what = f"expected a process name, found the path {value!r}"
        raise ImpossibleValue(what, "watch a path with exe")
    if len(value.encode()) > MAX_PROCESS_BYTES:
        what = f"expected at most {MAX_PROCESS_BYTES} bytes, found {len(value.encode())}"
        raise ImpossibleValue(what, "watch longer names with exe")
    return value


def _exe(value: str) -> str:
    if not value.startswith("/"):
        what = f"expected an absolute path, found {value!r}"
        raise ImpossibleValue(what, "write the path from / on")
    if len(value.encode()) > MAX_PATH_BYTES:
        what = f"expected at most {MAX_PATH_BYTES} bytes, found {len(value.encode())}"
        raise ImpossibleValue(what, "the kernel has no longer paths")
    if mode_of(value) is None:
        directory = os.path.dirname(value)  # noqa: PTH120
        if os.path.isdir(directory):  # noqa: PTH112
            return value
        what = f"expected an executable, found neither {value} nor the directory {directory}"
        raise ImpossibleValue(what, "correct the path, or create the directory first")
    if not os.access(value, os.R_OK):
        what = f"expected a readable executable, found {value}, which is not readable"
        raise ImpossibleValue(what, "run as root, or correct the permissions")
    return value


def _unit(value: str) -> str:
    unit = value if value.endswith((*_UNITS_WITH_PROCESSES, *_OTHER_UNITS)) else f"{value}.service"
    if not _UNIT.match(unit) or unit.startswith("."):
        what = f"expected the name of a systemd unit, found {value!r}"
        raise ImpossibleValue(what, "see `systemctl list-units`")
    if unit.endswith(_OTHER_UNITS):
        what = f"expected a unit that has processes ({', '.join(_UNITS_WITH_PROCESSES)}), found {value!r}"
        raise ImpossibleValue(what, "name the service that it starts")
    if "@." in unit:
        what = f"expected an instance, found the template {value!r}"
        raise ImpossibleValue(what, "name an instance, as in getty@tty1.service")
    return unit


def _cgroup(value: str) -> str:
    path = value.removeprefix("/sys/fs/cgroup") if value.startswith("/sys/fs/cgroup/") else value
    path = path.rstrip("/") or "/"
    if not path.startswith("/") or any(part in {"", ".", ".."} for part in path[1:].split("/") if path != "/"):
        what = f"expected an absolute path in the cgroup hierarchy, found {value!r}"
        raise ImpossibleValue(what, "write it as in /proc/PID/cgroup")
    if path == "/":
        what = "expected a cgroup below the root, found the root, which holds every process"
        raise ImpossibleValue(what, "name the cgroup of the application")
    if len(path.encode()) > MAX_CGROUP_BYTES:
        what = f"expected at most {MAX_CGROUP_BYTES} bytes, found {len(path.encode())}"
        raise ImpossibleValue(what, "watch a cgroup above it")
    return path


def _cmdline(value: str) -> str:
    try:
        pattern = re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        what = f"expected a regular expression, found {value!r}: {error}"
        raise ImpossibleValue(what, "see https://docs.python.org/3/library/re.html") from None
    if pattern.search(""):
        what = f"expected an expression that says something, found {value!r}, which matches an empty command line"
        raise ImpossibleValue(what, "say what the command line contains")
    return value


_RULES: Final[dict[WatchKind, Callable[[str], str]]] = {
    "process": _process,
    "exe": _exe,
    "unit": _unit,
    "cgroup": _cgroup,
    "cmdline": _cmdline,
}
