"""sd_notify: what arrives at the service manager's socket, and silence where there is none."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from monitor.notify import Notifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """NOTIFY_SOCKET and the socket behind it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(20)
        if request.param == "path":
            address = str(tmp_path / "notify")
            sock.bind(address)
        else:
            address = f"@kinwatch-test-{os.getpid()}"
            sock.bind("\0" + address[1:])
        yield address, sock


def test_every_state_arrives_as_systemd_wants_it(manager: tuple[str, socket.socket]) -> None:
    address, sock = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000"})
    assert notifier.ready("watching\n2 roots")
    assert notifier.status("all is calm")
    assert notifier.reloading(1_234_567_890)
    assert notifier.watchdog()
    assert notifier.stopping()
    assert [sock.recv(4096).decode() for _ in range(5)] == [
        "READY=1\nSTATUS=watching 2 roots",
        "STATUS=all is calm",
        "RELOADING=1\nMONOTONIC_USEC=1234567",
        "WATCHDOG=1",
        "STOPPING=1",
    ]
    assert notifier.watchdog_s == 15


def test_the_variables_are_not_left_for_started_commands() -> None:
    environ = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "PATH": "/bin"}
    Notifier.from_environment(environ)
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize("pid", [str(os.getpid() + 1), "rubbish"], ids=["another", "rubbish"])
def test_a_watchdog_meant_for_another_process_is_not_fed(manager: tuple[str, socket.socket], pid: str) -> None:
    environ = {"NOTIFY_SOCKET": manager[0], "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": pid}
    notifier = Notifier.from_environment(environ)
    assert notifier.watchdog_s is None
    assert not notifier.watchdog()


@pytest.mark.parametrize("address", ["", "relative", "vsock:1:2", "/nowhere/at/all", "@nobody-listens-here"])
def test_nobody_listening_is_no_failure(address: str) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address} if address else {})
    assert not notifier.ready()
    assert not notifier.stopping()
