"""The root of a machine whose processor is not this one's: a Debian of that architecture with kinwatch in /kinwatch.

Owns how the environment, the engine, the hooks and the tests' programs get there. Refuses to know kernels and tests.

Nothing of it is executed here. The engine and the programs are compiled as those of the portable wheels are, and what
Python needs comes as the wheels that a device would get.
"""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Final

import ebpf
import native
import portable
import recipe
import requirements
from mirror import codename
from tests.compiling import PREBUILT, prebuild
from tests.vm import root

if TYPE_CHECKING:
    from pathlib import Path

PACKAGES: Final = (*root.PACKAGES, "busybox-static")
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
    suite = codename()
    tree = folder / f"root-{suite}-{machine}"
    whole = folder / f"{tree.name}.whole"
    if not whole.exists():
        shutil.rmtree(tree, ignore_errors=True)
        root.debian(tree, suite, PACKAGES, portable.ARCHITECTURES[machine])
        whole.touch()
    home = tree / root.HOME
    root.put_checkout(home)
    for old in [*(home / "monitor").rglob("*.so"), *(home / "monitor").rglob("*.bpf.o")]:
        old.unlink()
    place, target = portable.place(machine), portable.target(machine)
    shutil.copy2(native.build(place / "_native.abi3.so", target=target), home / "monitor/engine")
    for made in ebpf.build(machine, place):
        shutil.copy2(made, home / "monitor/capture")
    prebuild(home / "tests" / PREBUILT, target.compiler)
    _put_environment(home / ".venv", machine)
    # What is not compiled here is compiled there at every start: nothing that a machine writes stays.
    recipe.run([sys.executable, "-m", "compileall", "-q", "-d", f"/{root.HOME}", home], quiet=True)
    return root.format_image(tree, folder / f"{tree.name}.ext4", root.SIZE_MB)


def busybox(image: Path) -> Path:
    """The busybox of an image, linked statically."""
    return image.with_suffix("") / "bin/busybox"


def _put_environment(environment: Path, machine: str) -> None:
    """What the program and its tests require, for Debian's Python, which is this one."""
    version = f"{sys.version_info.major}{sys.version_info.minor}"
    packages = environment / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    words: list[str | Path] = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", packages]
    words += ["--only-binary", ":all:", "--implementation", "cp"]
    words += [*("--abi", f"cp{version}", "--abi", "abi3", "--abi", "none")]
    words += [word for tag in PLATFORMS for word in ("--platform", f"{tag}_{machine}")]
    recipe.run([*words, *TESTED_WITH, *requirements.requirements([])], quiet=True)
    (packages / "kinwatch.pth").write_text(f"/{root.HOME}\n", encoding="utf-8")
    programs = environment / "bin"
    programs.mkdir(parents=True)
    (programs / "python").symlink_to("/usr/bin/python3")
    (programs / "kinwatch").write_text(_LAUNCHER, encoding="utf-8")
    (programs / "kinwatch").chmod(0o755)
    (environment / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = true\n", encoding="utf-8")
