"""The root of a machine whose processor is not this one's: a Debian of that architecture with kinwatch in /kinwatch.

Owns how the environment, the engine, the hooks and the tests' programs get there. Refuses to know kernels and tests.

Nothing of it is executed here. The engine is compiled as that of the portable wheels is, the programs by Debian's
compilers for other machines. What Python needs comes as wheels from the package index; for 32-bit ARM, which it has
none for, from Debian 13, whose versions are new enough, and msgspec, which Debian lacks, is compiled from its source
distribution.
"""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

import ebpf
import mirror
import native
import portable
import recipe
import requirements
from tests.compiling import PREBUILT, prebuild
from tests.vm import root

if TYPE_CHECKING:
    from pathlib import Path


class Base(NamedTuple):
    """The Debian of a machine."""

    suite: str
    python: str
    packages: tuple[str, ...]
    indexed: bool
    """The package index has wheels for it."""
    security: bool = True
    """With security updates. Mirrors have had lists of armhf's that do not fit together, and apt takes none then."""


_COMMON: Final = (*(name for name in root.PACKAGES if name not in {"python3-distutils", "libelf1"}), "busybox-static")
_PACKAGED: Final = (
    *("python3-cbor2", "python3-cffi-backend", "python3-hypothesis", "python3-paho-mqtt", "python3-psutil"),
    "python3-pytest",
)
BASES: Final = {
    "aarch64": Base("bookworm", "3.11", (*_COMMON, "libelf1", "python3-distutils"), indexed=True),
    "armv7l": Base("trixie", "3.13", (*_COMMON, "libelf1t64", *_PACKAGED), indexed=False, security=False),
}
TESTED_WITH: Final = ("pytest", "hypothesis")
PLATFORMS: Final = ("manylinux2014", "manylinux_2_17", "manylinux_2_28")
"""Tags of wheels that glibc 2.28 takes."""
_LAUNCHER: Final = f"""#!/{root.HOME}/.venv/bin/python
import sys
from monitor.cli import main
sys.exit(main())
"""


def image(folder: Path, machine: str) -> Path:
    """Make the image for a machine, as uname -m says. The Debian under it is made once.

    Raises RecipeFailed and Unobtainable.
    """
    base = BASES[machine]
    tree = folder / f"root-{base.suite}-{machine}"
    whole = folder / f"{tree.name}.whole"
    if not whole.exists():
        shutil.rmtree(tree, ignore_errors=True)
        root.debian(tree, base.suite, base.packages, portable.ARCHITECTURES[machine], security=base.security)
        whole.touch()
    home = tree / root.HOME
    root.put_sources(home)
    for old in [*(home / "monitor").rglob("*.so"), *(home / "monitor").rglob("*.bpf.o")]:
        old.unlink()
    place, target = portable.place(machine), portable.target(machine)
    shutil.copy2(native.build(place / "_native.abi3.so", target=target), home / "monitor/engine")
    for made in ebpf.build(machine, place):
        shutil.copy2(made, home / "monitor/capture")
    prebuild(home / "tests" / PREBUILT, [f"{portable.TRIPLETS[machine]}-gcc", "-static"])
    packages = home / ".venv" / f"lib/python{base.python}/site-packages"
    packages.mkdir(parents=True)
    if base.indexed:
        _install(packages, machine, base.python)
    else:
        _compile_msgspec(folder / f"msgspec-{machine}", packages, machine, target)
    _put_programs(home / ".venv", packages)
    return root.format_image(tree, folder / f"{tree.name}.ext4", root.SIZE_MB)


def busybox(image: Path) -> Path:
    """The busybox of an image, linked statically."""
    return image.with_suffix("") / "bin/busybox"


def _install(packages: Path, machine: str, python: str) -> None:
    """What the program and its tests require, as a device would get it."""
    version = python.replace(".", "")
    words: list[str | Path] = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", packages]
    words += ["--only-binary", ":all:", "--implementation", "cp", "--python-version", python]
    words += [*("--abi", f"cp{version}", "--abi", "abi3", "--abi", "none")]
    words += [word for tag in PLATFORMS for word in ("--platform", f"{tag}_{machine}")]
    recipe.run([*words, *TESTED_WITH, *requirements.requirements(["paho"])], quiet=True)
    # What is not compiled here is compiled there at every start: nothing that a machine writes stays.
    recipe.run([sys.executable, "-m", "compileall", "-q", packages], quiet=True)


def _compile_msgspec(scratch: Path, packages: Path, machine: str, target: portable.Target) -> None:
    made = scratch / "msgspec"
    base = BASES[machine]
    if not (scratch / "whole").exists():
        shutil.rmtree(scratch, ignore_errors=True)
        (wanted,) = [line for line in requirements.requirements([]) if line.startswith("msgspec")]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        recipe.run([*pip, "--dest", scratch, wanted], quiet=True)
        (archive,) = scratch.glob("msgspec-*.tar.gz")
        recipe.run(["tar", "-xzf", archive, "-C", scratch, "--strip-components=1"])
        architecture = portable.ARCHITECTURES[machine]
        apt = mirror.Apt(scratch / "apt", [base.suite], architecture)
        for package in apt.download([f"libpython{base.python}-dev"], base.suite, scratch / "packages"):
            recipe.run(["dpkg", "-x", package, scratch / "system"])
        shutil.copytree(scratch / "src" / "msgspec", made)
        include = scratch / "system/usr/include"
        suffix = f"cpython-{base.python.replace('.', '')}-{portable.TRIPLETS[machine]}"
        flags = ["-O2", "-shared", "-fPIC", f"-I{include}", f"-I{include / f'python{base.python}'}"]
        recipe.run([*target.compiler, *flags, made / "_core.c", "-o", made / f"_core.{suffix}.so"], quiet=True)
        (scratch / "whole").touch()
    shutil.copytree(made, packages / "msgspec")


def _put_programs(environment: Path, packages: Path) -> None:
    (packages / "kinwatch.pth").write_text(f"/{root.HOME}\n", encoding="utf-8")
    programs = environment / "bin"
    programs.mkdir(parents=True)
    (programs / "python").symlink_to("/usr/bin/python3")
    (programs / "kinwatch").write_text(_LAUNCHER, encoding="utf-8")
    (programs / "kinwatch").chmod(0o755)
    (environment / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = true\n", encoding="utf-8")
