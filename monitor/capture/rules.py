"""What each kind of watch means to the kernel: names, files, places, pids, cgroups; and to the engine: expectations.

Owns the looks at the file system and at systemd that turn a watch into rows of the match tables. Refuses to know the
loader and its state.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from monitor.engine import LineageRules
from monitor.engine._native import lib
from monitor.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Iterable

    from monitor.engine import Engine
    from monitor.expect import Expect
    from monitor.watch import Watch

_MOUNTS: Final = Path("/proc/self/mounts")
_SYSTEMCTL_S: Final = 5
_MINOR_BITS: Final = 20  # MINORBITS of the kernel


class Rule(msgspec.Struct, frozen=True):
    """One row: the loader's function and its arguments after loader and slot."""

    table: str
    """name, file, place, pid, cgroup or cgroup_path: `kw_loader_match_<table>`."""
    arguments: tuple[int | bytes, ...]


class FileIdentity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file as the kernel knows it at this moment; a file that takes its place has another one."""

    path: str
    """As it was asked for."""
    device: int
    """Of its superblock (s_dev), major << 20 | minor: as image records have it."""
    stat_device: int
    """As stat(2) has it, in the same form; another one on btrfs and on some overlays."""
    inode: int
    """Of the kernel's inode (i_ino)."""
    ctime_ns: int
    """Of the last change of content or inode, nanoseconds since the epoch. Kernels since 6.13 keep a flag in the
    highest bit of i_ctime_nsec, which is no part of it."""
    size: int
    """Bytes."""


def identities(paths: Iterable[str]) -> tuple[FileIdentity, ...]:
    """Files that these paths name now, links followed, for the kernel maps the file itself; none for what is missing.

    Raises nothing: a path that cannot be looked at names no file.
    """
    found = []
    superblocks: dict[str, int] | None = None
    for path in paths:
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                status = os.fstat(fd)
                told = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="utf-8", errors="replace")
            finally:
                os.close(fd)
            facts = {key: value.strip() for key, _, value in (line.partition(":") for line in told.splitlines())}
            if superblocks is None:
                superblocks = _superblocks()
            stat_device = os.major(status.st_dev) << _MINOR_BITS | os.minor(status.st_dev)
            found.append(
                FileIdentity(
                    path=path,
                    device=superblocks.get(facts.get("mnt_id", ""), stat_device),
                    stat_device=stat_device,
                    inode=int(facts.get("ino", status.st_ino)),  # fdinfo tells it since 5.14
                    ctime_ns=status.st_ctime_ns,
                    size=status.st_size,
                )
            )
    return tuple(found)


