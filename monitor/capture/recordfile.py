"""The file of `run --record`: a header, the watches of that run, then raw records back to back.

Owns the header and the cuts between records. Refuses to know what a record means: bytes are checked where they enter
the engine. Numbers are in the recording machine's byte order; the header tells it and the layout, so a foreign file is
refused, not misread.
"""

from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING, NoReturn, Self

import msgspec

from monitor.capture.rules import FileIdentity  # noqa: TC001 - msgspec reads the fields' types
from monitor.engine._native import ffi, lib
from monitor.errors import ConfigInvalid, RecordFileInvalid
from monitor.expect import Expect, written

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from monitor.capture import SlotWatch

MAGIC = b"KINWATCH"
BYTE_ORDER = 0x01020304
MAX_TABLE_BYTES = 1 << 25
"""Longest watch table that is read; every watch with hundreds of expected files and edges fits."""
MAX_RECORD_BYTES = 1 << 16
"""No record is longer: an image is at most its struct, three paths and its arguments (ebpf/event.h)."""
CHUNK_BYTES = 1 << 20

_HEADER = struct.Struct("=8sIIqII")  # magic, byte order, KW_LAYOUT, wall_ns, bytes of the watch table, zero
_SIZE = struct.Struct("=I")  # the first member of struct kw_header: bytes of the whole record
_TIME = struct.Struct("=Q")
_TIME_AT: int = ffi.offsetof("struct kw_header", "time_ns")
_LEAST_RECORD_BYTES: int = ffi.sizeof("struct kw_header")


class RecordedWatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One watch of the recorded run, as in its configuration."""

    slot: int
    """Its bit in the records' watch masks."""
    name: str
    kind: str
    value: str
    expect: Expect = Expect()
    """What was expected of it."""
    enforce: str = "off"
    files: tuple[FileIdentity, ...] = ()
    """Its expected executables as they were then."""

    def __post_init__(self) -> None:
        """Refuse what no engine could take; msgspec turns it into a ValidationError."""
        if not 0 <= self.slot < lib.KW_SLOTS:
            message = f"slot {self.slot} is not one of {lib.KW_SLOTS}"
            raise ValueError(message)
        written(self.expect)


class RecordWriter:
    """Writes a record file, mode 0600; an earlier file of that name is replaced, a symbolic link refused (OSError)."""

    def __init__(self, path: Path, watches: Sequence[RecordedWatch], wall_ns: int) -> None:
        """`wall_ns`: CLOCK_REALTIME - CLOCK_BOOTTIME when recording began."""
        table = msgspec.json.encode(watches)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o600)
        self._whole_bytes = 0
        self.append(_HEADER.pack(MAGIC, BYTE_ORDER, lib.KW_LAYOUT, wall_ns, len(table), 0) + table)

    def append(self, records: bytes) -> None:
        """Write whole records through to the kernel; raises OSError, after cutting off what was written of them."""
        rest = memoryview(records)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            os.ftruncate(self._file, self._whole_bytes)
            os.lseek(self._file, self._whole_bytes, os.SEEK_SET)
            raise
        self._whole_bytes += len(records)

    def flush(self) -> None:
        """Make what was appended survive a power cut."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file; again: nothing happens."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        """Itself, closed when the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def recorder(path: Path, held: Iterable[SlotWatch]) -> RecordWriter:
    """Begin a record of these watches now. ConfigInvalid: the file cannot be written."""
    watches = [
        RecordedWatch(
            slot=one.slot,
            name=one.watch.name,
            kind=one.watch.kind,
            value=one.watch.value,
            expect=one.watch.expect,
            enforce=one.watch.enforce,
            files=one.files,
        )
        for one in held
    ]
    try:
        return RecordWriter(path, watches, time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    except OSError as error:
        raise ConfigInvalid(f"--record {path}: {error.strerror}; name a file that can be written") from error


class RecordReader:
    """Reads a record file. Raises RecordFileInvalid with the path and what is wrong with it; later also OSError."""

    def __init__(self, path: Path) -> None:
        """Open and read all that stands before the records."""
        self.last_boot_ns = 0
        """CLOCK_BOOTTIME of the last record that was handed out."""
        self.first_boot_ns = 0
        """CLOCK_BOOTTIME of the first record; 0: none was handed out."""
        self._path = path
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise RecordFileInvalid(
                f"{path}: cannot be read ({error.strerror}); name a file of run --record"
            ) from error
        try:
            self.wall_ns, self.watches = self._begin()
        except BaseException:
            self._file.close()
            raise

    def chunks(self, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """Whole records, back to back, about `chunk_bytes` at a time; once.

        When the file ends within a record, or no record can begin where one should, RecordFileInvalid follows the last
        whole one.
        """
        offset = self._file.tell()
        rest = b""
        while more := self._file.read(max(chunk_bytes, MAX_RECORD_BYTES)):
            rest += more
            last, whole, fault = _cut(rest)
            if whole:
                if not self.first_boot_ns:
                    (self.first_boot_ns,) = _TIME.unpack_from(rest, _TIME_AT)
                (self.last_boot_ns,) = _TIME.unpack_from(rest, last + _TIME_AT)
                yield rest[:whole]
                rest = rest[whole:]
                offset += whole
            if fault:
                self._refuse(f"no record begins at byte {offset} ({fault})")
        if rest:
            self._refuse(f"the file ends within the record at byte {offset}: {len(rest)} bytes of it are there")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        """Itself, closed when the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _begin(self) -> tuple[int, tuple[RecordedWatch, ...]]:
        header = self._take(_HEADER.size, "its header")
        magic, order, layout, wall_ns, table_bytes, _ = _HEADER.unpack(header)
        if magic != MAGIC:
            self._refuse("it does not begin with KINWATCH: not a record file")
        if order != BYTE_ORDER:
            self._refuse("it was recorded on a machine of the other byte order")
        if layout != lib.KW_LAYOUT:
            self._refuse(f"its records have layout {layout}, this kinwatch reads layout {lib.KW_LAYOUT}")
        if table_bytes > MAX_TABLE_BYTES:
            self._refuse(f"its watch table claims {table_bytes} bytes, at most {MAX_TABLE_BYTES} are possible")
        table = self._take(table_bytes, "its watch table")
        try:
            watches = msgspec.json.decode(table, type=tuple[RecordedWatch, ...])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._refuse(f"its watch table is damaged ({error})")
        return wall_ns, watches

    def _take(self, size: int, what: str) -> bytes:
        """Exactly `size` bytes."""
        taken = b""
        while len(taken) < size:
            more = self._file.read(size - len(taken))
            if not more:
                self._refuse(f"the file ends within {what}, at byte {self._file.tell()}")
            taken += more
        return taken

    def _refuse(self, what: str) -> NoReturn:
        message = f"{self._path}: {what}; record again with `kinwatch run --record FILE`"
        raise RecordFileInvalid(message)


def _cut(data: bytes) -> tuple[int, int, str]:
    """Where the last whole record begins and ends, and why none can follow ("": one may, more bytes are to come)."""
    last = offset = 0
    while offset + _SIZE.size <= len(data):
        (size,) = _SIZE.unpack_from(data, offset)
        if size < _LEAST_RECORD_BYTES or size % 8 or size > MAX_RECORD_BYTES:
            return last, offset, f"a record of {size} bytes does not exist"
        if offset + size > len(data):
            break
        last = offset
        offset += size
    return last, offset, ""
