"""What is looked at before the first connection: files, modes, the pair of certificate and key, dates.

Owns the refusals and their remedies. Refuses to connect.
"""

from __future__ import annotations

import os
import ssl
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from monitor.defender.x509 import Validity, validities
from monitor.errors import ConfigInvalid
from monitor.publishing import CLOCK_SET_S, client_id_of

if TYPE_CHECKING:
    from monitor.schema import Defender

SOON_S: Final = 30 * 86_400
"""A certificate that ends within this time is worth a warning."""
_OTHERS: Final = 0o077
_SECRETS: Final = ("password_file", "token_file", "signature_file")


def check(settings: Defender, now_s: float) -> list[str]:
    """Look at everything `[defender]` names; returns warnings. `now_s`: seconds since the epoch.

    Raises ConfigInvalid: the key, the path, what is wrong, what to do. A clock that was never set is a warning, because
    it will be set, and until then there is something to watch.
    """
    method = settings.auth.method
    warnings: list[str] = []
    if method in {"mtls", "pkcs11"}:
        warnings += _certificate(settings.certificate, now_s)
    if method == "mtls":
        _secret("defender.private_key", settings.private_key)
        _pair(settings.certificate, settings.private_key)
    if method == "pkcs11":
        _read("defender.auth.library", settings.auth.library)
        _secret("defender.auth.pin_file", settings.auth.pin_file)
    for name in _SECRETS:
        if path := getattr(settings.auth, name):
            _secret(f"defender.auth.{name}", path)
    if settings.root_ca:
        warnings += _authority(settings.root_ca, now_s)
    if client_id_of(settings) == settings.thing:
        warnings.append(
            "defender.client_id is the thing's name: the broker allows one connection of a client id, so an application"
            " that connects as the thing and kinwatch would throw each other out"
        )
    return warnings


def _refuse(key: str, what: str, remedy: str) -> NoReturn:
    raise ConfigInvalid(f"{key}: {what}; {remedy}")


def _read(key: str, path: str) -> bytes:
    if not path:
        _refuse(key, "expected a path, found none", "this way of authentication needs it")
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            _refuse(key, f"{path} is no file", "name one")
        return Path(path).read_bytes()
    except OSError as error:
        _refuse(key, f"{path} cannot be read: {error.strerror}", "name a file that is there and readable")
    except ValueError:
        _refuse(key, f"{path!r} is no path", "name a file")


def _secret(key: str, path: str) -> None:
    text = _read(key, path)
    found = Path(path).stat()
    mode = stat.S_IMODE(found.st_mode)
    if mode & _OTHERS:
        _refuse(key, f"{path} has mode {mode:04o}, others than its owner may use it", f"chmod 600 {path}")
    if found.st_uid not in {0, os.geteuid()}:
        remedy = f"chown {os.geteuid()} {path}"
        _refuse(key, f"{path} belongs to user {found.st_uid}, who may change and read it", remedy)
    if not text.strip():
        _refuse(key, f"{path} is empty", "write the secret into it")


def _pair(certificate: str, private_key: str) -> None:
    def locked() -> NoReturn:
        remedy = "a daemon cannot ask for its password: decrypt it with 'openssl pkey', or use auth.method pkcs11"
        _refuse("defender.private_key", f"{private_key} is encrypted", remedy)

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, private_key, password=locked)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            _refuse("defender.private_key", f"{private_key} is not the key of {certificate}", "name the pair")
        if error.reason is None:  # the reader of PEM gives none
            remedy = "name the file that came with it"
            _refuse("defender.private_key", f"{private_key} is no private key in PEM", remedy)
        _refuse(
            "defender.certificate",
            f"{certificate} and {private_key} cannot be used: {error.reason}",
            "get another pair",
        )


def _certificate(path: str, now_s: float) -> list[str]:
    key = "defender.certificate"
    first = _validities(key, path)[0]  # the others are the authorities above it
    day = _day(first.not_before_s)
    if now_s < min(first.not_before_s, CLOCK_SET_S):
        never = f"the clock of this device says {_day(now_s)}, so it was never set, and {path} is valid from {day}"
        return [f"{never}: nothing can be published before it is set (NTP)"]
    if now_s < first.not_before_s:
        _refuse(key, f"{path} is not valid before {day}, today is {_day(now_s)}", "set the clock, or wait")
    if first.not_after_s < now_s:
        remedy = "get a new one, or set the clock"
        _refuse(key, f"{path} expired on {_day(first.not_after_s)}, today is {_day(now_s)}", remedy)
    return _soon(key, path, first.not_after_s, now_s)


def _authority(path: str, now_s: float) -> list[str]:
    key = "defender.root_ca"
    found = _validities(key, path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        _refuse(key, f"{path}: {error.reason}", "expected certificates in PEM")
    ends_s = max(validity.not_after_s for validity in found)
    if ends_s < now_s:
        remedy = "get the current one, or set the clock"
        _refuse(key, f"{path} expired on {_day(ends_s)}, today is {_day(now_s)}", remedy)
    return _soon(key, path, ends_s, now_s)


def _validities(key: str, path: str) -> list[Validity]:
    try:
        return validities(_read(key, path).decode("latin-1"))
    except ValueError as error:
        _refuse(key, f"{path}: {error}", "expected certificates in PEM")


def _soon(key: str, path: str, ends_s: int, now_s: float) -> list[str]:
    if ends_s - now_s > SOON_S:
        return []
    return [f"{key}: {path} expires on {_day(ends_s)}, in {(ends_s - now_s) / 86_400:.0f} days: renew it"]


def _day(at_s: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(at_s))
