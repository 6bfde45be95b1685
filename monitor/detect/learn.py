"""What a watch was seen to do, and the expectations that would have been quiet about it.

Owns what was seen, the head-room, the joining of addresses, the comparison with what was expected before. Refuses to
know records, lines, files, clocks and how expectations are written.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from monitor.expect import (
    MAX_EDGES,
    MAX_EXECUTABLES,
    MAX_PORTS,
    MAX_PREFIXES,
    MAX_UIDS,
    Expect,
    networks_alone,
    place_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

Member = str | int

AMOUNTS: Final = ("child_processes", "depth", "forks_per_minute")
"""Expectations that are the most of something."""
FORBIDDEN: Final = ("memfd", "deleted", "temporary")
"""Expectations that there is none of something."""
MOST: Final = {
    "executables": MAX_EXECUTABLES,
    "edges": MAX_EDGES,
    "uids": MAX_UIDS,
    "destinations": MAX_PREFIXES,
    "listening_ports": MAX_PORTS,
}
"""Expectations that are a set, and how many members one may have."""
NAMES: Final = "destination_names"
"""A set that is never learned: a person wrote it."""
MINUTE_S: Final = 60.0
PERCENT: Final = 100


@dataclass(slots=True)
class Seen:
    """How often something was seen, and when; times as lines write them."""

    times: int
    first: str
    last: str

    def again(self, other: Seen) -> Seen:
        """Both together."""
        return Seen(self.times + other.times, min(self.first, other.first), max(self.last, other.last))


@dataclass(slots=True)
class Observed:
    """What one watch did."""

    began: bool = False
    """A root or a descendant was seen."""
    most: dict[str, int] = field(default_factory=lambda: dict.fromkeys(AMOUNTS, 0))
    """Of each of AMOUNTS the most; forks are those of the busiest minute."""
    members: dict[str, dict[Member, Seen]] = field(default_factory=lambda: {rule: {} for rule in (*MOST, *FORBIDDEN)})
    """Of each set what was in it, of each of FORBIDDEN the images that were so."""
    _told: dict[str, dict[Member, str]] = field(default_factory=lambda: {rule: {} for rule in (*MOST, *FORBIDDEN)})

    def note(self, rule: str, member: Member, time: str) -> None:
        """It was seen once more."""
        seen = self.members[rule].get(member)
        if seen is None:
            self.members[rule][member] = Seen(1, time, time)
        else:
            seen.times += 1
            seen.last = time

    def told(self, rule: str, member: Member, time: str) -> None:
        """It breaks an expectation that does not name it: it was there, be it noted or not."""
        self._told[rule].setdefault(member, time)

    def reached(self, rule: str, amount: int) -> None:
        """There were so many at once, or so many levels, or forks within a minute."""
        self.most[rule] = max(self.most[rule], amount)

    def all_of(self, rule: str) -> dict[Member, Seen]:
        """What was noted, then what was only told."""
        noted = self.members[rule]
        return noted | {name: Seen(1, time, time) for name, time in self._told[rule].items() if name not in noted}


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """How expectations are made of what was seen."""

    head_room: int = 20
    """Percent above the most that was seen."""
    networks: tuple[int, int] | None = None
    """Lengths of the IPv4 and IPv6 prefixes that addresses are joined to; None: each stays by itself."""
    seconds: float = MINUTE_S
    """How long it was watched."""
    unknown: frozenset[str] = frozenset()
    """Expectations that the capture could not see broken."""


class Learned(msgspec.Struct, frozen=True, kw_only=True):
    """The expectations of one watch and what they come from."""

    expect: Expect
    seen: dict[str, dict[Member, Seen]]
    """Of each set that is expected how often each member was seen."""
    most: dict[str, int]
    """As `Observed.most`; forks of less than a minute are counted as if it had gone on like this."""
    left_out: dict[str, str]
    """Expectations that are not in `expect`, and why."""
    refused: tuple[str, ...]
    """Members that no expectation can name: they will raise alarms."""


def limit(most: int, head_room: int) -> int:
    """The most that is expected where `most` were seen.

    The most of a sample is seldom the most there is, so there is room for one more at least; where nothing was seen
    nothing is expected, for none and some differ in kind.
    """
    if not most or not head_room:
        return most
    return most + max(1, -(-most * head_room // PERCENT))


def learned(observed: Observed, terms: Terms, impossible: Callable[[str, Member], str]) -> Learned:
    """Make expectations of what was seen. `impossible(rule, member)`: why a member cannot be expected, "": it can.

    Depth has no head-room: like an edge it is how the application is built, and does not vary with its load.
    """
    most = dict(observed.most)
    if terms.seconds < MINUTE_S:
        most["forks_per_minute"] = -int(-most["forks_per_minute"] * MINUTE_S // max(terms.seconds, 1.0))
    values: dict[str, Any] = {rule: limit(most[rule], terms.head_room) for rule in AMOUNTS}
    values["depth"] = most["depth"]
    seen: dict[str, dict[Member, Seen]] = {}
    left_out = dict.fromkeys(sorted(terms.unknown), "this capture cannot see it")
    refused = []
    for rule, room in MOST.items():
        if rule in terms.unknown:
            continue
        found = observed.all_of(rule)
        reasons = {member: impossible(rule, member) for member in found}
        refused += [f"{rule}: {member}: {why}" for member, why in reasons.items() if why]
        members = {member: found[member] for member, why in reasons.items() if not why}
        if rule == "destinations":
            members = _joined(members, terms.networks)
        if len(members) > room:
            left_out[rule] = f"{len(members)} were seen, and at most {room} can be expected"
            if rule == "destinations":
                left_out[rule] += "; join them with --networks"
            continue
        seen[rule] = _in_order(rule, members)
        values[rule] = tuple(seen[rule])
    for rule in FORBIDDEN:
        images = observed.all_of(rule)
        if images and rule not in terms.unknown:
            left_out[rule] = f"seen: {', '.join(map(str, images))}"
        elif rule not in terms.unknown:
            values[rule] = False
    expect = Expect(**{rule: value for rule, value in values.items() if rule not in left_out})
    return Learned(expect=expect, seen=seen, most=most, left_out=left_out, refused=tuple(refused))


def news(old: Expect, found: Learned) -> list[tuple[str, str]]:
    """What `old` would not have been quiet about: the rule, and what was new to it. An unset rule is not judged.

    Nor are destinations of which `narrow` is true.
    """
    new: list[tuple[str, str]] = []
    for rule in AMOUNTS:
        allowed, most = getattr(old, rule), found.most[rule]
        if allowed is not None and most > allowed:
            new.append((rule, f"{most}, at most {allowed} expected"))
    for rule in MOST:
        if getattr(old, rule) is not None:
            new += [(rule, str(member)) for member in _beyond(old, rule, found.seen.get(rule, {}))]
            if rule in found.left_out and rule not in found.seen and "were seen" in found.left_out[rule]:
                new.append((rule, found.left_out[rule]))
    new += [
        (rule, found.left_out[rule].removeprefix("seen: "))
        for rule in FORBIDDEN
        if getattr(old, rule) is False and found.left_out.get(rule, "").startswith("seen")
    ]
    return new


def widened(old: Expect, found: Learned) -> Learned:
    """What either is quiet about. A rule that `old` leaves unset stays so, a number that was enough stays as it is.

    An `old` without any rule takes all that was learned. Destinations of which `narrow` is true stay as they are.
    """
    if old == Expect():
        return found
    values: dict[str, Any] = {}
    seen: dict[str, dict[Member, Seen]] = {}
    left_out = {}
    for rule in AMOUNTS:
        allowed = getattr(old, rule)
        enough = allowed is None or found.most[rule] <= allowed
        values[rule] = allowed if enough else getattr(found.expect, rule)
    for rule in MOST:
        before = getattr(old, rule)
        if before is None:
            continue
        told = found.seen.get(rule, {})
        members = {member: told.get(member, _BEFORE) for member in before}
        members |= {member: told[member] for member in _beyond(old, rule, told)}
        if len(members) > MOST[rule]:
            left_out[rule] = f"{len(members)} are expected or were seen, and at most {MOST[rule]} can be expected"
            continue
        seen[rule] = _in_order(rule, members)
        values[rule] = tuple(seen[rule])
    if old.destination_names is not None:
        values[NAMES] = old.destination_names
        seen[NAMES] = dict.fromkeys(old.destination_names, _BEFORE)
    for rule in FORBIDDEN:
        values[rule] = getattr(old, rule)
        if values[rule] is False and found.left_out.get(rule, "").startswith("seen"):
            values[rule] = None
            left_out[rule] = found.left_out[rule]
    return msgspec.structs.replace(found, expect=Expect(**values), seen=seen, left_out=left_out)


def narrow(expect: Expect) -> bool:
    """Destinations are expected by more than their addresses: what was seen, which is addresses, cannot be compared."""
    return expect.somewhere and not networks_alone(expect)


_BEFORE: Final = Seen(0, "", "")


def _beyond(old: Expect, rule: str, seen: Iterable[Member]) -> list[Member]:
    """Those members that `old` does not expect; none where `narrow` is true, for nobody can tell."""
    allowed = getattr(old, rule)
    if rule != "destinations":
        return [member for member in seen if member not in allowed]
    if narrow(old):
        return []
    networks = [ipaddress.ip_network(text) for text in allowed]
    return [member for member in seen if not any(_within(str(member), network) for network in networks)]


def _within(text: str, outer: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    inner = ipaddress.ip_network(text)
    if isinstance(inner, ipaddress.IPv4Network):
        return isinstance(outer, ipaddress.IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, ipaddress.IPv6Network) and inner.subnet_of(outer)


def _joined(addresses: Mapping[Member, Seen], lengths: tuple[int, int] | None) -> dict[Member, Seen]:
    """Addresses as networks of one, or each in the network of that length that it is in. Ports are left out."""
    found: dict[Member, Seen] = {}
    for text, seen in addresses.items():
        address = ipaddress.ip_address(place_of(str(text))[0])
        length = address.max_prefixlen if lengths is None else lengths[isinstance(address, ipaddress.IPv6Address)]
        network = str(ipaddress.ip_network(f"{address}/{length}", strict=False))
        found[network] = found[network].again(seen) if network in found else seen
    return found


def _in_order(rule: str, members: dict[Member, Seen]) -> dict[Member, Seen]:
    """As an expectation has them: numbers ascend, text is in the order it came in."""
    if rule in {"uids", "listening_ports"}:
        return dict(sorted(members.items()))
    return members
