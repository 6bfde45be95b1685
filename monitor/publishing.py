"""What `[defender]` may say: which keys a way of authentication takes, which topics a broker takes, who we are there.

Owns the rules that need neither files nor a network. Refuses to follow a path and to miss one: defender.credentials
does, where something is to be published.
"""

from __future__ import annotations

import ipaddress
import re
import string
from typing import TYPE_CHECKING, Final, NoReturn

from monitor.errors import ConfigInvalid

if TYPE_CHECKING:
    from monitor.schema import Defender, Provisioning

CLOCK_SET_S: Final = 1_704_067_200
"""2024-01-01, seconds since the epoch. A device whose date is earlier has not learned it yet."""
SERVICE_SPACING_S: Final = 300
"""Least seconds between two reports that the service promises to take."""
MAX_CLIENT_ID_BYTES: Final = 128
MAX_TOPIC_BYTES: Final = 256
MAX_SLASHES: Final = 7
"""Limits of AWS IoT Core; those of topics do not count the first three segments of Basic Ingest."""

_FILES: Final = ("root_ca", "certificate", "private_key", "security_profile")
_AUTH_FILES: Final = ("library", "pin_file", "password_file", "token_file", "signature_file")
_NEEDS: Final[dict[str, tuple[str, ...]]] = {
    "mtls": ("certificate", "private_key"),
    "pkcs11": ("certificate", "auth.library", "auth.pin_file"),
    "websocket": (),
    "custom-authorizer": (),
}
"""Keys that a method cannot do without."""
_TAKES: Final[dict[str, tuple[str, ...]]] = {
    "mtls": (),
    "pkcs11": ("auth.token", "auth.key_label"),
    "websocket": ("auth.region", "auth.profile"),
    "custom-authorizer": (
        *("auth.authorizer", "auth.username", "auth.password_file"),
        *("auth.token_key", "auth.token_file", "auth.signature_file"),
    ),
}
"""Keys that it takes besides."""
_PROVISIONED: Final = ("thing", "certificate", "private_key", "auth.key_label")
"""What the file says nothing about where the device is provisioned."""
_SIGNED: Final = ("auth.token_key", "auth.token_file", "auth.signature_file")
_OF_METHODS: Final = sorted({key for keys in (*_NEEDS.values(), *_TAKES.values()) for key in keys})
_CERTIFICATE_PORT: Final = 8883
_THING: Final = re.compile(r"[a-zA-Z0-9:_-]{1,128}\Z")
_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?\Z")
_REGION: Final = re.compile(r"[a-z]{2}(-[a-z]+)+-[0-9]+\Z")
_RULES: Final = re.compile(r"\$aws/rules/[a-zA-Z0-9_]{1,128}(/|\Z)")


def client_id_of(defender: Defender) -> str:
    """Who we are at the broker: not the thing, which the application may be."""
    return defender.client_id.replace("{thing}", defender.thing) or f"{defender.thing}-kinwatch"


def is_thing(name: str) -> bool:
    """Whether AWS IoT would give a thing that name."""
    return _THING.match(name) is not None


def region_of(endpoint: str) -> str:
    """The AWS region in an endpoint's name (example-ats.iot.eu-west-1.amazonaws.com); "" when there is none."""
    region = endpoint.lower().partition(".iot.")[2].partition(".")[0]
    return region if _REGION.match(region) else ""


def topic(defender: Defender, key: str) -> str:
    """The topic that defender.alarm_topic or .events_topic (`key`) means; "" is none. Raises ConfigInvalid."""
    pattern: str = getattr(defender, key)
    try:
        parts = list(string.Formatter().parse(pattern))
    except ValueError as error:
        _refuse(key, f"expected a topic with {{thing}} at most, found {pattern!r} ({error})", "write {{ for a brace")
    strange = [
        name for _, name, form, conversion in parts if name is not None and (name != "thing" or form or conversion)
    ]
    if strange:
        _refuse(key, f"there is no {{{strange[0]}}}", "{thing} is the only placeholder; write {{ for a brace")
    return pattern.format(thing=defender.thing)


def rules(defender: Defender) -> None:
    """Judge what the types let pass. Raises ConfigInvalid, whose text begins with the key."""
    _paths(defender)
    _method(defender)
    _hosts(defender)
    _client_id(defender)
    if defender.client == "paho":
        paho_rules(defender)
    for key in ("alarm_topic", "events_topic"):
        if name := topic(defender, key):
            _topic(key, name)


def paho_rules(defender: Defender) -> None:
    """Judge what paho-mqtt has no part for. Raises ConfigInvalid, whose text begins with the key."""
    remedy = "awsiotsdk has it, for x86_64 and aarch64"
    if defender.auth.method != "mtls":
        _refuse("auth.method", f"expected mtls, which paho can do, found {defender.auth.method}", remedy)
    if defender.proxy.host:
        _refuse("proxy.host", "expected none, because paho goes through no proxy", remedy)


