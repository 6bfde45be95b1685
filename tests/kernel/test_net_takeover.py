"""The network side outlives a daemon that crashed; the next one goes on with its sockets and counters."""

from __future__ import annotations

import contextlib
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from monitor.capture.core import PINS
from monitor.engine.lines import Accept, Alarm, Close, Connect, Listen
from tests.contract.conftest import DEADLINE_S, eventually
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


def test_what_was_open_before_a_crash_is_still_reported_and_not_told_twice(daemons: Daemons, app: App) -> None:
    daemons.configure(
        f"""
        [[watch]]
        name = "app"
        pid = {app.pid}
        expect = {{ destinations = ["192.0.2.0/24"] }}
        """
    )
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        server.settimeout(DEADLINE_S)
        first = daemons.start()
        port = int(app.ask("l = socket.create_server(('127.0.0.1', 0)); print(l.getsockname()[1], flush=True)"))
        app.run(f"s = socket.create_connection({server.getsockname()})")
        stack.enter_context(server.accept()[0])
        guest = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        app.run("g = l.accept()[0]")
        for kind in (Listen, Connect, Accept, Alarm):
            first.wait_for(kind)
        first.kill()
        second = daemons.start()
        assert second.origin == "taken over"
        second.stop()
        metrics = second.metrics()
        assert metrics["listening_ports_app"] == [port]
        assert metrics["destination_ips_app"] == ["127.0.0.1"]
        lines = second.lines()
        told = [type(line) for line in lines if isinstance(line, (Listen, Connect, Accept))]
        assert told == [Listen, Connect, Accept], "each once, by the first of the two"
        alarms = [line for line in lines if isinstance(line, Alarm)]
        assert [alarm.value for alarm in alarms] == [("127.0.0.1",)] * 2, "each daemon raises what it finds standing"
        guest.close()


def test_sockets_are_right_again_after_records_were_lost(daemons: Daemons, app: App) -> None:
    daemons.configure(f"[capture]\nring_bytes = {4096}\n")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=200))
        server.settimeout(DEADLINE_S)
        where = server.getsockname()
        daemon = daemons.start("--watch", "unused", "--pid", str(app.pid))
        name = next(watch for watch in daemon.watched() if watch != "unused")
        app.run(f"gone = socket.create_connection({where})")
        stack.enter_context(server.accept()[0])
        daemon.wait_for(Connect)
        daemon.send(signal.SIGSTOP)
        assert app.run(f"for _ in range(100): socket.create_connection({where}).close()") == "ok"
        app.run("gone.close()")
        port = int(app.ask("l = socket.create_server(('127.0.0.1', 0)); print(l.getsockname()[1], flush=True)"))
        app.run(f"s = socket.create_connection({where})")
        daemon.send(signal.SIGCONT)
        eventually(lambda: daemon.ask("status")["lost"]["ring_full"] > 0, "the losses to be counted")
        listening = daemon.wait_for(Listen)
        assert (listening.local, listening.cause) == (f"127.0.0.1:{port}", "running")
        eventually(lambda: any(line.cause == "running" for line in daemon.of(Connect)), "the connection to be found")
        assert daemon.counters(name)["open"] == 1
        daemon.stop()
        assert daemon.metrics()[f"listening_ports_{name}"] == [port]
