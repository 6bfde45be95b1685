"""`-- COMMAND`: a child that waits before its exec, so that it is watched from its first instruction.

Owns the fork, the gate and the wait. Refuses to know captures. Fork before any thread is started.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from monitor.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Sequence


class Command:
    """A process that will run `argv` once it is let go."""

    def __init__(self, argv: Sequence[str]) -> None:
        """Fork it; it waits at the gate."""
        self._argv = tuple(argv)
        read_gate, self._gate = os.pipe()
        self._failure, write_failure = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._gate)
            os.close(self._failure)
            self._become(read_gate, write_failure)
        os.close(read_gate)
        os.close(write_failure)

    def _become(self, gate: int, failure: int) -> None:
        """In the child: wait, then exec. Never returns."""
        try:
            if os.read(gate, 1) != b"":
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
                    signal.signal(number, signal.SIG_DFL)
                os.execvp(self._argv[0], self._argv)  # noqa: S606 - the user's own command
        except OSError as error:
            os.write(failure, (error.strerror or str(error)).encode())
        finally:
            os._exit(127)

    def release(self) -> None:
        """Let it run. Raises ConfigInvalid when it cannot be executed."""
        os.write(self._gate, b"g")
        os.close(self._gate)
        self._gate = -1
        text = os.read(self._failure, 256).decode(errors="replace")
        os.close(self._failure)
        if text:
            os.waitpid(self.pid, 0)
            msg = f"cannot run {self._argv[0]!r}: {text}; name a program after --"
            raise ConfigInvalid(msg)

    def reap(self) -> None:
        """Collect it if it has ended."""
        try:
            os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            return

    def abandon(self) -> None:
        """Close the gate: a child that was never let go ends by itself."""
        if self._gate >= 0:
            os.close(self._gate)
            self._gate = -1
            os.close(self._failure)
            os.waitpid(self.pid, 0)
