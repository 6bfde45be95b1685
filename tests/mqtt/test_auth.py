"""Every way of proving who the device is reaches a broker, as the service would see it.

Owns the methods of authentication, ports and proxies. Refuses to know what a link does once it stands (test_link).
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trustme

from monitor.defender.connection import Connection
from monitor.schema import Auth, Proxy
from tests.mqtt.between import Between
from tests.mqtt.broker import LEAST_PRIVILEGE, THING, Authority, Broker, free_port
from tests.mqtt.hsm import HSM, LIBRARY, Token, secret
from tests.mqtt.wires import REPORT, connection, linked, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CLIENT = f"{THING}-kinwatch"
QUERY_KEY = "the key"
REGION = "eu-west-1"


class Open:
    """A broker with two listeners more, for anybody: plain MQTT, and MQTT in WebSockets without TLS."""

    def __init__(self, folder: Path) -> None:
        self.plain, self.websocket = free_port(), free_port()
        self.authority = Authority(folder)
        acl = f"topic write {REPORT}\n\n" + LEAST_PRIVILEGE.format(client=CLIENT, thing=THING)
        more = [
            "allow_anonymous true",
            *(f"listener {self.plain} 127.0.0.1", "protocol mqtt"),
            *(f"listener {self.websocket} 127.0.0.1", "protocol websockets"),
        ]
        self.broker = Broker(folder, self.authority, acl, more=more)

    def heard(self) -> int:
        """How many reports came."""
        return len(re.findall(rf"Received PUBLISH from \S+ \(.*'{re.escape(REPORT)}'", self.broker.log()))

    def connection(self, **values: Any) -> Connection:  # noqa: ANN401
        """To one of the listeners, as nobody in particular."""
        root_ca = str(self.authority.root_ca)
        return Connection(**({"client_id": "nobody", "endpoint": "localhost", "root_ca": root_ca} | values))


@pytest.fixture
def anybody(tmp_path: Path) -> Iterator[Open]:
    """A broker for anybody."""
    made = Open(tmp_path)
    with made.broker:
        yield made


async def publish(settings: Connection) -> None:
    """Connect and publish once."""
    async with linked(settings) as (link, _):
        await link.publish(REPORT, b"{}")


# -------- PKCS#11 --------


@pytest.fixture
def token(tmp_path: Path) -> Token:
    """A token of this test."""
    folder = tmp_path / "hsm"
    folder.mkdir()
    return Token(folder)


@pytest.mark.parametrize("kind", [trustme.KeyType.ECDSA, trustme.KeyType.RSA], ids=["EC", "RSA"])
def test_a_key_in_a_token_never_leaves_it_and_publishes(
    broker: Broker, tmp_path: Path, token: Token, kind: trustme.KeyType
) -> None:
    identity = broker.authority.identity(CLIENT, key_type=kind)
    token.keep(identity.private_key, "key")
    auth = Auth(method="pkcs11", library=LIBRARY, token=HSM, key_label="key", pin_file=secret(tmp_path, "1234"))
    assert token.publish(connection(broker, private_key="", auth=auth)) == ""
    assert f"Received PUBLISH from {CLIENT}" in broker.log()


def test_a_token_with_one_key_needs_no_label_of_it_and_what_does_not_fit_is_named_by_its_key(
    broker: Broker, tmp_path: Path, token: Token
) -> None:
    identity = broker.authority.identity(CLIENT)
    token.keep(identity.private_key, "key")
    auth = Auth(method="pkcs11", library=LIBRARY, token=HSM, pin_file=secret(tmp_path, "1234"))
    settings = connection(broker, private_key="", auth=auth)
    assert token.publish(settings) == ""
    for changes, key in (
        ({"pin_file": secret(tmp_path, "4321")}, "pin_file"),
        ({"token": "another"}, "token"),
        ({"key_label": "another"}, "key_label"),
        ({"library": "/usr/lib/os-release"}, "library"),
    ):
        wrong = msgspec.structs.replace(settings, auth=msgspec.structs.replace(auth, **changes))
        assert token.publish(wrong).startswith(f"defender.auth.{key}: ")


# -------- WebSocket with SigV4 --------


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS credentials that are good for nothing: in the environment, and in a profile."""
    (tmp_path / "aws").write_text("[device]\naws_access_key_id = INPROFILE\naws_secret_access_key = worthless\n")
    (tmp_path / "aws-config").write_text("")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "INENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "worthless")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "temporary")


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize(("profile", "key"), [("", "INENVIRONMENT"), ("device", "INPROFILE")])
def test_a_websocket_is_asked_for_with_a_signature(anybody: Open, profile: str, key: str) -> None:
    auth = Auth(method="websocket", region=REGION, profile=profile)
    with Between(anybody.websocket, front=anybody.authority.identity("front", "localhost"), http=True) as front:
        run(publish(anybody.connection(port=front.own_port, auth=auth)))
        request = front.heads[0]
    assert anybody.heard() == 1
    assert request.startswith("GET /mqtt?")
    assert "\r\nUpgrade: websocket\r\n" in request
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in request
    assert re.search(rf"X-Amz-Credential={key}%2F\d{{8}}%2F{REGION}%2Fiotdevicegateway%2Faws4_request", request)
    assert re.search(r"X-Amz-Signature=[0-9a-f]{64}", request)
    assert ("X-Amz-Security-Token=temporary" in request) == (profile == "")


