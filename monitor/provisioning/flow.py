"""The way from a claim to a certificate of one's own, a step at a time, from wherever the journal says it stopped.

Owns the order of the steps and what of them is done again after a crash. Refuses to know connections (`service`),
programs (`keys`) and files (`identity`).
"""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from monitor.defender.link import Unreachable
from monitor.defender.x509 import der, public_key, validities
from monitor.durable import write_secret
from monitor.errors import ConfigInvalid
from monitor.provisioning.answers import Rejected
from monitor.publishing import is_thing

if TYPE_CHECKING:
    from collections.abc import Callable

    from monitor.provisioning.answers import Issued, Registered
    from monitor.provisioning.identity import Generation, Identities
    from monitor.schema import Auth, Provisioning

TOKEN_S: Final = 3600
"""The service forgets an unregistered certificate and its token after this."""
SPARE_S: Final = 60
"""A token that old is not worth a try."""
ATTEMPTS: Final = 3
"""Certificates that one run asks for, when tokens are void."""
_MACHINE_ID: Final = Path("/etc/machine-id")


class Calls(Protocol):
    """The service (monitor.provisioning.service), or its double."""

    async def create(self, request: str) -> Issued:
        """CreateCertificateFromCsr."""

    async def register(self, template: str, ownership_token: str, parameters: dict[str, str]) -> Registered:
        """RegisterThing."""


async def provision(
    identities: Identities,
    provisioning: Provisioning,
    auth: Auth,
    calls: Calls,
    clock: Callable[[], float],
) -> Generation:
    """Make another generation usable, or go on with the one that was begun; returns it.

    `clock`: seconds since the epoch. Raises Rejected, Unreachable, KeyUnavailable, ConfigInvalid; what was reached
    until then is kept, and the next call goes on there.
    """
    generation = identities.unfinished()
    if generation is None:
        label = f"kinwatch-{secrets.token_hex(4)}" if auth.method == "pkcs11" else ""
        generation = identities.begin(label)
    keys = generation.keys(auth)
    if generation.state.step == "begun":
        await asyncio.to_thread(keys.make)
        request = await asyncio.to_thread(keys.request)
        write_secret(generation.request, request.encode())
        generation.note(step="requested")
    for attempt in range(ATTEMPTS):
        if generation.state.step == "issued" and not 0 <= clock() - generation.state.issued_s < TOKEN_S - SPARE_S:
            generation.note(step="requested")
        if generation.state.step == "requested":
            await _issue(generation, calls, clock)
        try:
            registered = await calls.register(
                provisioning.template, generation.state.ownership_token, parameters(provisioning)
            )
        except Rejected as error:
            if not error.token_is_void or attempt + 1 == ATTEMPTS:
                raise
            generation.note(step="requested")  # the same key, another certificate
            continue
        _take(generation, registered)
        return generation
    raise AssertionError("the last attempt returns or raises")


async def _issue(generation: Generation, calls: Calls, clock: Callable[[], float]) -> None:
    issued = await calls.create(generation.request.read_text(encoding="ascii"))
    try:
        validities(issued.certificate)
        ours = public_key(generation.request.read_text(encoding="ascii")) in der(issued.certificate)
    except ValueError as error:
        raise Unreachable(f"CreateCertificateFromCsr: what came is no certificate: {error}") from error
    if not ours:  # a broker that is not AWS may show everybody's answers to everybody
        raise Unreachable("CreateCertificateFromCsr: the certificate that came is for another key")
    generation.note(
        step="issued",
        certificate_id=issued.certificate_id,
        certificate=issued.certificate,
        ownership_token=issued.ownership_token,
        issued_s=clock(),
    )


def _take(generation: Generation, registered: Registered) -> None:
    if not is_thing(registered.thing):
        raise Unreachable(f"RegisterThing: {registered.thing!r} is no thing's name")
    write_secret(generation.certificate, generation.state.certificate.encode())
    generation.note(
        step="registered",
        thing=registered.thing,
        device_configuration=registered.device_configuration,
        ownership_token="",
    )


def parameters(provisioning: Provisioning) -> dict[str, str]:
    """The template's parameters, filled in. Raises ConfigInvalid: a file cannot be read."""

    def filled(match: re.Match[str]) -> str:
        word = match[1]
        if word == "hostname":
            return socket.gethostname()
        path = _MACHINE_ID if word == "machine_id" else Path(word.removeprefix("file:"))
        try:
            return path.read_text(encoding="utf-8").strip("\0 \t\r\n")  # a device tree ends its texts with a zero
        except (OSError, UnicodeDecodeError) as error:
            what = f"{path} cannot be read: {getattr(error, 'strerror', error)}"
            raise ConfigInvalid(f"provisioning.parameters: {what}; name a readable file of UTF-8") from error

    return {name: re.sub(r"\{([^{}]*)\}", filled, value) for name, value in provisioning.parameters.items()}
