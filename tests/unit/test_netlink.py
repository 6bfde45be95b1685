"""What becomes of the messages of the process connector: made-up ones, and a real loss with real processes."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from monitor.capture import connector
from monitor.capture.choose import Facts, choose
from monitor.capture.netlink import NetlinkCapture
from monitor.capture.poll import LOWER_BOUNDS
from monitor.engine import Engine
from monitor.engine._native import ffi, lib
from monitor.errors import CaptureUnavailable
from monitor.expect import Expect
from monitor.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FORK, EXEC, EXIT = 0x1, 0x2, 0x80000000  # include/uapi/linux/cn_proc.h
DEADLINE_S = 60.0
NOBODY = 4_000_000
"""A pid above what pid_max allows by default: /proc has no such process."""

Told = list[tuple[int, int, int, int]]


def _message(number: int, kind: int, *data: int, cpu: int = 0, index: int = 1) -> bytes:
    event = struct.pack("=IIQ", kind, cpu, 1) + struct.pack(f"={len(data)}I", *data)
    body = struct.pack("=IIIIHH", index, 1, number, 0, len(event), 0) + event
    return struct.pack("=IHHII", 16 + len(body), 3, 0, 0, 0) + body


class _Reader:
    """A native reader whose kernel is the test."""

    def __init__(self) -> None:
        self.kernel, self._socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.native = ffi.gc(lib.kw_proc_new(), lib.kw_proc_free)
        self._cells = ffi.new("struct kw_proc_event[]", 256)
        self.lost = ffi.new("uint64_t *")

    def read(self, *messages: bytes) -> Told:
        """(kind, pid, tid, other) of what is handed on of these messages."""
        for message in messages:
            self.kernel.send(message)
        count = lib.kw_proc_read(self.native, self._socket.fileno(), self._cells, 256, self.lost)
        return [(cell.kind, cell.pid, cell.tid, cell.other) for cell in ffi.unpack(self._cells, max(count, 0))]

    def wait(self, timeout_ms: int) -> int:
        """What waiting for events returned."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nobody:
            count: int = lib.kw_proc_wait(
                self.native, self._socket.fileno(), nobody.fileno(), timeout_ms, self._cells, 256, self.lost
            )
        return count

    def close(self) -> None:
        self.kernel.close()
        self._socket.close()


@pytest.fixture
def reader() -> Iterator[_Reader]:
    made = _Reader()
    yield made
    made.close()


def test_of_strangers_only_execs_are_handed_on(reader: _Reader) -> None:
    lib.kw_proc_filter(reader.native, 1)
    stranger, child = NOBODY, NOBODY + 1
    told = reader.read(
        _message(0, FORK, stranger, stranger, child, child),
        _message(1, EXIT, child, child, 0, 17),
        _message(2, EXEC, stranger, stranger),
    )
    assert told == [(lib.KW_PROC_EXEC, stranger, stranger, 0)]
    assert reader.lost[0] == 0


def test_of_the_followed_everything_is_handed_on_and_of_their_children(reader: _Reader) -> None:
    lib.kw_proc_filter(reader.native, 1)
    kin, child, grandchild, thread = range(NOBODY, NOBODY + 4)
    lib.kw_proc_follow(reader.native, kin, 1)
    told = reader.read(
        _message(0, FORK, kin, kin, child, child),
        _message(1, FORK, child, child, grandchild, grandchild),
        _message(2, FORK, kin, kin, thread, grandchild),
        _message(3, EXIT, thread, grandchild, 256, 17),
    )
    assert told == [
        (lib.KW_PROC_FORK, child, child, kin),
        (lib.KW_PROC_FORK, grandchild, grandchild, child),
        (lib.KW_PROC_THREAD, grandchild, thread, kin),
        (lib.KW_PROC_EXIT, grandchild, thread, 0),
    ]


def test_gaps_in_a_processor_s_numbers_are_losses(reader: _Reader) -> None:
    reader.read(_message(7, EXEC, NOBODY, NOBODY), _message(90, EXEC, NOBODY, NOBODY, cpu=1))
    assert reader.lost[0] == 0, "where it begins says nothing"
    reader.read(_message(8, EXEC, NOBODY, NOBODY), _message(95, EXEC, NOBODY, NOBODY, cpu=1))
    assert reader.lost[0] == 4
    reader.read(_message(0xFFFFFFFF, EXEC, NOBODY, NOBODY, cpu=2), _message(1, EXEC, NOBODY, NOBODY, cpu=2))
    assert reader.lost[0] == 1, "numbers wrap"


def test_other_messages_are_nothing(reader: _Reader) -> None:
    whole = _message(0, EXEC, NOBODY, NOBODY)
    assert reader.read(_message(0, EXEC, NOBODY, NOBODY, index=2), whole[:40], b"", whole + bytes(4000)) == [
        (lib.KW_PROC_EXEC, NOBODY, NOBODY, 0)
    ]


