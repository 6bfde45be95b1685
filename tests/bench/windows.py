"""How long the end of a window takes the security profile: a thousand behaviors of all operators over 24 watches.

Owns a machine of its own making, whose numbers and lists are those of a busy device, so that it is the judgement that
is measured and not the kernel's snapshot. Refuses to judge: the page does.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from monitor.config import Config, Watch
from monitor.detect.clocks import Judged
from monitor.detect.device import DeviceReading, NetworkStats
from monitor.detect.profile import Behavior, Profile
from monitor.detect.snapshot import Snapshot, WatchSnapshot
from monitor.judging.detection import Detection
from monitor.judging.plan import Plan
from monitor.remote import Remote
from monitor.window import FileStore, Window
from tests.bench.watcher import Unmeasured

if TYPE_CHECKING:
    from pathlib import Path

BEHAVIORS: Final = 1000
WATCHES: Final = 24
MEMBERS: Final = 50
"""Entries of each list of a watch."""
NETWORKS: Final = tuple(f"10.{number}.0.0/16" for number in range(20))
PORTS: Final = tuple(range(1000, 1000 + MEMBERS))
EXES: Final = tuple(f"/usr/bin/program-{number}" for number in range(MEMBERS))
TCP: Final = b"".join(struct.pack(">H16s", port, b"0.0.0.0") for port in PORTS)
CONNECTED: Final = b"".join(
    struct.pack(">10xH4BHH16s", 0xFFFF, 10, 9, 8, number, 443, 40_000 + number, b"eth0") for number in range(MEMBERS)
)
"""Rows of `struct kw_device_port` and `struct kw_device_connection`."""
KINDS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("child_procs_spawned_{}", {"operator": "less-than", "number": 10}),
    ("child_execs_{}", {"operator": "less-than-equals", "number": 10}),
    ("roots_{}", {"operator": "greater-than-equals", "number": 1}),
    ("bytes_out_{}", {"operator": "greater-than", "number": -1}),
    ("child_exes_{}", {"operator": "in-set", "texts": EXES}),
    ("destination_ports_{}", {"operator": "not-in-set", "numbers": (22, 23)}),
    ("listening_ports_{}", {"operator": "not-in-set", "numbers": (22, 23)}),
    ("destination_ips_{}", {"operator": "in-cidr-set", "texts": NETWORKS}),
    ("aws:destination-ip-addresses", {"operator": "not-in-cidr-set", "texts": ("192.0.2.0/24", "2001:db8::/32")}),
    ("aws:listening-tcp-ports", {"operator": "in-port-set", "numbers": PORTS}),
    ("aws:all-bytes-out", {"operator": "less-than", "number": 1 << 40, "duration_s": 3600}),
)


@dataclass(frozen=True)
class Ends:
    """Ends of windows, nanoseconds."""

    quiet: list[int]
    """From the snapshot to no verdict."""
    cpu: list[int]
    """Of each, what the processor worked on it."""
    kept: list[int]
    """Of each, what the state on the disk takes."""
    loud: int
    """From the snapshot to a line of every behavior that can be broken at once."""
    lines: int


class _Machine:
    """A capture, an engine and a device."""

    def __init__(self) -> None:
        self.windows = 0
        self.spawned = 0

    def mark(self) -> int:
        return 0

    def snapshot(self, reader: int | None, mark: int) -> Snapshot:
        del reader, mark
        self.windows += 1
        self.spawned += 1
        remotes = tuple(
            Remote(f"10.{number % 20}.3.{number}", 443 + number, "tcp", incoming=False) for number in range(MEMBERS)
        )
        counts = dict.fromkeys(("alive", "peak", "execs", "exits", "root_starts", "window_peak"), 1)
        watches = tuple(
            WatchSnapshot(
                name=f"w{number}",
                roots=1,
                spawned=self.spawned,
                adopted=0,
                root_exits=0,
                exes=EXES,
                remotes=remotes,
                listening_ports=PORTS,
                **counts,
            )
            for number in range(WATCHES)
        )
        wall_ns = 1_795_600_000_000_000_000 + self.windows * 300_000_000_000
        return Snapshot(wall_ns=wall_ns, boot_ns=0, watches=watches, lost={})

    def device(self) -> DeviceReading:
        stats = NetworkStats(bytes_in=self.windows, bytes_out=self.windows, packets_in=0, packets_out=0)
        return DeviceReading(tcp=TCP, connected=CONNECTED, interfaces={"eth0": stats})


def ends(scratch: Path, rounds: int) -> Ends:
    """Measure. Raises Unmeasured when a window says what it should not."""
    machine: Any = _Machine()
    behaviors = tuple(
        Behavior(name=f"b{number}", metric=metric.format(f"w{number % WATCHES}"), **criteria)
        for number in range(BEHAVIORS)
        for metric, criteria in (KINDS[number % len(KINDS)],)
    )
    watches = tuple(Watch(name=f"w{number}", kind="process", value=f"w{number}") for number in range(WATCHES))
    judged = tuple(Judged(name=one.name, clock="window", why="", behavior=one) for one in behaviors)
    plan = Plan(Config(watches=watches), Profile(name="", behaviors=behaviors, elsewhere=()), judged)
    detection = Detection(
        plan,
        lambda held: Window(machine, machine, 2, machine.device, store=held, generation=1),
        store=FileStore(scratch / "detect.json"),
    )
    detection.begin()
    quiet, cpu, kept = [], [], []
    for _ in range(rounds):
        began, worked = time.perf_counter_ns(), time.thread_time_ns()
        said = detection.judge()
        judged_ns = time.perf_counter_ns()
        cpu.append(time.thread_time_ns() - worked)
        detection.settle()
        if said.lines:
            raise Unmeasured(f"a quiet window said {said.lines[:200]!r}")
        quiet.append(judged_ns - began)
        kept.append(time.perf_counter_ns() - judged_ns)
    machine.spawned += 1000
    began = time.perf_counter_ns()
    said = detection.judge()
    return Ends(quiet, cpu, kept, time.perf_counter_ns() - began, said.lines_count)


if __name__ == "__main__":
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as directory:
        print(msgspec.json.encode(ends(Path(directory), 20)).decode())
