"""Single looks at one process in /proc, and which watches such a look matches.

Owns the parsing of proc(5) files and the matching rules as far as /proc can tell. Refuses to know lineage and
records. A process may go at any moment: every look returns None then, or what was still there.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psutil

from monitor.engine._native import lib
from monitor.engine.records import Credentials, ProcessId
from monitor.watch import COMMAND_PID

if TYPE_CHECKING:
    from monitor.capture import SlotWatch

_PF_KTHREAD = 0x00200000  # include/linux/sched.h
_STAT_BYTES = 4096  # 52 numbers and a comm
_COMM_BYTES = 15  # KW_COMM_BYTES in ebpf/event.h, less the terminating zero
_DELETED = b" (deleted)"


class Stat(msgspec.Struct, frozen=True):
    """One look at /proc/PID/stat."""

    process: ProcessId
    comm: bytes
    ppid: int
    session: int
    gone: bool
    """A zombie without other threads: ended, not yet collected."""
    image: tuple[bytes, bytes, bytes] | None
    """Where code begins and ends and where the stack began: drawn anew by every exec, inherited by fork.

    None: its first thread has ended and with it the view of its memory.
    """
    threads: int = 1
    """Those that have not ended; a first thread that has, though others live, counts."""


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """What a process runs; None: it could not be read."""

    exe: bytes | None = None
    """Path as /proc/PID/exe has it, without " (deleted)"."""
    device: int = 0
    """Kernel dev_t: major << 20 | minor."""
    inode: int = 0
    deleted: bool = False
    argv: tuple[bytes, ...] | None = None
    script: bytes | None = None
    """The argument whose base name is the comm when the executable's is not: so the kernel names a script."""
    cwd: bytes | None = None
    credentials: Credentials | None = None

    @property
    def memfd(self) -> bool:
        """The image lives in memory only."""
        return self.exe is not None and self.deleted and self.exe.startswith(b"/memfd:")


def read_stat(pid: int) -> Stat | None:
    """The process, None when there is none (or only a kernel thread)."""
    try:
        # The one thing that is read of everybody at every look: no pathlib, no buffer.
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:  # noqa: PTH123
            text = file.read(_STAT_BYTES)
    except OSError:
        return None
    head, _, tail = text.rpartition(b")")
    fields = tail.split()  # from the third of proc(5) on
    try:
        if int(fields[6]) & _PF_KTHREAD:
            return None
        return Stat(
            process=ProcessId(pid, int(fields[19]) * lib.KW_TICK_NS),
            comm=head.partition(b"(")[2],
            ppid=int(fields[1]),
            session=int(fields[3]),
            gone=fields[0] in {b"Z", b"X", b"x"} and int(fields[17]) <= 1,
            image=(fields[23], fields[24], fields[25]) if fields[25] != b"0" else None,
            threads=int(fields[17]),
        )
    except (IndexError, ValueError):
        return None


def read_image(stat: Stat) -> Image | None:
    """What the process runs now; None when it has gone or has become another image meanwhile."""
    directory = Path(f"/proc/{stat.process.pid}")
    exe, deleted, device, inode = _read_exe(directory)
    argv = _read_argv(directory)
    try:
        cwd = os.fsencode((directory / "cwd").readlink())
    except OSError:
        cwd = None
    image = Image(
        exe=exe,
        device=device,
        inode=inode,
        deleted=deleted,
        argv=argv,
        script=_script(stat.comm, exe, argv or ()),
        cwd=cwd,
        credentials=read_credentials(stat.process.pid),
    )
    again = read_stat(stat.process.pid)
    return image if again and (again.process, again.image) == (stat.process, stat.image) else None


def read_credentials(pid: int) -> Credentials | None:
    """Real uid and gid."""
    try:
        process = psutil.Process(pid)
        return Credentials(process.uids().real, process.gids().real)
    except psutil.Error:
        return None


