"""What is wrong, torn or hostile: said in one sentence with the right exit code, and nobody else is disturbed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from monitor.engine.lines import Fork
from tests.contract.conftest import DEADLINE_S, eventually
from tests.kernel.conftest import kinwatch, pinned, sentence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.contract.conftest import Programs
    from tests.kernel.conftest import Daemon, Daemons

CHANGES = 500 if os.environ.get("KINWATCH_LONG") == "1" else 40
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
AS_NOBODY = "import sys; from monitor.cli import main; sys.exit(main(sys.argv[1:]))"
APP = '[[watch]]\nname = "app"\nprocess = "app"\n'


# -------- configuration --------


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[capture]\nring_bytes = 5000\n", "power of two"),
        ("[capture]\nring_bytes = 2048\n", "capture.ring_bytes"),
        ("[capture]\nmax_processes = 63\n", "capture.max_processes"),
        ("[capture]\nring_byte = 4096\n", "did you mean ring_bytes?"),
        ('[capture]\nbtf = "/nonexistent"\n', "/nonexistent cannot be read"),
        ('[capture]\nkind = "ebpf"\n', "capture.kind"),
        ('[[watch]]\nname = "app"\nprocess = "other"\n', "two watches are called app"),
        ('[[watch]]\nname = "b"\nexe = "/usr"\n', "expected an executable file"),
        ('[[watch]]\nname = "b"\ncgroup = "/"\n', "holds every process"),
        ('[daemon]\nkeep = "never"\n', "daemon.keep"),
    ],
)
def test_configuration_that_is_wrong_starts_nothing(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(APP + text)
    done = kinwatch("run", "-c", path, "--capture", "core")
    assert done.returncode == 2
    assert complaint in sentence(done)
    assert str(path) in done.stderr
    assert not pinned()


def test_file_that_is_no_btf_is_refused_with_its_name(tmp_path: Path) -> None:
    path, btf = tmp_path / "config.toml", tmp_path / "btf"
    btf.write_bytes(b"not BTF at all")
    path.write_text(f'{APP}[capture]\nbtf = "{btf}"\n')
    done = kinwatch("run", "-c", path, "--capture", "core")
    assert done.returncode == 3
    assert "BTF" in sentence(done) or str(btf) in sentence(done)
    assert not pinned()


def test_names_that_collide_on_the_command_line_are_refused(programs: Programs, name: str, tmp_path: Path) -> None:
    exe = programs.path("family", name)
    other = tmp_path / "other" / name
    other.parent.mkdir()
    shutil.copy(exe, other)
    done = kinwatch("run", "--exe", exe, "--exe", other)
    assert done.returncode == 2
    assert f"two watches are called {name}" in sentence(done)


# -------- privileges --------


def _as_nobody(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command without any privilege. The interpreter is the one of these tests, from wherever it can be read."""
    command = [*NOBODY, sys.executable, "-c", AS_NOBODY, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE_S, cwd="/")


def test_without_privileges_core_is_refused_with_the_remedy(name: str) -> None:
    done = _as_nobody("run", "--watch", name, "--capture", "core", "--once")
    assert done.returncode == 3
    assert "run it as root" in sentence(done)


def test_without_privileges_auto_takes_what_is_left_and_says_why(name: str) -> None:
    done = _as_nobody("run", "--watch", name, "--once", "--interval-s", "1", "--report-to", "-", "--log", "/dev/null")
    assert done.returncode == 0, done.stderr
    # Since 6.6 the process connector speaks to everybody, before to root alone.
    assert "capture=netlink" in done.stderr or "capture=poll" in done.stderr
    assert "CAP_BPF" in done.stderr
    assert f"roots_{name}" in json.loads(done.stdout)["custom_metrics"]


def test_status_of_the_daemon_is_for_root_alone(daemons: Daemons, name: str) -> None:
    daemon = daemons.start("--watch", name)
    for directory in (daemons.directory, *daemons.directory.parents):
        if directory.stat().st_mode & 0o1 == 0:
            directory.chmod(directory.stat().st_mode | 0o5)
    done = _as_nobody("status", "--socket", str(daemon.socket))
    assert done.returncode == 3
    assert "only root may ask" in sentence(done)
    daemon.stop()


# -------- record files --------