def test_a_wait_ends_though_strangers_go_on(reader: _Reader) -> None:
    lib.kw_proc_filter(reader.native, 1)
    ended = threading.Event()
    gave_up = []

    def go_on() -> None:
        deadline = time.monotonic() + DEADLINE_S
        number = 0
        while not ended.wait(0.001):
            reader.kernel.send(_message(number, FORK, NOBODY, NOBODY, NOBODY + 1, NOBODY + 1))
            number += 1
            if time.monotonic() > deadline:
                gave_up.append(number)
                return

    strangers = threading.Thread(target=go_on)
    strangers.start()
    try:
        assert reader.wait(20) == -errno.EAGAIN
    finally:
        ended.set()
        strangers.join()
    assert not gave_up, "it waited for as long as they went on"


def _facts(**changed: bool) -> Facts:
    return Facts(**{name: changed.get(name, False) for name in Facts.__struct_fields__})


def test_without_ebpf_the_connector_is_taken_and_without_it_the_poller() -> None:
    lacking = ["BCC is not installed"]
    assert choose(_facts(), "auto", lambda: True, lambda: lacking).kind == "netlink"
    choice = choose(_facts(), "auto", lambda: False, lambda: lacking)
    assert choice.kind == "poll"
    assert "CONFIG_PROC_EVENTS" in choice.reason
    with pytest.raises(CaptureUnavailable, match="CONFIG_PROC_EVENTS"):
        choose(_facts(), "netlink", lambda: False)


def test_where_ebpf_works_the_connector_is_not_asked() -> None:
    facts = _facts(btf=True, tracing=True, atomics=True, ring_buffer=True, capable=True)
    assert choose(facts, "auto", lambda: pytest.fail("asked")).kind == "core"


@contextlib.contextmanager
def captured(program: str) -> Iterator[tuple[NetlinkCapture, Callable[[], None], int]]:
    """Watch Python that runs `program`: the capture, what lets it go on until it says so, and its pid."""
    with (
        subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        ) as root,
        Engine(256) as engine,
    ):
        capture = NetlinkCapture(engine, [Watch(name="myapp", kind="pid", value=str(root.pid), expect=Expect())])

        def go() -> None:
            assert root.stdin is not None
            assert root.stdout is not None
            root.stdin.write(b"\n")
            root.stdout.readline()

        try:
            yield capture, go, root.pid
        finally:
            capture.close(keep=False)
            root.kill()


@pytest.mark.skipif(not connector.answers(), reason="the process connector does not speak to this process")
def test_what_a_full_socket_dropped_is_counted_and_mended() -> None:
    program = (
        "import os, subprocess, sys\nsys.stdin.readline()\nfor _ in range(3000):\n pid = os.fork()\n"
        " if not pid: os._exit(0)\n os.waitpid(pid, 0)\n"
        "child = subprocess.Popen(['/bin/sleep', '600'])\nprint(child.pid, flush=True)\nsys.stdin.readline()\n"
        "child.kill(); child.wait()\nprint('ended', flush=True)\nsys.stdin.readline()\n"
    )
    with captured(program) as (capture, go, _):
        capture._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        capture.start()
        go()  # nobody has read meanwhile
        capture.drain()
        snapshot = capture.snapshot(None, 0)
        assert snapshot.lower_bounds == LOWER_BOUNDS
        assert snapshot.watches[0].alive == 1, "the child that the socket had no room for"
        go()
        deadline = time.monotonic() + DEADLINE_S
        while not (capture.snapshot(None, 0).watches[0].alive == 0 and capture.snapshot(None, 0).lost["ring_full"]):
            assert time.monotonic() < deadline, capture.snapshot(None, 0)
            capture.drain()
        assert capture.snapshot(None, 0).watches[0].roots == 1


@pytest.mark.skipif(not connector.answers(), reason="the process connector does not speak to this process")
def test_nothing_is_kept_of_children_that_have_ended() -> None:
    program = (
        "import os, sys\nsys.stdin.readline()\nfor _ in range(50):\n pid = os.fork()\n"
        " if not pid: os._exit(0)\n os.waitpid(pid, 0)\nprint('ended', flush=True)\nsys.stdin.readline()\n"
    )
    with captured(program) as (capture, go, pid):
        capture.start()
        go()
        capture.drain()
        watch = capture.snapshot(None, 0).watches[0]
        assert (watch.spawned, watch.exits, watch.alive) == (50, 50, 0)
        kept = (capture._seen, capture._threads, capture._since_ns, capture._leader_codes, capture._lingering)
        assert {known for table in kept for known in table} == {pid}
        assert not capture._named
        assert not capture._execs
