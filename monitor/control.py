"""The control socket: one JSON request line, one JSON reply line; knows neither what is asked for nor how it is made.

A unix socket that root alone can open. Every client has a time limit and a size limit and is served on its own, so one
that hangs or sends rubbish costs the others nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from monitor.errors import AlreadyRunning, ConfigInvalid, DaemonUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

REQUEST_BYTES: Final = 64 << 10
CLIENT_S: Final = 5.0
"""How long a client may take to ask, and again to read its answer."""
SOCKET_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o755


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client sends: `{"get": "status"}`."""

    get: str


class ControlServer:
    """Answers requests from a table of functions. An async context manager, inside the loop that runs the functions."""

    def __init__(self, path: Path, answers: Mapping[str, Callable[[], object]], client_s: float = CLIENT_S) -> None:
        """`answers`: what to call for each word that may follow "get"; the result is encoded as JSON."""
        self._path = path
        self._answers = answers
        self._client_s = client_s
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()
        self._inode = 0

    async def __aenter__(self) -> Self:
        """Listen. AlreadyRunning: a daemon answers there. ConfigInvalid: the path cannot be a socket."""
        listener = _listen(self._path)
        self._inode = self._path.stat().st_ino
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=REQUEST_BYTES)
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Stop listening, drop the clients, remove the socket unless another daemon has put its own there."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._clients):
            writer.close()
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            async with asyncio.timeout(self._client_s):
                reply = await self._reply(reader)
            if reply:
                writer.write(reply + b"\n")
                async with asyncio.timeout(self._client_s):
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
        except (TimeoutError, OSError):
            writer.transport.abort()
        finally:
            writer.close()
            self._clients.discard(writer)

    async def _reply(self, reader: asyncio.StreamReader) -> bytes:
        try:
            line = await reader.readline()
        except ValueError:
            return _error(f"the request is longer than {REQUEST_BYTES} bytes")
        if not line:
            return b""
        try:
            what = msgspec.json.decode(line, type=Request).get
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return _error(f'the request is not {{"get": "..."}}: {error}')
        answer = self._answers.get(what)
        if answer is None:
            return _error(f"nothing is called {what!r}; ask for {' or '.join(sorted(self._answers))}")
        try:
            return msgspec.json.encode(answer())
        except Exception as error:  # noqa: BLE001 - a failing answer is the client's news, never the daemon's end
            return _error(f"{what} failed: {type(error).__name__}: {error}")


def ask(path: Path, what: str, timeout_s: float = CLIENT_S) -> dict[str, Any]:
    """Ask the running daemon and return its answer.

    Raises:
        DaemonUnreachable: nobody answers there, or not in time, or with an error; the message says what to do.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout_s)
            with _reachable(path) as address:
                sock.connect(address)
            sock.sendall(msgspec.json.encode(Request(what)) + b"\n")
            sock.shutdown(socket.SHUT_WR)
            with sock.makefile("rb") as stream:
                reply = msgspec.json.decode(stream.read(), type=dict[str, Any])
    except TimeoutError as error:
        msg = f"{path}: the daemon did not answer within {timeout_s:g} s; see its journal, or restart it"
        raise DaemonUnreachable(msg) from error
    except PermissionError as error:
        msg = f"{path}: only root may ask the daemon; use sudo"
        raise DaemonUnreachable(msg) from error
    except OSError as error:
        msg = (
            f"{path}: no daemon answers there ({error.strerror or error}); start one with 'kinwatch run', "
            "or name its socket with --socket"
        )
        raise DaemonUnreachable(msg) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        msg = f"{path}: what answers there is not kinwatch ({error}); name another socket with --socket"
        raise DaemonUnreachable(msg) from error
    if "error" in reply:
        msg = f"{path}: the daemon refused: {reply['error']}"
        raise DaemonUnreachable(msg)
    return reply


def _error(text: str) -> bytes:
    return msgspec.json.encode({"error": text})


@contextlib.contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """An address for `path` that fits into sockaddr_un whatever the length of the directory (unix(7): 108 bytes)."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _listen(path: Path) -> socket.socket:
    """A listening socket at `path`, in place of a stale one."""
    try:
        path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        if path.is_symlink() or path.exists():
            _refuse_unless_stale(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            # The mode of the socket's inode becomes the file's at bind: no moment at which others could connect.
            os.fchmod(sock.fileno(), SOCKET_MODE)
            fresh = path.with_name(f".{path.name}.{os.getpid()}")
            fresh.unlink(missing_ok=True)
            with _reachable(fresh) as address:
                sock.bind(address)
            sock.listen()
            fresh.rename(path)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        msg = (
            f"daemon.socket: {path} cannot be made ({error.strerror or error}); "
            "name a path in a directory that root can write, [daemon] socket"
        )
        raise ConfigInvalid(msg) from error
    return sock


def _refuse_unless_stale(path: Path) -> None:
    if not stat.S_ISSOCK(path.lstat().st_mode):
        msg = f"daemon.socket: {path} exists and is not a socket; remove it or name another path, [daemon] socket"
        raise ConfigInvalid(msg)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, _reachable(path) as address:
        probe.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        try:
            probe.connect(address)
        except BlockingIOError:
            pass  # its backlog is full: somebody is there
        except ConnectionRefusedError:
            return
        except FileNotFoundError:
            return
    msg = f"another daemon answers on {path}; stop it first, or give this one its own [daemon] socket"
    raise AlreadyRunning(msg)
