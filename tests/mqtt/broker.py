"""A real mosquitto with mutual TLS and access lists like a least-privilege IoT policy, for one test.

Owns its certificates, its process and its folder. Refuses to know what is published.
"""

from __future__ import annotations

import datetime as dt
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

DEADLINE_S = 60.0
RUNNING = " running\n"
"""The end of what mosquitto says when it is done with its start."""
THING = "mything1"
LEAST_PRIVILEGE = """\
user {client}
topic write $aws/things/{thing}/defender/metrics/json
topic write $aws/things/{thing}/defender/metrics/cbor
topic read $aws/things/{thing}/defender/metrics/+/accepted
topic read $aws/things/{thing}/defender/metrics/+/rejected
topic write kinwatch/{thing}/alarms
topic write kinwatch/{thing}/events

"""
"""What a device needs and no more (the IoT policy of the README, as mosquitto writes it)."""
EVERYTHING = """\
user {client}
topic readwrite $aws/#
topic readwrite kinwatch/#

"""


@dataclass(frozen=True)
class Identity:
    """A certificate and its key, PEM files; the certificate's common name is who mosquitto takes its owner for."""

    name: str
    certificate: Path
    private_key: Path


class Authority:
    """A certificate authority that lives for a test."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._ca = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self.root_ca = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.root_ca))

    def known(self, name: str) -> Identity:
        """The client's certificate, issued when it is first asked for."""
        made = Identity(name, self._folder / f"{name}.pem", self._folder / f"{name}.key")
        return made if made.certificate.exists() else self.identity(name)

    def identity(
        self,
        name: str,
        *hosts: str,
        not_after: dt.datetime | None = None,
        key_type: trustme.KeyType = trustme.KeyType.ECDSA,
    ) -> Identity:
        """Issue a certificate for a client, or for a server with the names of its hosts."""
        leaf = self._ca.issue_cert(
            *(hosts or (f"{name}.invalid",)), common_name=name, not_after=not_after, key_type=key_type
        )
        made = Identity(name, self._folder / f"{name}.pem", self._folder / f"{name}.key")
        made.certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        made.private_key.touch(mode=0o600)
        made.private_key.write_bytes(leaf.private_key_pem.bytes())
        return made

    def sign(self, request: str, name: str, *, days: float = 365, age_days: float = 0) -> str:
        """Issue a certificate for a signing request, PEM both; the subject is ours, as that of AWS IoT is."""
        wanted = x509.load_pem_x509_csr(request.encode())
        assert wanted.is_signature_valid
        key = serialization.load_pem_private_key(self._ca.private_key_pem.bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        begins = dt.datetime.now(dt.UTC) - dt.timedelta(days=age_days, minutes=5)
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.load_pem_x509_certificate(self._ca.cert_pem.bytes()).subject)
            .public_key(wanted.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(begins + dt.timedelta(days=days, minutes=5))
            .sign(key, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM).decode()

    def revoke(self, identity: Identity) -> Path:
        """Write a revocation list with this certificate on it."""
        key = serialization.load_pem_private_key(self._ca.private_key_pem.bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        authority = x509.load_pem_x509_certificate(self._ca.cert_pem.bytes())
        revoked = x509.load_pem_x509_certificate(identity.certificate.read_bytes())
        now = dt.datetime.now(dt.UTC)
        entry = x509.RevokedCertificateBuilder().serial_number(revoked.serial_number).revocation_date(now).build()
        crl = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(authority.subject)
            .last_update(now - dt.timedelta(days=1))
            .next_update(now + dt.timedelta(days=1))
            .add_revoked_certificate(entry)
            .sign(key, hashes.SHA256())
        )
        path = self._folder / "revoked.pem"
        path.write_bytes(crl.public_bytes(serialization.Encoding.PEM))
        return path


@dataclass
class Broker:
    """mosquitto on a free port. A context manager."""

    folder: Path
    authority: Authority
    acl: str
    port: int = 0
    more: Iterable[str] = ()
    """Further lines of its configuration."""
    address: str = "127.0.0.1"
    hosts: Sequence[str] = ("localhost", "127.0.0.1")
    """Names and addresses that its certificate is for."""
    listener: Iterable[str] = ("require_certificate true", "use_identity_as_username true")
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        """Start it."""
        self.port = self.port or free_port()
        server = self.authority.identity("localhost", *self.hosts)
        (self.folder / "acl").write_text(self.acl)
        (self.folder / "acl").chmod(0o600)
        lines = [
            "user root",  # else it becomes mosquitto and cannot read the folder of a test
            "per_listener_settings false",
            "allow_anonymous false",
            f"acl_file {self.folder / 'acl'}",
            "persistence false",
            "log_type all",
            "connection_messages true",
            "set_tcp_nodelay true",  # else its answers wait for an acknowledgement, up to 40 ms
            "max_inflight_messages 1000",
            "max_queued_messages 100000",
            f"listener {self.port} {self.address}",
            f"cafile {self.authority.root_ca}",
            f"certfile {server.certificate}",
            f"keyfile {server.private_key}",
            *self.listener,
            *self.more,
        ]
        (self.folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.kill()

    def start(self) -> None:
        """Start the process and wait until it runs: it listens before it minds signals, and a SIGHUP would end it."""
        lives = self.log().count(RUNNING) if (self.folder / "mosquitto.log").exists() else 0
        with (self.folder / "mosquitto.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["mosquitto", "-c", str(self.folder / "mosquitto.conf")], stdout=log, stderr=log
            )
        deadline = time.monotonic() + DEADLINE_S
        while True:
            if self.log().count(RUNNING) > lives:
                return
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None

    def allow(self, lines: str) -> None:
        """Add to the access lists; a running broker reads them at SIGHUP."""
        with (self.folder / "acl").open("a") as file:
            file.write(f"\n{lines}")
        self.signal(signal.SIGHUP)

    def signal(self, number: int) -> None:
        """Send a signal, SIGSTOP to freeze it for one."""
        assert self.process is not None
        os.kill(self.process.pid, number)

    def log(self) -> str:
        """What it wrote."""
        return (self.folder / "mosquitto.log").read_text(errors="replace")


def free_port() -> int:
    """A TCP port of the loopback interface that nobody has now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
