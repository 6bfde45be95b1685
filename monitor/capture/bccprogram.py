"""The program of the bcc capture in the kernel: compiled here by BCC, attached, its records read, its tables written.

Owns BCC's objects and the order of records: those of a perf buffer come by processor and are put in order here. Refuses
to know what a record says and who is kin.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from monitor.capture import bccsource
from monitor.engine._native import ffi, lib
from monitor.engine.records import ProcessId
from monitor.errors import CaptureUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from monitor.capture.bccsource import Source

TEXT: Final = Path(__file__).with_name("kinwatch.bcc.c")
"""The wire and the program, put together by build/ebpf.py."""

HOOKS: Final = {
    b"on_fork": b"sched_process_fork",
    b"on_exec": b"sched_process_exec",
    b"on_exit": b"sched_process_exit",
}

EVERYBODY, UNDECIDED, RING_FULL, TABLE_FULL = range(4)  # enum kw_cell
_KEY: Final = struct.Struct("=IIQ")  # struct kw_bcc_key
_ROW: Final = struct.Struct("=QQII")  # struct kw_bcc_row
_CELL: Final = struct.Struct("=Q")
_COUNT: Final = struct.Struct("=I")
_WANTED: Final = struct.Struct("=16sQII")  # struct kw_bcc_wanted
_TIME_AT: Final = ffi.offsetof("struct kw_header", "time_ns")
_INSTRUCTION: Final = struct.Struct("=BBhi")  # struct bpf_insn
_RETURNS: Final = 0xB7
"""BPF_ALU64 | BPF_MOV | BPF_K: a number into register 0, unless it names another."""
_NOEXIST: Final = 1  # BPF_NOEXIST
_NAP_MS: Final = 1
_QUIET_S: Final = 0.003
"""Records that come sooner after a wake-up than KW_QUIET_NS wake nobody: for longer than that it is looked for them."""
_LEAST_PAGES: Final = 16
"""Of a perf buffer: the longest record fits in, and a second."""

STAND_IN: Final = {
    ("include/linux/kconfig.h",): "#define CONFIG_BPF_SYSCALL 1\n",
    ("include/linux/log2.h", "include/uapi/linux/bpf.h", "include/uapi/linux/if_packet.h"): "",
    ("include/generated/autoconf.h", "include/uapi/linux/ptrace.h"): "",
    ("include/linux/version.h",): "#define LINUX_VERSION_CODE 0x060000\n#define KERNEL_VERSION(a, b, c) 0\n",
    ("include/linux/types.h",): """#pragma once
typedef unsigned char u8, __u8, uint8_t; typedef unsigned short u16, __u16, uint16_t;
typedef unsigned int u32, __u32, uint32_t; typedef unsigned long long u64, __u64, uint64_t;
typedef signed char s8, __s8, int8_t; typedef short s16, __s16, int16_t;
typedef int s32, __s32, int32_t; typedef long long s64, __s64, int64_t;
typedef __u16 __le16, __be16, __sum16; typedef __u32 __le32, __be32, __wsum; typedef __u64 __le64, __be64;
typedef unsigned long size_t, uintptr_t; typedef __u64 __aligned_u64 __attribute__((aligned(8)));
typedef _Bool bool;
#define true 1
#define false 0
#define NULL ((void *)0)
""",
    ("include/uapi/linux/bpf_common.h",): """#pragma once
