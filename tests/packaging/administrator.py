"""Run in a virtual machine with systemd: uses every feature that the restrictions of the unit could stand against.

Owns the broker, the fleet and the shadow there, and what is written down. Refuses to judge: test_hardened.py does.

    python -m tests.packaging.administrator FOLDER        writes FOLDER/facts.json, after each feature
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from monitor.shadow import signature
from monitor.shadow.document import desired
from tests.mqtt.broker import LEAST_PRIVILEGE, THING, Authority, Broker
from tests.mqtt.fleet import ACL, TEMPLATE, Fleet, service
from tests.mqtt.shadow import MAY, Shadow, serving, want

if TYPE_CHECKING:
    from collections.abc import Callable

PLACE: Final = Path("/var/lib/administrator")
CONFIG: Final = Path("/etc/kinwatch/config.toml")
LOG: Final = Path("/var/log/kinwatch/events.jsonl")
REPORTS: Final = Path("/var/log/kinwatch/reports.jsonl")
COMMAND: Final = Path("/usr/local/bin/on-alarm")
TRACE: Final = Path("/run/on-alarm")
UNIT: Final = "kwunit.service"
SERIAL: Final = "4711"
DEADLINE_S: Final = 240.0
"""Emulated, a start takes half a minute."""

# What the unit's comments say that a feature needs.
ADDED: Final = """\
[Service]
CapabilityBoundingSet=CAP_SETUID CAP_SETGID CAP_SYS_ADMIN
ProtectControlGroups=no
ReadWritePaths=/sys/fs/cgroup
RestrictNamespaces=net
"""

BASE: Final = f"""\
[log]
file = "{LOG}"
[detect.action]
command = ["{COMMAND}"]
user = "kinwatch"
freeze = "FREEZE"
[[watch]]
name = "image"
process = "kwimage"
expect = {{ executables = ["/usr/bin/true"] }}
enforce = "kill"
[[watch]]
name = "limit"
process = "kwlimit"
expect = {{ child_processes = 1 }}
enforce = "kill"
[[watch]]
name = "app"
process = "kwapp"
expect = {{ child_processes = 0 }}
[[watch]]
name = "unit"
unit = "{UNIT}"
expect = {{ child_processes = 0 }}
"""


class Facts:
    """What was seen, on the disk after each of them."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._all: dict[str, Any] = {}

    def note(self, name: str, value: object) -> None:
        """Keep one."""
        self._all[name] = value
        self._file.write_text(json.dumps(self._all, indent=1))


def main(folder: Path) -> None:
    """Use one feature after the other."""
    facts = Facts(folder / "facts.json")
    PLACE.mkdir()
    TRACE.mkdir()
    Path("/etc/hosts").write_text("127.0.0.1 localhost\n")
    owner = pwd.getpwnam("kinwatch")
    os.chown(TRACE, owner.pw_uid, owner.pw_gid)
    COMMAND.write_text(
        f'#!/bin/sh\ncat >"{TRACE}/$KINWATCH_WATCH.json"\nid -un >{TRACE}/new && mv {TRACE}/new {TRACE}/user\n'
    )
    COMMAND.chmod(0o755)
    for name in ("kwimage", "kwlimit", "kwapp"):
        program = Path("/usr/bin", name)
        program.write_bytes(Path("/bin/sh").read_bytes())
        program.chmod(0o755)
    own = LEAST_PRIVILEGE.format(client=f"{THING}-kinwatch", thing=THING).rstrip()
    acl = f"{own}\n{MAY}\nuser responder\ntopic readwrite $aws/#\ntopic readwrite kinwatch/#\n\n{ACL}"
    with Broker(PLACE, Authority(PLACE), acl) as broker:
        shipped(facts, broker)
        provisioned(facts, broker)
        extended(facts)


def shipped(facts: Facts, broker: Broker) -> None:
    """The unit as it comes: enforcement, SIGSTOP, a command that may not run, configuration from afar."""
    key, public = PLACE / "signing.key", Path("/etc/kinwatch/remote.pub")
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True)
    known = broker.authority.known(f"{THING}-kinwatch")
    link = f'thing = "{THING}"\ncertificate = "{known.certificate}"\nprivate_key = "{known.private_key}"\n'
    text = f'{defender(broker)}{link}[remote]\npublic_key = "{public}"\nconfirm_s = 200\n'
    shadow = Shadow()
    with serving(broker, shadow) as cloud:
        start(text + BASE.replace("FREEZE", "stop"))
        wait(lambda: "publishing as" in journal())
        facts.note("said at the start", journal())
        facts.note("exec", run("kwimage", "/usr/bin/id; exit 7"))
        with as_nobody("kwlimit", "(while :; do :; done) & (while :; do :; done) & wait"):
            wait(lambda: any(line.get("delegated") for line in lines("enforced", "limit")))
        with as_nobody("kwapp", "/bin/sleep 1000; true"):
            stopped = wait(lambda: [line for line in lines("enforced", "app") if line["action"] == "stop"])
            facts.note("stopped", state(pid_of(stopped[0])))
        facts.note("enforced", lines("enforced"))
        version, wanted = 1, '[[watch]]\nname = "remote"\nprocess = "kwapp"\n'
        made = desired(wanted, version, signature.sign(str(key), version, wanted))
        want(cloud, shadow, json.loads(made)["state"]["desired"])
        wait(lambda: shadow.reported.get("state") in {"applied", "rejected", "rolled_back"})
        facts.note("remote", shadow.reported)
        facts.note("watches", [watch["name"] for watch in status()["watches"]])


