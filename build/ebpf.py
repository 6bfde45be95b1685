#!/usr/bin/env python3
"""Recipe: ebpf/*.bpf.c -> monitor/capture/*.bpf.o, what runs in the kernel: kinwatch (processes) and net (network).

Owns: clang's flags for BPF. Refuses to know: loading, wheels, the engine, what of an object can go (btf.py). An object
serves every kernel with BTF (CO-RE) of this byte order and register layout; it needs no header of the running kernel.

The same object with line information, which the verifier's log then shows, lies in .cache/ebpf/ under the same name.

And ebpf/kinwatch.bcc.c with the wire before it, for BCC to compile on a device whose kernel has no BTF.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import btf
from recipe import CACHE, ROOT, RecipeFailed, finish, is_current, key_of, run

SOURCES = (ROOT / "ebpf" / "kinwatch.bpf.c", ROOT / "ebpf" / "net.bpf.c")
DIALECT = (ROOT / "ebpf" / "event.h", ROOT / "ebpf" / "kinwatch.bcc.c")
PLACE = ROOT / "monitor" / "capture"
WITH_LINES = CACHE / "ebpf"

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


def build(machine: str | None = None, place: Path = PLACE) -> list[Path]:
    """Compile what changed and return the objects' paths. `machine`: as uname -m, this one. Raises RecipeFailed."""
    return [*(_build(source, flags(machine), place) for source in SOURCES), _join(DIALECT, place / "kinwatch.bcc.c")]


def _join(sources: tuple[Path, ...], output: Path) -> Path:
    """Put these files into one: BCC compiles a text, and finds no file of ours."""
    key = key_of([*sources, Path(__file__).resolve()], [])
    if is_current(output, key):
        return output
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".making-") as scratch:
        made = Path(scratch) / output.name
        made.write_text("\n".join(source.read_text(encoding="utf-8") for source in sources), encoding="utf-8")
        finish(made, output, key)
    return output


def _build(source: Path, words: list[str], place: Path) -> Path:
    output = place / f"{source.stem}.o"
    if not source.exists():
        text = f"{source.relative_to(ROOT)} is missing: this checkout is not whole"
        raise RecipeFailed(text)
    clang = shlex.split(os.environ.get("CLANG", "clang"))
    strip = shlex.split(os.environ.get("LLVM_STRIP", "llvm-strip"))
    objcopy = shlex.split(os.environ.get("LLVM_OBJCOPY", "llvm-objcopy"))
    compile_words: list[str | Path] = [*clang, *words, "-c", source.relative_to(ROOT)]
    recipes = [Path(__file__).resolve(), Path(btf.__file__).resolve()]
    key = key_of([*(ROOT / "ebpf").glob("*.h"), source, *recipes], [compile_words, strip, objcopy])
    if is_current(output, key):
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".making-") as scratch:
        made = Path(scratch) / output.name
        run([*compile_words, "-o", made])
        run([*strip, "-g", made])  # DWARF goes, .BTF and .BTF.ext stay
        if place == PLACE:
            WITH_LINES.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made, WITH_LINES / output.name)
        btf.shrink(made, objcopy)
        finish(made, output, key)
    return output


if __name__ == "__main__":
    try:
        for path in build():
            print(path.relative_to(ROOT))
    except RecipeFailed as failed:
        sys.exit(f"build/ebpf.py: {failed}")