@pytest.fixture
def recorded(programs: Programs, name: str, tmp_path: Path) -> tuple[Path, list[str]]:
    """A record file of a real run, and the lines it tells."""
    path = tmp_path / "run.rec"
    exe = programs.path("short_lived", name)
    record = ("--record", path, "--log", tmp_path / "live.jsonl")
    done = kinwatch("run", "--capture", "core", *record, "--", exe, "30", stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    replayed = kinwatch("replay", path)
    assert replayed.returncode == 0, replayed.stderr
    assert replayed.stdout == (tmp_path / "live.jsonl").read_text()
    told = replayed.stdout.splitlines()
    assert len(told) == 62
    return path, told


def test_torn_record_file_tells_what_is_whole(recorded: tuple[Path, list[str]], tmp_path: Path) -> None:
    path, told = recorded
    whole = path.read_bytes()
    torn = tmp_path / "torn.rec"
    torn.write_bytes(whole[:-5])
    done = kinwatch("replay", torn)
    assert done.returncode == 2
    assert str(torn) in sentence(done)
    assert done.stdout.splitlines() == told[:-1]


def test_record_file_cut_anywhere_tells_a_beginning(recorded: tuple[Path, list[str]], tmp_path: Path) -> None:
    path, told = recorded
    whole = path.read_bytes()
    torn = tmp_path / "torn.rec"
    found = set()
    for length in range(0, len(whole), max(1, len(whole) // CHANGES)):
        torn.write_bytes(whole[:length])
        done = kinwatch("replay", torn)
        shown = done.stdout.splitlines()
        assert done.returncode in (0, 2), done.stderr
        if done.returncode == 2:
            sentence(done)
        assert shown == told[: len(shown)], f"cut at {length}"
        found.add(len(shown))
    assert len(found) > min(CHANGES, len(told)) // 4, "more file, more lines"


def test_hostile_record_file_never_breaks_the_program(recorded: tuple[Path, list[str]], tmp_path: Path) -> None:
    path, _ = recorded
    whole = path.read_bytes()
    hostile = tmp_path / "hostile.rec"
    dice = random.Random(20_240_607)  # noqa: S311 - repeatable
    for _ in range(CHANGES):
        bytes_ = bytearray(whole)
        for _ in range(dice.choice((1, 1, 8, 64))):
            bytes_[dice.randrange(len(bytes_))] = dice.randrange(256)
        hostile.write_bytes(bytes_)
        done = kinwatch("replay", hostile)
        assert done.returncode in (0, 1, 2), f"{done.returncode}: {done.stderr}"
        assert "Traceback" not in done.stderr
        for line in done.stdout.splitlines():
            json.loads(line)


@pytest.mark.parametrize("content", [b"", b"hello\n" * 100, b"\0" * 4096])
def test_foreign_file_is_no_record_file(tmp_path: Path, content: bytes) -> None:
    foreign = tmp_path / "foreign"
    foreign.write_bytes(content)
    done = kinwatch("replay", foreign)
    assert (done.returncode, done.stdout) == (2, "")
    assert str(foreign) in sentence(done)


# -------- the control socket --------


@contextlib.contextmanager
def _client(daemon: Daemon) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE_S)
        client.connect(str(daemon.socket))
        yield client


def _answer(client: socket.socket) -> bytes:
    """All it says until it closes; a reset is a close."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(65536):
            found += piece
    return found


@pytest.mark.parametrize(
    "rubbish",
    [
        b"rubbish\n",
        b"\xff\xfe\x00\n",
        b'{"get": 3}\n',
        b'{"get": "status", "a": 1}\n',
        b'{"get": "secrets"}\n',
        b"[]\n",
    ],
)
def test_client_that_sends_rubbish_is_told_so(daemons: Daemons, name: str, rubbish: bytes) -> None:
    daemon = daemons.start("--watch", name)
    with _client(daemon) as client:
        client.sendall(rubbish)
        assert set(json.loads(_answer(client))) == {"error"}
    assert daemon.watched() == [name]
    assert "Traceback" not in daemon.said
    daemon.stop()


def test_clients_that_hang_or_send_too_much_cost_the_others_nothing(
    daemons: Daemons, programs: Programs, name: str
) -> None:
    daemon = daemons.start("--watch", name)
    with contextlib.ExitStack() as stack:
        hanging = [stack.enter_context(_client(daemon)) for _ in range(50)]
        hanging[0].sendall(b'{"get": "sta')
        with _client(daemon) as endless, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            endless.sendall(b"x" * (1 << 20))
            assert b'"error"' in _answer(endless)
        with _client(daemon) as gone:
            gone.sendall(b'{"get": "status"}\n')
        assert daemon.watched() == [name]
        app = programs.start("family", name, "1")
        daemon.wait_for(Fork, pid=app.fact("child")["pid"])
        for client in hanging:
            assert _answer(client) == b"", "who never asks is let go"
    before = len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))
    eventually(lambda: daemon.watched() == [name], "an answer")
    assert len(list(Path(f"/proc/{daemon.pid}/fd").iterdir())) <= before, "nothing is left of them"
    assert "Traceback" not in daemon.said
    daemon.stop()


def test_socket_of_a_daemon_that_crashed_is_in_nobodys_way(daemons: Daemons, name: str) -> None:
    first = daemons.start("--watch", name)
    first.kill()
    assert first.socket.exists()
    refused = kinwatch("status", "--socket", first.socket)
    assert refused.returncode == 3
    assert "no daemon answers there" in sentence(refused)
    second = daemons.start("--watch", name)
    assert second.watched() == [name]
    second.stop()
    assert not second.socket.exists()
