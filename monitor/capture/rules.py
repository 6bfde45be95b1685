"""What each kind of watch means to the kernel: names, files, places, pids, cgroups; and to the engine: expectations.

Owns the looks at the file system and at systemd that turn a watch into rows of the match tables. Refuses to know the
loader and its state.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from monitor.engine._native import lib

if TYPE_CHECKING:
    from monitor.engine import Engine
    from monitor.watch import Expect, Watch

_MOUNTS: Final = Path("/proc/self/mounts")
_SYSTEMCTL_S: Final = 5


class Rule(msgspec.Struct, frozen=True):
    """One row: the loader's function and its arguments after loader and slot."""

    table: str
    """name, file, place, pid, cgroup or cgroup_path: `kw_loader_match_<table>`."""
    arguments: tuple[int | bytes, ...]


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


def define(engine: Engine, slot: int, name: str, expect: Expect) -> None:
    """Make a watch the engine's, with all that is expected of it; what was expected before is judged anew."""
    engine.watch(slot, name, expect.child_processes)
    engine.expect_destinations(slot, expect.destinations)
    engine.expect_ports(slot, expect.listening_ports)


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
