"""What a process holds of BPF: others on this machine have programs of the same names.

Owns the reading of /proc/PID/fdinfo for that, and the names by bpftool.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import msgspec

BPFTOOL: Final = shutil.which("bpftool") or "/usr/sbin/bpftool"


def held(pid: int | str, what: str, *, kind: str = "") -> list[dict[str, Any]]:
    """Rows of bpftool of the programs (`what` prog, by themselves or by their links) or links that a process holds."""
    ids = set()
    for descriptor in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            told = descriptor.read_text()
        except FileNotFoundError:  # closed meanwhile
            continue
        ids |= {int(number) for number in re.findall(rf"^{what}_id:\s*(\d+)$", told, re.MULTILINE)}
    shown = subprocess.run([BPFTOOL, "-j", what, "show"], check=True, capture_output=True).stdout
    rows: list[dict[str, Any]] = msgspec.json.decode(shown)
    return [row for row in rows if row["id"] in ids and kind in {"", row["type"]}]
