"""Takes out of a BPF object what neither loader nor kernel needs: lines of source, labels, and what refers to them.

Owns: the layout of .BTF and .BTF.ext (https://docs.kernel.org/bpf/btf.html). Refuses to know: clang's flags, what the
programs do.

Types, the functions' types and the CO-RE relocations stay, for libbpf and the verifier read them. Lines of source serve
the verifier's log alone, and are more than the code itself; the object that has them is kept for development (ebpf.py).
"""

from __future__ import annotations

import struct
import sys
import tempfile
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent))

from recipe import RecipeFailed, run

MAGIC: Final = 0xEB9F
_BTF: Final = struct.Struct("<HBBIIIII")
_EXT: Final = struct.Struct("<HBBIIIIIII")
_TYPE: Final = struct.Struct("<III")

# By kind: the size of what follows a type once, of each of its members, and whether a member begins with a name.
_FOLLOWS: Final = {
    1: (4, 0, False),  # INT
    2: (0, 0, False),  # PTR
    3: (12, 0, False),  # ARRAY
    4: (0, 12, True),  # STRUCT
    5: (0, 12, True),  # UNION
    6: (0, 8, True),  # ENUM
    7: (0, 0, False),  # FWD
    8: (0, 0, False),  # TYPEDEF
    9: (0, 0, False),  # VOLATILE
    10: (0, 0, False),  # CONST
    11: (0, 0, False),  # RESTRICT
    12: (0, 0, False),  # FUNC: its vlen is its linkage
    13: (0, 8, True),  # FUNC_PROTO
    14: (4, 0, False),  # VAR
    15: (0, 12, False),  # DATASEC
    16: (0, 0, False),  # FLOAT
    17: (4, 0, False),  # DECL_TAG
    18: (0, 0, False),  # TYPE_TAG
    19: (0, 12, True),  # ENUM64
}

# Labels of jumps; relocations of type information, which libbpf makes anew from symbols; a hint for linkers.
_NOT_NEEDED: Final = (
    *("--wildcard", "--strip-symbol=LBB*"),
    *("--remove-section=.rel.BTF", "--remove-section=.rel.BTF.ext", "--remove-section=.llvm_addrsig"),
)


class _Strings:
    """A string section that is made anew from the strings that something names."""

    def __init__(self, old: bytes) -> None:
        self._old = old
        self._offsets = {b"": 0}
        self.made = bytearray(1)

    def moved(self, offset: int) -> int:
        """Where the string at an offset of the old section is in the new one."""
        text = self._old[offset : self._old.index(b"\0", offset)]
        if text not in self._offsets:
            self._offsets[text] = len(self.made)
            self.made += text + b"\0"
        return self._offsets[text]


def shrink(made: Path, objcopy: list[str]) -> None:
    """Rewrite an object in its place. `objcopy`: the words of llvm-objcopy. Raises RecipeFailed."""
    with tempfile.TemporaryDirectory(dir=made.parent) as name:
        types, ext = Path(name) / "types", Path(name) / "ext"
        run([*objcopy, f"--dump-section=.BTF={types}", f"--dump-section=.BTF.ext={ext}", made])
        new_types, new_ext = without_lines(types.read_bytes(), ext.read_bytes())
        types.write_bytes(new_types)
        ext.write_bytes(new_ext)
        updated = (f"--update-section=.BTF={types}", f"--update-section=.BTF.ext={ext}")
        run([*objcopy, *_NOT_NEEDED, *updated, made])


def without_lines(btf: bytes, ext: bytes) -> tuple[bytes, bytes]:
    """Both sections without line information and the strings that only it names. Raises RecipeFailed."""
    magic, version, flags, header, types_at, types_size, strings_at, strings_size = _BTF.unpack_from(btf)
    ext_magic, ext_version, ext_flags, ext_header, func_at, func_size, _, _, core_at, core_size = _EXT.unpack_from(ext)
    if (magic, ext_magic, ext_header) != (MAGIC, MAGIC, _EXT.size):
        text = (
            "this is not the type information that build/btf.py knows (little endian, a header of 40 bytes in .BTF.ext)"
        )
        raise RecipeFailed(text)
    begin = header + strings_at
    strings = _Strings(btf[begin : begin + strings_size])
    types = bytearray(btf[header + types_at : header + types_at + types_size])
    _move_types(types, strings)
    func = bytearray(ext[ext_header + func_at : ext_header + func_at + func_size])
    core = bytearray(ext[ext_header + core_at : ext_header + core_at + core_size])
    _move_records(func, strings, name_at=None)
    _move_records(core, strings, name_at=8)  # insn_off, type_id, access_str_off, kind
    new_btf = _BTF.pack(magic, version, flags, _BTF.size, 0, len(types), len(types), len(strings.made))
    numbers = (0, len(func), len(func), 0, len(func), len(core))
    new_ext = _EXT.pack(ext_magic, ext_version, ext_flags, _EXT.size, *numbers)
    return new_btf + types + strings.made, new_ext + func + core


def _move_types(types: bytearray, strings: _Strings) -> None:
    at = 0
    while at < len(types):
        name, info, _ = _TYPE.unpack_from(types, at)
        kind, members = info >> 24 & 0x1F, info & 0xFFFF
        if kind not in _FOLLOWS:
            text = f"clang made type information of kind {kind}, which build/btf.py does not know: add it there"
            raise RecipeFailed(text)
        struct.pack_into("<I", types, at, strings.moved(name))
        once, each, named = _FOLLOWS[kind]
        at += _TYPE.size + once
        for _ in range(members if each else 0):
            if named:
                struct.pack_into("<I", types, at, strings.moved(struct.unpack_from("<I", types, at)[0]))
            at += each


def _move_records(part: bytearray, strings: _Strings, *, name_at: int | None) -> None:
    """A part of .BTF.ext: the size of a record, then for each section its name, a count and the records."""
    (size,) = struct.unpack_from("<I", part)
    at = 4
    while at < len(part):
        section, count = struct.unpack_from("<II", part, at)
        struct.pack_into("<I", part, at, strings.moved(section))
        at += 8
        for _ in range(count):
            if name_at is not None:
                (name,) = struct.unpack_from("<I", part, at + name_at)
                struct.pack_into("<I", part, at + name_at, strings.moved(name))
            at += size
