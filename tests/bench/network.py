"""What watching the network costs: a stream's throughput, and the kernel's time for a connection's life.

Owns the two programs and their turns. Refuses to judge.
"""

from __future__ import annotations

import contextlib
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.bench import hooks, programs
from tests.bench.watcher import Kinwatch, Sleeper, Unmeasured

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME: Final = "kwb-stream"
ANOTHER: Final = "kwb-netroot"
STREAM_MS: Final = 500
PACKETS: Final = frozenset({"on_egress", "on_ingress"})
_OTHER_HOOKS: Final = frozenset(
    {
        *("on_state", "on_sock_create", "on_sock_release", "on_connect4", "on_connect6", "on_sendmsg4", "on_sendmsg6"),
        *("on_recvmsg4", "on_recvmsg6", "on_post_bind4", "on_post_bind6", "on_send", "on_recv"),
    }
)


@dataclass
class Cycles:
    """The kernel's time in our hooks for one connect, accept, close of both ends, ns."""

    raw: float
    """As the kernel measured it."""
    empty: float
    """What measuring adds, by calls of a program that does nothing."""
    calls: dict[str, float] = field(default_factory=dict)
    """Runs a cycle, by hook."""


def program(scratch: Path) -> Path:
    """The program under its watched name."""
    return programs.compiled("stream.c", scratch / NAME)


def _ran(path: Path, *arguments: str) -> int:
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise Unmeasured(f"{path.name} {' '.join(arguments)} ended with {done.returncode}")
    return int(done.stdout)


def stream_pairs(scratch: Path, pairs: int, *, kin: bool, packets: bool) -> list[tuple[float, float]]:
    """Seconds a byte without and with kinwatch, each pair one right after the other.

    kin: the stream's ends are. packets: the packet programs are attached.
    """
    path = program(scratch)
    found = []
    with hooks.stats(on=False):
        for number in range(pairs):
            order = (False, True) if number % 2 else (True, False)
            taken = {}
            for watched in order:
                with _watching(scratch, kin=kin, packets=packets) if watched else contextlib.nullcontext():
                    taken[watched] = 1 / _ran(path, "stream", str(STREAM_MS))
            found.append((taken[False], taken[True]))
    return found


@contextlib.contextmanager
def _watching(scratch: Path, *, kin: bool, packets: bool) -> Iterator[Kinwatch]:
    watch = NAME if kin else ANOTHER
    with (
        Kinwatch(scratch, watch, packets=packets) as kinwatch,
        contextlib.nullcontext() if kin else Sleeper(scratch, watch),
    ):
        yield kinwatch


def cycles(scratch: Path, empty: Path, count: int, *, packets: bool) -> Cycles:
    """Of `count` connections whose both ends are kin; with the packet programs or without."""
    path = program(scratch)
    wanted = {"on_state", *(PACKETS if packets else ())}
    with Kinwatch(scratch, NAME, packets=packets), hooks.empty_hooks(empty) as nothing, hooks.stats(on=True):
        ours = _network_programs()
        if not ours.keys() >= wanted:
            raise Unmeasured(f"of the network's hooks only {sorted(ours)} are live")
        before = {number: hooks.program_of(number) for number in (*ours.values(), *nothing.values())}
        _ran(path, "cycles", str(count))
        after = {number: hooks.program_of(number) for number in before}
    spent = {name: after[number].run_time_ns - before[number].run_time_ns for name, number in ours.items()}
    ran = {name: after[number].run_cnt - before[number].run_cnt for name, number in ours.items()}
    idle = [
        (after[number].run_time_ns - before[number].run_time_ns) / (after[number].run_cnt - before[number].run_cnt)
        for number in nothing.values()
        if after[number].run_cnt > before[number].run_cnt
    ]
    return Cycles(
        raw=sum(spent.values()) / count,
        empty=min(idle, default=0.0),
        calls={name: runs / count for name, runs in ran.items() if runs},
    )


def _network_programs() -> dict[str, int]:
    """Network hooks that are loaded now, name to id; of several sets the newest, which is ours."""
    found: dict[str, int] = {}
    for entry in hooks.all_programs():
        if entry.name in PACKETS | _OTHER_HOOKS:
            found[entry.name] = max(found.get(entry.name, 0), entry.id)
    return found
