"""What is shipped for the kernel is what was compiled, less what only a reader of the verifier's log wants.

Owns the comparison of both, by bpftool. Refuses to know how it is made: it calls the recipe.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "monitor" / "capture"
WITH_LINES = ROOT / ".cache" / "ebpf"
# The code alone is 55 to 60 KiB; docs/packages.md has the table.
MOST_BYTES = 96 * 1024


@pytest.fixture(scope="module", params=["kinwatch.bpf.o", "net.bpf.o"])
def name(request: pytest.FixtureRequest) -> str:
    """An object's file name; both files are as the sources are now."""
    made = subprocess.run([sys.executable, ROOT / "build" / "ebpf.py"], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return str(request.param)


def _said(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_shipped_object_has_the_types_and_the_code_of_the_compiled_one(name: str) -> None:
    types = [_said("bpftool", "btf", "dump", "file", folder / name) for folder in (SHIPPED, WITH_LINES)]
    assert types[0] == types[1]
    code = [_contents(folder / name) for folder in (SHIPPED, WITH_LINES)]
    assert {".text", ".maps", "license"} <= set(code[0])
    assert code[0] == code[1]


def _contents(file: Path) -> dict[str, str]:
    """By section, its bytes in hexadecimal: all but type information, symbols and relocations that name symbols."""
    parts = _said("llvm-objdump", "--full-contents", file).split("Contents of section ")[1:]
    split = (part.partition(":\n") for part in parts)
    return {name: hexadecimal for name, _, hexadecimal in split if not name.startswith((".BTF", ".rel", ".llvm", ".s"))}


def test_a_shipped_object_is_small(name: str) -> None:
    assert (SHIPPED / name).stat().st_size <= MOST_BYTES
    assert b"if (" not in (SHIPPED / name).read_bytes(), "no line of source is in it"
    assert b"if (" in (WITH_LINES / name).read_bytes(), "they are in the one for development"
