"""The network side of the core capture, in this process: whose a socket is, what it carried, what was there before.

The truth is the peer: this process is the other end of every connection and counts what it sent and got.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from monitor import config
from monitor.capture import netfacts
from monitor.capture.core import CoreCapture
from monitor.capture.netfacts import NEEDS
from monitor.capture.network import HOOKS
from monitor.detect.snapshot import NETWORK, TRAFFIC, WatchSnapshot
from monitor.engine import Engine
from monitor.engine._native import lib
from monitor.engine.lines import Accept, Alarm, Close, Connect, Dns, Listen, Lost, Peer, Root, Socket, decode
from monitor.expect import Expect
from monitor.schema import Capture
from monitor.watch import Watch
from tests.contract.conftest import DEADLINE_S, KINWATCH, eventually
from tests.kernel.held import held

if TYPE_CHECKING:
    from collections.abc import Iterator

    from monitor.engine.lines import Line

LOOP = "127.0.0.1"
SYMBOLS = Path("/proc/kallsyms")
SHELL = """
import os, socket, sys
for line in sys.stdin:
    try:
        exec(line.encode().decode("unicode_escape"))
        print("ok", flush=True)
    except OSError as error:
        print(f"errno {error.errno}", flush=True)
"""


class App:
    """A process that runs Python as it is told, one piece at a time."""

    def __init__(self, program: str = sys.executable, **more: Any) -> None:  # noqa: ANN401 - Popen's
        self._process = subprocess.Popen(
            [program, "-c", SHELL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **more
        )
        self.pid = self._process.pid

    def run(self, code: str) -> str:
        """Run it to its end; "ok" or "errno N"."""
        assert self._process.stdin
        self._process.stdin.write(code.encode("unicode_escape").decode() + "\n")
        self._process.stdin.flush()
        return self.line()

    def line(self) -> str:
        """The next line it says: what code printed comes before its "ok"."""
        assert self._process.stdout
        answer: str = self._process.stdout.readline()
        return answer.strip()

    def ask(self, code: str) -> str:
        """Run what prints one line, and return that line."""
        said = self.run(code)
        assert self.line() == "ok", said
        return said

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate(timeout=DEADLINE_S)


class Session:
    """A capture with its reader, and the lines that came."""

    def __init__(self, *watches: Watch, packets: bool = True) -> None:
        self._engine = Engine(4096)
        self.capture = CoreCapture(self._engine, watches, Capture(packets=packets))
        self._lines: list[Line] = []
        self._reader: threading.Thread | None = None
        try:
            self.capture.start()
            self._reader = threading.Thread(target=self._read)
            self._reader.start()
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        while self.capture.poll():
            pass

    def of(self, *kinds: type[Line]) -> list[Any]:
        """Lines of these kinds so far."""
        self._lines += [decode(line) for line in self._engine.take().lines.splitlines()]
        return [line for line in self._lines if isinstance(line, kinds)]

    def first(self, kind: type[Line], **wanted: object) -> Any:  # noqa: ANN401 - the line
        """The first such line, once it is there."""

        def found() -> list[Any]:
            return [line for line in self.of(kind) if all(getattr(line, k) == v for k, v in wanted.items())]

        eventually(lambda: bool(found()), f"a line {kind.__name__} with {wanted}")
        return found()[0]

    def now(self, name: str = "app") -> WatchSnapshot:
        """The counters of a watch."""
        return next(watch for watch in self.capture.snapshot(None, 0).watches if watch.name == name)

    def close(self) -> None:
        """Unload."""
        self.capture.stop()
        if self._reader:
            self._reader.join()
        self.capture.close(keep=False)
        self._engine.close()


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    """What is entered is left when the test has ended."""
    with contextlib.ExitStack() as stack:
        yield stack


def _app(closing: contextlib.ExitStack, program: str = sys.executable, **more: Any) -> App:  # noqa: ANN401 - Popen's
    app = App(program, **more)
    closing.callback(app.close)
    return app


def _watch(closing: contextlib.ExitStack, *watches: Watch, packets: bool = True) -> Session:
    session = Session(*watches, packets=packets)
    closing.callback(session.close)
    return session


def _of(app: App) -> Watch:
    return Watch(name="app", kind="pid", value=str(app.pid))


def _server(closing: contextlib.ExitStack, family: socket.AddressFamily = socket.AF_INET) -> tuple[socket.socket, int]:
    server = closing.enter_context(
        socket.create_server(("::1" if family == socket.AF_INET6 else LOOP, 0), family=family)
    )
    server.settimeout(DEADLINE_S)
    return server, int(server.getsockname()[1])


def _accept(closing: contextlib.ExitStack, server: socket.socket) -> socket.socket:
    connection, _ = server.accept()
    closing.enter_context(connection)
    connection.settimeout(DEADLINE_S)
    return connection


def _get(connection: socket.socket, count: int) -> None:
    while count:
        count -= len(connection.recv(min(count, 65536)))


def test_every_hook_of_the_network_is_live_here(closing: contextlib.ExitStack) -> None:
    """All of them, but for those whose tracepoint the kernel does not have, and then the fields that need it."""
    session = _watch(closing, _of(_app(closing)))
    found = session.capture.net_hooks()
    missing = set() if " __traceiter_sock_send_length\n" in SYMBOLS.read_text() else {"lengths"}
    assert {hook for hook, reason in found.items() if reason} == missing, found
    assert session.capture.snapshot(None, 0).unknown & NETWORK == netfacts.unknown(missing)


def test_without_the_network_its_fields_are_unknown_and_the_reason_is_told(closing: contextlib.ExitStack) -> None:
    engine = closing.enter_context(Engine(64))
    settings = Capture(network=False)
    capture = CoreCapture(engine, [], settings)
    closing.callback(lambda: capture.close(keep=False))
    assert capture.snapshot(None, 0).unknown == NETWORK
    assert all("capture.network" in reason for reason in capture.net_hooks().values())


def test_every_network_field_names_the_hooks_it_needs() -> None:
    assert set(NEEDS) == NETWORK
    assert {hook for hooks in NEEDS.values() for hook in hooks} <= set(HOOKS)
    assert sum(HOOKS.values()) == (1 << lib.KW_NET_HOOKS) - 1


@pytest.mark.parametrize("sender", ["client", "server"])
def test_payload_of_a_connection_is_exact_while_it_lives_and_after_a_half_close(
    closing: contextlib.ExitStack, sender: str
) -> None:
    app = _app(closing)
    session = _watch(closing, _of(app))
    server, port = _server(closing)
    assert app.run(f"s = socket.create_connection(('{LOOP}', {port}))") == "ok"
    connection = _accept(closing, server)
    assert app.run("s.sendall(b'x' * 300_001)") == "ok"
    _get(connection, 300_001)
    connection.sendall(b"y" * 77_777)
    assert app.run("n = 77_777\nwhile n: n -= len(s.recv(65536))") == "ok"
    live = session.now()
    assert (live.bytes_out, live.bytes_in, live.open, live.connections_out) == (300_001, 77_777, 1, 1)
    if sender == "client":
        assert app.run("s.sendall(b'z' * 10); s.shutdown(socket.SHUT_WR)") == "ok"
        _get(connection, 10)
        assert connection.recv(1) == b""
        connection.sendall(b"w" * 5)
        assert app.run("assert s.recv(5, socket.MSG_WAITALL) == b'wwwww'") == "ok"
    else:
        connection.sendall(b"w" * 5)
        connection.shutdown(socket.SHUT_WR)
        assert app.run("while s.recv(10): pass\ns.sendall(b'z' * 10)") == "ok"
        _get(connection, 10)
    half = session.now()
    assert (half.bytes_out, half.bytes_in, half.open) == (300_011, 77_782, 1), "a FIN is no payload"
    connection.close()
    assert app.run("s.close()") == "ok"
    closed = session.first(Close)
    assert (closed.bytes_out, closed.bytes_in) == (300_011, 77_782)
    ended = session.now()
    assert (ended.bytes_out, ended.bytes_in, ended.open) == (300_011, 77_782, 0)


def test_segments_of_a_connection_that_lives_are_counted_once(closing: contextlib.ExitStack) -> None:
    app = _app(closing)
    session = _watch(closing, _of(app), packets=False)
    server, port = _server(closing)
    assert app.run(f"s = socket.create_connection(('{LOOP}', {port})); s.sendall(b'x' * 300_001)") == "ok"
    connection = _accept(closing, server)
    _get(connection, 300_001)
    for _ in range(3):
        connection.sendall(b"y")
        assert app.run("s.recv(1)") == "ok"
        # struct tcp_info: tcpi_segs_out, tcpi_segs_in; nothing travels between these two looks.
        eventually(lambda: _still(connection), "the last acknowledgement")
        told = app.run("import struct; print(*struct.unpack_from('II', s.getsockopt(6, 11, 256), 136), flush=True)")
        assert app.line() == "ok"
        now = session.now()
        assert f"{now.tcp_segments_out} {now.tcp_segments_in}" == told


def _still(connection: socket.socket) -> bool:
    """Whether all that was sent is acknowledged (struct tcp_info: tcpi_unacked)."""
    return int.from_bytes(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)[24:28], sys.byteorder) == 0


def test_an_accepted_connection_belongs_to_the_owner_of_its_listener(closing: contextlib.ExitStack) -> None:
    app = _app(closing)
    session = _watch(closing, _of(app))
    assert app.run("l = socket.create_server(('127.0.0.1', 0)); print(l.getsockname()[1], flush=True)").isdigit()
    port = session.first(Listen).local.rpartition(":")[2]
    client = closing.enter_context(socket.create_connection((LOOP, int(port))))
    client.sendall(b"q" * 4_321)
    accepted = session.first(Accept)
    assert accepted.pid == app.pid, "before anybody called accept()"
    assert accepted.remote == f"{LOOP}:{client.getsockname()[1]}"
    now = session.now()
    assert (now.connections_in, now.connections_out, now.open, now.listening) == (1, 0, 1, 1)


def test_a_refused_connection_is_a_failed_one_with_its_reason(closing: contextlib.ExitStack) -> None:
    app = _app(closing)
    session = _watch(closing, _of(app))
    server, port = _server(closing)
    server.close()
    assert app.run(f"socket.create_connection(('{LOOP}', {port}))") == "errno 111"
    line = session.first(Connect)
    assert (line.result, line.remote) == ("ECONNREFUSED", f"{LOOP}:{port}")
    now = session.now()
    assert (now.attempts, now.connections_failed, now.connections_out, now.open) == (1, 1, 0, 0)


def test_a_refused_connection_is_told_with_the_port_it_came_from(closing: contextlib.ExitStack) -> None:
    app = _app(closing)
    session = _watch(closing, _of(app))
    server, port = _server(closing)
    server.close()
    with socket.socket() as free:
        free.bind((LOOP, 0))
        first = free.getsockname()[1]
    assert app.run(f"s = socket.socket(); s.bind(('{LOOP}', {first})); s.connect(('{LOOP}', {port}))") == "errno 111"
    assert app.run(f"socket.create_connection(('{LOOP}', {port}))") == "errno 111"
    eventually(lambda: len(session.of(Connect)) == 2, "both attempts")
    bound, chosen = (line.local.rpartition(":")[2] for line in session.of(Connect))
    assert (int(bound), int(chosen) > 0) == (first, True)


@pytest.mark.parametrize("packets", [False, True])
def test_a_listener_that_was_never_bound_is_told_with_its_port(closing: contextlib.ExitStack, *, packets: bool) -> None:
    app = _app(closing)
    session = _watch(closing, _of(app), packets=packets)
    port = app.run("l = socket.socket(); l.listen(); print(l.getsockname()[1], flush=True)")
    assert port.isdigit()
    assert session.first(Listen).local == f"0.0.0.0:{port}"
    assert session.now().listening_ports == (int(port),)
    closing.enter_context(socket.create_connection((LOOP, int(port))))
    assert session.first(Accept).pid == app.pid
    app.close()
    assert session.first(Close, local=f"0.0.0.0:{port}").pid == app.pid
    assert not session.of(Lost)


def test_more_sockets_than_the_desk_has_places_are_all_known(closing: contextlib.ExitStack) -> None:
    app = _app(closing)
    session = _watch(closing, _of(app), packets=False)
    server, port = _server(closing)
    # Sockets in plenty that do nothing: the places of their tags stay taken.
    code = "import resource; most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]"
    assert app.run(f"{code}; resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))") == "ok"
    assert app.run("many = [socket.socket() for _ in range(9000)]") == "ok"
    sent = 0
    for size in range(1, 101):
        assert app.run(f"s = socket.create_connection(('{LOOP}', {port})); s.sendall(b'x' * {size}); s.close()") == "ok"
        connection, _ = server.accept()
        _get(connection, size)
        connection.close()
        sent += size
    eventually(lambda: len(session.of(Close)) == 100, "the end of each connection")
    now = session.now()
    assert (now.connections_out, now.open, now.bytes_out) == (100, 0, sent)
    assert [line.bytes_out for line in session.of(Close)] == list(range(1, 101))


@pytest.mark.parametrize("connected", [False, True])
def test_datagrams_are_counted_by_their_payload(closing: contextlib.ExitStack, *, connected: bool) -> None:
    app = _app(closing)
    session = _watch(closing, _of(app))
    peer = closing.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    peer.bind((LOOP, 0))
    peer.settimeout(DEADLINE_S)
    where = peer.getsockname()
    assert app.run("u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)") == "ok"
    if connected:
        assert app.run(f"u.connect({where})\nfor size in (0, 1, 1400): u.send(b'd' * size)") == "ok"
    else:
        assert app.run(f"for size in (0, 1, 1400): u.sendto(b'd' * size, {where})") == "ok"
    got = [peer.recvfrom(2048) for _ in range(3)]
    assert [len(data) for data, _ in got] == [0, 1, 1400]
    peer.sendto(b"e" * 333, got[0][1])
    assert app.run("u.recvfrom(2048, socket.MSG_PEEK); u.recvfrom(2048)") == "ok"
    now = session.now()
    assert (now.bytes_out, now.bytes_in) == (1401, 333), "peeking reads nothing"
    session.first(Connect if connected else Peer)
    assert [(r.address, r.port, r.protocol) for r in session.now().remotes] == [(where[0], where[1], "udp")]


def test_a_socket_keeps_its_owner_when_a_child_uses_it(closing: contextlib.ExitStack) -> None:
    app = _app(closing)
    session = _watch(closing, _of(app))
    server, port = _server(closing)
    assert app.run(f"s = socket.create_connection(('{LOOP}', {port}))") == "ok"
    connection = _accept(closing, server)
    code = "pid = os.fork()\nif not pid:\n s.sendall(b'c' * 999); s.close(); os._exit(0)\nos.waitpid(pid, 0); s.close()"
    assert app.run(code) == "ok"
    _get(connection, 999)
    connection.close()
    closed = session.first(Close)
    assert (closed.pid, closed.bytes_out) == (app.pid, 999)


def test_sockets_from_before_the_watch_are_known_and_their_past_is_not_counted(closing: contextlib.ExitStack) -> None:
    app = _app(closing)
    server, port = _server(closing)
    app.run(f"s = socket.create_connection(('{LOOP}', {port})); l = socket.create_server(('{LOOP}', 0))")
    connection = _accept(closing, server)
    app.run("s.sendall(b'before')")
    _get(connection, len("before"))
    session = _watch(closing, _of(app))
    now = session.now()
    assert (now.open, now.listening, now.connections_out, now.bytes_out) == (1, 1, 0, 0)
    app.run("s.sendall(b'after')")
    _get(connection, len("after"))
    assert session.now().bytes_out == len("after")


def test_a_new_root_brings_the_sockets_that_it_was_started_with(closing: contextlib.ExitStack, tmp_path: Path) -> None:
    program = tmp_path / "netroot"
    shutil.copy(Path(sys.executable).resolve(), program)
    session = _watch(closing, Watch(name="app", kind="process", value="netroot"))
    server, port = _server(closing)
    app = _app(closing, str(program), pass_fds=[server.fileno()])
    assert app.run("pass") == "ok"
    session.first(Root)
    eventually(lambda: session.now().listening == 1, "the listener that was handed over")
    client = closing.enter_context(socket.create_connection((LOOP, port)))
    assert session.first(Accept).pid == app.pid
    client.close()


def test_a_removed_watch_leaves_nothing_to_its_successor(closing: contextlib.ExitStack) -> None:
    app, other = _app(closing), _app(closing)
    session = _watch(closing, _of(app))
    server, port = _server(closing)
    app.run(f"s = socket.create_connection(('{LOOP}', {port}))")
    connection = _accept(closing, server)
    app.run("s.sendall(b'first')")
    _get(connection, len("first"))
    assert session.now().bytes_out == len("first")
    # A reload happens in the thread that polls; here it has to stop for it.
    session.capture.interrupt()
    successor = Watch(name="other", kind="pid", value=str(other.pid))
    session.capture.apply([successor])
    assert [getattr(session.now("other"), field) for field in TRAFFIC] == [0] * len(TRAFFIC)
    app.run("s.sendall(b'second'); s.close()")
    _get(connection, len("second"))
    connection.close()
    assert (session.now("other").bytes_out, session.now("other").open) == (0, 0)


def test_packets_are_counted_with_their_headers_and_only_while_somebody_is_kin(closing: contextlib.ExitStack) -> None:
    app = _app(closing)
    peer = closing.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    peer.bind((LOOP, 0))
    session = _watch(closing, _of(app))
    eventually(lambda: _attached() > 0, "the packet programs")
    app.run(
        "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        f"for _ in range(7): u.sendto(b'p' * 100, {peer.getsockname()})"
    )
    now = session.now()
    assert (now.packets_out, now.wire_bytes_out) == (7, 7 * (100 + 8 + 20))
    app.close()
    eventually(lambda: _attached() == 0, "the packet programs to go with the last of kin")


def _attached() -> int:
    """Our packet programs of a cgroup that are attached now."""
    links = held("self", "link", kind="cgroup")
    return sum(link.get("attach_type") in {"cgroup_inet_egress", "cgroup_inet_ingress"} for link in links)


def test_a_question_to_a_name_server_is_told(closing: contextlib.ExitStack) -> None:
    app = _app(closing)
    session = _watch(closing, _of(app))
    eventually(lambda: _attached() > 0, "the packet programs")
    question = bytes.fromhex("123401000001000000000000") + b"\x07example\x03com\x00" + bytes.fromhex("00010001")
    # 127.0.0.9 and port 53: nobody has to listen there for the question to go out.
    app.run("u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)")
    app.run(f"u.sendto({question!r}, ('127.0.0.9', 53))")
    line = session.first(Dns)
    assert (line.name, line.type, line.server) == ("example.com", "A", "127.0.0.9:53")


def test_a_socket_of_another_family_is_told_at_its_first_use(closing: contextlib.ExitStack) -> None:
    app = _app(closing)
    session = _watch(closing, _of(app))
    app.run("a, b = socket.socketpair(); a.send(b'x'); a.send(b'y')")
    assert session.first(Socket).family == "unix"


def test_a_connection_to_an_unexpected_place_is_told_before_it_answers(closing: contextlib.ExitStack) -> None:
    app = _app(closing)
    watch = msgspec.structs.replace(_of(app), expect=Expect(destinations=("192.0.2.0/24",)))
    session = _watch(closing, watch)
    # A queue of one that is full: what comes after it is not answered.
    server = closing.enter_context(socket.create_server((LOOP, 0), backlog=0))
    port = server.getsockname()[1]
    closing.enter_context(socket.create_connection((LOOP, port)))
    app.run("s = socket.socket(); s.setblocking(False)")
    app.run(f"s.connect_ex(('{LOOP}', {port}))")
    assert session.first(Alarm).value == (LOOP,)
    now = session.now()
    assert (now.attempts, now.connections_out) == (1, 0)


def test_where_cgroup2_is_not_mounted_its_hooks_are_live_all_the_same() -> None:
    """As on a device with cgroup v1 alone; and nothing is mounted there afterwards."""
    here = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'umount --all --types cgroup2 && "$@" && ! grep " cgroup2 " /proc/self/mounts',
    ]
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.9', 9))"
    command = [str(KINWATCH), "run", "--format", "json", "--", sys.executable, "-c", code]
    ran = subprocess.run([*here, "sh", *command], capture_output=True, check=True, timeout=DEADLINE_S)
    lines = [decode(line) for line in ran.stdout.splitlines()]
    assert [line.remote for line in lines if isinstance(line, Peer)] == ["127.0.0.9:9"]


def test_the_unit_may_attach_every_hook(tmp_path: Path) -> None:
    unit = (Path(config.__file__).parent / "share" / "kinwatch.service").read_text(encoding="utf-8")
    allowed = [
        line.partition("=")[2].split() for line in unit.splitlines() if line.startswith("CapabilityBoundingSet=")
    ]
    bounding = ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in allowed[0])])
    (tmp_path / "c.toml").write_text("[capture]\npackets = true\n", encoding="utf-8")
    command = ["setpriv", f"--bounding-set={bounding}", "--inh-caps=-all", str(KINWATCH)]
    doctor = subprocess.run(
        [*command, "doctor", "-c", str(tmp_path / "c.toml"), "--json"],
        capture_output=True,
        check=True,
        timeout=DEADLINE_S,
    )
    assert set(msgspec.json.decode(doctor.stdout)["network"].values()) == {""}
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.9', 9))"
    ran = subprocess.run(
        [*command, "run", "--format", "json", "--", sys.executable, "-c", code],
        capture_output=True,
        check=True,
        timeout=DEADLINE_S,
    )
    lines = [decode(line) for line in ran.stdout.splitlines()]
    assert [line.remote for line in lines if isinstance(line, Peer)] == ["127.0.0.9:9"]
