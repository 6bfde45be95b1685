"""Alarms of the engine under the names of the profile: an expectation may stand for one of its behaviors.

Owns the one change that is made to a line of the engine. Refuses to judge.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from monitor.detect.clocks import Key
    from monitor.detect.profile import Behavior

_EXPECTED: Final = re.compile(
    # A quote within a text would be escaped, so this is the beginning of a line and nothing else.
    rb'("event":"(alarm|clear)","watch":"([a-zA-Z0-9_-]{1,64})","behavior":")([a-z_]+)(","metric":")([a-zA-Z0-9_-]+)'
)


class Names:
    """Renames alarm and clear lines; a clear has the name that its alarm had."""

    def __init__(self, names: Mapping[Key, Behavior]) -> None:
        """`names`: by the watch and the key of its `expect`, the behavior that it stands for."""
        self._names = names
        self._told: dict[Key, tuple[str, str]] = {}

    def change(self, names: Mapping[Key, Behavior]) -> None:
        """Use other names for alarms from now on."""
        self._names = names

    def named(self, lines: bytes) -> bytes:
        """Give alarm and clear lines of expectations that stand for behaviors the names and metrics of these."""
        return _EXPECTED.sub(self._name, lines) if self._names or self._told else lines

    def _name(self, found: re.Match[bytes]) -> bytes:
        head, event, watch, key, between, _ = found.groups()
        place = (watch.decode(), key.decode())
        behavior = self._names.get(place)
        name = None if behavior is None else (behavior.name, behavior.metric)
        if event == b"clear":
            name = self._told.pop(place, name)
        elif name is not None:
            self._told[place] = name
        return found[0] if name is None else head + name[0].encode() + between + name[1].encode()
