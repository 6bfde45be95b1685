"""What each network hook is for, what the kernel must offer for it, and whether this one does.

Owns the facts that `doctor` tells without a capture. Refuses to load a hook, and to compare kernel versions:
distributions backport.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from monitor.capture.rules import cgroup2_mount

if TYPE_CHECKING:
    from collections.abc import Iterable

CAP_NET_ADMIN: Final = 12
CAP_SYS_ADMIN: Final = 21
KERNEL_BTF: Final = Path("/sys/kernel/btf/vmlinux")
"""Names of everything in the kernel that a program can be attached to."""


class Hook(msgspec.Struct, frozen=True, kw_only=True):
    """A group of programs that are there together."""

    purpose: str
    needs: tuple[str, ...]
    """Names that the kernel's BTF must have."""
    cgroup2: bool = False
    """It is attached to the root of the cgroup2 hierarchy, which takes CAP_NET_ADMIN."""


FACTS: Final[dict[str, Hook]] = {
    "states": Hook(
        purpose="connections, listeners and payload bytes of TCP",
        needs=("btf_trace_inet_sock_set_state",),
    ),
    "sockets": Hook(
        purpose="who made a socket, peers and ports of UDP",
        needs=("__cgroup_bpf_run_filter_sk", "__cgroup_bpf_run_filter_sock_addr"),
        cgroup2=True,
    ),
    "lengths": Hook(
        purpose="payload bytes of UDP",
        needs=("btf_trace_sock_send_length", "btf_trace_sock_recv_length"),
    ),
    "packets": Hook(
        purpose="bytes and packets on the wire, DNS",
        needs=("__cgroup_bpf_run_filter_skb",),
        cgroup2=True,
    ),
    "bootstrap": Hook(
        purpose="sockets from before the start, bytes of sockets that are open",
        needs=("bpf_iter_task_file",),
    ),
}
"""By the names of network.HOOKS."""


NEEDS: Final = {
    "bytes_in": ("states", "lengths"),
    "bytes_out": ("states", "lengths"),
    "wire_bytes_in": ("packets",),
    "wire_bytes_out": ("packets",),
    "packets_in": ("packets",),
    "packets_out": ("packets",),
    "tcp_segments_in": ("states",),
    "tcp_segments_out": ("states",),
    "connections_out": ("states",),
    "connections_in": ("states",),
    "connections_failed": ("states",),
    "attempts": ("states",),
    "open": ("states",),
    "listening": ("states", "sockets"),
    "remotes": ("states", "sockets"),
    "remotes_missed": ("states", "sockets"),
    "listening_ports": ("states", "sockets"),
    "listening_missed": ("states", "sockets"),
}
"""By field of WatchSnapshot: the hooks that must be live for it to be the whole truth."""


def unknown(missing: Iterable[str]) -> frozenset[str]:
    """Fields of WatchSnapshot that are not known without these hooks."""
    gone = set(missing)
    return frozenset(field for field, hooks in NEEDS.items() if not gone.isdisjoint(hooks))


def probe(btf: Path = KERNEL_BTF) -> dict[str, str]:
    """By hook: "" when the kernel offers what it needs, else what it lacks. Loads nothing.

    `btf`: the kernel's own type information. What it can attach to is never told by a file of [capture] btf.
    """
    try:
        names = btf.read_bytes()
    except OSError as error:
        return dict.fromkeys(FACTS, f"{btf} cannot be read: {error.strerror}")
    cgroups = "" if _has(CAP_NET_ADMIN) else "no CAP_NET_ADMIN"
    if cgroup2_mount() is None and not _has(CAP_SYS_ADMIN):
        cgroups = "no cgroup2 hierarchy is mounted, and without CAP_SYS_ADMIN kinwatch cannot reach it"
    return {name: _lacks(hook, names, cgroups=cgroups) for name, hook in FACTS.items()}


def _has(capability: int) -> bool:
    """Whether this process has it, or CAP_SYS_ADMIN in its place (proc(5): CapEff; capabilities(7))."""
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    return bool(effective >> capability & 1 or effective >> CAP_SYS_ADMIN & 1)


def _lacks(hook: Hook, names: bytes, *, cgroups: str) -> str:
    lacking = [need for need in hook.needs if b"\0%b\0" % need.encode() not in names]
    if lacking:
        return f"the kernel has no {' and no '.join(lacking)}"
    return cgroups if hook.cgroup2 else ""
