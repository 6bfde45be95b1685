"""What a portable wheel is compiled with: zig for an old C library, libbpf from its source, Debian's libelf.

Owns: the C library's version, the packages and where they are unpacked. Refuses to know: our sources, wheels.

zig (PyPI's ziglang) is a C compiler for every machine and every version of glibc, so one tool makes the wheels of all
machines on any of them. libbpf is compiled from a Debian source package and linked statically; libelf is the shared one
of a Debian whose glibc is as old, and auditwheel bundles it.
"""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

import mirror
from recipe import CACHE, RecipeFailed, key_of, run

GLIBC: Final = "2.28"
"""Debian 10, Ubuntu 18.10, RHEL 8, and everything later."""
OLD_SUITE: Final = "bullseye"
LIBBPF_SUITE: Final = "trixie"
"""1.5. Before it, a load asked for the types of modules where a kernel (before 6.13) lacks bpf_send_signal_task, and
failed for want of CAP_SYS_ADMIN, which the unit does not give."""
PYTHON_SUITE: Final = "bookworm"
"""The stable interface of Python 3.11 is declared by its headers."""
ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "armhf"}
"""Debian's names, by what uname -m says."""
INDEXED: Final = ("aarch64", "x86_64")
"""The package index has wheels of all that the program requires for these; elsewhere Debian's packages serve."""
TRIPLETS: Final = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu", "armv7l": "arm-linux-gnueabihf"}
_MORE: Final = {"armv7l": ["-mcpu=generic+v7a+vfp3d16"]}
"""What Debian's armhf promises of a processor: ARMv7 with VFPv3-D16, without NEON."""
PLACE: Final = CACHE / "portable"
_RECIPES: Final = (Path(__file__).resolve(), Path(mirror.__file__).resolve())


class Target(NamedTuple):
    """A machine that parts are compiled for."""

    machine: str
    compiler: list[str]
    includes: list[str]
    libraries: list[str]
    library_folders: list[Path]
    """Where auditwheel finds what it bundles."""


def place(machine: str) -> Path:
    """Where the parts for a machine lie."""
    return PLACE / machine


@cache
def target(machine: str) -> Target:
    """Make ready, once, to compile for a machine. Raises RecipeFailed."""
    if machine not in ARCHITECTURES:
        text = f"no portable wheel for machine {machine!r}; there is one for: {', '.join(sorted(ARCHITECTURES))}"
        raise RecipeFailed(text)
    triplet = TRIPLETS[machine]
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", f"{triplet}.{GLIBC}", *_MORE.get(machine, ())]
    os.environ["ZIG_GLOBAL_CACHE_DIR"] = os.environ["ZIG_LOCAL_CACHE_DIR"] = str(CACHE / "zig")
    parts = _parts(machine, compiler)
    system, libbpf, whole = parts / "debian", parts / "libbpf", parts / "whole"
    try:
        if not whole.exists():
            for old in PLACE.glob(f"{machine}-*/"):
                shutil.rmtree(old)
            source = _unpack(machine, system, parts)
            _make_libbpf(source, libbpf, compiler, system)
            shutil.rmtree(source.parent)
            whole.touch()
    except mirror.Unobtainable as error:
        text = f"a package that the portable wheel is made from: {error}"
        raise RecipeFailed(text) from error
    headers = system / "usr" / "include"
    folders = [system / "usr" / "lib" / triplet, system / "lib" / triplet]
    return Target(
        machine=machine,
        compiler=compiler,
        includes=[f"-I{libbpf / 'include'}", f"-I{headers / 'python3.11'}", f"-I{headers}"],
        libraries=[str(libbpf / "lib" / "libbpf.a"), *(f"-L{folder}" for folder in folders), "-lelf", "-lz"],
        library_folders=folders,
    )


def _parts(machine: str, compiler: list[str]) -> Path:
    """The folder of what is unpacked and compiled for a machine. A recipe that differs has another one."""
    try:
        zig = importlib.metadata.version("ziglang")
    except importlib.metadata.PackageNotFoundError:
        text = f"{sys.executable} has no ziglang, the compiler of portable parts: make package-tools"
        raise RecipeFailed(text) from None
    # The folder stands in the commands that the engine is made with, so that one is made again as well.
    key = key_of(_RECIPES, [[machine, zig, *compiler[1:]]])
    return PLACE / f"{machine}-{key[:12]}"


def _unpack(machine: str, system: Path, parts: Path) -> Path:
    """Unpack Debian's packages for the machine into `system`, and libbpf's source, whose folder is returned."""
    fetched = parts / "fetched"
    suites = {OLD_SUITE, PYTHON_SUITE, LIBBPF_SUITE}
    apt = mirror.Apt(PLACE / f"apt-{machine}", suites, ARCHITECTURES[machine], sources=True)
    apt.download(["libelf1", "libelf-dev", "zlib1g", "zlib1g-dev"], OLD_SUITE, fetched)
    for package in apt.download(["libpython3.11-dev"], PYTHON_SUITE, fetched):
        run(["dpkg", "-x", package, system])
    apt.source("libbpf", LIBBPF_SUITE, fetched / "source")
    (description,) = (fetched / "source").glob("*.dsc")
    source = fetched / "libbpf"
    run(["dpkg-source", "--no-check", "-x", description, source])  # apt has checked the signature
    return source


def _make_libbpf(source: Path, target_folder: Path, compiler: list[str], system: Path) -> None:
    (target_folder / "objects").mkdir(parents=True)

    def seen(path: Path) -> str:
        # From where make runs: it cannot do with spaces in a path, and no byte of the result tells where it was made.
        return os.path.relpath(path, source / "src")

    flags = f"-O2 -g0 -fPIC -fvisibility=hidden -I{seen(system / 'usr' / 'include')}"
    words: list[str | Path] = [
        *("make", "-s", f"-j{os.cpu_count()}", "-C", source / "src", "BUILD_STATIC_ONLY=1", "NO_PKG_CONFIG=1"),
        *(f"CC={shlex.join(compiler)}", f"AR={shlex.join([sys.executable, '-m', 'ziglang', 'ar'])}", f"CFLAGS={flags}"),
        *(f"OBJDIR={seen(target_folder / 'objects')}", f"DESTDIR={seen(target_folder)}"),
        *("PREFIX=", "INCLUDEDIR=/include", "LIBDIR=/lib", "install"),
    ]
    run(words, quiet=True)
