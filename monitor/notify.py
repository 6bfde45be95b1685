"""Tells systemd how the daemon is (sd_notify(3)) without a library; knows nothing of what the daemon does.

Outside systemd every call is a no-op. A notification that cannot be sent is not worth a failure: nothing here raises.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import MutableMapping

VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """One notification socket. `watchdog_s`: seconds between two `watchdog` calls, None where nobody watches."""

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        """`address` as NOTIFY_SOCKET: a path, or an abstract name that begins with @; "": nobody listens."""
        self._address = address
        self.watchdog_s = watchdog_s if address else None

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """Take the socket and the watchdog out of the environment, so that a started command does not inherit them."""
        address, limit, pid = (environ.pop(name, "") for name in VARIABLES)
        # systemd advises half the limit; WATCHDOG_PID says whom the limit is meant for.
        meant = limit.isdigit() and int(limit) > 0 and pid in ("", str(os.getpid()))
        return cls(address, int(limit) / 2_000_000 if meant else None)

    def ready(self, status: str = "") -> bool:
        """The daemon watches: every hook is live."""
        return self._send("READY=1", status)

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self._send("", text)

    def reloading(self, monotonic_ns: int) -> bool:
        """A reload begins; `ready` ends it. `monotonic_ns`: CLOCK_MONOTONIC."""
        return self._send(f"RELOADING=1\nMONOTONIC_USEC={monotonic_ns // 1000}", "")

    def stopping(self, status: str = "") -> bool:
        """The daemon is on its way down."""
        return self._send("STOPPING=1", status)

    def watchdog(self) -> bool:
        """The daemon is alive."""
        return self._send("WATCHDOG=1", "") if self.watchdog_s is not None else False

    def _send(self, state: str, status: str) -> bool:
        """Whether the datagram is on its way."""
        if not self._address.startswith(("/", "@")):
            return False
        text = "\n".join(filter(None, (state, f"STATUS={' '.join(status.split())}" if status else "")))
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
                sock.connect(address)
                sock.send(text.encode())
        except OSError:
            return False
        return True
