"""The Debian packages that are tested, each made once in a run of the tests, from the sources as they are then.

Owns where they lie, .cache/debs. Refuses to know how they are made: it calls the recipe.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING

from tests.packaging.trees import ROOT

if TYPE_CHECKING:
    from pathlib import Path

MACHINE = os.uname().machine


@cache
def package(machine: str = MACHINE, revision: int = 1) -> Path:
    """The package for a machine, alone in its folder."""
    folder = ROOT / ".cache" / "debs" / f"{machine}-{revision}"
    words = [str(ROOT / "build" / "deb.py"), "--machine", machine, "--revision", str(revision), "--dist", str(folder)]
    made = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return ROOT / made.stdout.splitlines()[-1]
