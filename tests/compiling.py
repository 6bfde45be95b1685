"""Compiles the small C programs of the tests; where there is no compiler, takes them as they came.

Owns the compiler's flags. Refuses to know what a program does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE: Final = Path(__file__).resolve().parent
PREBUILT: Final = "prebuilt"
FLAGS: Final = ("-O1", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{HERE / 'programs'}")
_FOLDERS: Final = ("programs", "kernel", "net/programs")


def compiled(source: Path, target: Path, *more: str) -> Path:
    """Compile one program. `more`: flags beside FLAGS."""
    ready = HERE / PREBUILT / source.resolve().relative_to(HERE).with_suffix("")
    if ready.exists():
        shutil.copy2(ready, target)
    else:
        subprocess.run([os.environ.get("CC", "gcc"), *FLAGS, *more, "-o", target, source], check=True)
    return target


def prebuild(folder: Path, compiler: Sequence[str] = ("gcc", "-static")) -> None:
    """Compile all of them, for a machine without a compiler; statically, for its C library may be another."""
    for name in _FOLDERS:
        for source in sorted((HERE / name).glob("*.c")):
            target = folder / name / source.stem
            target.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run([*compiler, *FLAGS, "-o", target, source], check=True)
