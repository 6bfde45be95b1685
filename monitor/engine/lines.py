"""The schema of the event log: one type per event, and a strict decoder.

Owns what a line may say. Refuses to know where lines come from (the engine writes most of them, in C) and where they
go.

A key that may be left out is `T | UnsetType` here: left out means unknown or not so, it is never null or 0. Unknown
keys are refused, so that the schema and what is written cannot drift apart.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType


class Criteria(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """The condition that holds when all is well, as `BehaviorCriteria` of the AWS IoT API has it."""

    comparison_operator: str | UnsetType = UNSET
    """less-than, less-than-equals, greater-than, ..., in-cidr-set, ..., in-set, not-in-set."""
    value: CriteriaValue | UnsetType = UNSET
    duration_seconds: int | UnsetType = UNSET
    consecutive_datapoints_to_alarm: int | UnsetType = UNSET
    consecutive_datapoints_to_clear: int | UnsetType = UNSET
    statistical_threshold: dict[str, str] | UnsetType = UNSET
    ml_detection_config: dict[str, str] | UnsetType = UNSET


class CriteriaValue(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the metric is compared with: exactly one of these, as `MetricValue` of the AWS IoT API."""

    count: int | UnsetType = UNSET
    cidrs: tuple[str, ...] | UnsetType = UNSET
    ports: tuple[int, ...] | UnsetType = UNSET
    number: int | float | UnsetType = UNSET
    numbers: tuple[int | float, ...] | UnsetType = UNSET
    strings: tuple[str, ...] | UnsetType = UNSET


class Ancestor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A process in the lineage of an alarm. Of one that ended long ago only the id is known."""

    process_id: str
    pid: int
    comm: str | UnsetType = UNSET
    exe: str | UnsetType = UNSET
    """The file that is mapped, as /proc/PID/exe, when the alarm was raised."""


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="event", kw_only=True):
    """What every line has."""

    time: str
    """RFC 3339, UTC, nine digits: when it happened."""
    lossy: bool | UnsetType = UNSET
    """Some bytes were not UTF-8 and are shown as U+FFFD."""


class OfProcess(Event, frozen=True, kw_only=True):
    """What every line about a process has."""

    watch: str
    pid: int
    """Thread group id in the initial pid namespace."""
    process_id: str
    """`pid-ticks`: unique while the machine is up. Ticks of 1/100 s from boot to the start of the process."""


class Image(OfProcess, frozen=True, kw_only=True):
    """What a process runs."""

    comm: str
    ppid: int | UnsetType = UNSET
    """The parent now, which need not be who forked it."""
    exe: str | UnsetType = UNSET
    """The file that is mapped, as /proc/PID/exe without ` (deleted)`."""
    script: str | UnsetType = UNSET
    """The file that named exe as its interpreter."""
    argv: tuple[str, ...] | UnsetType = UNSET
    cwd: str | UnsetType = UNSET
    uid: int | UnsetType = UNSET
    gid: int | UnsetType = UNSET
    truncated: bool | UnsetType = UNSET
    """argv or a path is longer than what is shown."""
    memfd: bool | UnsetType = UNSET
    """The image lives in memory only."""
    deleted: bool | UnsetType = UNSET
    """The image's file has no name any more."""
    temporary: bool | UnsetType = UNSET
    """The image's file lies where anybody may write."""


class Root(Image, frozen=True, tag="root", kw_only=True):
    """A process became a root of the watch. Stands instead of the exec line when an exec made it one."""

    cause: Literal["exec", "running", "moved"]
    """It matched when it executed; it was running when the watch began; it was moved into a watched cgroup."""


class Fork(OfProcess, frozen=True, tag="fork", kw_only=True):
    """Kin made a process, which has not run yet."""

    comm: str
    parent_pid: int | UnsetType = UNSET
    """Who forked, whoever is the parent now."""
    parent_process_id: str | UnsetType = UNSET
    root_process_id: str | UnsetType = UNSET
    depth: int | UnsetType = UNSET
    """Generations below the root; a child of the root is 1."""
    uid: int | UnsetType = UNSET


class Exec(Image, frozen=True, tag="exec", kw_only=True):
    """Kin runs a new image."""

    depth: int | UnsetType = UNSET
    """0: the root itself."""


class Exit(OfProcess, frozen=True, tag="exit", kw_only=True):
    """The last thread of a process is gone."""

    comm: str
    depth: int | UnsetType = UNSET
    exit_code: int | UnsetType = UNSET
    signal: int | UnsetType = UNSET
    """Number of the signal that ended it; stands instead of exit_code."""
    core: bool | UnsetType = UNSET
    """It dumped core."""
    duration_ms: int
    """From its start, whole milliseconds."""


class Adopt(Image, frozen=True, tag="adopt", kw_only=True):
    """A descendant that was already running was found."""

    depth: int | UnsetType = UNSET
    inferred: bool | UnsetType = UNSET
    """Its ancestors have gone; its session leader is kin."""


class Connection(OfProcess, frozen=True, kw_only=True):
    """What every line about a connection or a listening socket has. The process is the socket's owner."""

    connection_id: str
    """The kernel's socket cookie: names the socket while the machine is up."""
    protocol: str
    """tcp, udp, mptcp, icmp, ..., or the number."""
    family: str
    """What goes over the wire: ipv4, also of an IPv6 socket that talks IPv4 (v4-mapped addresses), or ipv6."""
    local: str
    """`address:port`; an IPv6 address in brackets."""
    remote: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    """What a DNS answer that kin got called the remote address, as it was asked."""
    result: str | UnsetType = UNSET
    """Why it failed (ECONNREFUSED, ...); left out when it did not."""
    bytes_in: int | UnsetType = UNSET
    """Payload of its whole life."""
    bytes_out: int | UnsetType = UNSET
    cause: Literal["running"] | UnsetType = UNSET
    """The socket was there when watching began."""


