"""A device that provisions itself publishes as who it became, and changes its certificate without an end.

Owns the link that does it, the daemon with it, and keys that are made in a token. Refuses to know the steps of the way
(test_provisioning).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from monitor import config
from monitor.defender.link import Unreachable
from monitor.provisioning import command, link
from monitor.provisioning.identity import Identities
from monitor.provisioning.link import ProvisionedLink
from tests.kernel.conftest import LOCK_S, lock_is_held
from tests.mqtt.broker import Authority
from tests.mqtt.fleet import REGISTER, Device, Fleet
from tests.mqtt.hsm import HSM, LIBRARY, Token, secret
from tests.mqtt.rig import KINWATCH, Listener, shell
from tests.mqtt.wires import Ear, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from monitor.schema import Defender

TOPIC = "kinwatch/camera-4711/alarms"


def provision(device: Device) -> None:
    """The command, in this process."""
    command.run(config.load(device.configuration), lambda _: None)


def old(fleet: Fleet, device: Device) -> None:
    """Provision the device with a certificate that is to be replaced at once; the next one lasts."""
    fleet.days, fleet.age_days = 40, 30
    provision(device)
    fleet.age_days = 0


class Provisioned:
    """The link under test, and what it told."""

    def __init__(self, device: Device) -> None:
        settings = config.load(device.configuration)
        assert settings.defender is not None
        assert settings.provisioning is not None
        self.who: list[Defender] = []
        self.said: list[str] = []
        self.ear = Ear()
        self.link = ProvisionedLink(
            settings.defender, settings.provisioning, settings.daemon.state_dir, self.who.append, self._say
        )

    def _say(self, text: str) -> None:
        self.said.append(text)
        self.ear._tell()


@contextlib.asynccontextmanager
async def provisioned(device: Device) -> AsyncIterator[Provisioned]:
    """A started one."""
    made = Provisioned(device)
    made.link.start(made.ear)
    try:
        yield made
    finally:
        await made.link.stop(5)


# -------- the link --------


def test_a_link_without_a_certificate_gets_one_and_connects_as_its_thing(fleet: Fleet, device: Device) -> None:
    async def scenario() -> None:
        async with provisioned(device) as one:
            with pytest.raises(Unreachable, match="no certificate yet"):
                await one.link.publish(TOPIC, b"{}")
            await one.ear.until(lambda: one.ear.ups)
            assert [settings.thing for settings in one.who] == ["camera-4711"]
            await one.link.publish(TOPIC, b"{}")
            await one.ear.until(lambda: len(one.said) == 2)
        assert device.generations()[1]["step"] == "confirmed"

    run(scenario())
    assert "camera-4711-kinwatch" in fleet.broker.log()


def test_a_refusal_is_told_and_tried_again(fleet: Fleet, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "BACK_OFF_S", (0.05, 0.1))
    fleet.refusals += [(REGISTER, 403, "Forbidden"), (REGISTER, 500, "InternalFailureException")]

    async def scenario() -> None:
        async with provisioned(device) as one:
            await one.ear.until(lambda: one.ear.ups)
            assert [why.split(": ")[1][:3] for why in one.ear.downs] == ["403", "500"]

    run(scenario())
    assert len(fleet.issued) == 1


def test_a_link_replaces_its_certificate_and_goes_on_with_the_new_one(fleet: Fleet, device: Device) -> None:
    old(fleet, device)

    async def scenario() -> None:
        async with provisioned(device) as one:
            await one.ear.until(lambda: len(one.ear.ups) == 2)
            await one.link.publish(TOPIC, b"{}")
            assert [settings.certificate[-len("1/certificate.pem") :][0] for settings in one.who] == ["1", "2"]
            assert one.ear.downs == ["another certificate is used from now on"]
            await one.ear.until(lambda: any("connected with its own" in text for text in one.said))
            assert list(device.generations()) == [2]

    run(scenario())
    assert [one.name for one in fleet.active] == ["certificate1", "certificate2"]


def test_a_new_certificate_that_the_broker_does_not_take_leaves_the_old_one_in_use_and_is_given_up_at_last(
    fleet: Fleet, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "TRY_S", 1.0)
    monkeypatch.setattr(link, "AGAIN_S", 0.2)
    monkeypatch.setattr(link, "MOST_REFUSALS", 2)
    old(fleet, device)
    (tmp_path / "other").mkdir()
    fleet.signs = Authority(tmp_path / "other")

    async def scenario() -> None:
        async with provisioned(device) as one:
            await one.ear.until(lambda: any("the old one serves" in text for text in one.said))
            await one.ear.until(lambda: one.who[-1].certificate.endswith("1/certificate.pem"))
            fleet.signs = None
            await one.ear.until(lambda: any("is given up" in text for text in one.said))
            await one.ear.until(lambda: any("connected with its own certificate, certificate3" in t for t in one.said))
            await one.link.publish(TOPIC, b"{}")

    run(scenario())
    assert [journal["certificate_id"] for journal in device.generations().values()] == ["certificate3"]


def test_a_connection_that_breaks_is_no_reason_to_change_anything(fleet: Fleet, device: Device) -> None:
    async def scenario() -> None:
        async with provisioned(device) as one:
            await one.ear.until(lambda: one.ear.ups)
            fleet.broker.kill()
            await one.ear.until(lambda: one.ear.downs)
            fleet.broker.start()
            await one.ear.until(lambda: len(one.ear.ups) == 2)

    run(scenario())
    assert len(fleet.issued) == 1


# -------- keys in a token --------


@pytest.fixture
def token(tmp_path: Path) -> Token:
    """A token of this test."""
    folder = tmp_path / "hsm"
    folder.mkdir()
    return Token(folder)


def in_token(tmp_path: Path, fleet: Fleet, token: Token, *, claim: bool) -> Device:
    """A device whose key is made in a token; `claim`: that of the claim is there already."""
    pin = secret(tmp_path, "1234")
    auth = f'auth = {{ method = "pkcs11", library = "{LIBRARY}", token = "{HSM}", pin_file = "{pin}" }}'
    device = Device(tmp_path / "device", fleet.broker, auth=auth, claim='claim_key_label = "claim"' if claim else "")
    device.environment = {"SOFTHSM2_CONF": token.environment["SOFTHSM2_CONF"]}
    if claim:
        token.keep(fleet.broker.authority.known("claim").private_key, "claim")
    return device


def keys_of(token: Token) -> list[str]:
    """Labels of the private keys in the token."""
    listed = subprocess.run(
        ["p11tool", f"--provider={LIBRARY}", "--login", "--batch", "--list-privkeys", f"pkcs11:token={HSM}"],
        env={**token.environment, "GNUTLS_PIN": "1234"},
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    return [line.split(": ")[1] for line in listed.splitlines() if line.strip().startswith("Label: ")]


def clear_keys(folder: Path) -> list[Path]:
    """Files with a private key in clear."""
    return [path for path in folder.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]


def test_a_key_is_made_in_the_token_and_nothing_of_it_comes_to_the_disk(
    fleet: Fleet, tmp_path: Path, token: Token
) -> None:
    device = in_token(tmp_path, fleet, token, claim=True)
    done = device.provision()
    assert done.returncode == 0, done.stderr
    label = device.generations()[1]["key_label"]
    assert sorted(keys_of(token)) == ["claim", label]
    assert clear_keys(device.folder) == []
    assert not (device.identity / "1" / "key.pem").exists()
    assert "u'certificate1'" in fleet.broker.log()


def test_a_key_that_was_half_made_is_made_anew_and_one_that_is_replaced_is_destroyed(
    fleet: Fleet, tmp_path: Path, token: Token
) -> None:
    device = in_token(tmp_path, fleet, token, claim=False)
    # Right before the rename of the request: the key is in the token, and the journal does not know it.
    assert device.provision("-m", "tests.mqtt.dying", "2").returncode < 0
    assert len(keys_of(token)) == 1
    fleet.days, fleet.age_days = 40, 30
    assert device.provision().returncode == 0
    (first,) = keys_of(token)
    fleet.age_days = 0
    assert device.provision().returncode == 0
    (second,) = keys_of(token)
    assert (device.generations()[2]["key_label"], first != second) == (second, True)
    assert clear_keys(device.folder) == []


def test_a_token_that_cannot_be_used_is_said_with_what_to_try(fleet: Fleet, tmp_path: Path, token: Token) -> None:
    device = in_token(tmp_path, fleet, token, claim=False)
    pin = next(path for path in tmp_path.glob("secret-*"))
    pin.write_text("9999\n")
    done = device.provision()
    assert done.returncode == 4
    assert "p11tool ended with 1" in done.stderr
    assert "9999" not in done.stderr


# -------- the daemon --------


def test_an_alarm_from_before_the_certificate_arrives_as_of_the_thing(
    fleet: Fleet, device: Device, tmp_path: Path
) -> None:
    fleet.refusals.append((REGISTER, 500, "InternalFailureException"))
    application = shell(tmp_path)
    with device.configuration.open("a") as file:
        file.write(
            f'[[watch]]\nname = "myapp"\nexe = "{application}"\nexpect = {{ child_processes = 0 }}\n'
            f'[log]\nfile = "{device.folder / "events.jsonl"}"\n'
        )
    deadline = time.monotonic() + LOCK_S
    while lock_is_held() and time.monotonic() < deadline:
        time.sleep(0.05)
    with Listener(fleet.broker, ["kinwatch/#"]) as reader, (device.folder / "stderr").open("wb") as stderr:
        daemon = subprocess.Popen([*KINWATCH, "run", "-c", str(device.configuration)], stderr=stderr)
        try:
            wait_said(device, daemon, "watching (")
            subprocess.run([application, "-c", "/bin/true; /bin/true"], check=True)
            (alarm, *_) = reader.wait(TOPIC, lambda found: any(one["event"] == "alarm" for one in found))
            assert alarm["thing"] == "camera-4711"
            wait_said(device, daemon, "publishing as camera-4711")
            status = subprocess.run(
                [*KINWATCH, "status", "--json", "--socket", str(device.folder / "control.sock")],
                check=True,
                capture_output=True,
            ).stdout
            assert json.loads(status)["publisher"]["thing"] == "camera-4711"
        finally:
            daemon.terminate()
            assert daemon.wait(60) == 0
    assert Identities(str(device.state)).newest() is not None


def wait_said(device: Device, daemon: subprocess.Popen[bytes], text: str) -> None:
    """Wait for a line of the daemon's."""
    for _ in range(6000):
        said = (device.folder / "stderr").read_text(errors="replace")
        if text in said:
            return
        assert daemon.poll() is None, said
        time.sleep(0.01)
    raise AssertionError((device.folder / "stderr").read_text(errors="replace"))
