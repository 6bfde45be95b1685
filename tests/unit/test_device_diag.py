"""Netlink dumps are read whole, however the kernel cuts them, and again when a change tore them."""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.capture.diag import ESTABLISHED, View

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from monitor.capture.diag import Row

DONE, ERROR, ANSWER = 3, 2, 18
MULTI, INTERRUPTED = 2, 0x10


def message(kind: int, body: bytes, flags: int = MULTI) -> bytes:
    """One message, padded as the kernel does (struct nlmsghdr)."""
    size = 16 + len(body)
    return (struct.pack("=IHHII", size, kind, flags, 1, 0) + body).ljust(-(-size // 4) * 4, b"\0")


def of(row: Row, attributes: bytes = b"") -> bytes:
    """A socket as the kernel tells of it (struct inet_diag_msg)."""
    family, port, remote_port, local, remote, device = row
    ids = struct.pack(">HH", port, remote_port) + local + remote + device + bytes(8)
    return message(ANSWER, struct.pack("=BBBB", family, ESTABLISHED, 0, 0) + ids + bytes(20) + attributes)


def end(code: int = 0, flags: int = MULTI) -> bytes:
    return message(DONE, struct.pack("=i", code), flags)


class Kernel:
    """Answers every request with the next of its dumps; each is a list of datagrams."""

    def __init__(self, *dumps: Sequence[bytes]) -> None:
        self.dumps = list(dumps)
        self.asked = 0
        self.queue: Iterator[bytes] = iter(())

    def send(self, request: bytes) -> int:
        """Begin the next dump, or the last one again."""
        self.queue = iter(self.dumps[min(self.asked, len(self.dumps) - 1)])
        self.asked += 1
        return len(request)

    def recv_into(self, buffer: bytearray, _: int, __: int) -> int:
        """The next datagram; more than fits is only counted."""
        data = next(self.queue)
        room = min(len(data), len(buffer))
        buffer[:room] = data[:room]
        return len(data)

    def close(self) -> None:
        """Nothing to do."""


def rows_of(kernel: Kernel) -> set[Row]:
    with View() as view:
        view._diag.close()
        view._diag = cast("socket.socket", kernel)
        return view._connections()


ports = st.integers(0, 65535)
addresses = st.binary(min_size=16, max_size=16)
rows = st.tuples(
    st.sampled_from([int(socket.AF_INET), int(socket.AF_INET6)]),
    ports,
    ports,
    addresses,
    addresses,
    st.binary(min_size=4, max_size=4),
)
ONE: Row = (int(socket.AF_INET), 80, 50_000, bytes(range(16)), bytes(16), bytes(4))
OTHER: Row = (int(socket.AF_INET6), 443, 50_001, bytes(16), bytes(range(16)), bytes(4))


@given(st.lists(st.lists(st.tuples(rows, st.integers(0, 40)))), st.booleans())
def test_every_socket_is_found_once_whatever_the_lengths_of_messages(
    datagrams: list[list[tuple[Row, int]]],
    end_apart: bool,  # noqa: FBT001 - drawn
) -> None:
    sent = [b"".join(of(row, bytes(extra)) for row, extra in one) for one in datagrams]
    sent = [one for one in sent if one]
    if end_apart or not sent:
        sent.append(end())
    else:
        sent[-1] += end()
    assert rows_of(Kernel(sent)) == {row for one in datagrams for row, _ in one}


@pytest.mark.parametrize("where", ["message", "end"])
def test_a_dump_that_a_change_tore_is_read_again(where: str) -> None:
    torn = of(ONE)
    if where == "message":
        torn = torn[:6] + struct.pack("=H", MULTI | INTERRUPTED) + torn[8:]
    kernel = Kernel([torn, end(flags=MULTI | (INTERRUPTED if where == "end" else 0))], [of(OTHER), end()])
    assert rows_of(kernel) == {OTHER}
    assert kernel.asked == 2


def test_of_dumps_that_are_always_torn_the_last_is_taken() -> None:
    kernel = Kernel([of(ONE), end(flags=MULTI | INTERRUPTED)])
    assert rows_of(kernel) == {ONE}
    assert 2 < kernel.asked < 100


@pytest.mark.parametrize(
    "answer", [end(-errno.ENOENT), message(ERROR, struct.pack("=i", -errno.ENOENT) + bytes(16), 0)]
)
def test_an_error_is_raised_wherever_it_stands(answer: bytes) -> None:
    with pytest.raises(FileNotFoundError):
        rows_of(Kernel([answer]))
    with pytest.raises(FileNotFoundError):
        rows_of(Kernel([of(ONE), answer]))


@pytest.mark.parametrize(
    "datagram",
    [of(ONE)[:-4], struct.pack("=IHHII", 4, ANSWER, MULTI, 1, 0), message(ANSWER, bytes(40)), bytes(1 << 19), b"x"],
    ids=["cut", "shorter than its header", "shorter than a socket", "longer than the buffer", "no header"],
)
def test_what_is_no_answer_is_refused(datagram: bytes) -> None:
    with pytest.raises(OSError, match="netlink message"):
        rows_of(Kernel([datagram, end()]))
