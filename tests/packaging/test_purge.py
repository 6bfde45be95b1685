"""What the unit makes on a device, a purge of the package takes away.

Owns the comparison of the two files. Refuses to know dpkg and systemd: test_deb.py and test_service.py run them.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACES = {"State": "/var/lib", "Cache": "/var/cache", "Logs": "/var/log", "Runtime": "/run", "Configuration": "/etc"}
"""Of systemd.exec(5), by the beginning of the word."""


def test_a_purge_removes_every_directory_that_the_unit_makes() -> None:
    unit = (ROOT / "monitor" / "share" / "kinwatch.service").read_text()
    made = {f"{PLACES[kind]}/{name}" for kind, name in re.findall(r"(?m)^(\w+)Directory=(\S+)$", unit)}
    script = (ROOT / "build" / "debian" / "postrm").read_text().replace("\\\n", " ")
    (removal,) = re.findall(r"(?m)^\s*rm -rf (.*)$", script)
    assert {"/var/lib/kinwatch", "/run/kinwatch"} < made
    assert made <= set(shlex.split(removal))
