"""A Debian whose first process is systemd, in a virtual machine, and a script that plays an administrator there.

Owns the root's last touches, its image and the boot. Refuses to know what is installed and what the script does.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from mirror import Apt
from tests.packaging.trees import ROOT, Tree
from tests.vm import kernels, machine

PACKAGE: Final = "linux-image-cloud-amd64"
SUITE: Final = "bookworm-security"
PACKAGES: Final = ("systemd", "procps", "logrotate", "mosquitto", "openssl", "iproute2", "libbpf1", "util-linux")
"""What a tree needs to be booted, and what is used there."""
_FIRST: Final = """
mkdir -p /dev/pts /dev/shm /run/result
mount -t cgroup2 none /sys/fs/cgroup
exec /lib/systemd/systemd
"""
_UNIT: Final = """
[Unit]
After=basic.target
[Service]
Type=oneshot
ExecStart=/administrator
[Install]
WantedBy=graphical.target
"""
_SCRIPT: Final = """#!/bin/bash
cd /run/result; exec >output 2>&1; set -x
@SCRIPT@
cd /run/result
journalctl --no-pager -o cat -u kinwatch >journal
echo 0 >status
tar -C /run/result -cf /dev/vdb . && echo "@@DONE" >/dev/ttyS0
sync; echo o >/proc/sysrq-trigger; sleep 60
"""


def image(root: Tree, script: str, file: Path, size_mb: int) -> None:
    """Make a disk of a root, which is removed. `script`: in bash, run once as root, in the folder of the result."""
    program = Path(f"{root.path}/administrator")
    program.write_text(_SCRIPT.replace("@SCRIPT@", script.strip()))
    program.chmod(0o755)
    Path(f"{root.path}/etc/systemd/system/administrator.service").write_text(_UNIT)
    # Nothing there makes the device that the one would wait for, and a broker is started by who wants it.
    for name in ("serial-getty@ttyS0.service", "mosquitto.service"):
        Path(f"{root.path}/etc/systemd/system/{name}").symlink_to("/dev/null")
    # Emulated, a start takes longer than a service is given.
    patience = Path(f"{root.path}/etc/systemd/system.conf.d/patience.conf")
    patience.parent.mkdir(parents=True)
    patience.write_text("[Manager]\nDefaultTimeoutStartSec=900\n")
    done = root.run("systemctl", "enable", "administrator.service")
    assert done.returncode == 0, done.stderr
    with file.open("wb") as made:
        made.truncate(size_mb << 20)
    features = "^orphan_file,^has_journal"
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", features, "-d", root.path, file], check=True)
    subprocess.run(["rm", "-rf", "--one-file-system", root.path], check=True)


def boot(disk: Path, files: Path, timeout_s: float, append: str = "") -> Path:
    """Boot it on Linux 6.1 and return the folder with what the script left: also `output` and `journal`, the unit's.

    `append`: to the kernel's command line.
    """
    place = ROOT / ".cache" / "vm"
    place.mkdir(parents=True, exist_ok=True)
    kernel = kernels.obtain(Apt(place / "apt-package", [SUITE]), PACKAGE, SUITE, place / "kernels")
    return machine.run(kernel, disk, "", files, append=append, first=_FIRST, timeout_s=timeout_s).files
