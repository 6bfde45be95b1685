"""Lines to stdout or into a file: whole lines or counted losses, never a torn line in silence; knows no JSON."""

from __future__ import annotations

import errno
import os
import select
import stat
import threading
from pathlib import Path
from typing import Final

from monitor.errors import ConfigInvalid

STDOUT: Final = 1
FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o750
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What a disk says that may be over later: the lines are lost, the sink stays."""


class StreamSink:
    """A file descriptor that takes whole lines. Safe from several threads.

    When the disk is full in the middle of a line, the rest of that line is kept and goes out first as soon as there is
    room, so that a reader never meets half a line; the lines after it are lost and counted.
    """

    def __init__(self, fd: int, path: Path | None = None) -> None:
        """Take over `fd`. `path`: what to open again on reopen(); None: nothing, as for stdout."""
        self._fd = fd
        self._path = path
        self._rest = b""
        self._torn = 0
        self._lock = threading.Lock()

    @classmethod
    def stdout(cls) -> StreamSink:
        """Stdout; closing the sink leaves the descriptor open."""
        return cls(STDOUT)

    @classmethod
    def open(cls, target: str) -> StreamSink:
        """Open stdout ("-") or a file for appending (created 0600, its directory too). ConfigInvalid: it cannot be."""
        if target == "-":
            return cls.stdout()
        path = Path(target)
        try:
            return cls(_open(path), path)
        except OSError as error:
            reason = error.strerror or str(error)
            remedy = "name a file in a directory that exists and can be written"
            if error.errno == errno.ELOOP:
                reason, remedy = "it is a symbolic link", "name the file itself, or - for stdout"
            elif error.errno == errno.ENXIO:
                reason, remedy = "nobody reads this pipe", "start its reader first"
            msg = f"{path}: cannot be written ({reason}); {remedy}"
            raise ConfigInvalid(msg) from error

    def __str__(self) -> str:
        """Return the name for messages."""
        return "stdout" if self._path is None else str(self._path)

    def isatty(self) -> bool:
        """Whether this is a terminal."""
        return os.isatty(self._fd)

    def width(self) -> int:
        """Columns of the terminal, 120 where it does not say."""
        try:
            return os.get_terminal_size(self._fd).columns or 120
        except OSError:
            return 120

    def write(self, lines: bytes) -> int:
        """Write whole lines; the number of lost ones. OSError: of no more use (BrokenPipeError: nobody reads)."""
        with self._lock:
            torn, self._torn = self._torn, 0
            return torn + self._write(lines)

    def _write(self, lines: bytes) -> int:
        if self._rest:
            done = self._push(self._rest)
            self._rest = self._rest[done:]
            if self._rest:
                return lines.count(b"\n")
        done = self._push(lines)
        if done == len(lines):
            return 0
        if done == 0 or lines[done - 1 : done] == b"\n":
            return lines.count(b"\n", done)
        end = lines.index(b"\n", done) + 1
        self._rest = lines[done:end]
        return lines.count(b"\n", end)

    def _push(self, data: bytes) -> int:
        """Bytes that went out before the destination was full."""
        view = memoryview(data)
        done = 0
        while done < len(data):
            try:
                done += os.write(self._fd, view[done:])
            except BlockingIOError:
                # Whoever shares this terminal or pipe may have made it non-blocking.
                waiter = select.poll()
                waiter.register(self._fd, select.POLLOUT)
                waiter.poll()
            except OSError as error:
                if error.errno in FULL:
                    break
                raise
        return done

    def reopen(self) -> None:
        """Open the path again, as after a rotation; the rest of a torn line still goes to the old file."""
        if self._path is None:
            return
        with self._lock:
            fresh = _open(self._path)
            if self._rest:
                self._torn += self._push(self._rest) < len(self._rest)
                self._rest = b""
            os.close(self._fd)
            self._fd = fresh

    def close(self) -> None:
        """Close the file; stdout stays open."""
        with self._lock:
            if self._rest:
                self._push(self._rest)
                self._rest = b""
            if self._path is not None:
                os.close(self._fd)
                self._fd = -1


def _open(path: Path) -> int:
    if not path.parent.exists():
        path.parent.mkdir(mode=DIRECTORY_MODE)
    # Non-blocking only for the open itself: a pipe without a reader is an error here, not a daemon that hangs.
    fd = os.open(
        path,
        os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK,
        FILE_MODE,
    )
    try:
        os.set_blocking(fd, True)
        if stat.S_ISREG(os.fstat(fd).st_mode) and _ends_torn(path):
            # The last writer died in the middle of a line: end it, so that only that one is unreadable.
            os.write(fd, b"\n")
    except OSError as error:
        if error.errno not in FULL:
            os.close(fd)
            raise
    return fd


def _ends_torn(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            if file.tell() == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:
        return False
