"""AWS IoT fleet provisioning on a broker of a test: a certificate authority behind its topics, and a device at them.

Owns the answers, what they may be refused with, and the access lists by which a certificate becomes active. Refuses to
judge: tests do. Source: AWS IoT Developer Guide, "Device provisioning MQTT API".
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tests.mqtt.broker import EVERYTHING, LEAST_PRIVILEGE, Authority, Broker
from tests.mqtt.rig import Listener

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEMPLATE: Final = "cameras"
CREATE: Final = "$aws/certificates/create-from-csr/json"
REGISTER: Final = f"$aws/provisioning-templates/{TEMPLATE}/provision/json"
TOKEN_S: Final = 3600
CALLS: Final = """\
topic write $aws/certificates/create-from-csr/json
topic read $aws/certificates/create-from-csr/json/+
topic write $aws/provisioning-templates/cameras/provision/json
topic read $aws/provisioning-templates/cameras/provision/json/+

"""
"""What a claim certificate may do and no more; a certificate of one's own may do it as well, to be replaced."""
ACL: Final = f"user claim\n{CALLS}" + "".join(EVERYTHING.format(client=name) for name in ("fleet", "reader"))


@dataclass
class Certificate:
    """One that was issued."""

    name: str
    """Its common name, and its id."""
    pem: str
    token: str
    issued_s: float
    thing: str = ""
    """"" until it is registered."""


@dataclass
class Fleet:
    """The service. Used as the responder of a Listener."""

    broker: Broker
    signs: Authority | None = None
    """Who signs; None: the broker's own authority."""
    days: float = 365
    age_days: float = 0
    refusals: list[tuple[str, int, str]] = field(default_factory=list)
    """Answers to the next calls: topic, statusCode, errorCode."""
    silent: bool = False
    late_s: float = 0
    """How much older the service takes a token for."""
    issued: list[Certificate] = field(default_factory=list)
    parameters: list[dict[str, str]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    @property
    def active(self) -> list[Certificate]:
        """Those that were registered."""
        return [one for one in self.issued if one.thing]

    def answer(self, topic: str, payload: bytes, now_s: float) -> list[tuple[str, bytes]]:
        """Answer a call."""
        if topic not in {CREATE, REGISTER} or self.silent:
            return []
        self.calls.append(topic)
        if self.refusals and self.refusals[0][0] == topic:
            _, status, code = self.refusals.pop(0)
            return [_rejected(topic, status, code)]
        wanted = json.loads(payload)
        return [self._create(wanted, now_s) if topic == CREATE else self._register(wanted, now_s)]

    def _create(self, wanted: dict[str, Any], now_s: float) -> tuple[str, bytes]:
        name = f"certificate{len(self.issued) + 1}"
        signs = self.signs or self.broker.authority
        pem = signs.sign(wanted["certificateSigningRequest"], name, days=self.days, age_days=self.age_days)
        made = Certificate(name, pem, f"token of {name}", now_s)
        self.issued.append(made)
        answer = {"certificateId": name, "certificatePem": pem, "certificateOwnershipToken": made.token}
        return f"{CREATE}/accepted", json.dumps(answer).encode()

    def _register(self, wanted: dict[str, Any], now_s: float) -> tuple[str, bytes]:
        token = wanted.get("certificateOwnershipToken")
        found = next((one for one in self.issued if one.token == token), None)
        if found is None or now_s + self.late_s - found.issued_s > TOKEN_S:
            return _rejected(REGISTER, 400, "InvalidCertificateOwnershipToken")
        self.parameters.append(wanted.get("parameters", {}))
        found.thing = f"camera-{self.parameters[-1].get('SerialNumber', '0')}"
        self.broker.allow(LEAST_PRIVILEGE.format(client=found.name, thing=found.thing).rstrip() + f"\n{CALLS}")
        answer = {"thingName": found.thing, "deviceConfiguration": {"site": "north"}}
        return f"{REGISTER}/accepted", json.dumps(answer).encode()


def _rejected(topic: str, status: int, code: str) -> tuple[str, bytes]:
    answer = {"statusCode": status, "errorCode": code, "errorMessage": f"says {code}"}
    return f"{topic}/rejected", json.dumps(answer).encode()


def service(fleet: Fleet) -> Listener:
    """The service at its broker. A context manager."""
    return Listener(fleet.broker, [CREATE, REGISTER], name="fleet", responder=fleet)  # type: ignore[arg-type]


@dataclass
class Device:
    """A device with a claim, and the command that provisions it."""

    folder: Path
    broker: Broker
    more: str = ""
    """Further lines of [provisioning]."""
    auth: str = ""
    claim: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Write the configuration."""
        self.folder.mkdir(exist_ok=True)
        claim = self.broker.authority.known("claim")
        self.serial = self.folder / "serial"
        self.serial.write_bytes(b"4711\0")  # as a device tree has it
        self.state = self.folder / "state"
        self.identity = self.state / "identity"
        self.configuration = self.folder / "kinwatch.toml"
        self.configuration.write_text(
            f"""\
[daemon]
state_dir = "{self.state}"
socket = "{self.folder / "control.sock"}"
[defender]
endpoint = "localhost"
port = {self.broker.port}
root_ca = "{self.broker.authority.root_ca}"
{self.auth}
[provisioning]
template = "{TEMPLATE}"
claim_certificate = "{claim.certificate}"
{self.claim or f'claim_private_key = "{claim.private_key}"'}
parameters = {{ SerialNumber = "{{file:{self.serial}}}" }}
{self.more}
"""
        )

    def provision(self, *program: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end. `program`: what runs instead of kinwatch, with the same arguments."""
        return subprocess.run(
            [sys.executable, *(program or ("-m", "monitor")), "provision", "--json", "-c", str(self.configuration)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, **self.environment},
        )

    def generations(self) -> dict[int, dict[str, Any]]:
        """The journal of each generation."""
        return {
            int(path.parent.name): json.loads(path.read_text()) for path in sorted(self.identity.glob("*/state.json"))
        }

    def files(self) -> Iterator[Path]:
        """Everything below the state directory."""
        return self.state.rglob("*")
