#!/usr/bin/env python3
"""Recipe: ebpf/kinwatch.bpf.c -> monitor/capture/kinwatch.bpf.o, the program that runs in the kernel.

Owns: clang's flags for BPF. Refuses to know: loading, wheels, the engine. One object serves every kernel with BTF
(CO-RE) of this byte order and register layout; it needs no header of the running kernel.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from recipe import ROOT, RecipeFailed, finish, is_current, key_of, run

SOURCE = ROOT / "ebpf" / "kinwatch.bpf.c"
OUTPUT = ROOT / "monitor" / "capture" / "kinwatch.bpf.o"

# libbpf's bpf_tracing.h picks the registers of an argument by this name.
ARCHITECTURES = {
    "x86_64": "x86",
    "aarch64": "arm64",
    "armv7l": "arm",
    "riscv64": "riscv",
    "ppc64le": "powerpc",
    "s390x": "s390",
}


def flags(machine: str | None = None) -> list[str]:
    """Clang's flags, without input and output. Raises RecipeFailed for a machine libbpf has no name for."""
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        text = f"no BPF target name for machine {machine!r}; known: {', '.join(sorted(ARCHITECTURES))}"
        raise RecipeFailed(text)
    # A hook's parameters are the tracepoint's, wanted or not; BPF_PROG names one more: hence -Wno-unused-parameter.
    # -mcpu=v3 (kernel 5.1): 32-bit jumps and ALU, which the verifier tracks better. -g makes the BTF that CO-RE needs.
    return [
        *("-O2", "-g", "-target", "bpf", "-mcpu=v3", f"-D__TARGET_ARCH_{ARCHITECTURES[machine]}"),
        *("-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror", "-Iebpf"),
    ]


def build() -> Path:
    """Compile when something changed and return the object's path. Raises RecipeFailed."""
    if not SOURCE.exists():
        text = f"{SOURCE.relative_to(ROOT)} is missing: this checkout is not whole"
        raise RecipeFailed(text)
    clang = shlex.split(os.environ.get("CLANG", "clang"))
    strip = shlex.split(os.environ.get("LLVM_STRIP", "llvm-strip"))
    compile_words: list[str | Path] = [*clang, *flags(), "-c", SOURCE.relative_to(ROOT)]
    inputs = [*(ROOT / "ebpf").glob("*.[ch]"), Path(__file__).resolve()]
    key = key_of(inputs, [compile_words, strip])
    if is_current(OUTPUT, key):
        return OUTPUT
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=OUTPUT.parent, prefix=".making-") as scratch:
        made = Path(scratch) / OUTPUT.name
        run([*compile_words, "-o", made])
        run([*strip, "-g", made])  # DWARF goes, .BTF and .BTF.ext stay
        finish(made, OUTPUT, key)
    return OUTPUT


if __name__ == "__main__":
    try:
        print(build().relative_to(ROOT))
    except RecipeFailed as failed:
        sys.exit(f"build/ebpf.py: {failed}")
