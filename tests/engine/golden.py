"""Makes the golden pairs in tests/data: NAME.rec, raw records, and NAME.jsonl, the lines they must make.

Owns the scenarios. Run it by hand after a deliberate change of the wire or of a line, and read the difference before it
is committed: `.venv/bin/python tests/engine/golden.py`.
"""

from __future__ import annotations

import contextlib
import socket
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING

from monitor.engine import Engine, LineageRules
from monitor.engine._native import lib
from monitor.engine.records import (
    Credentials,
    Endpoint,
    Lineage,
    ProcessId,
    clock_record,
    dns_record,
    enforced_record,
    exit_record,
    fork_record,
    image_record,
    lost_record,
    socket_record,
    sync_record,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DATA = Path(__file__).resolve().parent.parent / "data"
EXPECTED: tuple[tuple[int, list[str]], tuple[int, list[int]]] = ((0, ["192.0.2.0/24", "fd00::/8"]), (0, [80]))
WATCHES = (("myapp", 0), ("shell", None), ("third", 1), ("ruled", None))
RULES = LineageRules(
    executables=["/usr/bin/cat"],
    files=[(8 << 20 | 1, 22)],
    edges=["/usr/bin/myapp -> /usr/bin/cat", "/usr/bin/cat -> /usr/bin/sh"],
    depth=1,
    forks_per_minute=2,
    uids=[1000],
    forbidden=lib.KW_MEMFD | lib.KW_DELETED | lib.KW_TEMPORARY,
    root="myapp",
)
"""Of the last watch."""

WALL_NS = 1_795_575_840_000_000_123  # 2026-11-25 minus what follows
SECOND = 10**9
ROOT = ProcessId(1200, 100 * SECOND)
CHILD = ProcessId(1201, 101 * SECOND + 5)
GRANDCHILD = ProcessId(1202, 102 * SECOND)
OWNER = Credentials(1000, 100)


def _clock() -> bytes:
    return clock_record(time_ns=99 * SECOND, wall_ns=WALL_NS)


def _root(watches: int = 1, cause: int = lib.KW_CAUSE_EXEC, kind: int = lib.KW_EXEC) -> bytes:
    return image_record(
        kind=kind,
        time_ns=100 * SECOND + 700_000,
        process=ROOT,
        watches=watches,
        roots=watches,
        fresh=watches,
        cause=cause,
        comm=b"myapp",
        parent=ProcessId(900, SECOND),
        lineage=Lineage(ROOT, 0),
        ppid=900,
        credentials=OWNER,
        exe=b"/usr/bin/myapp",
        argv=[b"myapp", b"--serve"],
        cwd=b"/srv",
    )


def _fork(process: ProcessId, parent: ProcessId, depth: int, watches: int = 1) -> bytes:
    return fork_record(
        time_ns=process.start_ns + 2_000,
        process=process,
        parent=parent,
        watches=watches,
        lineage=Lineage(ROOT, depth),
        comm=b"myapp",
        uid=1000,
    )


def _exec(process: ProcessId, after_ns: int, **fields: object) -> bytes:
    full = {
        "time_ns": process.start_ns + after_ns,
        "process": process,
        "watches": 1,
        "comm": b"cat",
        "parent": ROOT,
        "lineage": Lineage(ROOT, 1),
        "ppid": ROOT.pid,
        "credentials": OWNER,
        "exe": b"/usr/bin/cat",
        "argv": [b"cat", b"/etc/hostname"],
        "cwd": b"/srv",
    }
    return image_record(kind=lib.KW_EXEC, **{**full, **fields})  # type: ignore[arg-type]


def _exit(process: ProcessId, after_ns: int, depth: int = 1, watches: int = 1, status: int = 0) -> bytes:
    return exit_record(
        time_ns=process.start_ns + after_ns,
        process=process,
        watches=watches,
        roots=watches if process == ROOT else 0,
        comm=b"myapp",
        lineage=Lineage(ROOT, depth),
        status=status,
        uid=1000,
    )


def short_child() -> bytes:
    """A root's child runs cat and ends within two milliseconds: alarm and clear."""
    return _clock() + _root() + _fork(CHILD, ROOT, 1) + _exec(CHILD, 500_000) + _exit(CHILD, 1_900_000)


def exits() -> bytes:
    """Ends of every kind: by code, by signal, with a core, at once, after a day, unknown."""
    ends = [(0, 0), (7 << 8, 999_999), (9, 1_000_000), (0x80 | 11, SECOND), (255 << 8, 86_400 * SECOND)]
    stream = _clock() + _root()
    for number, (status, lived_ns) in enumerate(ends):
        process = ProcessId(2000 + number, (110 + number) * SECOND)
        stream += _fork(process, ROOT, 1) + _exit(process, lived_ns, status=status)
    process = ProcessId(2100, 120 * SECOND)
    unknown = exit_record(time_ns=121 * SECOND, process=process, watches=1, comm=b"x", lineage=Lineage(ROOT, 1))
    return stream + _fork(process, ROOT, 1) + unknown + _exit(ROOT, 200 * SECOND, depth=0)


def two_watches() -> bytes:
    """A descendant of one watch is the root of another; its child is kin of both, with a depth in each."""
    becomes = _exec(CHILD, 500_000, watches=0b11, roots=0b10, fresh=0b10, cause=lib.KW_CAUSE_EXEC, comm=b"shell")
    below = _fork(GRANDCHILD, CHILD, 2, watches=0b11)
    ends = exit_record(
        time_ns=104 * SECOND, process=CHILD, watches=0b11, roots=0b10, comm=b"shell", lineage=Lineage(ROOT, 1), status=0
    )
    return _clock() + _root() + _fork(CHILD, ROOT, 1) + becomes + below + _exit(GRANDCHILD, SECOND, 2, 0b11) + ends


def odd_text() -> bytes:
    """Names, paths and arguments with line ends, escapes, quotes, invalid UTF-8, and too many of them."""
    return (
        _clock()
        + _root()
        + _exec(CHILD, 1, argv=[b"a\nb", b"\x1b[31mred", b'"\\', "é€😀".encode(), "\u2028\x85".encode(), b"\x7f", b""])
        + _exec(CHILD, 2, comm=b"\xff\xfename", exe=b"/tmp/\xed\xa0\x80\xc0\x80", cwd=b"/\xf4\x90\x80\x80", argv=None)
        + _exec(CHILD, 3, comm=b"sixteen bytes ok", argv=[b"x" * 9000], exe=None, credentials=None)
        + _exec(CHILD, 4, script=b"/srv/run.sh", exe=b"/usr/bin/dash", flags=lib.KW_DELETED | lib.KW_MEMFD)
    )


def adopted() -> bytes:
    """What was running when the watch began: a root, its child, an orphan known by its session, one moved in."""
    common = {"comm": b"worker", "ppid": 1, "credentials": OWNER, "exe": b"/usr/bin/worker"}
    found = image_record(
        kind=lib.KW_ADOPT,
        time_ns=130 * SECOND,
        process=CHILD,
        watches=1,
        fresh=1,
        parent=ROOT,
        lineage=Lineage(ROOT, 1),
        cause=lib.KW_CAUSE_RUNNING,
        **common,  # type: ignore[arg-type]
    )
    orphan = image_record(
        kind=lib.KW_ADOPT,
        time_ns=131 * SECOND,
        process=GRANDCHILD,
        watches=1,
        fresh=1,
        lineage=Lineage(ROOT, 1),
        cause=lib.KW_CAUSE_RUNNING,
        flags=lib.KW_INFERRED,
        **common,  # type: ignore[arg-type]
    )
    moved = image_record(
        kind=lib.KW_ADOPT,
        time_ns=132 * SECOND,
        process=ProcessId(3000, 50 * SECOND),
        watches=0b100,
        roots=0b100,
        fresh=0b100,
        cause=lib.KW_CAUSE_MOVED,
        **common,  # type: ignore[arg-type]
    )
    return _clock() + _root(cause=lib.KW_CAUSE_RUNNING, kind=lib.KW_ADOPT) + found + orphan + moved


def pid_reuse() -> bytes:
    """One pid, three processes; the exit of the second was lost."""
    lives = [ProcessId(4000, (140 + number) * SECOND) for number in range(3)]
    first, second, third = (_fork(process, ROOT, 1) for process in lives)
    return _clock() + _root() + first + _exit(lives[0], 1_000) + second + third + _exit(lives[2], 1_000)


def after_loss() -> bytes:
    """The ring was full; a sync follows, then the records that still waited in the ring."""
    other = ProcessId(1203, 103 * SECOND)
    rows = [
        sync_record(phase=0, time_ns=150 * SECOND),
        sync_record(
            phase=1,
            time_ns=150 * SECOND,
            process=GRANDCHILD,
            watches=1,
            parent=CHILD,
            lineage=Lineage(ROOT, 2),
            comm=b"late",
            uid=1000,
        ),
        sync_record(
            phase=1, time_ns=150 * SECOND, process=ROOT, watches=1, roots=1, lineage=Lineage(ROOT, 0), comm=b"myapp"
        ),
        sync_record(phase=2, time_ns=150 * SECOND),
    ]
    lost = lost_record(time_ns=149 * SECOND, stage=lib.KW_RING_FULL, count=3)
    late = _fork(GRANDCHILD, CHILD, 2) + _exit(other, 40 * SECOND) + _exit(GRANDCHILD, 60 * SECOND, 2)
    return _clock() + _root() + _fork(CHILD, ROOT, 1) + _fork(other, ROOT, 1) + lost + b"".join(rows) + late


def _socket(event: int, cookie: int, after_ns: int, **fields: object) -> bytes:
    full = {
        "event": event,
        "cookie": cookie,
        "time_ns": CHILD.start_ns + after_ns,
        "process": CHILD,
        "watches": 0b11,
        "lineage": Lineage(ROOT, 1),
        "comm": b"myapp",
        "local": Endpoint(IPv4Address("192.0.2.1"), 40000 + cookie),
    }
    return socket_record(**{**full, **fields})  # type: ignore[arg-type]


def network() -> bytes:
    """Connections and listeners of every kind, a question and its answer, and expectations that break (EXPECTED)."""
    server, far = Endpoint(IPv4Address("192.0.2.53"), 53), Endpoint(IPv4Address("198.51.100.7"), 443)
    near, six = Endpoint(IPv4Address("192.0.2.80"), 80), Endpoint(IPv6Address("2001:db8::80"), 8080)
    udp = {"protocol": socket.IPPROTO_UDP, "type": socket.SOCK_DGRAM}
    question = b"\x07example\x03com\0\0\1\0\1"
    asked = b"\x12\x34\1\0\0\1\0\0\0\0\0\0" + question
    answered = b"\x12\x34\x81\x80\0\1\0\2\0\0\0\0" + question
    answered += b"\xc0\x0c\0\5\0\1\0\0\0\x3c\0\6\3www\xc0\x0c"
    answered += b"\xc0\x29\0\1\0\1\0\0\0\x3c\0\4" + far.address.packed
    dns = {"process": CHILD, "watches": 0b11, "cookie": 2, "server": server}
    v6 = {"family": socket.AF_INET6}
    return b"".join(
        (
            _clock() + _root() + _fork(CHILD, ROOT, 1, 0b11),
            _socket(lib.KW_SOCKET_LIVE, 1, 10, local=near, state=10),
            _socket(lib.KW_SOCKET_CONNECTED, 2, 20, remote=server, **udp),
            dns_record(time_ns=CHILD.start_ns + 30, message=asked, incoming=False, **dns),  # type: ignore[arg-type]
            dns_record(time_ns=CHILD.start_ns + 40, message=answered, incoming=True, **dns),  # type: ignore[arg-type]
            dns_record(time_ns=CHILD.start_ns + 45, message=b"\0\1\x81\x83", incoming=True, **dns),  # type: ignore[arg-type]
            _socket(lib.KW_SOCKET_CLOSED, 2, 50, remote=server, bytes_in=61, bytes_out=29, **udp),
            _socket(lib.KW_SOCKET_CONNECTING, 3, 60, remote=far),
            _socket(lib.KW_SOCKET_CONNECTED, 3, 70, remote=far),
            _socket(lib.KW_SOCKET_CONNECTED, 4, 80, remote=near, result=111),
            _socket(lib.KW_SOCKET_ACCEPTED, 5, 90, local=near, remote=Endpoint(IPv4Address("192.0.2.9"), 5000)),
            _socket(lib.KW_SOCKET_LISTENING, 6, 100, local=six, **v6),
            _socket(lib.KW_SOCKET_CONNECTED, 7, 110, local=near, remote=far, **v6),
            _socket(lib.KW_SOCKET_PEER, 8, 120, local=Endpoint(IPv6Address(0), 0), remote=six, **v6, **udp),
            _socket(lib.KW_SOCKET_CLOSED, 3, 130, remote=far, bytes_in=1 << 33, bytes_out=5),
            _socket(lib.KW_SOCKET_CLOSED, 6, 140, local=six, **v6),
            _exit(CHILD, 150, watches=0b11),
            _socket(lib.KW_SOCKET_CLOSED, 7, 160, local=near, remote=far, **v6),
            _socket(lib.KW_SOCKET_CLOSED, 5, 170, local=near, remote=Endpoint(IPv4Address("192.0.2.9"), 5000)),
            _socket(lib.KW_SOCKET_FAMILY, 0, 180, family=socket.AF_BLUETOOTH, type=socket.SOCK_SEQPACKET),
        )
    )


def ruled() -> bytes:
    """Each rule on lineage is broken and holds again, and what enforcement did about some of it."""
    slot = 1 << 3
    third = ProcessId(1203, 103 * SECOND)
    cat, other = {"device": 8 << 20 | 1, "inode": 22}, {"device": 8 << 20 | 1, "inode": 23}
    of_child = {"watches": slot}
    memory = lib.KW_MEMFD | lib.KW_DELETED
    done = {"slots": slot, "comm": b"cat", "lineage": Lineage(ROOT, 1), "uid": 1000}
    return b"".join(
        (
            _clock() + _root(slot) + _fork(CHILD, ROOT, 1, slot),
            _exec(CHILD, 10_000, **of_child, **cat),
            _exec(CHILD, 20_000, **of_child, exe=b"/usr/bin/sh", argv=[b"sh", b"-c", b"id"], **other),
            enforced_record(
                time_ns=CHILD.start_ns + 20_500,
                process=CHILD,
                reason=lib.KW_REASON_EXECUTABLE,
                action=lib.KW_ACTION_WOULD,
                **done,  # type: ignore[arg-type]
            ),
            _exec(CHILD, 30_000, **of_child, exe=b"/opt/open\xff", temporary=True, unexpected=slot),
            _fork(GRANDCHILD, CHILD, 2, slot),
            _exec(GRANDCHILD, 40_000, **of_child, exe=b"/memfd:x", flags=memory, credentials=Credentials(0, 0), **cat),
            _fork(third, ROOT, 1, slot),
            enforced_record(
                time_ns=third.start_ns + 3_000,
                process=third,
                reason=lib.KW_REASON_RATE,
                action=lib.KW_ACTION_DELEGATE,
                **done,  # type: ignore[arg-type]
            ),
            _exit(third, 4_000, 1, slot, 9),
            _exit(GRANDCHILD, 2 * SECOND, 2, slot),
            _exec(CHILD, 3 * SECOND, **of_child, **cat),
            _exec(ROOT, 5 * SECOND, **of_child, roots=slot, parent=None, comm=b"sh", exe=b"/usr/bin/sh"),
            _exit(CHILD, 6 * SECOND, 1, slot),
            _exit(ROOT, 70 * SECOND, 0, slot),
        )
    )


SCENARIOS: tuple[Callable[[], bytes], ...] = (
    short_child,
    exits,
    two_watches,
    odd_text,
    adopted,
    pid_reuse,
    after_loss,
    network,
    ruled,
)


@contextlib.contextmanager
def golden_engine() -> Iterator[Engine]:
    """An engine with the golden watches."""
    with Engine(64) as engine:
        for slot, (name, limit) in enumerate(WATCHES):
            engine.watch(slot, name, limit)
        engine.expect_destinations(*EXPECTED[0])
        engine.expect_ports(*EXPECTED[1])
        engine.expect_lineage(len(WATCHES) - 1, RULES)
        yield engine


if __name__ == "__main__":
    for scenario in SCENARIOS:
        records = scenario()
        (DATA / f"{scenario.__name__}.rec").write_bytes(records)
        with golden_engine() as engine:
            engine.ingest(records)
            (DATA / f"{scenario.__name__}.jsonl").write_bytes(engine.take().lines)
