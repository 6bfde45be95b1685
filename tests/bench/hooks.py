"""What each hook costs in the kernel, by the kernel's own clock. Owns kernel.bpf_stats_enabled while it measures.

The kernel's measuring has a cost that it counts in: two readings of its clock. Programs that do nothing are attached
beside the hooks and measured in the same storm; a hook's net cost is what it costs more than those.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from tests.bench.storms import run_storm
from tests.bench.watcher import Kinwatch, Sleeper, Unmeasured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STATS: Final = Path("/proc/sys/kernel/bpf_stats_enabled")
HOOKS: Final = ("on_fork", "on_exec", "on_exit")
BPF_PROG_GET_FD_BY_ID: Final = 13
CALL: Final = {"x86_64": 321, "aarch64": 280}[platform.machine()]  # bpf(2)
EXEC_SHARE: Final = 50
"""An exec costs much more than a vfork: so many times fewer of them."""


class Program(msgspec.Struct, frozen=True):
    """Of bpftool's answer, what is used here; numbers are left out while they are 0."""

    id: int
    name: str = ""
    run_time_ns: int = 0
    run_cnt: int = 0


@dataclass(frozen=True)
class Cost:
    """Of one hook, ns per run, in each round."""

    raw: list[float] = field(default_factory=list)
    net: list[float] = field(default_factory=list)


@contextmanager
def stats(*, on: bool) -> Iterator[None]:
    """The kernel measures programs, or does not; as before when the block ends."""
    before = STATS.read_text(encoding="ascii")
    try:
        STATS.write_text(f"{int(on)}\n", encoding="ascii")
        yield
    finally:
        STATS.write_text(before, encoding="ascii")


def _bpftool(*arguments: str) -> bytes:
    program = shutil.which("bpftool") or shutil.which("bpftool", path="/usr/sbin:/sbin")
    if program is None:
        raise Unmeasured("bpftool is not installed (Debian package bpftool)")
    return subprocess.run([program, "-j", *arguments], check=True, capture_output=True).stdout


def programs_of(pid: int) -> dict[str, int]:
    """The hooks whose programs or links a process holds, name to id (proc(5): fdinfo)."""
    ids = set()
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            facts = path.read_text(encoding="utf-8")
        except FileNotFoundError:  # closed meanwhile
            continue
        for line in facts.splitlines():
            if line.startswith("prog_id:"):
                ids.add(int(line.split()[1]))
    return {program.name: program.id for program in all_programs() if program.id in ids and program.name in HOOKS}


def facts_of(identity: int) -> dict[str, int]:
    """What the kernel tells of one program in numbers, by its words (proc(5), fdinfo). Raises Unmeasured."""
    attributes = ctypes.create_string_buffer(identity.to_bytes(4, "little") + bytes(12), 16)
    fd = ctypes.CDLL(None, use_errno=True).syscall(CALL, BPF_PROG_GET_FD_BY_ID, attributes, 16)
    if fd < 0:
        raise Unmeasured(f"program {identity} is gone: {os.strerror(ctypes.get_errno())}")
    try:
        told = re.findall(r"^(\w+):\s*(\d+)$", Path(f"/proc/self/fdinfo/{fd}").read_text(), re.MULTILINE)
    finally:
        os.close(fd)
    return {word: int(number) for word, number in told}


def program_of(identity: int) -> Program:
    """One program as it is now, without its name. Asks the kernel: another process in between would cool the caches."""
    told = facts_of(identity)
    return Program(id=identity, run_time_ns=told["run_time_ns"], run_cnt=told["run_cnt"])


def all_programs() -> list[Program]:
    """Every loaded program."""
    return msgspec.json.decode(_bpftool("prog", "show"), type=list[Program])


def of_others() -> int:
    """How many programs like our hooks are loaded now; while we run none, they slow both sides of every comparison."""
    return sum(program.name in HOOKS for program in all_programs())


@contextmanager
def empty_hooks(program: Path) -> Iterator[dict[str, int]]:
    """Programs that do nothing, name to id."""
    process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found: dict[str, int] = {}
        while len(found) < len(HOOKS):
            line = process.stdout.readline()
            if not line:
                raise Unmeasured("the kernel does not take programs that do nothing")
            name, _, number = line.partition(" ")
            found[name] = int(number)
        yield found
    finally:
        process.communicate()


def runs(identities: dict[str, int], storm: Callable[[], object]) -> dict[str, float]:
    """Ns per run over one storm, by name; hooks that did not run are left out."""
    before = {name: program_of(identity) for name, identity in identities.items()}
    storm()
    costs = {}
    for name, old in before.items():
        new = program_of(old.id)
        if new.run_cnt > old.run_cnt:
            costs[name] = (new.run_time_ns - old.run_time_ns) / (new.run_cnt - old.run_cnt)
    return costs


@dataclass(frozen=True)
class Bench:
    """What is needed to measure hooks."""

    scratch: Path
    storm: Path
    empty: Path
    children: int
    rounds: int

    def measure(self, watch: str, *, root: bool) -> dict[str, Cost]:
        """The hooks' costs while a storm runs, several times; with a live root of the watch, or not."""
        found = {name: Cost() for name in HOOKS}
        with Kinwatch(self.scratch, watch) as kinwatch, empty_hooks(self.empty) as nothing, stats(on=True):
            ours = programs_of(kinwatch.pid)
            if set(ours) != set(HOOKS):
                raise Unmeasured(f"kinwatch has the hooks {sorted(ours)}, expected {sorted(HOOKS)}")
            names = {f"ours {name}": number for name, number in ours.items()}
            names |= {f"empty {name}": number for name, number in nothing.items()}
            for _ in range(self.rounds):
                with Sleeper(self.scratch, watch) if root else nullcontext():
                    plain = runs(names, lambda: run_storm(self.storm, self.children))
                    execs = runs(names, lambda: run_storm(self.storm, self.children // EXEC_SHARE, None, "exec"))
                costs = plain | {name: cost for name, cost in execs.items() if name.endswith("on_exec")}
                for name in HOOKS:
                    found[name].raw.append(costs[f"ours {name}"])
                    found[name].net.append(costs[f"ours {name}"] - costs[f"empty {name}"])
        return found
