"""The bench's C programs, compiled. Owns the compiler's flags; refuses to know what the programs measure."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
NATIVE = ROOT / "monitor" / "engine" / "native"
FLAGS = ("-std=gnu11", "-O2", "-D_GNU_SOURCE=", "-pthread", f"-I{ROOT / 'ebpf'}", f"-I{NATIVE}")


def compiled(source: str, target: Path, *more: str | Path) -> Path:
    """Compile tests/bench/SOURCE (and `more`) to `target`. Raises CalledProcessError; the compiler has said why."""
    subprocess.run(["cc", *FLAGS, HERE / source, *more, "-o", target], check=True)
    return target


def engine_sources() -> list[Path]:
    """The engine's C files: those that know neither libbpf nor the loader."""
    found = []
    for path in sorted(NATIVE.glob("*.c")):
        inclusions = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#include")]
        if not any("<bpf/" in line or '"loader' in line for line in inclusions):
            found.append(path)
    return found


def libbpf() -> list[str]:
    """Flags to link with libbpf."""
    done = subprocess.run(["pkg-config", "--cflags", "--libs", "libbpf"], check=True, capture_output=True, text=True)
    return shlex.split(done.stdout)
