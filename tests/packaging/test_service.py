"""The Debian package under systemd, in a virtual machine: it starts, hardened, watches on over an upgrade, and goes.

Owns the machine's root, with systemd as its first process, and the script that plays an administrator there. Refuses to
know how a machine is booted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mirror import Apt
from tests.packaging.trees import ROOT, copy_of, tree
from tests.packaging.watching import ONCE
from tests.vm import kernels, machine

pytestmark = pytest.mark.packages

MACHINE = os.uname().machine
PACKAGE, SUITE = "linux-image-cloud-amd64", "bookworm-security"
SIZE_MB = 1500
FIRST = """
mkdir -p /dev/pts /dev/shm /run/result
mount -t cgroup2 none /sys/fs/cgroup
exec /lib/systemd/systemd
"""
UNIT = """
[Unit]
After=basic.target
[Service]
Type=oneshot
ExecStart=/administrator
[Install]
WantedBy=graphical.target
"""
ADMINISTRATOR = """#!/bin/bash
cd /run/result; exec >output 2>&1; set -x
up() {
	for _ in $(seq 100); do
		case $(systemctl is-active kinwatch) in active) return ;; failed) break ;; esac
		sleep 1
	done
	systemctl status kinwatch
}
up; systemctl show -p MainPID --value kinwatch >pid1
cp /bin/sh /usr/bin/kwapp
kwapp -c "/bin/true; exit 7"
kwapp -c "while [ ! -e /run/go ]; do /bin/sleep 0.1; done" &
sleep 1
dpkg --install --force-confold /packages/*.deb && up; systemctl show -p MainPID --value kinwatch >pid2
kwapp -c "/bin/true; exit 7"
touch /run/go; wait; sleep 1
kinwatch status --json >status.json
ls /sys/fs/bpf/kinwatch >pins_up
systemctl stop kinwatch; ls /sys/fs/bpf >pins_down
cp /var/log/kinwatch/events.jsonl .
dpkg --purge kinwatch && echo purged >purged
systemctl list-unit-files kinwatch.service >units; ls -d /opt/kinwatch /etc/kinwatch /var/{cache,lib,log}/kinwatch >left
journalctl --no-pager -o cat -u kinwatch >journal
echo 0 >status
tar -C /run/result -cf /dev/vdb . && echo "@@DONE" >/dev/ttyS0
sync; echo o >/proc/sysrq-trigger; sleep 60
"""


def _built(folder: Path, revision: int) -> Path:
    command = [sys.executable, str(ROOT / "build" / "deb.py"), "--revision", str(revision), "--dist", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Debian with systemd, the package installed, and its next revision in /packages."""
    folder = tmp_path_factory.mktemp("service")
    old, new = _built(folder / "old", 1), _built(folder / "new", 2)
    root = copy_of(tree("bookworm", MACHINE, "systemd", "procps", installed=True), folder / "root")
    done = root.run("dpkg", "--install", old, shares=(old.parent,))
    assert done.returncode == 0, done.stderr
    config = Path(f"{root.path}/etc/kinwatch/config.toml")
    config.write_text(config.read_text() + '\n[[watch]]\nname = "kwapp"\nprocess = "kwapp"\n')
    packages = Path(f"{root.path}/packages")
    packages.mkdir()
    new.rename(packages / new.name)
    Path(f"{root.path}/administrator").write_text(ADMINISTRATOR)
    Path(f"{root.path}/administrator").chmod(0o755)
    Path(f"{root.path}/etc/systemd/system/administrator.service").write_text(UNIT)
    # Nothing there makes the device that it would wait for.
    Path(f"{root.path}/etc/systemd/system/serial-getty@ttyS0.service").symlink_to("/dev/null")
    done = root.run("systemctl", "enable", "administrator.service")
    assert done.returncode == 0, done.stderr
    file = folder / "root.ext4"
    with file.open("wb") as made:
        made.truncate(SIZE_MB << 20)
    features = "^orphan_file,^has_journal"
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", features, "-d", root.path, file], check=True)
    subprocess.run(["rm", "-rf", "--one-file-system", root.path], check=True)
    return file


def test_under_systemd_it_watches_on_over_an_upgrade_and_a_purge_leaves_nothing(image: Path, tmp_path: Path) -> None:
    apt = Apt(ROOT / ".cache" / "vm" / "apt-package", [SUITE])
    (ROOT / ".cache" / "vm").mkdir(parents=True, exist_ok=True)
    kernel = kernels.obtain(apt, PACKAGE, SUITE, ROOT / ".cache" / "vm" / "kernels")
    files = machine.run(kernel, image, "", tmp_path, first=FIRST, timeout_s=600).files
    said = {name: (files / name).read_text() for name in ("output", "journal", "left", "pins_up", "pins_down", "units")}
    assert said["journal"].count("kinwatch: watching (capture=core") == 2, said
    assert "taken over" in said["journal"], said
    assert (files / "pid1").read_text() != (files / "pid2").read_text(), "the upgrade started another daemon"
    lines = [json.loads(line) for line in (files / "events.jsonl").read_text().splitlines()]
    ours = [line for line in lines if line.get("watch") == "kwapp"]
    looping = next(line["pid"] for line in ours[5:] if line["event"] == "root")
    children = [line for line in ours if line.get("parent_pid") == looping]
    ended = [line for line in ours if line["event"] == "exit" and line["pid"] in {child["pid"] for child in children}]
    assert len(children) == len(ended) > 10, "before, during and after the restart"
    status = json.loads((files / "status.json").read_text())
    assert status["watches"][0]["spawned"] == len(children) + 2, status
    assert [line["event"] for line in ours[:5]] == ONCE
    assert said["pins_up"]
    assert "kinwatch" not in said["pins_down"], said["pins_down"]
    assert (files / "purged").exists(), said["output"]
    assert said["left"] == ""
    assert "0 unit files" in said["units"]
