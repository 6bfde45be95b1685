"""The Debian package under systemd, in a virtual machine: it starts, hardened, watches on over an upgrade, and goes.

Owns the script that plays an administrator there. Refuses to know how a machine is made and booted (booted.py).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.packaging import booted
from tests.packaging.debs import package
from tests.packaging.trees import copy_of, tree
from tests.packaging.watching import ONCE

pytestmark = pytest.mark.packages

MACHINE = os.uname().machine
SIZE_MB = 1500
ADMINISTRATOR = """
up() {
	for _ in $(seq 900); do
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
systemd-analyze verify kinwatch.service >verify 2>&1; echo $? >>verify
systemd-analyze security --no-pager kinwatch >security
logrotate --debug /etc/logrotate.d/kinwatch >rotation 2>&1; echo $? >>rotation
logrotate --force /etc/logrotate.d/kinwatch
for _ in $(seq 100); do [ -e /var/log/kinwatch/events.jsonl ] && break; sleep 0.1; done
kwapp -c "/bin/true; exit 7"
systemctl stop kinwatch; ls /sys/fs/bpf >pins_down
cp /var/log/kinwatch/events.jsonl.1 /var/log/kinwatch/events.jsonl .
dpkg --purge kinwatch && echo purged >purged
systemctl list-unit-files kinwatch.service >units
{ find / -xdev -path /packages -prune -o -name "*kinwatch*" -print; ls -d /run/kinwatch* /sys/fs/bpf/kinwatch*
  getent passwd kinwatch; getent group kinwatch; } >left
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Debian with systemd, the package installed, and its next revision in /packages."""
    folder = tmp_path_factory.mktemp("service")
    old, new = package(revision=1), package(revision=2)
    root = copy_of(tree("bookworm", MACHINE, *booted.PACKAGES, installed=True), folder / "root")
    done = root.run("dpkg", "--install", old, shares=(old.parent,))
    assert done.returncode == 0, done.stderr
    config = Path(f"{root.path}/etc/kinwatch/config.toml")
    config.write_text(config.read_text() + '\n[[watch]]\nname = "kwapp"\nprocess = "kwapp"\n')
    packages = Path(f"{root.path}/packages")
    packages.mkdir()
    shutil.copy2(new, packages)
    booted.image(root, ADMINISTRATOR, folder / "root.ext4", SIZE_MB)
    return folder / "root.ext4"


@pytest.fixture(scope="module")
def left(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the administrator wrote down."""
    return booted.boot(image, tmp_path_factory.mktemp("left"), timeout_s=1800)


def _lines(file: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [line for line in lines if line.get("watch") == "kwapp"]


def test_under_systemd_it_watches_on_over_an_upgrade(left: Path) -> None:
    journal = (left / "journal").read_text()
    assert journal.count("kinwatch: watching (capture=core") == 2, (left / "output").read_text() + journal
    assert "taken over" in journal
    assert (left / "pid1").read_text() != (left / "pid2").read_text(), "the upgrade started another daemon"
    ours = _lines(left / "events.jsonl.1")
    looping = next(line["pid"] for line in ours[5:] if line["event"] == "root")
    children = [line for line in ours if line.get("parent_pid") == looping]
    ended = [line for line in ours if line["event"] == "exit" and line["pid"] in {child["pid"] for child in children}]
    assert len(children) == len(ended) > 10, "before, during and after the restart"
    status = json.loads((left / "status.json").read_text())
    assert status["watches"][0]["spawned"] == len(children) + 2, status
    assert [line["event"] for line in ours[:5]] == ONCE


def test_a_rotated_log_goes_on_in_a_new_file(left: Path) -> None:
    *said, code = (left / "rotation").read_text().splitlines()
    assert code == "0", said
    assert not [line for line in said if "error" in line.lower()]
    assert [line["event"] for line in _lines(left / "events.jsonl")] == ONCE


def test_systemd_finds_nothing_wrong_with_the_unit_and_calls_it_ok(left: Path) -> None:
    *said, code = (left / "verify").read_text().splitlines()
    assert (code, [line for line in said if "kinwatch" in line]) == ("0", [])
    (exposure,) = re.findall(r"Overall exposure level for kinwatch.service: ([\d.]+)", (left / "security").read_text())
    assert float(exposure) < 4, "systemd-analyze security: below 4 is OK, the best but one"


def test_a_stop_unloads_and_a_purge_leaves_nothing(left: Path) -> None:
    assert (left / "pins_up").read_text()
    assert "kinwatch" not in (left / "pins_down").read_text()
    assert (left / "purged").exists(), (left / "output").read_text()
    assert (left / "left").read_text() == ""
    assert "0 unit files" in (left / "units").read_text()
