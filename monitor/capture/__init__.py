"""Where records come from: what every capture promises; knows none of them.

A capture feeds an engine through its one door. It owns the counters' truth: `snapshot` says what it counted, and marks
what it cannot know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from monitor.capture.rules import FileIdentity  # noqa: TC001 - as below
from monitor.watch import Watch  # noqa: TC001 - msgspec reads the fields' types

if TYPE_CHECKING:
    from collections.abc import Sequence

    from monitor.detect.snapshot import Snapshot


class SlotWatch(msgspec.Struct, frozen=True):
    """A watch and its bit in the watch masks."""

    slot: int
    """In [0, KW_WATCHES)."""
    watch: Watch
    files: tuple[FileIdentity, ...] = ()
    """Its expected executables as they were when the watch was put in place."""


class Capture(Protocol):
    """A source of records. `poll` runs in one thread; `stop` and `snapshot` may be called from any other meanwhile."""

    @property
    def kind(self) -> str:
        """core, poll, replay, ..."""

    def start(self) -> None:
        """Begin; running processes are taken in when it returns, and nothing started later is missed."""

    def poll(self) -> bool:
        """Block until something came, and feed it to the engine. False: stopped, or there is no more."""

    def commit(self) -> None:
        """What was made of all that poll() and drain() fed is safe: no later capture has to feed it again.

        Called by the thread that polls, after it took the engine's lines and put them away. Where records are not kept
        for a later capture it does nothing.
        """

    def stop(self) -> None:
        """Make poll() return False."""

    def snapshot(self, reader: int | None, mark: int) -> Snapshot:
        """All counters now, executables since the engine's `mark`; with a reader, also begin that reader's window."""

    def close(self, *, keep: bool) -> None:
        """Let go. `keep`: what lives in the kernel goes on without us."""


class LiveCapture(Capture, Protocol):
    """A capture of this machine, whose watches may change while it runs."""

    @property
    def watches(self) -> tuple[SlotWatch, ...]:
        """Who has which slot."""

    def apply(self, watches: Sequence[Watch]) -> None:
        """Make these the watches. Not while poll() runs."""

    def interrupt(self) -> None:
        """Make poll() return once, from any thread."""

    def drain(self) -> None:
        """Feed everything that is there, without waiting. Not while poll() runs."""
