"""Which capture, and why: facts of the machine, then one pure decision with its reason as text.

Owns the probing (`probe`) and the decision (`choose`). Refuses to open a capture, and to compare kernel versions:
distributions backport.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec

from monitor.capture import connector
from monitor.engine._native import ffi, lib
from monitor.errors import CaptureUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from monitor.schema import Capture as CaptureTable

Kind = Literal["core", "bcc", "netlink", "poll", "none"]

HOOKS: Final = {
    "core": (
        "tp_btf/sched_process_fork",
        "tp_btf/sched_process_exec",
        "tp_btf/sched_process_exit",
        "tp_btf/cgroup_attach_task",
        "tp_btf/cgroup_mkdir",
        "tp_btf/cgroup_rmdir",
    ),
    "bcc": ("raw_tp/sched_process_fork", "raw_tp/sched_process_exec", "raw_tp/sched_process_exit"),
    "netlink": ("proc_event/fork", "proc_event/exec", "proc_event/exit", "proc_event/id", "proc_event/comm"),
    "poll": (),
    "none": (),
}

KERNEL_BTF: Final = "/sys/kernel/btf/vmlinux"
HOW_TO_MAKE_ONE: Final = f"on a machine with this kernel: cp {KERNEL_BTF} FILE; or take BTFHub's, unpacked"
_HOLES: Final = "the process connector tells every fork, exec and exit, but images and CLONE_PARENT not for certain"
_MUTE: Final = (
    "the process connector does not speak (it needs the initial namespaces, CONFIG_PROC_EVENTS, and root before 6.6)"
)


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine offers (source: monitor/engine/native/facts.c)."""

    btf: bool
    """The kernel's own type information is readable."""
    btf_file_bad: bool = False
    """The file of [capture] btf holds no type information."""
    btf_file_foreign: bool = False
    """It is of another kernel: a task has another size there."""
    tracing: bool
    """The kernel has the tracepoints and iterators of the programs."""
    atomics: bool
    """Programs can change a cell and know what it was, in one step (with the privileges of this process)."""
    ring_buffer: bool
    """Ring buffer maps can be made (with the privileges of this process)."""
    capable: bool
    """CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN."""
    bpffs: bool
    """A bpffs is mounted at /sys/fs/bpf."""
    lockdown_confidentiality: bool
    """Kernel lockdown forbids programs that read kernel memory."""
    signal_task: bool
    """A program can signal another task (bpf_send_signal_task): a forked child is killed before it runs."""
    hooks_preemptible: bool
    """The kernel skips a hook while who was preempted in it waits: second hooks do what the first were skipped for."""
    lsm: bool
    """The BPF LSM is active: a fork is refused where it cannot be killed."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The decision."""

    kind: Kind
    reason: str
    hooks: tuple[str, ...]
    ring: bool = True
    """The hooks of `bcc` tell through a ring buffer; else through a perf buffer for each processor."""


def probe(btf: str = "") -> Facts:
    """Ask the kernel. `btf`: a BTF file that programs are relocated by, in place of the kernel's own."""
    facts = ffi.new("struct kw_facts *")
    lib.kw_facts_probe(btf.encode(), facts)
    return Facts(**{name: bool(getattr(facts, name)) for name in Facts.__struct_fields__})


def obstacles(facts: Facts) -> list[str]:
    """What stands in the way of the `core` capture, each with its remedy; empty: nothing."""
    found = []
    if not facts.capable:
        found.append("this process lacks CAP_BPF and CAP_PERFMON (run it as root)")
    if not facts.btf:
        found.append(
            f"the kernel has no BTF, {KERNEL_BTF}, by which it finds its tracepoints (CONFIG_DEBUG_INFO_BTF; a file in "
            "[capture] btf serves the programs' relocations alone)"
        )
    elif not facts.tracing:
        found.append("the kernel lacks tracepoints or iterators that the programs need (they came with 5.8)")
    if facts.btf_file_bad:
        found.append(f"[capture] btf names a file that is no BTF ({HOW_TO_MAKE_ONE}, or leave it empty)")
    elif facts.btf_file_foreign:
        found.append(f"[capture] btf names the BTF of another kernel ({HOW_TO_MAKE_ONE}, or leave it empty)")
    if facts.capable and not facts.ring_buffer:
        found.append("the kernel has no ring buffer (it came with 5.8)")
    if facts.capable and not facts.atomics:
        found.append("the kernel's programs lack the atomic operations that exact counts take (they came with 5.12)")
    if facts.lockdown_confidentiality:
        found.append("kernel lockdown is in confidentiality mode (boot with lockdown=integrity)")
    return found


