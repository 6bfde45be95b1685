"""What a configuration may say about provisioning, when a certificate is replaced, and what of an answer is believed.

Owns everything that needs no broker. Refuses to know the way (tests/mqtt/test_provisioning.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from monitor import config
from monitor.defender.link import Unreachable
from monitor.defender.x509 import Validity, der, public_key
from monitor.errors import ConfigInvalid
from monitor.provisioning import link, look
from monitor.provisioning.answers import Issued, Registered
from monitor.provisioning.flow import parameters, provision
from monitor.provisioning.identity import DAY_S, Identities, claim_of, due_s
from monitor.provisioning.keys import FileKeys, KeyUnavailable
from monitor.publishing import client_id_of
from monitor.schema import Auth, Defender, Provisioning

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from monitor.defender.link import Listener
    from monitor.provisioning.identity import Generation

DEFENDER = '[defender]\nendpoint = "e"\n'
CLAIM = '[provisioning]\ntemplate = "cameras"\nclaim_certificate = "/c.pem"\n'
GOOD = DEFENDER + CLAIM + 'claim_private_key = "/c.key"\n'
TOKENS = 'auth = { method = "pkcs11", library = "/l", token = "t", pin_file = "/p" }\n'
YEAR = Validity(0, 365 * DAY_S)


def settings(**more: object) -> Provisioning:
    """A table, with what is given."""
    return Provisioning(template="cameras", claim_certificate="/c.pem", claim_private_key="/c.key", **more)  # type: ignore[arg-type]


# -------- the configuration --------


def test_a_provisioned_device_needs_no_thing_and_no_certificate_in_its_configuration() -> None:
    found = config.parse(GOOD, "f")
    assert found.provisioning == settings()
    assert found.defender == Defender(endpoint="e")
    config.parse(DEFENDER + TOKENS + CLAIM + 'claim_key_label = "claim"\n', "f")
    config.parse(DEFENDER + TOKENS + CLAIM + 'claim_private_key = "/c.key"\n', "f")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CLAIM + 'claim_private_key = "/k"', "provisioning: there is no [defender]; "),
        (GOOD.replace("[prov", 'thing = "a"\n[prov'), "defender.thing: it comes from provisioning; remove it here"),
        (GOOD.replace("[prov", 'certificate = "/a"\n[prov'), "defender.certificate: it comes from provisioning; "),
        (GOOD.replace("[prov", 'private_key = "/a"\n[prov'), "defender.private_key: it comes from provisioning; "),
        (
            GOOD.replace("[prov", 'auth = { method = "websocket", region = "r-r-1" }\n[prov'),
            "defender.auth.method: websocket knows no certificate; ",
        ),
        (
            DEFENDER + TOKENS.replace('token = "t", ', "") + CLAIM + 'claim_key_label = "x"',
            "defender.auth.token: expected the label of a token, found none; ",
        ),
        (
            DEFENDER + TOKENS.replace(" }", ', key_label = "k" }') + CLAIM + 'claim_key_label = "x"',
            "defender.auth.key_label: it comes from provisioning; ",
        ),
        (
            DEFENDER + CLAIM,
            "provisioning.claim_private_key: expected claim_private_key or claim_key_label, found neither; ",
        ),
        (
            DEFENDER + TOKENS + CLAIM + 'claim_key_label = "x"\nclaim_private_key = "/x"',
            "provisioning.claim_private_key: expected claim_private_key or claim_key_label, found both; ",
        ),
        (DEFENDER + CLAIM + 'claim_key_label = "x"', "provisioning.claim_key_label: defender.auth.method is mtls, "),
        (
            DEFENDER + CLAIM + 'claim_private_key = "x"',
            "provisioning.claim_private_key: expected an absolute path, found 'x'; ",
        ),
        (GOOD.replace('"/c.pem"', '"c.pem"'), "provisioning.claim_certificate: expected absolute path of the claim"),
        (GOOD.replace("cameras", "a/b"), "provisioning.template: expected a template's name: 1 to 36 of "),
        (GOOD + "rotate_days = -1", "provisioning.rotate_days: expected an integer >= 0, found -1; "),
        (GOOD + 'parameters = { A = "{x}" }', "provisioning.parameters.A: there is no {x}; {hostname}, {machine_id}"),
        (GOOD + "parameters = { A = 3 }", "provisioning.parameters"),
        ("[provisioning]\n", "provisioning.template: expected a value, found none; "),
    ],
)
def test_what_cannot_be_provisioned_is_refused_by_its_key(text: str, message: str) -> None:
    with pytest.raises(ConfigInvalid) as found:
        config.parse(text, "f")
    assert str(found.value).startswith(f"f: {message}")


def test_a_claim_connects_under_a_name_that_no_other_device_has() -> None:
    first, second = (client_id_of(claim_of(Defender(endpoint="e"), settings())) for _ in range(2))
    assert first.startswith("kinwatch-claim-")
    assert first != second


def test_a_client_id_may_name_the_thing() -> None:
    assert client_id_of(Defender(thing="camera-1", endpoint="e", client_id="{thing}")) == "camera-1"


def test_parameters_are_filled_in_on_the_device(tmp_path: Path) -> None:
    (tmp_path / "serial").write_bytes(b"4711\0")
    wanted = {"A": f"a-{{file:{tmp_path}/serial}}", "B": "{hostname}", "C": "north"}
    assert parameters(settings(parameters=wanted)) == {"A": "a-4711", "B": socket.gethostname(), "C": "north"}
    with pytest.raises(ConfigInvalid, match=r"^provisioning.parameters: /nowhere cannot be read: No such file"):
        parameters(settings(parameters={"A": "{file:/nowhere}"}))


# -------- when --------


def test_a_certificate_is_replaced_before_it_ends_or_when_it_is_old() -> None:
    assert due_s(YEAR, settings()) == 335 * DAY_S
    assert due_s(YEAR, settings(max_age_days=90)) == 90 * DAY_S
    assert due_s(YEAR, settings(rotate_days=0, max_age_days=90)) == 90 * DAY_S
    assert due_s(YEAR, settings(rotate_days=0)) == 365 * DAY_S, "with one that ended nobody can connect"


def test_a_certificate_that_lives_shorter_than_the_notice_is_replaced_after_half_of_its_life() -> None:
    assert due_s(Validity(0, 10 * DAY_S), settings()) == 5 * DAY_S


# -------- what is believed --------


def request(folder: Path) -> str:
    """A request for a fresh key."""
    keys = FileKeys(folder / f"key{len(list(folder.iterdir()))}.pem")
    keys.make()
    return keys.request()


def issued_for(pem: str, *, ended: bool = False) -> str:
    """A certificate for a request's key."""
    ca = trustme.CA()
    key = serialization.load_pem_private_key(ca.private_key_pem.bytes(), password=None)
    wanted = x509.load_pem_x509_csr(pem.encode())
    authority = x509.load_pem_x509_certificate(ca.cert_pem.bytes())
    builder = x509.CertificateBuilder(wanted.subject, authority.subject, wanted.public_key(), 1)
    begin, end = authority.not_valid_before_utc, authority.not_valid_after_utc
    end = begin + dt.timedelta(days=1) if ended else end
    builder = builder.not_valid_before(begin).not_valid_after(end)
    return builder.sign(key, wanted.signature_hash_algorithm).public_bytes(serialization.Encoding.PEM).decode()  # type: ignore[arg-type]


