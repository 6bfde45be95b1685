"""The spool's file: opened, locked against others, made anew when it is broken, written to the disk.

Owns its tables and when a disk is waited for. Refuses to know what is in a row.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from typing import TYPE_CHECKING, Final

from monitor.errors import AlreadyRunning, ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOG_BYTES: Final = 4 << 20
"""The write-ahead log is moved into the file when it is longer."""
_FORMAT: Final = 1
_BUSY_S: Final = 10.0
_TABLES: Final = """
create table queue (
    id integer primary key autoincrement, kind text not null, created_s real not null, ready_s real not null,
    lines integer not null, merged integer not null, payload blob not null
);
create index queue_kind on queue (kind, id);
create table state (name text primary key, value blob not null) without rowid;
create table dropped (kind text primary key, lines integer not null) without rowid;
"""


def sync(path: Path, connection: sqlite3.Connection) -> None:
    """Write what was committed to the disk; `connection` is one that nobody else uses. Raises OSError.

    Commits go on meanwhile: a passive checkpoint waits for nobody and nobody for it.
    """
    fd = os.open(f"{path}-wal", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(fd)
        size = os.fstat(fd).st_size
    finally:
        os.close(fd)
    if size > LOG_BYTES:
        with contextlib.suppress(sqlite3.Error):  # a full disk: the next time
            connection.execute("pragma wal_checkpoint(passive)").fetchone()


def connect(path: Path | str) -> sqlite3.Connection:
    """Another connection to the same file."""
    return sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing."""
    connection.execute("begin immediate")
    try:
        yield
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:
            connection.execute("rollback")
        raise


def lock(path: Path) -> int:
    """Make the folder, and hold a lock beside the file: two publishers would each send and forget."""
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        msg = f"daemon.state_dir: {path} cannot be written ({error.strerror or error}); name another directory"
        raise ConfigInvalid(msg) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        msg = f"{path}: another kinwatch publishes from here; stop it, or set daemon.state_dir to another directory"
        raise AlreadyRunning(msg) from None
    return fd


def opened(path: Path | None) -> sqlite3.Connection:
    """Open the file, or set a broken one aside and make a new one."""
    if path is None:
        return _prepared(connect(":memory:"))
    try:
        return _checked(path)
    except OSError as error:
        msg = f"daemon.state_dir: {path} cannot be used ({error.strerror or error}); name another directory"
        raise ConfigInvalid(msg) from error
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            msg = f"daemon.state_dir: {path} cannot be used ({error}); name another directory, or make room"
            raise ConfigInvalid(msg) from error
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{path}{suffix}", f"{path}.broken{suffix}")  # noqa: PTH105 - names, not paths
        return _checked(path)


def _checked(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    connection = connect(path)
    try:
        connection.execute("pragma journal_mode = wal")
        _check(connection)
        return _prepared(connection)
    except BaseException:
        connection.close()
        raise


def _check(connection: sqlite3.Connection) -> None:
    (verdict,) = connection.execute("pragma quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)


def _prepared(connection: sqlite3.Connection) -> sqlite3.Connection:
    (version,) = connection.execute("pragma user_version").fetchone()
    if version > _FORMAT:
        msg = f"the spool was written by a newer kinwatch (format {version}); name another daemon.state_dir"
        raise ConfigInvalid(msg)
    if version < _FORMAT:
        with transaction(connection):
            for statement in _TABLES.split(";\n"):
                connection.execute(statement)
            connection.execute(f"pragma user_version = {_FORMAT}")
    connection.execute("pragma synchronous = normal")  # a commit waits for no disk: sync() does
    connection.execute("pragma wal_autocheckpoint = 0")  # nor does it move the log into the file: sync() does
    connection.execute(f"pragma journal_size_limit = {LOG_BYTES}")
    return connection
