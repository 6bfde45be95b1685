"""The named shadow `kinwatch`: its topics, what it may want of the device, what the device tells in it.

Owns the form. Refuses to judge: no signature, no configuration, no connection. The topics are spoken over the
publisher's link rather than with awsiotsdk's client of shadows, which is bound to one connection and ends with it.
Source: AWS IoT Developer Guide, "Device Shadow MQTT topics".
"""

from __future__ import annotations

import base64
from typing import Final, NamedTuple

import msgspec

from monitor.errors import KinwatchError

_SHADOW: Final = "$aws/things/{thing}/shadow/name/kinwatch/{what}"
HEARD: Final = ("update/delta", "update/rejected", "get/accepted", "get/rejected")
"""What the device listens to."""
_NONE: Final = 404
_SIGNATURE_BYTES: Final = 64
"""Of Ed25519."""
MAX_ERROR: Final = 500
"""Characters of an error that are told; a shadow has room for 8 KB."""


class DocumentInvalid(KinwatchError):
    """A shadow wants something that cannot be understood."""


class Wanted(NamedTuple):
    """What a shadow wants of the device."""

    version: int
    text: str
    signature: bytes


class _Desired(msgspec.Struct):
    configuration: str | None = None
    version: int | None = None
    signature: str | None = None


class _State(msgspec.Struct):
    desired: _Desired | None = None


class _Document(msgspec.Struct):
    state: _State = msgspec.field(default_factory=_State)


class _Refusal(msgspec.Struct):
    code: int = 0
    message: str = ""


def topic(thing: str, what: str) -> str:
    """The topic of a call ("get", "update"), or of what follows it."""
    return _SHADOW.format(thing=thing, what=what)


def wanted(payload: bytes) -> Wanted | None:
    """Read the answer to "get"; None: nothing is wanted. Raises DocumentInvalid."""
    try:
        desired = msgspec.json.decode(payload, type=_Document).state.desired
    except msgspec.MsgspecError as error:
        raise DocumentInvalid(f"the shadow's document cannot be read: {error}") from error
    if desired is None or (desired.configuration, desired.version, desired.signature) == (None, None, None):
        return None
    if desired.configuration is None or desired.version is None or desired.signature is None:
        raise DocumentInvalid("desired needs all of configuration, version and signature")
    if desired.version < 1:
        raise DocumentInvalid(f"expected a version of 1 or more, found {desired.version}")
    try:
        signature = base64.b64decode(desired.signature, validate=True)
    except ValueError as error:
        raise DocumentInvalid(f"the signature is not base64: {error}") from error
    if len(signature) != _SIGNATURE_BYTES:
        what = f"expected a signature of {_SIGNATURE_BYTES} bytes (Ed25519), found {len(signature)}"
        raise DocumentInvalid(what)
    return Wanted(desired.version, desired.configuration, signature)


def refusal(payload: bytes) -> str:
    """Why the service refused a call, in words; "": there is no such shadow yet, which is as it should be."""
    try:
        said = msgspec.json.decode(payload, type=_Refusal)
    except msgspec.MsgspecError:
        return payload[:MAX_ERROR].decode(errors="replace")
    return "" if said.code == _NONE else f"{said.code} {said.message}"


def reported(*, version: int, state: str, error: str, confirmed: int, digest: str) -> bytes:
    """What the device tells: of the last version it heard of, and which one holds. "" and 0 delete a key there."""
    told = {
        "version": version or None,
        "state": state,
        "error": error[:MAX_ERROR] or None,
        "confirmed": confirmed or None,
        "digest": digest or None,
    }
    return msgspec.json.encode({"state": {"reported": told}})


def desired(text: str, version: int, signature: bytes) -> bytes:
    """The document that sets a configuration, for `aws iot-data update-thing-shadow --payload`."""
    wants = {"configuration": text, "version": version, "signature": base64.b64encode(signature).decode()}
    return msgspec.json.encode({"state": {"desired": wants}})
