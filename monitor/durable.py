"""Files that are whole or not there, for their owner alone from the first byte.

Owns the order of write, sync and rename. Refuses to know what is in them.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_PARTIAL = ".partial"


def write_secret(path: Path, data: bytes) -> None:
    """Write a file with mode 0600; after this it survives a loss of power. Raises OSError."""
    partial = path.with_name(path.name + _PARTIAL)
    with contextlib.suppress(FileNotFoundError):
        partial.unlink()  # of a life that was killed here
    file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        at = 0
        while at < len(data):
            at += os.write(file, data[at:])
        os.fsync(file)
    finally:
        os.close(file)
    os.replace(partial, path)  # noqa: PTH105 - a test ends the process beside it
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Have the names in a directory survive a loss of power."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