def test_the_public_key_of_a_request_is_the_one_that_openssl_and_its_certificate_show(tmp_path: Path) -> None:
    pem = request(tmp_path)
    shown = subprocess.run(
        ["openssl", "req", "-pubkey", "-noout"], input=pem.encode(), capture_output=True, check=True
    ).stdout
    told = serialization.load_pem_public_key(shown)
    spki = told.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert public_key(pem) == spki
    assert spki in der(issued_for(pem))


@given(st.text(max_size=80))
def test_what_is_no_request_is_refused_and_nothing_else(text: str) -> None:
    for whole in (text, f"-----BEGIN CERTIFICATE REQUEST-----{text}-----END CERTIFICATE REQUEST-----"):
        with pytest.raises(ValueError):  # noqa: PT011 - the type is the fact
            public_key(whole)


class Double:
    """A service that answers what it was told to."""

    def __init__(self, certificate: str, thing: str = "camera-1") -> None:
        self.certificate, self.thing = certificate, thing
        self.registered = 0

    async def create(self, request: str) -> Issued:  # noqa: ARG002
        """Somebody's certificate."""
        return Issued("id", self.certificate, "token")

    async def register(self, template: str, ownership_token: str, parameters: dict[str, str]) -> Registered:  # noqa: ARG002
        """Somebody's name."""
        self.registered += 1
        return Registered(self.thing, {})