def _superblocks() -> dict[str, int]:
    """Device of each mount's superblock by the mount's id; proc_pid_mountinfo(5)."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        mount, _, device, *_ = line.split(" ")
        major, _, minor = device.partition(":")
        found[mount] = int(major) << _MINOR_BITS | int(minor)
    return found


def rules(watch: Watch) -> list[Rule]:
    """Rows for a watch as things stand now; a file or cgroup that does not exist yet has rows that wait for it."""
    if watch.kind == "process":
        return [Rule("name", (watch.value.encode(),))]
    if watch.kind == "pid":
        return [Rule("pid", (int(watch.value),))]
    if watch.kind == "exe":
        return _of_executable(watch.value)
    if watch.kind == "unit":
        return _of_cgroup(unit_cgroup(watch.value))
    if watch.kind == "cgroup":
        return _of_cgroup(watch.value)
    return []


def refuse_enforcement(watches: Iterable[Watch], kind: str) -> None:
    """Raise ConfigInvalid for a watch that wants to be enforced by a capture that cannot."""
    for watch in watches:
        if watch.enforce != "off":
            message = (
                f"watch {watch.name}: enforce: capture {kind} cannot act on processes, and found {watch.enforce!r};"
                ' write enforce = "off"'
            )
            raise ConfigInvalid(message)


class Defined(Protocol):
    """What a definition needs to know of a watch: Watch, or a recorded one."""

    @property
    def name(self) -> str:
        """In lines."""

    @property
    def kind(self) -> str:
        """A WatchKind."""

    @property
    def value(self) -> str:
        """Of the kind."""

    @property
    def expect(self) -> Expect:
        """What is normal."""

    @property
    def enforce(self) -> str:
        """An Enforce."""


def define(engine: Engine, slot: int, watch: Defined, files: Iterable[FileIdentity] | None) -> None:
    """Make a watch the engine's, with all that is expected of it; what was expected before is judged anew.

    `files`: identities of the expected executables; None: paths are all that is known of them.
    """
    expect = watch.expect
    engine.watch(slot, watch.name, expect.child_processes)
    engine.expect_destinations(slot, expect.destinations, expect.destination_names)
    engine.expect_ports(slot, expect.listening_ports)
    forbidden = {lib.KW_MEMFD: expect.memfd, lib.KW_DELETED: expect.deleted, lib.KW_TEMPORARY: expect.temporary}
    named = watch.kind in {"process", "exe"} and (expect.executables is not None or watch.enforce != "off")
    lineage = LineageRules(
        executables=expect.executables,
        files=None
        if files is None
        else [(device, file.inode) for file in files for device in {file.device, file.stat_device}],
        edges=expect.edges,
        depth=expect.depth,
        forks_per_minute=expect.forks_per_minute,
        uids=expect.uids,
        forbidden=sum(flag for flag, allowed in forbidden.items() if allowed is False),
        root=_root_image(watch) if named else None,
    )
    engine.expect_lineage(slot, lineage)


def _root_image(watch: Defined) -> str:
    return os.path.realpath(watch.value) if watch.kind == "exe" else watch.value


def _of_executable(path: str) -> list[Rule]:
    """The file itself, and its name in its directory, so that a replaced file is matched at its first exec."""
    found = []
    real = os.path.realpath(path)
    with contextlib.suppress(OSError):
        status = Path(real).stat()
        found.append(Rule("file", (os.major(status.st_dev), os.minor(status.st_dev), status.st_ino)))
    for spelled in dict.fromkeys((real, path)):
        directory, _, name = spelled.rpartition("/")
        with contextlib.suppress(OSError):
            status = Path(directory or "/").stat()
            if len(name.encode()) < lib.KW_NAME_BYTES:  # a longer name is matched by its inode alone
                place = (os.major(status.st_dev), os.minor(status.st_dev), status.st_ino, name.encode())
                found.append(Rule("place", place))
    return found


def directories(watch: Watch) -> list[str]:
    """Directories whose changes may change what an `exe` watch names: of every name on its way, links resolved."""
    if watch.kind != "exe":
        return []
    found: dict[str, None] = {}
    for spelled in (watch.value, os.path.realpath(watch.value)):
        for directory in Path(spelled).parents:
            found[os.path.realpath(directory)] = None
    return [directory for directory in found if directory != "/" or len(found) == 1]


def cgroup2_mount() -> Path | None:
    """Where the cgroup2 hierarchy is mounted; None: nowhere."""
    for line in _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines():
        _, where, kind, *_ = line.split(" ")
        if kind == "cgroup2":
            return Path(where.replace("\\040", " "))
    return None


def _of_cgroup(path: str) -> list[Rule]:
    """The cgroup of now, and its path, which the kernel matches whenever such a cgroup is made."""
    found = [Rule("cgroup_path", (path.encode(),))]
    mount = cgroup2_mount()
    if mount is not None:
        with contextlib.suppress(OSError):
            # The inode number of a cgroup's directory is the id that the kernel knows it by (kernfs).
            found.append(Rule("cgroup", ((mount / path.lstrip("/")).stat().st_ino,)))
    return found


def unit_cgroup(unit: str) -> str:
    """The cgroup of a systemd unit: what systemd says, else where its defaults put it (systemd.slice(5))."""
    import subprocess  # noqa: PLC0415 - slow to import, and only watches of units need it

    systemctl = shutil.which("systemctl")
    if systemctl and Path("/run/systemd/system").is_dir():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run(
                [systemctl, "show", "--property=ControlGroup,Slice", "--", unit],
                capture_output=True,
                text=True,
                timeout=_SYSTEMCTL_S,
                check=True,
            ).stdout
            properties = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
            if properties.get("ControlGroup"):
                return properties["ControlGroup"]
            if properties.get("Slice"):
                return f"{_slice_path(properties['Slice'])}/{unit}"
    if unit.endswith(".slice"):
        return _slice_path(unit)
    prefix, at, _ = unit.partition("@")
    if at:
        escaped = prefix.replace("-", "\\x2d")
        return f"{_slice_path(f'system-{escaped}.slice')}/{unit}"
    return f"/system.slice/{unit}"


def _slice_path(name: str) -> str:
    """`a-b.slice` lives in `/a.slice/a-b.slice`."""
    if name == "-.slice":
        return ""
    parts = name.removesuffix(".slice").split("-")
    return "".join(f"/{'-'.join(parts[: n + 1])}.slice" for n in range(len(parts)))
