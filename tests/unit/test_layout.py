"""One wire, three compilers: what clang laid out for the kernel is what the host compiler laid out for Python.

Owns a small reader of BTF, so that the kernel side is read from what clang made and from nothing we generated. The
object tells only the types of its maps and globals; for the rest a unit with a global of each type is compiled.
"""

from __future__ import annotations

import runpy
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from monitor.engine._native import ffi

ROOT = Path(__file__).resolve().parents[2]
OBJECT = ROOT / "monitor" / "capture" / "kinwatch.bpf.o"
EVENT_H = ROOT / "ebpf" / "event.h"

# What the object's maps hold.
IN_MAPS = {"kw_kin"}

# Bytes that follow a type's 12 fixed ones, by BTF kind: a constant, and so many per member.
EXTRA = {1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0), 15: (0, 12), 17: (4, 0)}
EXTRA[19] = (0, 12)
STRUCT, ENUM = 4, 6
BITS = 8


@dataclass
class Layout:
    """Sizes and offsets in bytes."""

    size: int
    offsets: dict[str, int] = field(default_factory=dict)


Kernel = tuple[dict[str, Layout], dict[str, int]]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    """The structs and enumerators of event.h as clang lays them out for the kernel."""
    unit = tmp_path_factory.mktemp("layout") / "layout.bpf.c"
    lines = ['#include "kernel.h"', '#include "event.h"']
    lines += [f"struct {name} a_{name};" for name in _names("struct")]
    lines += [f"enum {name} a_{name};" for name in _names("enum")]
    unit.write_text("\n".join(lines) + "\n")
    made = unit.with_suffix(".o")
    flags = runpy.run_path(str(ROOT / "build" / "ebpf.py"))["flags"]()
    subprocess.run(["clang", *flags, "-c", str(unit), "-o", str(made)], cwd=ROOT, check=True)
    return _read_btf(made)


def _names(kind: str) -> list[str]:
    """The names of all structs, or enums, that event.h defines."""
    return [line.split()[1] for line in EVENT_H.read_text().splitlines() if line.startswith(f"{kind} ")]


def _section(elf: bytes, wanted: str) -> bytes:
    (headers,) = struct.unpack_from("<Q", elf, 0x28)
    entry, count, names_at = struct.unpack_from("<HHH", elf, 0x3A)

    def header(index: int) -> tuple[int, int, int]:
        name, _, _, _, offset, size = struct.unpack_from("<IIQQQQ", elf, headers + index * entry)
        return name, offset, size

    _, names, _ = header(names_at)
    for index in range(count):
        name, offset, size = header(index)
        if elf[names + name :].split(b"\0", 1)[0].decode() == wanted:
            return elf[offset : offset + size]
    pytest.fail(f"no section {wanted}")


def _read_btf(path: Path) -> Kernel:
    """The structs by name, and all enumerators, of an object's BTF."""
    btf = _section(path.read_bytes(), ".BTF")
    magic, _, _, length, types_at, types_bytes, strings_at, _ = struct.unpack_from("<HBBIIIII", btf)
    assert magic == 0xEB9F, "BTF of this byte order"

    def text(offset: int) -> str:
        return btf[length + strings_at + offset :].split(b"\0", 1)[0].decode()

    structs: dict[str, Layout] = {}
    enumerators: dict[str, int] = {}
    at, end = length + types_at, length + types_at + types_bytes
    while at < end:
        name, info, size = struct.unpack_from("<III", btf, at)
        kind, members = info >> 24 & 0x1F, info & 0xFFFF
        at += 12
        constant, each = EXTRA.get(kind, (0, 0))
        if kind == STRUCT:
            layout = Layout(size)
            for index in range(members):
                member, _, bits = struct.unpack_from("<III", btf, at + index * each)
                layout.offsets[text(member)] = (bits & 0xFFFFFF if info >> 31 else bits) // BITS
            structs[text(name)] = layout
        if kind == ENUM:
            for index in range(members):
                enumerator, value = struct.unpack_from("<Ii", btf, at + index * each)
                enumerators[text(enumerator)] = value
        at += constant + each * members
    return structs, enumerators


def _python_layout(name: str) -> Layout:
    layout = Layout(ffi.sizeof(f"struct {name}"))
    fields: list[tuple[str, Any]] = ffi.typeof(f"struct {name}").fields
    for member, described in fields:
        layout.offsets[member] = described.offset
    return layout


def test_the_object_in_the_package_has_the_structs_that_python_reads() -> None:
    structs, _ = _read_btf(OBJECT)
    shared = {name for name in _names("struct") if name in structs}
    assert shared >= IN_MAPS
    assert {name: _python_layout(name) for name in shared} == {name: structs[name] for name in shared}


@pytest.mark.parametrize("name", _names("struct"))
def test_the_kernel_and_python_agree_on_every_struct(name: str, kernel: Kernel) -> None:
    assert kernel[0][name] == _python_layout(name)


@pytest.mark.parametrize("name", _names("enum"))
def test_the_kernel_and_python_agree_on_every_enumerator(name: str, kernel: Kernel) -> None:
    python: dict[str, int] = ffi.typeof(f"enum {name}").relements
    assert python
    assert {enumerator: kernel[1].get(enumerator) for enumerator in python} == python


@pytest.mark.parametrize("name", _names("struct"))
def test_no_struct_of_the_wire_has_hidden_padding(name: str) -> None:
    at = 0
    fields: list[tuple[str, Any]] = ffi.typeof(f"struct {name}").fields
    for member, described in fields:
        assert described.offset == at, f"{name}.{member} is preceded by padding"
        at += ffi.sizeof(described.type)
    assert ffi.sizeof(f"struct {name}") == at, f"{name} ends in padding"


@pytest.mark.parametrize("name", _names("struct"))
def test_records_stay_aligned_to_eight_bytes(name: str) -> None:
    is_record = "header" in _python_layout(name).offsets
    assert not is_record or ffi.sizeof(f"struct {name}") % 8 == 0


def test_the_object_carries_no_debug_information_but_btf() -> None:
    assert _section(OBJECT.read_bytes(), ".BTF.ext")
    assert b".debug_info" not in OBJECT.read_bytes()
