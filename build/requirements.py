#!/usr/bin/env python3
"""Print what pyproject.toml requires, one requirement a line, so that it is written in one place only.

Owns: reading the tables. Refuses to know: pip, versions, where packages come from.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

USAGE = "usage: requirements.py [extra...]   prints the build's and the program's requirements, and the extras'"


def requirements(extras: list[str]) -> list[str]:
    """The build's, the program's and the named extras' requirements. Raises KeyError for an unknown extra."""
    project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())
    found = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for extra in extras:
        found += project["project"]["optional-dependencies"][extra]
    return found


if __name__ == "__main__":
    try:
        print("\n".join(requirements(sys.argv[1:])))
    except KeyError as unknown:
        sys.exit(f"requirements.py: pyproject.toml has no {unknown}\n{USAGE}")