#define BPF_CLASS(code) ((code) & 0x07)
#define BPF_LD 0x00
#define BPF_LDX 0x01
#define BPF_ST 0x02
#define BPF_STX 0x03
#define BPF_ALU 0x04
#define BPF_JMP 0x05
#define BPF_W 0x00
#define BPF_H 0x08
#define BPF_B 0x10
#define BPF_IMM 0x00
#define BPF_ABS 0x20
#define BPF_IND 0x40
#define BPF_MEM 0x60
#define BPF_K 0x00
#define BPF_X 0x08
""",
    tuple(f"arch/{name}/include/asm/page.h" for name in ("x86", "arm64", "arm", "riscv", "powerpc", "s390", "mips")): (
        f"#define PAGE_SIZE {os.sysconf('SC_PAGE_SIZE')}UL\n"
    ),
}
"""What BCC's own header includes of the kernel's, as little of it as it takes; none of it describes the kernel."""


class Row(NamedTuple):
    """What the kernel keeps of who is followed (struct kw_bcc_row)."""

    start_ns: int
    parent_start_ns: int
    parent_pid: int
    """0: unknown."""
    images: int


class _Table:
    """A map, by bytes."""

    def __init__(self, library: Any, descriptor: int, key: struct.Struct, leaf: struct.Struct) -> None:  # noqa: ANN401 - ctypes
        self._library, self._fd = library, descriptor
        self._key, self._leaf = key, leaf

    def put(self, key: tuple[Any, ...], leaf: tuple[Any, ...], flags: int = 0) -> bool:
        """False: it was not written."""
        cells = _cells(self._key.pack(*key)), _cells(self._leaf.pack(*leaf))
        result: int = self._library.bpf_update_elem(self._fd, *cells, flags)
        return result == 0

    def get(self, key: tuple[Any, ...]) -> tuple[Any, ...] | None:
        cells = ctypes.create_string_buffer(self._leaf.size)
        if self._library.bpf_lookup_elem(self._fd, _cells(self._key.pack(*key)), cells) < 0:
            return None
        return self._leaf.unpack(cells.raw)

    def drop(self, key: tuple[Any, ...]) -> None:
        self._library.bpf_delete_elem(self._fd, _cells(self._key.pack(*key)))

    def keys(self) -> Iterator[tuple[Any, ...]]:
        """All that are there throughout; who comes or goes meanwhile may be among them."""
        at = ctypes.create_string_buffer(self._key.size)
        result = self._library.bpf_get_first_key(self._fd, at, self._key.size)
        while result == 0:
            yield self._key.unpack(at.raw)
            following = ctypes.create_string_buffer(self._key.size)
            result = self._library.bpf_get_next_key(self._fd, at, following)
            at = following


class Program:
    """The hooks, their records and their tables. Raises CaptureUnavailable with BCC's or the kernel's reason."""

    def __init__(self, source: Source, *, ring_bytes: int, max_processes: int, ring: bool) -> None:
        """`ring`: through a ring buffer; else through a perf buffer for each processor, for kernels before 5.8."""
        self._bcc = bccsource.load()
        self._ring = ring
        page = os.sysconf("SC_PAGE_SIZE")
        flags = [*source.flags, f"-DKW_MAX_PROCESSES={max_processes}", f"-DKW_RING_PAGES={ring_bytes // page}"]
        if not ring:
            flags.append("-DKW_PERF")
        each = max(_LEAST_PAGES, ring_bytes // page // (os.cpu_count() or 1))
        self._pages = 1 << each.bit_length() - 1
        self._source = source
        self._bpf = self._compile(flags)
        library = self._library = self._bcc.lib
        tables = {
            name: self._bpf.get_table(name.encode()) for name in ("kin", "strangers", "wanted", "cells", "events")
        }
        self._kin = _Table(library, tables["kin"].map_fd, _KEY, _ROW)
        self._strangers = _Table(library, tables["strangers"].map_fd, _KEY, _COUNT)
        self._wanted = _Table(library, tables["wanted"].map_fd, _WANTED, _COUNT)
        self._cells = _Table(library, tables["cells"].map_fd, _COUNT, _CELL)
        self._events: Any = tables["events"]
        self._wanting: set[tuple[bytes, int, int, int]] = set()
        self._came: list[bytes] = []
        self._late: list[bytes] = []
        """Records of a perf buffer that are younger than the last look."""
        self._overrun = 0
        self._waiter = select.poll()
        self._came_s = 0.0
        """When something had come, by time.monotonic()."""
        self._anything: bool | None = None

    def _compile(self, flags: list[str]) -> Any:  # noqa: ANN401 - BCC has no types
        text = TEXT.read_text(encoding="utf-8")
        if not self._source.offsets:
            text += "".join(bccsource.questions().values())
        with _headers(self._source), _said() as said:
            try:
                return self._bcc.BPF(text=text.encode(), cflags=flags)
            except Exception as error:
                reason = next((line for line in said() if "error:" in line), str(error))
                msg = f"capture bcc: BCC cannot compile ({self._source.told}): {reason}"
                raise CaptureUnavailable(msg) from error

    def attach(self, wake: int) -> None:
        """Let the hooks speak. `wake`: a descriptor that ends wait() when it is readable."""
        self._waiter.register(wake, select.POLLIN)
        if self._ring:
            self._events.open_ring_buffer(self._take)
            self._waiter.register(self._events.map_fd, select.POLLIN)
        else:
            self._events.open_perf_buffer(self._take, page_cnt=self._pages, lost_cb=self._count_overrun)
            for reader in self._bpf.perf_buffers.values():
                self._waiter.register(self._library.perf_reader_fd(reader), select.POLLIN)
        for function, tracepoint in HOOKS.items():
            with _said() as said:
                try:
                    self._bpf.load_func(function, self._bcc.BPF.RAW_TRACEPOINT)
                    self._bpf.attach_raw_tracepoint(tp=tracepoint, fn_name=function)
                except Exception as error:
                    last = "; ".join([line.strip() for line in said() if line.strip()][-2:])
                    msg = f"capture bcc: the kernel refuses {function.decode()}: {error}; it says: {last}"
                    raise CaptureUnavailable(msg) from error
        with contextlib.suppress(AttributeError):  # glibc's: what clang took and gave back goes back to the kernel
            ctypes.CDLL(None).malloc_trim(0)

    @property
    def told(self) -> str:
        """Whence it is known where the kernel's fields are."""
        return self._source.told

    def offsets(self) -> dict[str, int]:
        """Where the compiler, which read headers, has the fields: the number that each of the questions returns."""
        found = {}
        for field, text in bccsource.questions().items():
            function = text.removeprefix("int ").partition("(")[0]
            code = self._bpf.dump_func(function.encode())
            operation, _, _, number = _INSTRUCTION.unpack_from(code)
            if operation != _RETURNS:
                raise CaptureUnavailable(f"capture bcc: the compiler made something else of {field}")
            found[field] = number
        return found

    def close(self) -> None:
        """Take the hooks away, and everything that was theirs."""
        self._events = None  # BCC expects to have the last of it
        self._bpf.cleanup()

    def receive(self) -> list[tuple[int, bytes]]:
        """What has come, without waiting: CLOCK_MONOTONIC and record, each after all that caused it.

        A hook has written its record before what it is about can go on: a child does not run before its fork is told.
        So of the buffers of several processors, read one after the other, everything older than the beginning of the
        reading has all its causes there; what is younger waits for the next time.
        """
        if self._ring:
            self._bpf.ring_buffer_consume()
            came = [(_time_of(record), record) for record in self._came]
        else:
            began_ns = time.monotonic_ns()
            self._bpf.perf_buffer_poll(0)
            found = sorted((_time_of(record), record) for record in self._late + self._came)
            came = [pair for pair in found if pair[0] < began_ns]
            self._late = [record for _, record in found[len(came) :]]
        self._came.clear()
        if came:
            self._came_s = time.monotonic()
        return came

    def wait(self, timeout_ms: int) -> None:
        """Until there may be something, the descriptor of attach() is readable, or the time is over (-1: never).

        After records it only naps: what follows soon after a wake-up wakes nobody.
        """
        if self._late:
            timeout_ms = 0
        elif time.monotonic() - self._came_s < _QUIET_S:
            timeout_ms = _NAP_MS
        self._waiter.poll(timeout_ms)

    def losses(self) -> tuple[int, int]:
        """Records that found no room, and processes; since the beginning.

        A hook is told when a perf buffer is full, but before 5.1 it was not: then the kernel's own count comes with the
        next record that fits.
        """
        return max(self._cell(RING_FULL), self._overrun), self._cell(TABLE_FULL)

    def everybody(self, *, on: bool) -> None:
        """Tell, and follow, whoever forks and executes, kin or not."""
        self._cells.put((EVERYBODY,), (int(on),))

    def want(self, wanted: set[tuple[bytes, int, int, int]], *, anything: bool) -> None:
        """Images of which strangers are to be told: (15 bytes of a name, inode, device, pid), the others zero.

        `anything`: all of them.
        """
        if anything is not self._anything:
            self._anything = anything
            self._cells.put((UNDECIDED,), (int(anything),))
        for key in wanted - self._wanting:
            self._wanted.put(key, (1,))
        for key in self._wanting - wanted:
            self._wanted.drop(key)
        self._wanting = wanted

    def follow(self, process: ProcessId) -> bool:
        """Whoever it makes from now on is told and followed. False: there is no room for it."""
        key = _key(process)
        room = self._kin.put(key, Row(process.start_ns, 0, 0, 0), _NOEXIST) or self._kin.get(key) is not None
        self._strangers.drop(key)
        return room

    def dismiss(self, process: ProcessId, images: int) -> None:
        """After so many images it is nobody's kin. Its next image may change that."""
        key = _key(process)
        self._strangers.put(key, (images,))
        if self._kin.get(key) is None:  # it has ended, and its hook saw no verdict to take away
            self._strangers.drop(key)

    def followed(self) -> dict[ProcessId, Row]:
        """Who is followed now; of who is no stranger. Start times are whole ticks where nobody knew better."""
        found = {}
        for key in list(self._kin.keys()):
            row = self._kin.get(key)
            verdict = self._strangers.get(key)
            if row is not None and (verdict is None or verdict[0] != row[3]):
                found[ProcessId(key[0], row[0])] = Row(*row)
        return found

    def kept(self) -> set[int]:
        """Pids that have a row, whosoever they are."""
        return {key[0] for table in (self._kin, self._strangers) for key in table.keys()}  # noqa: SIM118 - no mapping

    def _cell(self, number: int) -> int:
        value = self._cells.get((number,))
        return int(value[0]) if value else 0

    def _take(self, _: object, data: int, size: int) -> None:
        record = ctypes.string_at(data, size)
        self._came.append(record[: int.from_bytes(record[:4], sys.byteorder)])  # a perf buffer pads

    def _count_overrun(self, count: int) -> None:
        self._overrun += count