def provisioning_rules(provisioning: Provisioning, defender: Defender | None) -> None:
    """Judge what the types let pass of `[provisioning]`. Raises ConfigInvalid, whose text begins with the key."""
    if defender is None:
        _refuse_key("provisioning", "there is no [defender]", "endpoint and way to the broker stand there")
    if defender.client == "paho":
        _refuse("client", "paho cannot be provisioned", "awsiotsdk can, on x86_64 and aarch64: remove the key")
    method = defender.auth.method
    if method not in {"mtls", "pkcs11"}:
        _refuse("auth.method", f"{method} knows no certificate", "[provisioning] needs mtls or pkcs11")
    for key in _PROVISIONED:
        if _value(defender, key):
            _refuse(key, "it comes from provisioning", "remove it here, or remove [provisioning]")
    if method == "pkcs11" and not defender.auth.token:
        _refuse("auth.token", "expected the label of a token, found none", "a key is made there")
    _claim_key(provisioning, method)
    for name, value in provisioning.parameters.items():
        for word in re.findall(r"\{([^{}]*)\}", value):
            if word not in {"hostname", "machine_id"} and not word.startswith("file:/"):
                known = "{hostname}, {machine_id} and {file:/path} are known"
                _refuse_key(f"provisioning.parameters.{name}", f"there is no {{{word}}}", known)


def _claim_key(provisioning: Provisioning, method: str) -> None:
    path, label = provisioning.claim_private_key, provisioning.claim_key_label
    if path and (not path.startswith("/") or "\0" in path):
        what = f"expected an absolute path, found {path!r}"
        _refuse_key("provisioning.claim_private_key", what, "a daemon has no directory of its own")
    if label and method != "pkcs11":
        what = f"defender.auth.method is {method}, which knows no token"
        _refuse_key("provisioning.claim_key_label", what, "name a file in claim_private_key")
    if bool(path) == bool(label):
        found = "both" if path else "neither"
        what = f"expected claim_private_key or claim_key_label, found {found}"
        _refuse_key("provisioning.claim_private_key", what, "the claim certificate has one key")


def _refuse_key(key: str, what: str, remedy: str) -> NoReturn:
    raise ConfigInvalid(f"{key}: {what}; {remedy}")


def _refuse(key: str, what: str, remedy: str) -> NoReturn:
    raise ConfigInvalid(f"defender.{key}: {what}; {remedy}")


def _value(defender: Defender, key: str) -> str:
    table, _, name = key.rpartition(".")
    value: str = getattr(defender.auth if table else defender, name)
    return value


def _paths(defender: Defender) -> None:
    for key in (*_FILES, *(f"auth.{name}" for name in _AUTH_FILES)):
        path = _value(defender, key)
        if path and (not path.startswith("/") or "\0" in path):
            _refuse(key, f"expected an absolute path, found {path!r}", "a daemon has no directory of its own")


def _method(defender: Defender) -> None:
    method = defender.auth.method
    known = {*_NEEDS[method], *_TAKES[method]}
    for key in _OF_METHODS:
        if key not in known and _value(defender, key):
            _refuse(key, f"auth.method {method} has no use for it", f"remove it, or choose a method: {_users(key)}")
    signed = [key for key in _SIGNED if _value(defender, key)]
    if signed and len(signed) < len(_SIGNED):
        missing = next(key for key in _SIGNED if key not in signed)
        _refuse(missing, f"expected a value beside {signed[0]}, found none", "a signed token needs all three of them")
    if method == "websocket" and not defender.auth.region and not region_of(defender.endpoint):
        _refuse("auth.region", "expected an AWS region, found none", "the endpoint's name does not tell it")
    if method in {"websocket", "custom-authorizer"} and defender.port == _CERTIFICATE_PORT:
        _refuse("port", f"{defender.port} takes certificates only", f"auth.method {method} goes to 443")


def _users(key: str) -> str:
    return " | ".join(method for method in _NEEDS if key in (*_NEEDS[method], *_TAKES[method]))


def _hosts(defender: Defender) -> None:
    for key, host in (("endpoint", defender.endpoint), ("proxy.host", defender.proxy.host)):
        if host and not _HOST.match(host) and not _is_address(host):
            _refuse(key, f"expected a host name, found {host!r}", "without https://, without a port, without a path")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _client_id(defender: Defender) -> None:
    client_id = client_id_of(defender)
    if len(client_id.encode(errors="replace")) > MAX_CLIENT_ID_BYTES:
        what = f"expected at most {MAX_CLIENT_ID_BYTES} bytes, found {client_id!r}"
        _refuse(
            "client_id", what, "a shorter one will do" if defender.client_id else "the thing's name is long: set one"
        )
    if not client_id.isprintable():
        _refuse("client_id", f"expected printable characters, found {client_id!r}", "a broker refuses others")


def _topic(key: str, name: str) -> None:
    if {"+", "#"} & set(name):
        _refuse(key, f"expected a topic, found a filter, {name!r}", "nothing can be published to + and #")
    if not name.isprintable():
        _refuse(key, f"expected printable characters, found {name!r}", "a broker refuses others")
    counted = name
    if name.startswith("$"):
        ingest = _RULES.match(name)
        if ingest is None:
            _refuse(
                key, f"{name!r} is reserved", "of the topics that begin with $ only $aws/rules/<rule>/... takes this"
            )
        counted = name[ingest.end() :]
    if counted.count("/") > MAX_SLASHES:
        _refuse(key, f"expected at most {MAX_SLASHES} slashes, found {counted.count('/')}", "AWS IoT refuses more")
    if len(counted.encode(errors="replace")) > MAX_TOPIC_BYTES:
        _refuse(key, f"expected at most {MAX_TOPIC_BYTES} bytes, found {len(counted.encode())}", "AWS IoT refuses more")
