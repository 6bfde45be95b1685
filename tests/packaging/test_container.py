"""The container image: with the capabilities and mounts that its description names, and no others, it watches.

Owns a container without an engine: a root, a capability set, mounts. Refuses to know engines and registries.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.trees import copy_of, tree
from tests.packaging.watching import ONCE, Daemon, run_application, told

pytestmark = pytest.mark.packages

ROOT = Path(__file__).resolve().parents[2]
DESCRIPTION = (ROOT / "build" / "Containerfile").read_text()
MACHINE = os.uname().machine
NAME = f"kwoci{os.getpid() % 1_000_000}"
LOG = "/var/log/kinwatch/events.jsonl"


def _documented() -> list[str]:
    """The words of the documented podman run, up to the image's name."""
    found = re.search(r"^#   podman run (.*?[^\\])$", DESCRIPTION, re.MULTILINE | re.DOTALL)
    assert found
    return shlex.split(found[1].replace("\\\n#", ""))


def _instruction(name: str) -> str:
    (found,) = re.findall(rf"^{name} (.*)$", DESCRIPTION, re.MULTILINE)
    return str(found)


def test_with_the_documented_capabilities_and_mounts_it_watches(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "build" / "deb.py"), "--dist", str(tmp_path)]
    package = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    root = copy_of(tree("bookworm", MACHINE, installed=True), tmp_path / "root")
    done = root.run("dpkg", "--install", package, shares=(tmp_path,))
    assert done.returncode == 0, done.stderr
    config = Path(f"{root.path}/etc/kinwatch/config.toml")
    config.write_text(config.read_text() + f'\n[[watch]]\nname = "{NAME}"\nprocess = "{NAME}"\n')

    words = _documented()
    (capabilities,) = (word.partition("=")[2] for word in words if word.startswith("--cap-add="))
    assert {"--cap-drop=all", "--pid=host", "--network=host", "--read-only"} <= set(words)
    mounts = [value.split(":") for word, value in itertools.pairwise(words) if word == "--volume"]
    assert ["/sys/fs/bpf", "/sys/fs/bpf"] in mounts
    steps = [f"mount --bind {root.path} {root.path}", f"cd {root.path}"]
    steps += ["mount -t proc proc proc", "mount -t sysfs -o ro sysfs sys", "mount --bind /dev dev"]
    steps += [f"mount -t tmpfs tmpfs {folder}" for folder in ("run", "tmp")]  # with --read-only an engine does
    for source, target, *mode in mounts:
        if source.startswith("/sys/"):
            steps.append(f"mount --bind {source} .{target}")
        else:  # a volume of the host, which here is a folder of the test
            steps += [f"mkdir -p .{target}", f"mount --bind .{target} .{target}"]
        steps += [f"mount -o remount,bind,ro .{target}"] if mode == ["ro"] else []
    steps.append("mount -o remount,bind,ro .")
    kept = ",".join(f"+{name.lower()}" for name in capabilities.split(","))
    entry = [*_strings(_instruction("ENTRYPOINT")), *_strings(_instruction("CMD"))]
    inside = shlex.join(["setpriv", f"--bounding-set=-all,{kept}", "--inh-caps=-all", "--no-new-privs", *entry])
    steps.append(f"exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . {inside}")
    daemon = Daemon(["unshare", "--mount", "sh", "-ec", "; ".join(steps)], tmp_path / "said")
    try:
        assert "capture=core" in daemon.ready, daemon.ready
        effective = re.search(
            r"^CapEff:\s*(\w+)$", Path(f"/proc/{daemon.process.pid}/status").read_text(), re.MULTILINE
        )
        assert effective
        assert int(effective[1], 16).bit_count() == len(capabilities.split(","))
        run_application(root, NAME)
        assert told(root, LOG, NAME, 5) == ONCE
        daemon.end(signal.SIGTERM)
    finally:
        daemon.process.kill()


def _strings(words: str) -> list[str]:
    return re.findall(r'"([^"]*)"', words)
