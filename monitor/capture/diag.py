"""Opens the kernel's socket and interface tables, over netlink (sock_diag(7), rtnetlink(7)), in any network namespace.

Owns the netlink sockets and the namespaces they are opened in. Refuses to know the messages
(`monitor.engine.device` does) and what a row means to a report.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING, Final, Self

from monitor.engine.device import enter

if TYPE_CHECKING:
    from monitor.engine.device import Link, Look

_SOCK_DIAG: Final = 4  # include/uapi/linux/netlink.h
_ANSWER_S: Final = 10
_WIDE: Final = 66
"""SO_RCVTIMEO of a 32-bit Python with a time of 64 bits (asm-generic/socket.h: SO_RCVTIMEO_NEW)."""
_TIMEVAL: Final = "@qq" if socket.SO_RCVTIMEO == _WIDE else "@ll"
_TRIES: Final = 3
"""Readings over new sockets: one that the kernel had no memory for (ENOBUFS) leaves a dump behind that never ends."""
_MISSING: Final = frozenset(
    {errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EPERM, errno.EACCES}
)


class Unavailable(OSError):
    """This kernel, or who confines this process, has no socket tables over netlink; the text says which."""


class View:
    """Two netlink sockets, which look into the namespace they were opened in, whoever uses them. A context manager."""

    def __init__(self) -> None:
        """Open them in the namespace of this thread. Raises Unavailable."""
        self._diag = _netlink(_SOCK_DIAG)
        try:
            self._route = _netlink(socket.NETLINK_ROUTE)
        except OSError:
            self._diag.close()
            raise

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close both."""
        self._diag.close()
        self._route.close()

    def read(self, look: Look) -> list[Link]:
        """Add this namespace to a look, and return its interfaces.

        Raises Unavailable where inet_diag, tcp_diag or udp_diag is missing, OSError otherwise; then nothing was added.
        """
        try:
            look.read_sockets(self._diag.fileno())
        except OSError as error:
            raise _unavailable(error) from error
        look.read_links(self._route.fileno())
        return look.settle()


def _netlink(protocol: int) -> socket.socket:
    """A socket that takes messages of the kernel only: what is connected hears nobody else."""
    made = None
    try:
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        made.connect((0, 0))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack(_TIMEVAL, _ANSWER_S, 0))
    except OSError as error:
        if made is not None:
            made.close()
        raise _unavailable(error) from error
    return made


def _unavailable(error: OSError) -> OSError:
    if error.errno not in _MISSING:
        return error
    return Unavailable(error.errno, f"no socket tables over netlink ({error.strerror})")


def read_own(look: Look) -> list[Link]:
    """Add the namespace of this thread to a look, and return its interfaces. Raises as `View.read`."""
    for _ in range(_TRIES - 1):
        try:
            with View() as view:
                return view.read(look)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
    with View() as view:
        return view.read(look)


def view_of(path: str) -> tuple[int, View]:
    """Look into the network namespace that a file names. Returns its inode, too. Raises OSError.

    The thread that enters it does nothing else and ends there, so no other work ever runs in a foreign namespace.
    """
    done: list[tuple[int, View] | OSError] = []

    def run() -> None:
        try:
            done.append(_enter(path))
        except OSError as error:
            done.append(error)

    thread = threading.Thread(target=run, name="namespace")
    thread.start()
    thread.join()
    (result,) = done
    if isinstance(result, OSError):
        raise result
    return result


def _enter(path: str) -> tuple[int, View]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        inode = os.fstat(fd).st_ino
        try:
            enter(fd)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise OSError(error.errno, "not a network namespace") from error
            raise
    finally:
        os.close(fd)
    return inode, View()