def provisioned(facts: Facts, broker: Broker) -> None:
    """The unit as it comes: the daemon gets its own certificate."""
    claim = broker.authority.known("claim")
    serial = PLACE / "serial"
    serial.write_text(SERIAL)
    text = (
        f'[provisioning]\ntemplate = "{TEMPLATE}"\nclaim_certificate = "{claim.certificate}"\n'
        f'claim_private_key = "{claim.private_key}"\nparameters = {{ SerialNumber = "{{file:{serial}}}" }}\n'
    )
    with service(Fleet(broker)):
        start(defender(broker) + text + BASE.replace("FREEZE", "off"))
        wait(lambda: f"publishing as camera-{SERIAL}" in journal())
        facts.note("thing", status()["publisher"]["thing"])
        files = Path("/var/lib/kinwatch/identity").rglob("*")
        facts.note("identity", {path.name: oct(path.stat().st_mode & 0o777) for path in files if path.is_file()})


def extended(facts: Facts) -> None:
    """With what the unit's comments say: a command as another user, a frozen cgroup, another network namespace."""
    drop_in = Path("/etc/systemd/system/kinwatch.service.d/added.conf")
    drop_in.parent.mkdir()
    drop_in.write_text(ADDED)
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    subprocess.run(["ip", "netns", "add", "blue"], check=True)
    subprocess.run(["ip", "netns", "exec", "blue", "ip", "link", "set", "lo", "up"], check=True)
    listening = "import socket, time; s = socket.create_server(('', 7777)); time.sleep(1000)"
    inside = subprocess.Popen(["ip", "netns", "exec", "blue", sys.executable, "-c", listening])
    report = f'[report]\nfile = "{REPORTS}"\nnamespaces = ["/run/netns/blue"]\n'
    start(report + BASE.replace("FREEZE", "cgroup"))
    facts.note("said with all of it", journal())
    run("kwapp", "/usr/bin/true; exit 7")
    wait((TRACE / "user").exists)
    facts.note("user", (TRACE / "user").read_text().strip())
    facts.note("alarm", json.loads((TRACE / "app.json").read_text()))
    Path("/etc/systemd/system", UNIT).write_text('[Service]\nExecStart=/bin/sh -c "/bin/sleep 1000; true"\n')
    subprocess.run(["systemctl", "start", UNIT], check=True)
    freezer = Path("/sys/fs/cgroup/system.slice", UNIT, "cgroup.freeze")
    wait(lambda: any(line["action"] == "freeze" for line in lines("enforced", "unit")))
    facts.note("freezing", lines("enforced", "unit"))
    facts.note("frozen", freezer.read_text().strip())
    freezer.write_text("0")
    subprocess.run(["systemctl", "kill", "--signal=KILL", UNIT], check=True)
    subprocess.run(["systemctl", "stop", "kinwatch"], check=True)
    inside.kill()
    facts.note("report", json.loads(REPORTS.read_text().splitlines()[-1]))


# -------- a daemon under systemd --------


def defender(broker: Broker) -> str:
    """The beginning of a configuration that publishes."""
    return f'[defender]\nendpoint = "localhost"\nport = {broker.port}\nroot_ca = "{broker.authority.root_ca}"\n'


def start(text: str) -> None:
    """Start it anew with a configuration; what it says from now on is its journal."""
    CONFIG.write_text(text)
    subprocess.run(["systemctl", "stop", "kinwatch"], check=True)
    for file in (LOG, REPORTS):
        file.unlink(missing_ok=True)
    subprocess.run(["systemctl", "start", "kinwatch"], check=True)


def journal() -> str:
    """What it said since it was started the last time."""
    invocation = subprocess.run(
        ["systemctl", "show", "-p", "InvocationID", "--value", "kinwatch"], capture_output=True, text=True, check=True
    ).stdout.strip()
    done = subprocess.run(
        ["journalctl", "--no-pager", "-o", "cat", f"_SYSTEMD_INVOCATION_ID={invocation}"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


def status() -> dict[str, Any]:
    """What `kinwatch status --json` says."""
    done = subprocess.run(["/usr/bin/kinwatch", "status", "--json"], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def lines(event: str, watch: str = "") -> list[dict[str, Any]]:
    """Lines of the event log."""
    text = LOG.read_text() if LOG.exists() else ""
    found = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in found if line["event"] == event and watch in {"", line.get("watch")}]


def wait(true: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever is true
    """Wait for a fact, and return it."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := true()):
        assert time.monotonic() < deadline, journal()
        time.sleep(0.2)
    return found


# -------- applications --------


def run(name: str, script: str) -> int:
    """Run an application to its end, and return its exit code."""
    return subprocess.run([f"/usr/bin/{name}", "-c", script], check=False).returncode


class as_nobody:  # noqa: N801 - a context manager
    """An application of another user, in a session of its own that is killed at the end."""

    def __init__(self, name: str, script: str) -> None:
        nobody = pwd.getpwnam("nobody").pw_uid
        words = [f"/usr/bin/{name}", "-c", script]
        self._process = subprocess.Popen(words, user=nobody, extra_groups=(), start_new_session=True)

    def __enter__(self) -> None:
        """It runs."""

    def __exit__(self, *_: object) -> None:
        """End all of it."""
        os.killpg(self._process.pid, 9)
        self._process.wait()


def pid_of(line: dict[str, Any]) -> int:
    """The process that a line is about."""
    return int(str(line["process_id"]).partition("-")[0])


def state(pid: int) -> str:
    """One letter, of proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
