"""Where a private key is made and a certificate is asked for with it: in a file, or in a PKCS#11 token.

Owns the programs that do it: openssl for files, GnuTLS's p11tool and certtool for tokens, whose engine openssl lacks on
most devices. A library that can both takes more memory than the rest of the daemon, for one key in years. Refuses to
know what a certificate is good for.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import quote

from monitor.durable import write_secret
from monitor.errors import ConfigInvalid, KinwatchError

if TYPE_CHECKING:
    from monitor.schema import Auth

WITHIN_S: Final = 120
"""Longest run of a program; a secure element may take a while to make a key."""
SUBJECT: Final = "kinwatch"
"""Common name of the request. AWS IoT writes its own into the certificate."""


class KeyUnavailable(KinwatchError):
    """No key or no request could be made: the program, what it said, what to do."""

    exit_code = 4


class Keys(Protocol):
    """Makes the key of one generation of the device's identity."""

    def make(self) -> None:
        """Make the key, or make it anew where an attempt before this was not finished. Raises KeyUnavailable."""

    def request(self) -> str:
        """A certificate signing request, PEM, signed with it. Raises KeyUnavailable."""

    def remove(self) -> None:
        """Destroy the key, if there is one. Raises KeyUnavailable."""


class FileKeys:
    """An EC key (P-256) in a file that is for its owner alone from the first byte."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def make(self) -> None:
        """Keep a key that is there already: nothing but a whole one ever has this name."""
        if not self._path.exists():
            curve = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
            write_secret(self._path, _run(["openssl", "genpkey", *curve], _OPENSSL))

    def request(self) -> str:
        """Sign a request."""
        form = f"[req]\ndistinguished_name = name\nprompt = no\n[name]\nCN = {SUBJECT}\n"
        command = ["openssl", "req", "-new", "-sha256", "-key", str(self._path), "-config", "/dev/stdin"]
        return _run(command, _OPENSSL, text=form).decode()

    def remove(self) -> None:
        """Take the file away."""
        self._path.unlink(missing_ok=True)


class TokenKeys:
    """An EC key (P-256) that is made in a token, never leaves it and is known by its label there."""

    def __init__(self, auth: Auth, label: str) -> None:
        self._auth = auth
        self._label = label
        self._token = f"pkcs11:token={quote(auth.token, safe='')}"
        self._key = f"{self._token};object={quote(label, safe='')}"

    def make(self) -> None:
        """What an attempt left that was killed is of no certificate yet: it is deleted first."""
        self.remove()
        key_id = self._label.encode().hex()
        self._p11tool("--generate-ecc", "--curve=SECP256R1", f"--label={self._label}", f"--id={key_id}", self._token)

    def request(self) -> str:
        """Have the token sign a request."""
        command = ["certtool", f"--provider={self._auth.library}", "--generate-request"]
        command += ["--load-privkey", f"{self._key};type=private", "--template=/dev/stdin"]
        return _run(command, _GNUTLS, text=f'cn = "{SUBJECT}"\n', pin=self._pin()).decode()

    def remove(self) -> None:
        """Delete both halves."""
        if f"object={quote(self._label, safe='')}" in self._p11tool("--only-urls", "--list-all", self._token):
            self._p11tool("--delete", self._key)

    def _p11tool(self, *arguments: str) -> str:
        command = ["p11tool", f"--provider={self._auth.library}", "--login", "--batch", *arguments]
        return _run(command, _GNUTLS, pin=self._pin()).decode(errors="replace")

    def _pin(self) -> str:
        """Not on a command line, which everybody may read."""
        path = self._auth.pin_file
        try:
            return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as error:
            raise ConfigInvalid(f"defender.auth.pin_file: {path} cannot be read: {error.strerror}; name it") from error


_OPENSSL: Final = "openssl"
_GNUTLS: Final = "gnutls-bin"
_NOTHING: Final = b"No matching objects found"
"""p11tool's word for an empty list, which it ends with 2."""


def _run(command: list[str], package: str, *, text: str = "", pin: str = "") -> bytes:
    """Run a program to its end and return what it wrote. `package`: of Debian, which has it."""
    environment = {**os.environ, "LC_ALL": "C", **({"GNUTLS_PIN": pin} if pin else {})}
    try:
        done = subprocess.run(
            command, input=text.encode(), capture_output=True, env=environment, timeout=WITHIN_S, check=False
        )
    except FileNotFoundError:
        raise KeyUnavailable(f"{command[0]} is not installed; install Debian's {package}") from None
    except subprocess.TimeoutExpired:
        raise KeyUnavailable(f"{command[0]} did not end within {WITHIN_S} s; look at the token") from None
    if done.returncode and _NOTHING not in done.stderr:
        said = " ".join(done.stderr.decode(errors="replace").split())[-300:]
        raise KeyUnavailable(f"{command[0]} ended with {done.returncode} ({said}); try '{' '.join(command)}'")
    return done.stdout