def read_cgroup(pid: int) -> str:
    """The path in the cgroup2 hierarchy, "" when unknown."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")


def _read_exe(directory: Path) -> tuple[bytes | None, bool, int, int]:
    """Path, whether it is deleted, device, inode."""
    try:
        exe = os.fsencode((directory / "exe").readlink())
        status = (directory / "exe").stat()
    except OSError:
        return None, False, 0, 0
    deleted = status.st_nlink == 0
    return exe.removesuffix(_DELETED) if deleted else exe, deleted, *_file_of(status)


def _file_of(status: os.stat_result) -> tuple[int, int]:
    """Device as in records, inode."""
    return os.major(status.st_dev) << 20 | os.minor(status.st_dev), status.st_ino


def _base(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]


def _read_argv(directory: Path) -> tuple[bytes, ...] | None:
    try:
        block = (directory / "cmdline").read_bytes()
    except OSError:
        return None
    return tuple(block.removesuffix(b"\0").split(b"\0")) if block else None


def _script(comm: bytes, exe: bytes | None, argv: tuple[bytes, ...]) -> bytes | None:
    if exe is None or _base(exe)[:_COMM_BYTES] == comm:
        return None
    return next((arg for arg in argv[1:3] if arg and _base(arg)[:_COMM_BYTES] == comm), None)


class Rules:
    """Matches looks against watches; returns masks of their slots."""

    def __init__(self) -> None:
        """No watch yet."""
        self.by_cgroup = 0
        """Slots whose members can change without an exec."""
        self._names: dict[bytes, int] = {}
        self._paths: dict[str, int] = {}
        self._files: dict[tuple[int, int], int] = {}
        self._pids: dict[int, int] = {}
        self._cgroups: dict[str, int] = {}
        self._units: dict[str, int] = {}
        self._cmdlines: list[tuple[re.Pattern[str], int]] = []

    def add(self, held: SlotWatch) -> None:
        """Match this watch too."""
        watch, bit = held.watch, 1 << held.slot
        match watch.kind:
            case "process":
                _bump(self._names, watch.value.encode(), bit)
            case "exe":
                _bump(self._paths, watch.value, bit)
            case "pid":
                if watch.value != COMMAND_PID:
                    _bump(self._pids, int(watch.value), bit)
            case "cgroup":
                _bump(self._cgroups, watch.value, bit)
                self.by_cgroup |= bit
            case "unit":
                _bump(self._units, watch.value, bit)
                self.by_cgroup |= bit
            case "cmdline":
                self._cmdlines.append((re.compile(watch.value), bit))

    def remove(self, slots: int) -> None:
        """Match nothing for these slots any more."""
        for table in (self._names, self._paths, self._pids, self._cgroups, self._units):
            _withdraw(table, slots)
        self._cmdlines = [(pattern, bit) for pattern, bit in self._cmdlines if not bit & slots]
        self.by_cgroup &= ~slots

    def resolve(self) -> None:
        """Look up again which files the watched paths are."""
        self._files.clear()
        for path, mask in self._paths.items():
            try:
                _bump(self._files, _file_of(Path(path).stat()), mask)
            except OSError:
                continue

    @property
    def undecided(self) -> bool:
        """Any image may match, whatever it is called: a command line or a cgroup decides."""
        return bool(self._cmdlines or self.by_cgroup)

    def wanted(self) -> set[tuple[bytes, int, int, int]]:
        """What an image has to show to match, one of: name (as long as a comm), inode, device with it, pid.

        The name of a file is what the kernel has it under, so of a path that is a link it is also the target's.
        """
        names = set(self._names) | {
            os.fsencode(name) for path in self._paths for name in (path, os.path.realpath(path))
        }
        wanted = {(_base(name)[:_COMM_BYTES], 0, 0, 0) for name in names}
        wanted |= {(b"", inode, device, 0) for device, inode in self._files}
        return wanted | {(b"", 0, 0, pid) for pid in self._pids}

    def match(self, stat: Stat, image: Image) -> int:
        """Slots whose watch matches. A pid is matched once: a later process of that number is another one."""
        mask = self._names.get(stat.comm, 0) | self._pids.pop(stat.process.pid, 0)
        if image.exe is not None:
            mask |= self._names.get(_base(image.exe), 0)
            mask |= self._files.get((image.device, image.inode), 0)
        if image.script is not None:
            mask |= self._names.get(_base(image.script), 0)
        if self._cmdlines and image.argv is not None:
            line = b" ".join(image.argv).decode(errors="surrogateescape")
            for pattern, bit in self._cmdlines:
                mask |= bit if pattern.search(line) else 0
        return mask | self.match_cgroup(stat.process.pid)

    def match_cgroup(self, pid: int) -> int:
        """Slots whose cgroup or unit the process is in, or in one below it."""
        if not self.by_cgroup:
            return 0
        mask, path = 0, read_cgroup(pid)
        for prefix, bit in self._cgroups.items():
            mask |= bit if f"{path}/".startswith(f"{prefix}/") else 0
        for part in path.split("/"):
            mask |= self._units.get(part, 0)
        return mask


def _bump(table: dict[Any, int], key: object, bit: int) -> None:
    table[key] = table.get(key, 0) | bit


def _withdraw(table: dict[Any, int], slots: int) -> None:
    for key, mask in list(table.items()):
        table[key] = mask & ~slots
