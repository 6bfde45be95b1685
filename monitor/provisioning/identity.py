"""Who the device is: each generation of its identity in a directory of its own, with a journal of how far it came.

Owns the directory `identity` below daemon.state_dir and the meaning of each step after a crash. Refuses to know MQTT
and how keys are made.

    identity/1/state.json        step: begun -> requested -> issued -> registered -> confirmed
    identity/1/key.pem           not with a token, which knows the key by the label in state.json
    identity/1/request.pem       since requested
    identity/1/certificate.pem   since registered

A generation is used since `registered`; `confirmed`: the broker took it once, and only then the one before is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from monitor.defender.x509 import Validity, validities
from monitor.durable import sync_directory, write_secret
from monitor.errors import AlreadyRunning, ConfigInvalid
from monitor.provisioning.keys import FileKeys, TokenKeys
from monitor.publishing import rules

if TYPE_CHECKING:
    from collections.abc import Iterator

    from monitor.provisioning.keys import Keys
    from monitor.schema import Auth, Defender, Provisioning

DIRECTORY: Final = "identity"
DAY_S: Final = 86_400
CLAIM_ID: Final = "kinwatch-claim-"
"""What the client id of a claim begins with; a random part follows, for the whole fleet has one certificate."""
Step = Literal["begun", "requested", "issued", "registered", "confirmed"]


class State(msgspec.Struct, frozen=True, kw_only=True):
    """The journal of one generation. Times are seconds since the epoch."""

    step: Step = "begun"
    key_label: str = ""
    """Of the key in the token; "": it is in key.pem."""
    certificate_id: str = ""
    """What the service calls the certificate."""
    certificate: str = ""
    """PEM; it becomes certificate.pem when it is registered."""
    ownership_token: str = ""
    """Proves to RegisterThing that the certificate is ours; kept from `issued` to `registered`."""
    issued_s: float = 0.0
    thing: str = ""
    device_configuration: dict[str, str] = {}
    """What the template says to the device."""
    refusals: int = 0
    """How often the broker did not take it while it took the one before."""


class Generation:
    """One key and its certificate."""

    def __init__(self, folder: Path, state: State) -> None:
        self.folder, self.state = folder, state

    @property
    def number(self) -> int:
        """Counted from 1; the newest is the highest."""
        return int(self.folder.name)

    @property
    def usable(self) -> bool:
        """The service has registered it."""
        return self.state.step in {"registered", "confirmed"}

    @property
    def certificate(self) -> Path:
        """The certificate's file, when it is usable."""
        return self.folder / "certificate.pem"

    @property
    def request(self) -> Path:
        """The certificate signing request's file."""
        return self.folder / "request.pem"

    def keys(self, auth: Auth) -> Keys:
        """Where its key is."""
        label = self.state.key_label
        return TokenKeys(auth, label) if label else FileKeys(self.folder / "key.pem")

    def validity(self) -> Validity:
        """From when until when the certificate is valid. Raises OSError, ValueError."""
        return validities(self.certificate.read_text(encoding="ascii"))[0]

    def note(self, **changes: object) -> None:
        """Go on in the journal. When this returns the step survives the end of the process and of power."""
        self.state = msgspec.structs.replace(self.state, **changes)
        write_secret(self.folder / "state.json", msgspec.json.encode(self.state))

    def applied(self, defender: Defender) -> Defender:
        """The settings of the publisher with this identity. Raises ConfigInvalid: they do not go with the thing."""
        auth = msgspec.structs.replace(defender.auth, key_label=self.state.key_label)
        key = "" if self.state.key_label else str(self.folder / "key.pem")
        settings = msgspec.structs.replace(
            defender, thing=self.state.thing, certificate=str(self.certificate), private_key=key, auth=auth
        )
        rules(settings)
        return settings


