#!/usr/bin/env python3
"""Make dist/greengrass/: the recipe of a Greengrass component, and the archive of wheels that it installs from.

    build/greengrass.py --bucket NAME        then upload the archive there and create the component from the recipe

Owns: what is in the archive. Refuses to know: what the component does (greengrass.yaml), how a wheel is made
(wheel.py), any account.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent))

import portable
import wheel
from recipe import CACHE, ROOT, RecipeFailed, run, source_date_s

RECIPE: Final = ROOT / "build" / "greengrass.yaml"
PYTHONS: Final = ("3.11", "3.12", "3.13")
"""What devices have: Debian 12, Ubuntu 24.04, Debian 13."""


def build(bucket: str, dist: Path = wheel.DIST) -> list[Path]:
    """Make recipe and archive and return their paths. Raises RecipeFailed."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
        text = f"--bucket {bucket!r} is no name of an S3 bucket: 3 to 63 small letters, digits, dots and hyphens"
        raise RecipeFailed(text)
    os.environ["SOURCE_DATE_EPOCH"] = str(source_date_s())
    CACHE.mkdir(exist_ok=True)
    target = dist / "greengrass"
    target.mkdir(parents=True, exist_ok=True)
    for old in target.iterdir():
        old.unlink()
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="greengrass-") as name:
        wheels = Path(name)
        made = {machine: wheel.build(wheels, machine) for machine in portable.INDEXED}
        version = made["x86_64"].name.split("-")[1]
        for machine, python in itertools.product(made, PYTHONS):
            _fetch(wheels, made[machine], machine, python)
        archive = target / f"kinwatch-{version}.zip"
        _zip(archive, [*sorted(wheels.glob("*.whl")), ROOT / "monitor" / "share" / "kinwatch.toml"])
    recipe = target / f"kinwatch-{version}.yaml"
    recipe.write_text(RECIPE.read_text().replace("VERSION", version).replace("BUCKET", bucket))
    return [archive, recipe]


def _fetch(wheels: Path, made: Path, machine: str, python: str) -> None:
    """What the wheel requires, from the package index, for a machine and a Python."""
    tags = [f"manylinux2014_{machine}", *(f"manylinux_2_{minor}_{machine}" for minor in (17, 28))]
    words = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "--dest", str(wheels)),
        *("--python-version", python, "--implementation", "cp", "--abi", f"cp{python.replace('.', '')}"),
        *("--abi", "abi3", "--abi", "none", *(word for tag in tags for word in ("--platform", tag))),
        *("--find-links", str(wheels), str(made)),
    ]
    run(words, quiet=True)


def _zip(archive: Path, files: list[Path]) -> None:
    """In one order, with one time: the same bytes again."""
    when = time.gmtime(source_date_s())[:6]
    with zipfile.ZipFile(archive, "w") as made:
        for path in files:
            entry = zipfile.ZipInfo(path.name, when)
            entry.external_attr = 0o644 << 16
            stored = path.suffix == ".whl"  # it is compressed already
            made.writestr(entry, path.read_bytes(), zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    flags = argparse.ArgumentParser(description="Make the Greengrass component.")
    flags.add_argument("--bucket", required=True, metavar="NAME", help="the S3 bucket that will have the archive")
    flags.add_argument("--dist", type=Path, default=wheel.DIST, metavar="FOLDER", help="default: %(default)s")
    asked = flags.parse_args()
    try:
        for path in build(asked.bucket, asked.dist.resolve()):
            print(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
    except RecipeFailed as failed:
        sys.exit(f"build/greengrass.py: {failed}")
