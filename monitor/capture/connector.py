"""The kernel's process connector: a netlink socket that hears every fork, exec and exit.

Owns the socket: opening it, asking the kernel to speak and to stop, room for what waits. Refuses to know what an event
says: monitor/engine/native/procevents.c reads them.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from typing import Final

from monitor.errors import CaptureUnavailable

_CONNECTOR: Final = 11  # NETLINK_CONNECTOR, include/uapi/linux/netlink.h
_RCVBUFFORCE: Final = 33  # SO_RCVBUFFORCE, include/uapi/asm-generic/socket.h; Python has no name for it
_IDX_PROC: Final = 1  # CN_IDX_PROC, and the number of its multicast group; include/uapi/linux/connector.h
_LISTEN: Final = 1  # PROC_CN_MCAST_LISTEN, include/uapi/linux/cn_proc.h
_IGNORE: Final = 2
_DONE: Final = 3  # NLMSG_DONE
_HEADER: Final = struct.Struct("=IHHII")
_MESSAGE: Final = struct.Struct("=IIIIHHI")  # cn_msg and the operation
_EVENT: Final = struct.Struct("=16x20xI12xI")
"""Of a message, behind the netlink and connector headers: kind of event and the first number of its data."""
_BUFFER_BYTES: Final = 16 << 20
"""What may wait for the reader: some 20,000 events, each an skb of its own. It is memory only while they wait."""
_PATIENCE_MS: Final = 100
"""The kernel answers within the call (cn_rx_skb); events of others may stand before the answer."""


def listen() -> socket.socket:
    """Return a socket, not inheritable, that hears of every process from now on.

    Raises CaptureUnavailable with the reason: no privilege, another namespace, or a kernel without CONFIG_PROC_EVENTS.
    """
    try:
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _CONNECTOR)
    except OSError as error:
        msg = f"the kernel has no connector (CONFIG_CONNECTOR): {error.strerror}"
        raise CaptureUnavailable(msg) from error
    try:
        made.bind((0, _IDX_PROC))
        with contextlib.suppress(PermissionError):  # then what net.core.rmem_max allows
            made.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _BUFFER_BYTES)
        _ask(made, _LISTEN)
        _hear_answer(made)
    except OSError as error:
        made.close()
        msg = f"the process connector refuses to speak: {error.strerror} (run as root in the initial namespaces)"
        raise CaptureUnavailable(msg) from error
    except CaptureUnavailable:
        made.close()
        raise
    return made


def ignore(listening: socket.socket) -> None:
    """Tell the kernel that nobody listens here any more, and close.

    Kernels before 6.6 count those who asked and do not notice that a socket has gone: without this, each fork of the
    machine would go on being told to nobody.
    """
    with contextlib.suppress(OSError):
        _ask(listening, _IGNORE)
    listening.close()


def answers() -> bool:
    """Whether the kernel would speak to this process."""
    try:
        ignore(listen())
    except CaptureUnavailable:
        return False
    return True


def _ask(listening: socket.socket, operation: int) -> None:
    size = _HEADER.size + _MESSAGE.size
    message = _MESSAGE.pack(_IDX_PROC, 1, 0, 0, 4, 0, operation)
    listening.sendto(_HEADER.pack(size, _DONE, 0, 0, os.getpid()) + message, (0, 0))


def _hear_answer(listening: socket.socket) -> None:
    """Return when the kernel has said yes. What it says before about others is of processes that /proc still tells."""
    waiter = select.poll()
    waiter.register(listening, select.POLLIN)
    while waiter.poll(_PATIENCE_MS):
        message = listening.recv(4096)
        if len(message) < _EVENT.size:
            continue
        kind, error = _EVENT.unpack_from(message)
        if kind:
            return  # an event: it speaks
        if error:
            raise OSError(error, os.strerror(error))
        return
    raise CaptureUnavailable(
        "the process connector does not answer: the kernel lacks CONFIG_PROC_EVENTS, or this is not the initial pid"
        " and user namespace"
    )