class Identities:
    """All generations of this device."""

    def __init__(self, state_dir: str) -> None:
        self.folder = Path(state_dir, DIRECTORY)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Be the one who changes them. Raises AlreadyRunning: somebody else is; ConfigInvalid: no such directory."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.chmod(0o700)
            lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _lost(self.folder, error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            what = f"somebody provisions this device already ({self.folder}/lock is held)"
            raise AlreadyRunning(f"{what}; the daemon does it by itself, or wait for the other command") from None
        try:
            yield
        finally:
            os.close(lock)

    def all(self) -> list[Generation]:
        """Oldest first. Raises ConfigInvalid: a journal cannot be read."""
        found = []
        try:
            numbers = sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _lost(self.folder, error) from error
        for number in numbers:
            folder = self.folder / str(number)
            try:
                found.append(Generation(folder, msgspec.json.decode((folder / "state.json").read_bytes(), type=State)))
            except FileNotFoundError:
                continue  # its first step was never noted, so nothing of it is of use
            except (OSError, msgspec.MsgspecError) as error:
                raise _lost(folder / "state.json", error) from error
        return found

    def newest(self) -> Generation | None:
        """The newest one that may be used."""
        return next((one for one in reversed(self.all()) if one.usable), None)

    def before(self, generation: Generation) -> Generation | None:
        """The one to go back to when `generation` is not taken."""
        return next((one for one in reversed(self.all()) if one.usable and one.number < generation.number), None)

    def unfinished(self) -> Generation | None:
        """The one that is being made."""
        return next((one for one in reversed(self.all()) if not one.usable), None)

    def begin(self, label: str) -> Generation:
        """Begin another one. `label`: of its key in the token; "" makes a file."""
        numbers = [int(path.name) for path in self.folder.iterdir() if path.name.isdigit()]
        number = max(numbers, default=0) + 1
        folder = self.folder / str(number)
        folder.mkdir(mode=0o700)
        sync_directory(self.folder)
        made = Generation(folder, State(key_label=f"{label}-{number}" if label else ""))
        made.note()
        return made

    def confirm(self, generation: Generation, auth: Auth) -> None:
        """The broker took it: every other one has had its time. Raises KeyUnavailable."""
        if generation.state.step != "confirmed":
            generation.note(step="confirmed", certificate="", refusals=0)
        for other in self.all():
            if other.number != generation.number and other.usable and other.number < generation.number:
                self.remove(other, auth)

    def remove(self, generation: Generation, auth: Auth) -> None:
        """Destroy a key and forget its certificate. Raises KeyUnavailable."""
        generation.keys(auth).remove()
        shutil.rmtree(generation.folder)
        sync_directory(self.folder)


def claim_of(defender: Defender, provisioning: Provisioning) -> Defender:
    """The settings of a connection with the claim certificate."""
    label = provisioning.claim_key_label
    auth = msgspec.structs.replace(defender.auth, method="pkcs11" if label else "mtls", key_label=label)
    return msgspec.structs.replace(
        defender,
        client_id=CLAIM_ID + secrets.token_hex(8),
        certificate=provisioning.claim_certificate,
        private_key=provisioning.claim_private_key,
        auth=auth,
    )


def due_s(validity: Validity, provisioning: Provisioning) -> float:
    """When a certificate is to be replaced, seconds since the epoch: when it ended at the latest."""
    moments: list[float] = [validity.not_after_s]
    if provisioning.rotate_days:
        # Not before half of its life is over, or a short-lived one would be replaced as soon as it is there.
        half_s = (validity.not_before_s + validity.not_after_s) / 2
        moments.append(max(half_s, validity.not_after_s - provisioning.rotate_days * DAY_S))
    if provisioning.max_age_days:
        moments.append(validity.not_before_s + provisioning.max_age_days * DAY_S)
    return min(moments)


def _lost(path: Path, error: Exception) -> ConfigInvalid:
    what = (error.strerror if isinstance(error, OSError) else "") or str(error)
    return ConfigInvalid(f"daemon.state_dir: {path}: {what}; make it readable, or remove it to be provisioned anew")
