"""Whether a datapoint is what a behavior calls normal: the operators of the AWS API.

Owns comparison, in a time that does not grow with the size of a set of ports, texts or networks. Refuses to know
alarms, and what came before.
"""

from __future__ import annotations

import ipaddress
import operator
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from monitor.detect.profile import Behavior, Operator

Value = float | tuple[float | str, ...]
"""What a metric carries: a number, numbers, strings (addresses are strings)."""
Address = tuple[int, int]
"""Version and number."""

COMPARE: Final[dict[Operator, Callable[[float, float], bool]]] = {
    "less-than": operator.lt,
    "less-than-equals": operator.le,
    "greater-than": operator.gt,
    "greater-than-equals": operator.ge,
}
_KNOWN_ADDRESSES: Final = 4096
_LONGEST_ADDRESS: Final = 64
"""Characters; what is longer, and still an address by its scope, is read anew each time: memory stays bounded."""


class Number:
    """Stands for the type of what is no list."""


class Datapoint:
    """A value, and what several behaviors want to know of it, found out once."""

    __slots__ = ("_addresses", "strangers", "types", "value")

    def __init__(self, value: Value) -> None:
        self.value = value
        self.types: frozenset[type] = frozenset(map(type, value)) | _LIST if isinstance(value, tuple) else _NUMBER
        self._addresses: dict[int, list[int]] | None = None
        self.strangers = 0
        """Members that are no addresses; once `addresses` were asked for."""

    @property
    def addresses(self) -> dict[int, list[int]]:
        """By version the members that are addresses. An IPv4 address mapped into IPv6 is that IPv4 address."""
        if self._addresses is None:
            self._addresses = {}
            for member in self.value if isinstance(self.value, tuple) else ():
                address = _address(str(member))
                if address is None:
                    self.strangers += 1
                else:
                    self._addresses.setdefault(address[0], []).append(address[1])
        return self._addresses


_NUMBER: Final[frozenset[type]] = frozenset({Number})
_LIST: Final[frozenset[type]] = frozenset({tuple})
_TEXTS: Final = _LIST | {str}
_NUMBERS: Final = _LIST | {int, float}


def types_of(behavior: Behavior) -> frozenset[type]:
    """What a behavior can judge, as the `types` of a datapoint. An empty list is of every list type."""
    if behavior.number is not None:
        return _NUMBER
    if behavior.operator.endswith("cidr-set") or behavior.texts:
        return _TEXTS
    if behavior.numbers or behavior.operator.endswith("port-set"):
        return _NUMBERS
    return _TEXTS | _NUMBERS  # an empty set is of either type


def unfit(behavior: Behavior, point: Datapoint) -> str:
    """Say why a behavior cannot judge a datapoint whose types are not its own."""
    if not isinstance(point.value, tuple):
        return f"{behavior.operator} judges a list, the metric is a number"
    if behavior.number is not None:
        return f"{behavior.operator} judges a number, the metric is a list"
    there, here = ("text", "numbers") if str in types_of(behavior) else ("numbers", "text")
    return f"{behavior.operator} judges a list of {there}, the metric is one of {here}"


def judge_of(behavior: Behavior) -> Callable[[Datapoint], bool]:
    """Whether a fitting datapoint conforms."""
    if behavior.number is not None:
        return _compared(COMPARE[behavior.operator], behavior.number)
    excluded = behavior.operator.startswith("not-in")
    if behavior.operator.endswith("cidr-set"):
        return _within(behavior.texts, wanted=not excluded)
    members = frozenset((*behavior.numbers, *behavior.texts))
    judge = members.isdisjoint if excluded else members.issuperset
    return lambda point: isinstance(point.value, tuple) and judge(point.value)


def _compared(compare: Callable[[float, float], bool], number: float) -> Callable[[Datapoint], bool]:
    return lambda point: not isinstance(point.value, tuple) and compare(point.value, number)


def _within(cidrs: tuple[str, ...], *, wanted: bool) -> Callable[[Datapoint], bool]:
    """Whether all addresses are in one of the networks, or none is. What is no address is in none."""
    rows: dict[int, dict[int, set[int]]] = {}
    for cidr in cidrs:
        network = ipaddress.ip_network(cidr)
        shift = network.max_prefixlen - network.prefixlen
        numbers = rows.setdefault(network.version, {}).setdefault(shift, set())
        numbers.add(int(network.network_address) >> shift)

    def inside(point: Datapoint) -> bool:
        for version, rest in point.addresses.items():
            for shift, numbers in rows.get(version, {}).items():
                rest = [number for number in rest if number >> shift not in numbers]  # noqa: PLW2901 - fewer and fewer
            if rest:
                return False
        return not point.strangers

    def outside(point: Datapoint) -> bool:
        return all(
            numbers.isdisjoint([number >> shift for number in found])
            for version, found in point.addresses.items()
            for shift, numbers in rows.get(version, {}).items()
        )

    return inside if wanted else outside


def _address(text: str) -> Address | None:
    return _parsed(text) if len(text) <= _LONGEST_ADDRESS else _parsed.__wrapped__(text)


@lru_cache(maxsize=_KNOWN_ADDRESSES)
def _parsed(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    address = mapped or address
    return address.version, int(address)
