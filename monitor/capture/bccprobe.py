"""Whether what the bcc capture's program reads is true: a process of our own is told by it and compared with /proc.

The structs of the kernel differ between builds, and a field that is read at the wrong place is not an error to anybody:
it is another number. So headers of another kernel, or type information of one, are found out here, before a record goes
to the engine.

Owns the process that is started for it and the comparison. Refuses to know how the program came to be.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from monitor.capture.procfs import read_stat
from monitor.capture.rules import identities
from monitor.engine._native import ffi, lib
from monitor.errors import CaptureUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from monitor.capture.bccprogram import Program
    from monitor.engine._native import CData

_CODE: Final = 37
_SCRIPT: Final = f"#!/bin/sh\necho\nread _\nexit {_CODE}\n"
_PLACE: Final = "/proc"
"""Where it runs: a file system that is mounted into another, so that its path crosses from one to the other."""

_SAID: Final = 3
"""Of what is wrong, so much is said."""
_LOOKS: Final = 3
"""Of a perf buffer, what is younger than a look comes with the next."""

_Records = list[tuple[int, bytes]]


def try_out(program: Program) -> _Records:
    """Return what came meanwhile, of everybody. Raises CaptureUnavailable with what the program reads wrongly.

    The program tells of everybody.
    """
    process = _start()
    with process:
        try:
            if process.stdout is not None:
                process.stdout.read(1)  # it runs: its image is whole
            truth = dict(_truth(process.pid))
        finally:
            process.communicate()
    if process.returncode != _CODE:
        msg = f"capture bcc: cannot be tried out: a shell ended with {process.returncode} in place of {_CODE}"
        raise CaptureUnavailable(msg)
    truth["exit status"] = _CODE << 8
    came = [pair for _ in range(_LOOKS) for pair in program.receive()]
    told: dict[str, object] = {}
    for _, record in came:
        told.update(_told(record, process.pid))
    wrong = [name for name, value in truth.items() if not _agrees(told.get(name), value)]
    if wrong:
        text = "; ".join(
            f"{name} is {_shown(truth[name])}, it reads {_shown(told.get(name))}" for name in wrong[:_SAID]
        )
        text += f"; and {len(wrong) - _SAID} more" if len(wrong) > _SAID else ""
        msg = (
            f"capture bcc: what is known of the kernel's structs ({program.told}) is not of this kernel,"
            f" {os.uname().release}: of a process of our own {text}; install the headers of this very kernel"
            f" (apt-get install linux-headers-{os.uname().release}), or name its BTF file in [capture] btf"
        )
        raise CaptureUnavailable(msg)
    return came


def _start() -> subprocess.Popen[bytes]:
    """A shell that waits. As a script where the system runs one from memory: then how a script is told is tried too."""
    script = os.memfd_create("kinwatch", 0)
    try:
        os.write(script, _SCRIPT.encode())
        os.lseek(script, 0, os.SEEK_SET)
        for command in ([f"/proc/self/fd/{script}"], ["/bin/sh", "-c", _SCRIPT]):
            try:
                return subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_PLACE, pass_fds=(script,)
                )
            except PermissionError:  # vm.memfd_noexec
                continue
    finally:
        os.close(script)
    raise CaptureUnavailable("capture bcc: cannot be tried out: /bin/sh cannot be run")


def _truth(pid: int) -> Iterator[tuple[str, object]]:
    """What /proc says of the process, and of us who made it."""
    own, stat = read_stat(os.getpid()), read_stat(pid)
    if own is None or stat is None:
        raise CaptureUnavailable("capture bcc: cannot be tried out: /proc does not show this process")
    place = Path(f"/proc/{pid}")
    (exe,) = identities([str(place / "exe")])
    argv = (place / "cmdline").read_bytes()
    yield "start, in ticks", stat.process.start_ns // lib.KW_TICK_NS
    yield "maker's start, in ticks", own.process.start_ns // lib.KW_TICK_NS
    yield "maker", os.getpid()
    yield "owner at the fork", os.getuid()
    yield "parent", os.getpid()
    yield "owner", (os.getuid(), os.getgid())
    yield "name", stat.comm
    yield "executable", os.fsencode((place / "exe").readlink())
    yield "inode", exe.inode
    yield "device", frozenset((exe.device, exe.stat_device))
    yield "arguments", argv
    yield "directory", os.fsencode(_PLACE)
    yield "file has a name", True
    script = argv.split(b"\0")[1]
    yield "script", script if script.startswith(b"/proc/self/fd/") else b""
    yield "owner at the end", os.getuid()
    yield "name at the end", stat.comm


def _shown(value: object) -> str:
    if isinstance(value, frozenset):
        return " or ".join(map(str, sorted(value)))
    return "nothing" if value is None else repr(value)


def _agrees(told: object, truth: object) -> bool:
    return told in truth if isinstance(truth, frozenset) else told == truth


def _told(record: bytes, pid: int) -> dict[str, object]:
    """What a record says of that process."""
    header = ffi.cast("struct kw_header *", ffi.from_buffer("uint8_t[]", record))
    if header.kind == lib.KW_FORK:
        fork = ffi.cast("struct kw_fork *", header)
        if fork.process.pid != pid:
            return {}
        return {
            "start, in ticks": fork.process.start_ns // lib.KW_TICK_NS,
            "maker": fork.parent.pid,
            "maker's start, in ticks": fork.parent.start_ns // lib.KW_TICK_NS,
            "owner at the fork": fork.uid,
        }
    if header.kind == lib.KW_EXIT:
        end = ffi.cast("struct kw_exit *", header)
        if end.process.pid != pid:
            return {}
        return {"exit status": end.status, "owner at the end": end.uid, "name at the end": ffi.string(end.comm)}
    image = ffi.cast("struct kw_image *", header)
    if image.process.pid != pid:
        return {}

    def piece(text: CData) -> bytes:
        return record[text.offset : text.offset + text.length]

    return {
        "parent": image.ppid,
        "owner": (image.uid, image.gid),
        "name": ffi.string(image.comm),
        "executable": piece(image.exe),
        "inode": image.inode,
        "device": image.device,
        "arguments": piece(image.argv),
        "directory": piece(image.cwd),
        "script": piece(image.script),
        "file has a name": not header.flags & lib.KW_DELETED,
    }