class Connect(Connection, frozen=True, tag="connect", kw_only=True):
    """Kin connected, or tried to. UDP: it gave a socket its peer."""


class Accept(Connection, frozen=True, tag="accept", kw_only=True):
    """Kin accepted a connection."""


class Listen(Connection, frozen=True, tag="listen", kw_only=True):
    """Kin listens. UDP: it bound a socket to a port."""


class Peer(Connection, frozen=True, tag="peer", kw_only=True):
    """UDP without a peer of its own: a datagram to or from this remote address, the first of late."""


class Close(Connection, frozen=True, tag="close", kw_only=True):
    """A connection or a listening socket of kin is over. A TCP listener has no remote and no bytes."""


class Socket(OfProcess, frozen=True, tag="socket", kw_only=True):
    """Kin made a socket of another family than IP, of which no connection is told."""

    family: str
    """unix, netlink, packet, bluetooth, can, vsock, ..., or the number."""
    type: str
    """stream, dgram, raw, seqpacket, ..., or the number."""
    connection_id: str | UnsetType = UNSET


class Dns(OfProcess, frozen=True, tag="dns", kw_only=True):
    """A DNS message: a question of kin (without rcode) or what a server said to it (with rcode)."""

    name: str
    """What was asked, without the last dot; `\\.` and `\\DDD` stand for odd bytes (RFC 4343). Empty: malformed."""
    type: str
    """A, AAAA, CNAME, TXT, ..., or the number. Empty: malformed."""
    answers: tuple[str, ...] | UnsetType = UNSET
    """Addresses and names (CNAME, PTR, NS) in the order of the message, at most 32."""
    rcode: str | UnsetType = UNSET
    """NOERROR, NXDOMAIN, SERVFAIL, ..., or the number."""
    server: str
    """`address:port`"""
    connection_id: str
    truncated: bool | UnsetType = UNSET
    """There is more than is shown: the message says so, it is longer than what is looked at, or has more answers."""
    malformed: bool | UnsetType = UNSET
    """It breaks the format; what stands before the break is shown."""


class Judgement(Event, frozen=True, kw_only=True):
    """What alarm and clear share."""

    watch: str | UnsetType = UNSET
    behavior: str
    metric: str
    criteria: Criteria
    """The expectation."""
    since: str
    """When the alarm began."""
    process_ids: tuple[str, ...] | UnsetType = UNSET
    """Who broke it; of a window's number of processes its live descendants, the youngest first, at most 16."""
    suppressed: bool | UnsetType = UNSET
    """suppressAlerts of the behavior: it stands in the log, and nobody is told."""


class Alarm(Judgement, frozen=True, tag="alarm", kw_only=True):
    """An expectation is broken."""

    value: int | float | tuple[int | float | str, ...]
    """Of the metric, now."""
    exe: str | UnsetType = UNSET
    """What the process runs that broke a rule on lineage."""
    argv: tuple[str, ...] | UnsetType = UNSET
    """How it was called, where an exec broke the rule."""

    lineage: tuple[Ancestor, ...] | UnsetType = UNSET
    """From the root down to the process that broke it, or the first of several, those that are known."""


class Clear(Judgement, frozen=True, tag="clear", kw_only=True):
    """An expectation holds again, or nobody knows any more."""

    value: int | float | tuple[int | float | str, ...] | UnsetType = UNSET
    """Of the metric, now; when nobody knows, the last number, left out for a list."""
    invalidated: bool | UnsetType = UNSET
    """No datapoint came for more than two days, or the behavior is no longer judged as it was."""


class Enforced(Event, frozen=True, tag="enforced", kw_only=True):
    """kinwatch acted: on a fork or exec that broke an expectation, or on an alarm."""

    watch: str | UnsetType = UNSET
    pid: int | UnsetType = UNSET
    process_id: str | UnsetType = UNSET
    """Left out of an action that is not on one process."""
    comm: str | UnsetType = UNSET
    action: Literal["kill", "deny", "would", "spared", "command", "freeze", "stop"]
    """deny: it was refused a child; would: a dry run let it go; spared: the breaker had stopped enforcement; the last
    three: of detect.action."""
    reason: str
    """The expectation that it broke (untracked: there was no room to follow it), or the behavior in alarm."""
    exe: str | UnsetType = UNSET
    dry_run: bool | UnsetType = UNSET
    """True: nothing was done."""
    delegated: bool | UnsetType = UNSET
    """True: the kernel could not signal it, so it ran until user space did."""
    error: str | UnsetType = UNSET
    """Why the action failed."""


class Lost(Event, frozen=True, tag="lost", kw_only=True):
    """Details were lost: lines that will never come."""

    stage: Literal["ring_full", "table_full", "bad_record", "sink_full", "spool_full", "hook_missed"]
    count: int


Line = (
    Root
    | Fork
    | Exec
    | Exit
    | Adopt
    | Connect
    | Accept
    | Listen
    | Peer
    | Close
    | Socket
    | Dns
    | Alarm
    | Clear
    | Enforced
    | Lost
)
"""Any line of the event log."""

_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


def decode(line: bytes) -> Line:
    """Return the event that a line tells.

    Raises msgspec.DecodeError: no JSON; its child msgspec.ValidationError: JSON that the schema does not allow.
    """
    return _decoder.decode(line)
