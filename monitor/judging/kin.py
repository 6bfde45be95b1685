"""Live kin of a watch, from the engine's tree.

Owns which keys of the tree are read here. Refuses to choose among kin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator


class Place(msgspec.Struct):
    """What a process is to one watch."""

    watch: str
    root: bool = False
    root_process_id: str = ""


class Kin(msgspec.Struct):
    """One line of the tree, as far as it is needed."""

    process_id: str
    pid: int
    watches: tuple[Place, ...] = ()
    parent_process_id: str = ""
    comm: str | msgspec.UnsetType = msgspec.UNSET
    exe: str | msgspec.UnsetType = msgspec.UNSET

    @property
    def started(self) -> int:
        """Clock ticks since boot, by which process ids tell processes apart."""
        return int(self.process_id.rpartition("-")[2])


_lines: Final = msgspec.json.Decoder(Kin)


def kin_of(tree: bytes, watch: str) -> Iterator[tuple[Kin, Place]]:
    """Live kin and what each is to the watch, parents before children. `tree`: as Engine.tree."""
    for one in _lines.decode_lines(tree):
        for place in one.watches:
            if place.watch == watch:
                yield one, place
