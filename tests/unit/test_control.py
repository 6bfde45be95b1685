"""The control socket: answers, refuses rubbish, and a bad client costs the others nothing."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import stat
import threading
from typing import TYPE_CHECKING, Any, Self

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor import control
from monitor.control import ControlServer, ask
from monitor.errors import AlreadyRunning, ConfigInvalid, DaemonUnreachable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE_S = 20.0
STATUS = {"capture": "core", "watches": [{"name": "myapp", "roots": 1}]}


def fail() -> object:
    raise RuntimeError("the engine is away")


class Daemon:
    """A control server with a loop in a thread of its own."""

    def __init__(self, path: Path, client_s: float = PATIENCE_S) -> None:
        self.path = path
        self._client_s = client_s
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        """Start listening; what goes wrong is raised here."""
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:  # noqa: BLE001 - handed over to the test
            self._failure = error
            self._ready.set()
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        answers: dict[str, Any] = {
            "status": lambda: STATUS,
            "tree": lambda: {"tree": ["x" * 100] * 50_000},
            "bad": fail,
        }
        async with ControlServer(self.path, answers, self._client_s):
            self._ready.set()
            await self._stop.wait()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("run") / "kinwatch" / "control.sock") as running:
        yield running


def raw(path: Path, data: bytes) -> dict[str, Any]:
    """Reply to these very bytes."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(str(path))
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as stream:
            reply = stream.read()
    assert reply.endswith(b"\n")
    assert reply.count(b"\n") == 1
    return msgspec.json.decode(reply, type=dict[str, Any])


def test_the_daemon_answers_what_it_is_asked(daemon: Daemon) -> None:
    assert ask(daemon.path, "status") == STATUS
    assert len(ask(daemon.path, "tree")["tree"]) == 50_000


def test_the_socket_is_for_root_alone(daemon: Daemon) -> None:
    assert stat.S_IMODE(daemon.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(daemon.path.parent.stat().st_mode) == 0o755


def test_the_file_mode_does_not_hang_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Daemon(tmp_path / "s") as running:
            assert stat.S_IMODE(running.path.stat().st_mode) == 0o600
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("request_bytes", "words"),
    [
        (b"hello\n", "the request is not"),
        (b'{"get": 1}\n', "the request is not"),
        (b'{"get": "status", "more": 1}\n', "the request is not"),
        (b"\xff\xfe\n", "the request is not"),
        (b'{"get": "\xff"}\n', "the request is not"),
        (b'{"get": "secrets"}\n', "ask for bad or status or tree"),
        (b'{"get": "bad"}\n', "bad failed: RuntimeError: the engine is away"),
        (b"[" * 50_000 + b"\n", "the request is not"),
    ],
)
def test_rubbish_gets_an_error_and_nothing_else_changes(daemon: Daemon, request_bytes: bytes, words: str) -> None:
    assert words in raw(daemon.path, request_bytes)["error"]
    assert ask(daemon.path, "status") == STATUS


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_get_one_line_of_json(daemon: Daemon, data: bytes) -> None:
    raw(daemon.path, data)


def test_a_request_without_end_is_cut_off(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(str(daemon.path))
        sent = 0
        try:
            while sent < 64 * control.REQUEST_BYTES:
                sent += sock.send(b"x" * 4096)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert sent < 64 * control.REQUEST_BYTES
    assert ask(daemon.path, "status") == STATUS


def test_clients_that_hang_do_not_stop_the_others_and_are_dropped(tmp_path: Path) -> None:
    with Daemon(tmp_path / "s", client_s=0.2) as running:
        hanging = [socket.socket(socket.AF_UNIX) for _ in range(20)]
        try:
            for sock in hanging:
                sock.settimeout(PATIENCE_S)
                sock.connect(str(running.path))
                sock.send(b'{"get":')
            assert ask(running.path, "status") == STATUS
            assert all(sock.recv(1) == b"" for sock in hanging)
        finally:
            for sock in hanging:
                sock.close()


def test_a_client_that_does_not_read_is_dropped(tmp_path: Path) -> None:
    with Daemon(tmp_path / "s", client_s=0.2) as running, socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(str(running.path))
        sock.send(b'{"get":"tree"}\n')
        assert ask(running.path, "status") == STATUS
        hung_up = select.poll()
        hung_up.register(sock, 0)
        assert hung_up.poll(PATIENCE_S * 1000)
        data = b""
        try:
            while part := sock.recv(1 << 20):
                data += part
        except ConnectionResetError:
            pass
        assert not data.endswith(b"\n")


def test_a_stale_socket_is_replaced_and_a_stop_removes_its_own(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Daemon(path):
        assert ask(path, "status") == STATUS
    assert list(tmp_path.iterdir()) == []


def test_a_live_daemon_is_not_pushed_aside(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Daemon(path):
        with pytest.raises(AlreadyRunning, match="another daemon answers"), Daemon(path):
            pass
        assert ask(path, "status") == STATUS


def test_a_successor_keeps_its_socket_when_the_first_one_ends(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Daemon(path):
        path.unlink()
        second = Daemon(path)
        second.__enter__()
    try:
        assert ask(path, "status") == STATUS
    finally:
        second.__exit__()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ConfigInvalid, match="is not a socket"), Daemon(path):
        pass
    assert path.read_text() == "data"


def test_a_path_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigInvalid, match=r"daemon\.socket: .*cannot be made"), Daemon(tmp_path / "file" / "s"):
        pass


def test_a_directory_of_any_depth_will_do(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 100) / ("e" * 100) / "control.sock"
    with Daemon(path):
        assert ask(path, "status") == STATUS


def test_no_daemon_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable, match="start one with 'kinwatch run'"):
        ask(tmp_path / "none", "status")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    with pytest.raises(DaemonUnreachable, match="Connection refused"):
        ask(tmp_path / "dead", "status")


def test_a_daemon_that_does_not_answer_is_explained(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "mute"))
        mute.listen()
        with pytest.raises(DaemonUnreachable, match="did not answer"):
            ask(tmp_path / "mute", "status", timeout_s=0.1)


def test_an_error_of_the_daemon_reaches_the_user(daemon: Daemon) -> None:
    with pytest.raises(DaemonUnreachable, match="the engine is away"):
        ask(daemon.path, "bad")