@pytest.mark.parametrize("certificate", ["", "no PEM", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----"])
def test_an_answer_without_a_certificate_is_not_taken(tmp_path: Path, certificate: str) -> None:
    identities = Identities(str(tmp_path))
    with identities.held(), pytest.raises(Unreachable, match="no certificate"):
        asyncio.run(provision(identities, settings(), Auth(), Double(certificate), lambda: 0.0))
    assert identities.newest() is None


def test_a_certificate_for_another_key_is_not_taken(tmp_path: Path) -> None:
    """On a broker that is not AWS every device with the claim hears every answer."""
    identities, service = Identities(str(tmp_path)), Double(issued_for(request(tmp_path)))
    with identities.held(), pytest.raises(Unreachable, match="for another key"):
        asyncio.run(provision(identities, settings(), Auth(), service, lambda: 0.0))
    assert service.registered == 0
    unfinished = identities.unfinished()
    assert unfinished is not None
    assert unfinished.state.step == "requested"


@pytest.mark.parametrize("thing", ["a/b", "a b", "ä", "a" * 129, "../x"])
def test_a_name_that_no_thing_can_have_is_not_taken(tmp_path: Path, thing: str) -> None:
    identities = Identities(str(tmp_path))
    with identities.held():
        generation = identities.begin("")
        FileKeys(generation.folder / "key.pem").make()
        generation.request.write_text(FileKeys(generation.folder / "key.pem").request())
        generation.note(step="requested")
        service = Double(issued_for(generation.request.read_text()), thing)
        with pytest.raises(Unreachable, match="is no thing's name"):
            asyncio.run(provision(identities, settings(), Auth(), service, lambda: 0.0))
    assert identities.newest() is None


def test_a_program_that_is_missing_is_said_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KeyUnavailable, match="openssl is not installed; install Debian's openssl"):
        FileKeys(tmp_path / "key.pem").make()
    assert list(tmp_path.iterdir()) == []


# -------- which certificate is used --------


def generation(folder: Path, identities: Identities, step: str, *, ended: bool = False) -> Generation:
    """One that came as far as that."""
    made = identities.begin("")
    made.certificate.write_text(issued_for(request(folder), ended=ended))
    made.note(step=step, thing="camera-1", certificate_id=f"id{made.number}")
    return made


class Wire:
    """A link whose broker takes every certificate."""

    started: list[str]

    def __init__(self, settings: Defender) -> None:
        self.certificate = settings.certificate

    def start(self, listener: Listener) -> None:
        """Connected at once."""
        self.started.append(self.certificate)
        asyncio.get_running_loop().call_soon(lambda: listener.connected(resumed=False))

    async def stop(self, timeout_s: float) -> None:
        """Nothing stays."""


@contextlib.asynccontextmanager
async def linked(
    monkeypatch: pytest.MonkeyPatch, folder: Path, **more: object
) -> AsyncIterator[tuple[list[str], Callable[[str], asyncio.Future[None]]]]:
    """A link of a provisioned device over wires; what it started, and how to wait until it says something."""
    said: list[str] = []
    waits: dict[str, asyncio.Future[None]] = {}

    def say(text: str) -> None:
        said.append(text)
        for part, wait in waits.items():
            if part in text and not wait.done():
                wait.set_result(None)

    def until(part: str) -> asyncio.Future[None]:
        return waits.setdefault(part, asyncio.get_running_loop().create_future())

    @contextlib.asynccontextmanager
    async def claim(wanted: Defender) -> AsyncIterator[None]:
        say(f"claim {wanted.certificate}")
        raise Unreachable("nobody is there")
        yield

    monkeypatch.setattr(link, "MqttLink", Wire)
    monkeypatch.setattr(link, "connection_of", lambda wanted: wanted)
    monkeypatch.setattr(link, "connected", claim)
    monkeypatch.setattr(Wire, "started", [], raising=False)
    made = link.ProvisionedLink(Defender(endpoint="e"), settings(**more), str(folder), lambda _: None, say)
    made.start(Ears())
    try:
        async with asyncio.timeout(30):
            yield Wire.started, until
    finally:
        await made.stop(1)


class Ears:
    """Hears a link and does nothing."""

    def connected(self, *, resumed: bool) -> None:
        """There is one."""

    def disconnected(self, why: str) -> None:
        """There is none."""

    def received(self, topic: str, payload: bytes) -> None:
        """Nothing is sent."""


def test_a_token_that_keeps_the_old_key_does_not_cost_the_connection_with_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identities = Identities(str(tmp_path))
    with identities.held():
        generation(tmp_path, identities, "confirmed")
        new = generation(tmp_path, identities, "registered")

    def kept(_: FileKeys) -> None:
        raise KeyUnavailable("the token keeps it")

    monkeypatch.setattr(FileKeys, "remove", kept)

    async def scenario() -> None:
        async with linked(monkeypatch, tmp_path) as (started, until):
            await asyncio.gather(until("cannot be removed: the token keeps it"), until("connected with its own"))
            await asyncio.sleep(0)
            assert started == [str(new.certificate)]

    asyncio.run(scenario())
    assert [one.state.step for one in identities.all()] == ["confirmed", "confirmed"]


@pytest.mark.parametrize("step", ["registered", "confirmed"])
def test_a_certificate_that_ended_before_the_broker_saw_it_is_replaced_with_the_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    identities = Identities(str(tmp_path))
    with identities.held():
        generation(tmp_path, identities, step, ended=True)

    async def scenario() -> None:
        async with linked(monkeypatch, tmp_path, rotate_days=0) as (_, until):
            await until("claim /c.pem")

    asyncio.run(scenario())


def test_a_certificate_that_is_damaged_is_said_with_its_file(tmp_path: Path) -> None:
    identities = Identities(str(tmp_path))
    with identities.held():
        made = generation(tmp_path, identities, "confirmed")
    made.certificate.write_text("nothing")
    text = f'{GOOD}[daemon]\nstate_dir = "{tmp_path}"\n'
    with pytest.raises(ConfigInvalid, match=r"daemon.state_dir: .*certificate.pem: .*; remove its directory"):
        look.described(config.parse(text, "f"), 0.0)
