"""Ed25519 over a version and a text, by the openssl of the device (3.0 or later).

Owns what exactly is signed. Refuses to know what the text says.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from monitor.errors import ConfigInvalid, KinwatchError

if TYPE_CHECKING:
    from collections.abc import Iterator

WITHIN_S: Final = 30
_GOOD: Final = b"Signature Verified Successfully"
_BAD: Final = b"Signature Verification Failure"


class CannotVerify(KinwatchError):
    """openssl could not say whether a signature is good; it is not taken for good."""


def signed(version: int, text: str) -> bytes:
    """What the signature is over. The first line keeps it from being good for anything else."""
    return f"kinwatch configuration {version}\n{text}".encode()


def good(public_key: str, version: int, text: str, signature: bytes) -> bool:
    """Whether the owner of the key signed this version of this text. Raises CannotVerify."""
    done = _openssl("-verify", "-pubin", key=public_key, message=signed(version, text), signature=signature)
    if done.returncode == 0 and _GOOD in done.stdout:
        return True
    if _BAD in done.stdout:
        return False
    raise CannotVerify(f"openssl cannot verify with {public_key}: {_said(done)}")


def sign(private_key: str, version: int, text: str) -> bytes:
    """Sign. Raises ConfigInvalid: the key cannot."""
    done = _openssl("-sign", key=private_key, message=signed(version, text))
    if done.returncode:
        what = f"openssl cannot sign with {private_key}: {_said(done)}"
        raise ConfigInvalid(f"--key: {what}; make one with 'openssl genpkey -algorithm ed25519'")
    return done.stdout


def check(public_key: str) -> None:
    """Refuse a key that is none, or that others than its owner may replace. Raises ConfigInvalid."""
    key = "remote.public_key"
    try:
        found = Path(public_key).stat()
        text = Path(public_key).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", "") or "is no PEM"
        raise ConfigInvalid(f"{key}: {public_key} cannot be read: {what}; name a readable file") from error
    if found.st_uid not in {0, os.geteuid()}:
        what = f"{public_key} belongs to user {found.st_uid}, who may change it"
        raise ConfigInvalid(f"{key}: {what}; chown {os.geteuid()} {public_key}")
    if found.st_mode & 0o022:
        what = f"{public_key} has mode {found.st_mode & 0o7777:04o}, others than its owner may change it"
        raise ConfigInvalid(f"{key}: {what}; chmod go-w {public_key}")
    if "-----BEGIN PUBLIC KEY-----" not in text:
        raise ConfigInvalid(f"{key}: {public_key} is no public key in PEM; write it with 'openssl pkey -pubout'")


def _openssl(*flags: str, key: str, message: bytes, signature: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Ed25519 takes the message at once, so openssl wants files whose size it knows; a hardened daemon has no /tmp."""
    with _in_memory(message) as text, _in_memory(signature) as given:
        command = ["openssl", "pkeyutl", *flags, "-rawin", "-inkey", key, "-in", f"/dev/fd/{text}"]
        command += ["-sigfile", f"/dev/fd/{given}"] if signature else []
        try:
            return subprocess.run(command, capture_output=True, timeout=WITHIN_S, check=False, pass_fds=(text, given))
        except OSError as error:
            raise CannotVerify(f"openssl cannot be run: {error.strerror}; install Debian's openssl") from error
        except subprocess.TimeoutExpired:
            raise CannotVerify(f"openssl did not end within {WITHIN_S} s") from None


@contextlib.contextmanager
def _in_memory(data: bytes) -> Iterator[int]:
    """A file that is nowhere, by its descriptor."""
    file = os.memfd_create("kinwatch")
    try:
        os.write(file, data)
        os.lseek(file, 0, os.SEEK_SET)
        yield file
    finally:
        os.close(file)


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    return " ".join((done.stderr or done.stdout).decode(errors="replace").split())[-300:]
