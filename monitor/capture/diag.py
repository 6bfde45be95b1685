"""Asks the kernel for its socket and interface tables, over netlink (sock_diag(7), rtnetlink(7)).

Owns the messages, whole dumps and the network namespaces they are read in. Refuses to know what a row means to a
report: `monitor.capture.device` does.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING, Final, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

ESTABLISHED: Final = 1  # include/net/tcp_states.h
CLOSE: Final = 7
"""Also of a UDP socket that has no peer."""
LISTEN: Final = 10

Row = tuple[int, int, int, bytes, bytes, bytes]
"""Family, local port, remote port, local address, remote address (16 bytes, an IPv4 address in the first four),
and the index of the interface the socket is bound to (four bytes in the machine's order, zero: none)."""

Runs = list[tuple[bytes, int]]
"""Messages of one length each, one after the other, and the bytes from one to the next."""

# include/uapi/linux/netlink.h, sock_diag.h, inet_diag.h, rtnetlink.h, if_link.h, if_addr.h
_SOCK_DIAG: Final = 4
_ERROR, _DONE = 2, 3
_REQUEST_DUMP: Final = 0x301
_MULTI, _INTERRUPTED = 0x02, 0x10
_TCP_OF_BOTH_FAMILIES: Final = 18  # TCPDIAG_GETSOCK
_BY_FAMILY: Final = 20  # SOCK_DIAG_BY_FAMILY
_GET_LINK, _GET_ADDRESS = 18, 22
_LINK_NAME, _LINK_STATS64 = 3, 23
_ADDRESS, _LOCAL = 1, 2
_CLONE_NEWNET: Final = 0x40000000
_HEADER: Final = struct.Struct("=IHHII")
_HEAD: Final = struct.Struct("=IHH")
_ATTRIBUTE: Final = struct.Struct("=HH")

_BUFFER_BYTES: Final = 1 << 18
"""The kernel fills at most 32 KiB of it, more only for one interface with hundreds of virtual functions."""
_TRIES: Final = 8
"""Dumps that a change interrupted; the last one is taken as it is."""
_ANSWER_S: Final = 10
_MISSING: Final = frozenset(
    {errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EPERM, errno.EACCES}
)


class Unavailable(OSError):
    """This kernel, or who confines this process, has no socket tables over netlink; the text says which."""


class Link(NamedTuple):
    """An interface and its counters since it came up."""

    number: int
    """Its index."""
    name: str
    packets_in: int
    packets_out: int
    bytes_in: int
    bytes_out: int


class Tables(NamedTuple):
    """What a network namespace has at one moment."""

    connections: set[Row]
    """Established ones of TCP."""
    listeners: set[Row]
    """Of TCP."""
    udp: set[Row]
    """Sockets that are bound and have no peer."""
    links: list[Link]
    addresses: list[tuple[int, bytes]]
    """Index of the interface, and an address of it: 4 or 16 bytes."""


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
        self._buffer = bytearray(_BUFFER_BYTES)
        self._sequence = 0

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close both."""
        self._diag.close()
        self._route.close()

    def tables(self) -> Tables:
        """Read everything. Raises Unavailable where inet_diag, tcp_diag or udp_diag is missing, OSError otherwise."""
        try:
            connections = self._connections()
            listeners, udp = self._of_families(socket.IPPROTO_TCP, LISTEN), self._of_families(socket.IPPROTO_UDP, CLOSE)
        except OSError as error:
            raise _unavailable(error) from error
        return Tables(connections, listeners, udp, self._links(), self._addresses())

    def _connections(self) -> set[Row]:
        """Of both families in one dump: a request by family walks the whole table of connections once for each.

        Source: struct inet_diag_req, which has no protocol: the type of the message is it.
        """
        request = struct.pack("=4x48xI4x", 1 << ESTABLISHED)
        return _rows(self._dump(self._diag, _TCP_OF_BOTH_FAMILIES, _TCP_OF_BOTH_FAMILIES, request))

    def _of_families(self, protocol: int, state: int) -> set[Row]:
        """One dump for each family: their messages differ in length, and those of one length are read at once.

        Source: struct inet_diag_req_v2.
        """
        found: set[Row] = set()
        for family in (socket.AF_INET, socket.AF_INET6):
            request = struct.pack("=BBBxI48x", family, protocol, 0, 1 << state)
            found |= _rows(self._dump(self._diag, _BY_FAMILY, _BY_FAMILY, request))
        return found

    def _links(self) -> list[Link]:
        """Source: struct ifinfomsg with IFLA_STATS64 (struct rtnl_link_stats64), the figures of /proc/net/dev."""
        found = []
        for message in _messages(self._dump(self._route, _GET_LINK, _GET_LINK - 2, bytes(16))):
            (index,) = struct.unpack_from("=i", message, 20)
            attributes = _attributes(message, 32)
            name = attributes[_LINK_NAME].rstrip(b"\0").decode(errors="surrogateescape")
            found.append(Link(index, name, *struct.unpack_from("=4Q", attributes[_LINK_STATS64])))
        return found

    def _addresses(self) -> list[tuple[int, bytes]]:
        """Source: struct ifaddrmsg; IFA_LOCAL, for the address of a point-to-point interface is its peer's."""
        found = []
        for message in _messages(self._dump(self._route, _GET_ADDRESS, _GET_ADDRESS - 2, bytes(8))):
            (index,) = struct.unpack_from("=I", message, 20)
            attributes = _attributes(message, 24)
            address = attributes.get(_LOCAL) or attributes.get(_ADDRESS)
            if address is not None:
                found.append((index, address))
        return found

    def _dump(self, asked: socket.socket, kind: int, answer: int, request: bytes) -> Runs:
        """A dump that no change interrupted, or the last of several. Raises OSError, also for what DONE carries."""
        runs: Runs = []
        for _ in range(_TRIES):
            self._sequence += 1
            size = _HEADER.size + len(request)
            asked.send(_HEADER.pack(size, kind, _REQUEST_DUMP, self._sequence, 0) + request)
            runs = []
            ended = interrupted = False
            while not ended:
                data = self._receive(asked)
                stride = _uniform(data, answer)
                if stride:
                    runs.append((data, stride))
                else:
                    ended, torn = _walk(data, answer, runs)
                    interrupted |= torn
            if not interrupted:
                break
        return runs

    def _receive(self, asked: socket.socket) -> bytes:
        size = asked.recv_into(self._buffer, 0, socket.MSG_TRUNC)
        if not _HEADER.size <= size <= len(self._buffer):
            raise OSError(errno.EMSGSIZE, f"a netlink message of {size} bytes")
        return bytes(memoryview(self._buffer)[:size])


def _netlink(protocol: int) -> socket.socket:
    """A socket that takes messages of the kernel only: what is connected hears nobody else."""
    made = None
    try:
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        made.connect((0, 0))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", _ANSWER_S, 0))
    except OSError as error:
        if made is not None:
            made.close()
        raise _unavailable(error) from error
    return made


def _unavailable(error: OSError) -> OSError:
    if error.errno not in _MISSING:
        return error
    return Unavailable(error.errno, f"no socket tables over netlink ({error.strerror})")


def _uniform(data: bytes, answer: int) -> int:
    """The distance between messages that are all of one length and one type; 0: they are not.

    Each compared byte stands in a header: the first message's length says where the second begins, and so on.
    """
    length, _, _ = _HEAD.unpack_from(data)
    stride = -(-length // 4) * 4
    if stride < _HEADER.size or len(data) % stride:
        return 0
    count = len(data) // stride
    head = _HEAD.pack(length, answer, _MULTI)
    same = all(data[place::stride] == head[place : place + 1] * count for place in range(_HEAD.size))
    return stride if same else 0


def _walk(data: bytes, answer: int, runs: Runs) -> tuple[bool, bool]:
    """Add the messages of a buffer to the runs. Returns whether the dump ends here, and whether a change tore it."""
    start = place = stride = 0
    ended = torn = False
    while place + _HEADER.size <= len(data):
        length, kind, flags = _HEAD.unpack_from(data, place)
        if not _HEADER.size <= length <= len(data) - place:
            raise OSError(errno.EBADMSG, "a netlink message that is torn")
        torn |= bool(flags & _INTERRUPTED)
        step = -(-length // 4) * 4
        if kind != answer or step != stride:
            if start < place:
                runs.append((data[start:place], stride))
            start, stride = place, step
        if kind in {_ERROR, _DONE}:
            # the error of a dump comes with its end
            (code,) = struct.unpack_from("=i", data, place + _HEADER.size) if length >= _HEADER.size + 4 else (0,)
            if code < 0:
                raise OSError(-code, os.strerror(-code))
            ended = True
        place += step
        if kind != answer:
            start, stride = place, 0
    if start < place:
        runs.append((data[start:place].ljust(place - start, b"\0"), stride))
    return ended, torn


def _rows(runs: Runs) -> set[Row]:
    """Each socket once, though it moved while the dump went over the table."""
    found: set[Row] = set()
    for data, stride in runs:
        found.update(_row(stride).iter_unpack(data))
    return found


@functools.lru_cache(maxsize=64)
def _row(stride: int) -> struct.Struct:
    """Source: struct inet_diag_msg (72 bytes, ports in network order), the attributes behind it skipped."""
    if stride < _HEADER.size + 72:
        raise OSError(errno.EBADMSG, "a netlink message that is too short for a socket")
    return struct.Struct(f">16xB3xHH16s16s4s{stride - 60}x")


def _messages(runs: Runs) -> Iterator[bytes]:
    for data, stride in runs:
        for place in range(0, len(data), stride):
            yield data[place : place + stride]


def _attributes(message: bytes, place: int) -> dict[int, bytes]:
    """The attributes of a message from `place` on, by type."""
    found = {}
    while place + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, place)
        if length < _ATTRIBUTE.size:  # the padding of a message
            break
        found[kind & 0x3FFF] = message[place + _ATTRIBUTE.size : place + length]
        place += -(-length // 4) * 4
    return found


def view_of(path: str) -> tuple[int, View]:
    """Look into the network namespace that a file names. Returns its inode, too. Raises OSError.

    The thread that enters it does nothing else and ends there, so no other work ever runs in a foreign namespace.
    """
    done: list[tuple[int, View] | OSError] = []

    def enter() -> None:
        try:
            done.append(_enter(path))
        except OSError as error:
            done.append(error)

    thread = threading.Thread(target=enter, name="namespace")
    thread.start()
    thread.join()
    (result,) = done
    if isinstance(result, OSError):
        raise result
    return result


def _enter(path: str) -> tuple[int, View]:
    # ctypes makes executable memory where libffi is older than 3.4, which MemoryDenyWriteExecute of systemd forbids
    import ctypes  # noqa: PLC0415 - so those who name no namespace do without

    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        inode = os.fstat(fd).st_ino
        if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
            code = ctypes.get_errno()
            raise OSError(code, "not a network namespace" if code == errno.EINVAL else os.strerror(code))
    finally:
        os.close(fd)
    return inode, View()
