"""Watches by command line: reads the arguments of provisional processes and gives the verdict.

Owns the expressions and the verdicts of processes whose descendants may still be told about. Refuses to know rings and
lines. Records come in the order of the events, so when a descendant's record comes its ancestor's verdict is known:
here, or in the kernel where an earlier daemon gave it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from monitor.engine._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from monitor.engine._native import CData

_VERDICTS: Final = 4096
"""Verdicts kept. Only those of processes that are kin matter, and only until the last of their provisional records."""


class Membership(NamedTuple):
    """What a process is kin of, and a root of."""

    watches: int
    roots: int


NOTHING: Final = Membership(0, 0)


def command_line(arguments: bytes) -> str:
    """What an expression is searched in: the arguments with blanks between, as `ps` shows them."""
    return arguments.rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")


class Judge:
    """Decides about provisional processes of one loader, one record at a time."""

    def __init__(self, expressions: Mapping[int, str]) -> None:
        """`expressions`: by slot."""
        self._patterns = {slot: re.compile(text) for slot, text in expressions.items()}
        self._known: dict[tuple[int, int], Membership] = {}

    @property
    def slots(self) -> int:
        """Mask of the watches it decides about."""
        return sum(1 << slot for slot in self._patterns)

    def matches(self, arguments: bytes) -> int:
        """Mask of the watches whose expression is found in the command line."""
        text = command_line(arguments)
        return sum(1 << slot for slot, pattern in self._patterns.items() if pattern.search(text))

    def running(self) -> Iterator[tuple[int, int]]:
        """(pid, mask) of processes that match now; kernel threads have no command line."""
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                try:
                    arguments = (process / "cmdline").read_bytes()
                except OSError:
                    continue
                mask = self.matches(arguments) if arguments else 0
                if mask:
                    yield int(process.name), mask

    def judge(self, loader: CData, header: CData) -> bytes:
        """Decide about one provisional record; return it as the engine should see it, or nothing."""
        size = header.size
        copy = bytearray(ffi.buffer(header, size))
        if header.kind == lib.KW_FORK:
            record = ffi.cast("struct kw_fork *", ffi.from_buffer("uint8_t[]", copy))
            membership = self._of(loader, record.root)
            if membership.watches:
                self._keep(record.process, Membership(membership.watches, 0))
                # In case the verdict came between the hook's look at it and the row: settling again costs a walk.
                lib.kw_loader_decide(loader, record.root.pid, record.root.start_ns, *membership)
            return self._told(copy, Membership(membership.watches, 0))
        if header.kind == lib.KW_EXIT:
            record = ffi.cast("struct kw_exit *", ffi.from_buffer("uint8_t[]", copy))
            own = self._known.pop(_key(record.process), None)
            above = self._of(loader, record.root)
            membership = own or (above if _key(record.root) == _key(record.process) else Membership(above.watches, 0))
            lib.kw_loader_count_ended(loader, membership.watches, membership.roots)
            return self._told(copy, membership)
        image = ffi.cast("struct kw_image *", ffi.from_buffer("uint8_t[]", copy))
        inherited = self._known.get(_key(image.process), NOTHING).watches
        inherited |= lib.kw_loader_inherited_by(loader, image.process.pid, image.process.start_ns)
        inherited &= image.fresh  # what it was asked about: of the others the hook has told and counted this image
        arguments = bytes(copy[image.argv.offset : image.argv.offset + image.argv.length])
        roots = self.matches(arguments) & image.fresh & ~inherited
        membership = Membership(inherited | roots, roots)
        self._keep(image.process, membership)
        lib.kw_loader_decide(loader, image.process.pid, image.process.start_ns, *membership)
        lib.kw_loader_count_exec(loader, inherited)
        image.fresh = roots
        if roots and not inherited:
            image.root, image.depth = image.process, 0
        return self._told(copy, membership)

    def _told(self, copy: bytearray, membership: Membership) -> bytes:
        """The record with its masks; nothing where it is nobody's kin."""
        if not membership.watches:
            return b""
        header = ffi.cast("struct kw_header *", ffi.from_buffer("uint8_t[]", copy))
        header.watches, header.roots = membership
        header.flags &= ~lib.KW_UNDECIDED
        return bytes(copy)

    def _of(self, loader: CData, process: CData) -> Membership:
        known = self._known.get(_key(process))
        if known is None:
            roots = ffi.new("uint64_t *")
            known = Membership(lib.kw_loader_verdict(loader, *_key(process), roots), roots[0])
        return known

    def _keep(self, process: CData, membership: Membership) -> None:
        self._known.pop(_key(process), None)
        if membership.watches:
            self._known[_key(process)] = membership
            if len(self._known) > _VERDICTS:
                del self._known[next(iter(self._known))]


def _key(process: CData) -> tuple[int, int]:
    return int(process.pid), int(process.start_ns)
