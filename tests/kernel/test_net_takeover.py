"""The network side outlives a daemon that crashed; the next one goes on with its sockets and counters."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from monitor.capture.core import PINS
from monitor.engine.lines import Close, Connect
from tests.contract.conftest import DEADLINE_S
from tests.kernel.test_net import App

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.conftest import Daemons

NET_PINS = Path(f"{PINS}_net")
BEFORE, MEANWHILE, AFTER = 1_000, 20_000, 300_000


@pytest.fixture
def app() -> Iterator[App]:
    """A process that does as it is told."""
    made = App()
    yield made
    made.close()


def test_sockets_and_counters_go_on_over_a_crash(daemons: Daemons, app: App) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        server.settimeout(DEADLINE_S)
        where = server.getsockname()
        first = daemons.start("--watch", "unused", "--pid", str(app.pid))
        assert NET_PINS.exists()
        name = next(watch for watch in first.watched() if watch != "unused")
        app.run(f"s = socket.create_connection({where})")
        connection = stack.enter_context(server.accept()[0])
        connection.settimeout(DEADLINE_S)

        def carry(count: int) -> None:
            assert app.run(f"s.sendall(b'x' * {count})") == "ok"
            while count:
                count -= len(connection.recv(min(count, 65536)))

        carry(BEFORE)
        first.wait_for(Connect, pid=app.pid)
        assert first.counters(name)["bytes_out"] == BEFORE
        first.kill()
        carry(MEANWHILE)
        app.run(f"t = socket.create_connection({where})")
        stack.enter_context(server.accept()[0])
        second = daemons.start("--watch", "unused", "--pid", str(app.pid))
        assert second.origin == "taken over"
        carry(AFTER)
        counted = second.counters(name)
        assert counted["bytes_out"] == BEFORE + MEANWHILE + AFTER
        assert (counted["connections_out"], counted["open"]) == (2, 2)
        app.run("s.close()")
        connection.close()
        assert second.wait_for(Close, pid=app.pid).bytes_out == BEFORE + MEANWHILE + AFTER
        second.stop()
    assert not NET_PINS.exists(), "a clean stop unloads"
