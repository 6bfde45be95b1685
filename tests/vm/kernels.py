"""Kernels of Debian, unpacked: the image to boot and its modules.

Owns what a kernel's packages are called and where things are in them. Refuses to boot one.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING, NamedTuple

from mirror import Apt, Unobtainable

if TYPE_CHECKING:
    from pathlib import Path


class Kernel(NamedTuple):
    """One that can be booted."""

    version: str
    """As uname -r says."""
    image: Path
    modules: Path
    """/lib/modules/VERSION, with modules.dep."""


def obtain(apt: Apt, package: str, suite: str, folder: Path) -> Kernel:
    """Download and unpack what a metapackage of a suite stands for now, unless it is there. Raises Unobtainable.

    Since 7.0 an image package is empty, and what was in it is in linux-binary-* and linux-modules-*.
    """
    version = _version(apt.depends(package, suite), package)
    place = folder / version
    tree = place / "tree"
    if not (place / "whole").exists():
        shutil.rmtree(place, ignore_errors=True)
        names = [f"linux-image-{version}"]
        depends = apt.depends(names[0], suite)
        names += [name for name in depends if name.startswith((f"linux-binary-{version}", f"linux-modules-{version}"))]
        for file in apt.download(names, suite, place / "packages"):
            subprocess.run(["dpkg", "-x", file, tree], check=True)
        shutil.rmtree(place / "packages")
        # A tree whose lib is not linked to usr/lib is looked for under lib alone.
        base = tree if (tree / "lib/modules").exists() else tree / "usr"
        subprocess.run(["depmod", "-b", base, version], check=True, capture_output=True)
        (place / "whole").touch()
    modules = next(
        path for path in (tree / f"lib/modules/{version}", tree / f"usr/lib/modules/{version}") if path.exists()
    )
    image = next(path for path in (tree / f"boot/vmlinuz-{version}", modules / "vmlinuz") if path.exists())
    return Kernel(version, image, modules)


def headers(apt: Apt, kernel: Kernel, suite: str, folder: Path) -> Path:
    """Download and unpack the headers of a kernel, unless they are there; the tree to be laid over a root.

    Raises Unobtainable.
    """
    place = folder / kernel.version / "headers"
    tree = place / "tree"
    if not (place / "whole").exists():
        shutil.rmtree(place, ignore_errors=True)
        name = f"linux-headers-{kernel.version}"
        depends = apt.depends(name, suite)
        names = [name, *(other for other in depends if other.startswith(("linux-headers-", "linux-kbuild-")))]
        for file in apt.download(names, suite, place / "packages"):
            subprocess.run(["dpkg", "-x", file, tree], check=True)
        shutil.rmtree(place / "packages")
        (place / "whole").touch()
    return tree


def _version(depends: list[str], package: str) -> str:
    for name in depends:
        found = re.fullmatch(r"linux-image-([0-9].*)", name)
        if found:
            return found[1]
    raise Unobtainable(f"{package} depends on no kernel, but on {', '.join(depends) or 'nothing'}")