# -------- custom authorizer --------


def test_what_a_custom_authorizer_wants_comes_with_connect(tmp_path: Path) -> None:
    """The truth is mosquitto's password file: it takes this user name with this password and no other."""
    name = "me?x-amz-customauthorizer-name=my%3Dauthorizer&x-amz-customauthorizer-signature=c2ln%2BbmVk&the%20key=a%26b"
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-c", "-b", str(passwords), name, "open sesame"], check=True)
    authority = Authority(tmp_path)
    acl = f"user {name}\ntopic write {REPORT}\n"
    auth = Auth(
        method="custom-authorizer",
        authorizer="my=authorizer",
        username="me",
        password_file=secret(tmp_path, "open sesame"),
        token_key=QUERY_KEY,
        token_file=secret(tmp_path, "a&b"),
        signature_file=secret(tmp_path, "c2ln+bmVk"),
    )
    with Broker(tmp_path, authority, acl, listener=[f"password_file {passwords}"]) as broker:
        settings = Connection(
            endpoint="localhost",
            port=broker.port,
            client_id=CLIENT,
            root_ca=str(authority.root_ca),
            auth=auth,
        )
        run(publish(settings))
        assert f"Received PUBLISH from {CLIENT}" in broker.log()

        async def refused() -> None:
            wrong = msgspec.structs.replace(auth, password_file=secret(tmp_path, "open barley"))
            async with linked(msgspec.structs.replace(settings, auth=wrong), up=False) as (_, ear):
                await ear.until(lambda: ear.downs)
                assert ear.downs[0].startswith(("refused with 134: bad user name", "refused with 135: not authorized"))

        run(refused())


# -------- proxy, port, no TLS --------


def test_a_proxy_is_asked_for_a_way_to_the_endpoint(broker: Broker) -> None:
    with Between(0, proxy=True) as proxy:
        run(publish(connection(broker, proxy=Proxy(host="127.0.0.1", port=proxy.own_port))))
        assert proxy.heads[0].startswith(f"CONNECT localhost:{broker.port} HTTP/1.1\r\n")
    assert f"Received PUBLISH from {CLIENT}" in broker.log()


@pytest.mark.usefixtures("credentials")
def test_a_websocket_goes_through_a_proxy_as_well(anybody: Open) -> None:
    front = Between(anybody.websocket, front=anybody.authority.identity("front", "localhost"), http=True)
    auth = Auth(method="websocket", region=REGION)
    with front, Between(0, proxy=True) as proxy:
        way = Proxy(host="127.0.0.1", port=proxy.own_port)
        run(publish(anybody.connection(port=front.own_port, auth=auth, proxy=way)))
        assert proxy.heads[0].startswith(f"CONNECT localhost:{front.own_port} HTTP/1.1\r\n")
        assert front.heads[0].startswith("GET /mqtt?X-Amz-")
    assert anybody.heard() == 1


def test_a_proxy_that_does_not_let_us_through_is_said(broker: Broker) -> None:
    async def scenario() -> None:
        with Between(0, proxy=True, answer=b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n") as proxy:
            way = Proxy(host="127.0.0.1", port=proxy.own_port)
            async with linked(connection(broker, proxy=way), up=False) as (_, ear):
                await ear.until(lambda: ear.downs)
                assert ear.downs[0].startswith("the proxy does not let us through"), ear.downs

    run(scenario())


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize(
    ("method", "alpn"), [("mtls", "x-amzn-mqtt-ca"), ("websocket", "http/1.1"), ("custom-authorizer", "mqtt")]
)
def test_port_443_tells_the_service_which_protocol_comes(anybody: Open, method: str, alpn: str) -> None:
    address = "127.0.0.43"
    server = anybody.authority.identity("front", address)
    websocket = method == "websocket"
    behind = anybody.websocket if websocket else anybody.plain
    client = anybody.authority.identity(CLIENT)
    files = {"certificate": str(client.certificate), "private_key": str(client.private_key)} if method == "mtls" else {}
    auth = Auth(method=method, region=REGION if websocket else "")  # type: ignore[arg-type]
    asks = anybody.authority.root_ca if method == "mtls" else None
    with Between(behind, host=address, own=443, front=server, asks=asks, http=websocket) as front:
        run(publish(anybody.connection(endpoint=address, port=443, auth=auth, **files)))
        assert front.alpn == [alpn]
    assert anybody.heard() == 1


def test_without_a_certificate_there_is_no_tls(anybody: Open) -> None:
    run(publish(anybody.connection(port=anybody.plain)))
    assert anybody.heard() == 1
