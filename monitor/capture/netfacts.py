"""What each network hook is for, what the kernel must offer for it, and whether this one does.

Owns the facts that `doctor` tells without a capture. Refuses to load a hook, and to compare kernel versions:
distributions backport.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from monitor.capture.network import NEEDS
from monitor.capture.rules import cgroup2_mount

if TYPE_CHECKING:
    from collections.abc import Iterable

KERNEL_BTF: Final = Path("/sys/kernel/btf/vmlinux")
"""Names of everything in the kernel that a program can be attached to."""


class Hook(msgspec.Struct, frozen=True, kw_only=True):
    """A group of programs that are there together."""

    purpose: str
    needs: tuple[str, ...]
    """Names that the kernel's BTF must have."""
    cgroup2: bool = False
    """It is attached to the root of the cgroup2 hierarchy."""


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
        needs=("bpf_iter_bpf_sk_storage_map", "bpf_iter_task_file"),
    ),
}
"""By the names of network.HOOKS."""


def unknown(missing: Iterable[str]) -> frozenset[str]:
    """Fields of WatchSnapshot that are not known without these hooks."""
    gone = set(missing)
    return frozenset(field for field, hooks in NEEDS.items() if not gone.isdisjoint(hooks))


def probe(btf: str = "") -> dict[str, str]:
    """By hook: "" when the kernel offers what it needs, else what it lacks. Loads nothing.

    `btf`: a BTF file in place of the kernel's own.
    """
    try:
        names = Path(btf or KERNEL_BTF).read_bytes()
    except OSError as error:
        return dict.fromkeys(FACTS, f"{btf or KERNEL_BTF} cannot be read: {error.strerror}")
    mounted = cgroup2_mount() is not None
    return {name: _lacks(hook, names, mounted=mounted) for name, hook in FACTS.items()}


def _lacks(hook: Hook, names: bytes, *, mounted: bool) -> str:
    lacking = [need for need in hook.needs if b"\0%b\0" % need.encode() not in names]
    if lacking:
        return f"the kernel has no {' and no '.join(lacking)}"
    return "no cgroup2 hierarchy is mounted" if hook.cgroup2 and not mounted else ""