def _key(process: ProcessId) -> tuple[int, int, int]:
    return process.pid, 0, process.start_ns // lib.KW_TICK_NS


def _cells(content: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(content, len(content))


def _time_of(record: bytes) -> int:
    return int.from_bytes(record[_TIME_AT : _TIME_AT + 8], sys.byteorder)


def _scratch() -> str:
    """A directory to write to for a moment; a service may have no /tmp. Raises CaptureUnavailable."""
    places = (os.environ.get("RUNTIME_DIRECTORY", ""), tempfile.tempdir or "/tmp", "/run", "/dev/shm")  # noqa: S108 - mkdtemp
    for place in places:
        if place and os.access(place, os.W_OK | os.X_OK):
            return place
    raise CaptureUnavailable(f"capture bcc: none of {', '.join(filter(None, places))} can be written to")


@contextlib.contextmanager
def _headers(source: Source) -> Iterator[None]:
    """Have BCC find headers: the kernel's, or the few words of them that it needs itself."""
    with contextlib.ExitStack() as stack:
        directory = source.headers
        if source.offsets:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="kinwatch-", dir=_scratch()))
            for name, text in STAND_IN.items():
                for path in (Path(directory, part) for part in name):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(text)
        before = os.environ.get("BCC_KERNEL_SOURCE")
        if directory:
            os.environ["BCC_KERNEL_SOURCE"] = directory
        try:
            yield
        finally:
            if before is None:
                os.environ.pop("BCC_KERNEL_SOURCE", None)
            else:
                os.environ["BCC_KERNEL_SOURCE"] = before


@contextlib.contextmanager
def _said() -> Iterator[Callable[[], list[str]]]:
    """Keep what C libraries write to stderr meanwhile: clang and the verifier say there what is wrong."""
    kept = os.memfd_create("said", os.MFD_CLOEXEC)
    stderr = os.dup(2)
    os.dup2(kept, 2)

    def lines() -> list[str]:
        return os.pread(kept, 1 << 20, 0).decode(errors="replace").splitlines()

    try:
        yield lines
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(kept)