def compiling(btf: str = "") -> list[str]:
    """What keeps BCC from compiling on this machine, each with its remedy; empty: nothing. `btf`: as in probe."""
    from monitor.capture import bccsource  # noqa: PLC0415 - who has `core` need not look for it

    return bccsource.obstacles(btf)


def bcc_obstacles(facts: Facts, lacking: list[str]) -> list[str]:
    """What stands in the way of the `bcc` capture, each with its remedy. `lacking`: as compiling() says."""
    found = []
    if not facts.capable:
        found.append("this process lacks CAP_BPF and CAP_PERFMON (run it as root)")
    if facts.btf_file_bad:
        found.append(f"[capture] btf names a file that is no BTF ({HOW_TO_MAKE_ONE}, or leave it empty)")
    if facts.lockdown_confidentiality:
        found.append("kernel lockdown is in confidentiality mode (boot with lockdown=integrity)")
    return found + lacking


def choose(
    facts: Facts,
    wanted: str,
    speaks: Callable[[], bool] = connector.answers,
    lacking: Callable[[], list[str]] = compiling,
) -> Choice:
    """Decide. `wanted`: [capture] kind. Raises CaptureUnavailable when what is wanted cannot work here.

    `speaks`: whether the process connector does; asked only where that decides, for silence is known by waiting.
    `lacking`: what keeps BCC from compiling; asked only where `core` is impossible, or bcc is wanted.
    """
    if wanted in {"bcc", "netlink", "poll"}:
        return _asked_for(facts, wanted, speaks, lacking)
    if facts.btf_file_bad or facts.btf_file_foreign:  # whoever names one wants core, and not quietly something else
        wanted = "core"
    against = obstacles(facts)
    if not against:
        reason = "BTF, tracepoints, iterators and ring buffer are there, and the privileges to use them"
        return Choice(kind="core", reason=reason, hooks=HOOKS["core"])
    if wanted == "core":
        raise CaptureUnavailable('capture "core" cannot work here: ' + "; ".join(against))
    without = bcc_obstacles(facts, lacking())
    if not without:
        return _bcc(facts, "core cannot be used: " + "; ".join(against))
    reason = "eBPF cannot be used: " + "; ".join([*against, *(text for text in without if text not in against)])
    if speaks():
        return Choice(kind="netlink", reason=f"{reason}; {_HOLES}", hooks=HOOKS["netlink"])
    return Choice(kind="poll", reason=f"{reason}; {_MUTE}; short-lived processes go unseen", hooks=HOOKS["poll"])


def decide(settings: CaptureTable) -> Choice:
    """Choose on this machine. Raises CaptureUnavailable when what is wanted cannot work here."""
    return choose(probe(settings.btf), settings.kind, lacking=lambda: compiling(settings.btf))


def _asked_for(facts: Facts, wanted: str, speaks: Callable[[], bool], lacking: Callable[[], list[str]]) -> Choice:
    """One of the captures beside `core`."""
    if wanted == "bcc":
        against = bcc_obstacles(facts, lacking())
        if against:
            raise CaptureUnavailable('capture "bcc" cannot work here: ' + "; ".join(against))
        return _bcc(facts, "bcc was asked for")
    if wanted == "poll":
        return Choice(kind="poll", reason="poll was asked for: short-lived processes go unseen", hooks=HOOKS["poll"])
    if not speaks():
        raise CaptureUnavailable(f'capture "netlink" cannot work here: {_MUTE}')
    return Choice(kind="netlink", reason=f"netlink was asked for: {_HOLES}", hooks=HOOKS["netlink"])


def _bcc(facts: Facts, why: str) -> Choice:
    way = "a ring buffer" if facts.ring_buffer else "a perf buffer, for the kernel has no ring buffer"
    return Choice(
        kind="bcc",
        reason=f"{why}; BCC compiles the hooks on this machine, and they tell through {way}; sockets are not seen",
        hooks=HOOKS["bcc"],
        ring=facts.ring_buffer,
    )
