"""What is looked at before the first connection: files, modes, the pair of certificate and key, the authority.

Owns the refusals and their remedies. Refuses to connect.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from monitor.errors import ConfigInvalid

if TYPE_CHECKING:
    from monitor.schema import Defender

_OTHERS = 0o077


def check(settings: Defender, now_s: float) -> list[str]:
    """Look at everything `[defender]` names; returns warnings. `now_s`: seconds since the epoch.

    Raises ConfigInvalid: the key, the path, what is wrong, what to do.
    """
    method = settings.auth.method
    if method in {"mtls", "pkcs11"}:
        _readable("defender.certificate", settings.certificate)
    if method == "mtls":
        _secret("defender.private_key", settings.private_key)
        _pair(settings.certificate, settings.private_key)
    for name in ("pin_file", "password_file", "token_file", "signature_file"):
        if path := getattr(settings.auth, name):
            _secret(f"defender.auth.{name}", path)
    if method == "pkcs11":
        _readable("defender.auth.library", settings.auth.library)
        _secret("defender.auth.pin_file", settings.auth.pin_file)
    if settings.root_ca:
        _readable("defender.root_ca", settings.root_ca)
        _authority(settings.root_ca, now_s)
    if settings.client_id == settings.thing:
        return [
            "defender.client_id is the thing's name: the broker allows one connection of a client id, so an application"
            " that connects as the thing and kinwatch would throw each other out"
        ]
    return []


def _refuse(key: str, what: str, remedy: str) -> NoReturn:
    raise ConfigInvalid(f"{key}: {what}; {remedy}")


def _readable(key: str, path: str) -> None:
    if not path:
        _refuse(key, "expected a path, found none", "this way of authentication needs it")
    try:
        Path(path).read_bytes()
    except OSError as error:
        _refuse(key, f"{path} cannot be read: {error.strerror}", "name a file that is there")


def _secret(key: str, path: str) -> None:
    _readable(key, path)
    mode = Path(path).stat().st_mode & 0o777
    if mode & _OTHERS:
        _refuse(key, f"{path} has mode {mode:04o}, others than its owner may use it", f"chmod 600 {path}")


def _pair(certificate: str, private_key: str) -> None:
    def locked() -> NoReturn:
        _refuse("defender.private_key", f"{private_key} is encrypted", "a daemon cannot ask for a password: decrypt it")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, private_key, password=locked)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            _refuse("defender.private_key", f"{private_key} is not the key of {certificate}", "name the pair")
        _refuse("defender.certificate", f"{certificate} and {private_key}: {error.reason}", "both must be PEM")


def _authority(path: str, now_s: float) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        _refuse("defender.root_ca", f"{path}: {error.reason}", "expected certificates in PEM")
    ends = [str(found["notAfter"]) for found in context.get_ca_certs() if "notAfter" in found]
    if ends and all(ssl.cert_time_to_seconds(end) < now_s for end in ends):
        _refuse("defender.root_ca", f"{path} expired on {ends[0]}", "get the current one, and check the date here")
