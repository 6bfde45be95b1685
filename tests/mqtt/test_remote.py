"""A daemon takes its configuration from its shadow, over a real broker, and survives its own death meanwhile.

Owns the daemon's side of it. Refuses to know the stages one by one (tests/unit/test_shadow.py).
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from monitor.shadow import signature
from monitor.shadow.document import desired
from tests.mqtt.broker import LEAST_PRIVILEGE, THING, Authority, Broker
from tests.mqtt.rig import ALARMS, Kinwatch, shell
from tests.mqtt.shadow import BASE, MAY, Shadow, serving, want

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.mqtt.rig import Listener

DYING = (sys.executable, "-m", "tests.mqtt.dying")


class Fleet:
    """A key, a shadow behind a broker, and a device that takes its configuration from there."""

    def __init__(self, folder: Path, broker: Broker, cloud: Listener, shadow: Shadow, confirm_s: int = 60) -> None:
        self.folder, self.broker, self.cloud, self.shadow = folder, broker, cloud, shadow
        self.key = folder / "signing.key"
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", self.key], check=True)
        public = folder / "signing.pub"
        subprocess.run(["openssl", "pkey", "-in", self.key, "-pubout", "-out", public], check=True)
        self.application = shell(folder)
        self.device = Kinwatch(
            folder / "k",
            broker,
            more=f'[remote]\npublic_key = "{public}"\nconfirm_s = {confirm_s}\n{self.watch(9)}',
        )

    def watch(self, limit: int) -> str:
        """A configuration that expects so many children."""
        return f'[[watch]]\nname = "myapp"\nexe = "{self.application}"\nexpect = {{ child_processes = {limit} }}\n'

    def want(self, version: int, text: str) -> None:
        """Set it in the shadow, signed."""
        made = desired(text, version, signature.sign(str(self.key), version, text))
        want(self.cloud, self.shadow, json.loads(made)["state"]["desired"])

    def child(self) -> None:
        """The application starts one child."""
        subprocess.run([self.application, "-c", "/bin/true; /bin/true"], check=True)

    def remote(self) -> dict[str, Any]:
        """What the daemon says of it."""
        found: dict[str, Any] = self.device.status()["publisher"]["remote"]
        return found


def acl(*, may: str = MAY) -> str:
    """What the device and the service may do."""
    own = LEAST_PRIVILEGE.format(client=f"{THING}-kinwatch", thing=THING).rstrip()
    return f"{own}\n{may}\nuser responder\ntopic readwrite $aws/#\ntopic readwrite kinwatch/#\n"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """One device and its shadow."""
    with Broker(tmp_path, Authority(tmp_path), acl()) as broker:
        shadow = Shadow()
        with serving(broker, shadow) as cloud:
            yield Fleet(tmp_path, broker, cloud, shadow)


def test_a_configuration_from_the_shadow_is_applied_without_a_restart_and_holds_after_one(fleet: Fleet) -> None:
    with fleet.device as device:
        device.wait_until(lambda: "publishing as" in device.said())
        fleet.want(1, fleet.watch(0))
        told = fleet.shadow.wait("applied", 1)
        assert told["confirmed"] == 1
        fleet.child()
        fleet.cloud.wait(ALARMS, lambda found: any(one["event"] == "alarm" for one in found))
        assert fleet.remote() == {"version": 1, "state": "applied", "confirmed": 1}
        # Nothing of this may be taken: not signed by the owner, older, not to be set from afar, not valid.
        for version, text, says in (
            (2, '[daemon]\nstate_dir = "/x"\n', "daemon: is not set from afar"),
            (3, "[report]\ninterval_s = 0\n", "report.interval_s: expected an integer >= 1, found 0"),
            (4, "[", "is not TOML"),
        ):
            fleet.want(version, text)
            assert says in fleet.shadow.wait("rejected", version)["error"]
        fleet.want(1, fleet.watch(5))
        assert "version 4 was seen before" in fleet.shadow.wait("rejected", 1)["error"]
        forged = {**fleet.shadow.desired, "version": 9}
        want(fleet.cloud, fleet.shadow, forged)
        assert "the signature is not" in fleet.shadow.wait("rejected", 9)["error"]
        told_states = [(told.get("version"), told["state"]) for told in fleet.shadow.told]
        assert len(told_states) == len(set(told_states)), "nothing is told over and over"
        assert device.stop() == 0
        count = len(fleet.cloud.on(ALARMS))
        device.start()
        fleet.child()
        fleet.cloud.wait(ALARMS, lambda found: sum(one["event"] == "alarm" for one in found[count:]) > 0)
        assert fleet.remote()["confirmed"] == 1


@pytest.mark.parametrize(
    # The journal of one that is applied: on trial, confirmed.
    ("moment", "outcome"),
    [(0, "applied"), (1, "rolled_back"), (2, "rolled_back"), (3, "applied")],
)
def test_a_daemon_that_dies_at_any_stage_has_taken_all_of_it_or_nothing(
    fleet: Fleet, moment: int, outcome: str
) -> None:
    device = fleet.device
    with device.stderr.open("ab") as stderr:
        dying = [*DYING, f"{moment}:remote.json", "run", "-c", str(device.configuration)]
        device.process = subprocess.Popen(dying, stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        device.wait_until(lambda: "publishing as" in device.said())
        fleet.want(1, fleet.watch(0))
        assert device.process.wait(60) == -signal.SIGKILL, device.said()
    finally:
        device.process.kill()
        device.process.wait()
    with device:
        told = fleet.shadow.wait(outcome, 1)
        assert told.get("confirmed") == (1 if outcome == "applied" else None)
        if outcome == "rolled_back":
            assert told["error"] == "the daemon ended before it was confirmed"
        else:
            fleet.child()
            fleet.cloud.wait(ALARMS, lambda found: any(one["event"] == "alarm" for one in found))
        fleet.want(2, fleet.watch(0))
        fleet.shadow.wait("applied", 2)


def test_a_configuration_that_the_broker_never_hears_of_is_rolled_back(tmp_path: Path) -> None:
    may = MAY.replace(f"topic write {BASE}/update\n", "")
    with Broker(tmp_path, Authority(tmp_path), acl(may=may)) as broker:
        shadow = Shadow()
        with serving(broker, shadow) as cloud:
            fleet = Fleet(tmp_path, broker, cloud, shadow, confirm_s=1)
            with fleet.device as device:
                device.wait_until(lambda: "publishing as" in device.said())
                fleet.want(1, fleet.watch(0))
                device.wait_until(lambda: "remote configuration 1 is rolled back" in device.said())
                assert "not authorized" in device.said()
                fleet.child()
                assert fleet.remote()["state"] == "rolled_back"
                fleet.want(2, fleet.watch(1))
                device.wait_until(lambda: "remote configuration 2 is rolled back" in device.said())
            assert fleet.cloud.on(ALARMS) == [], "the file's own limit held"
