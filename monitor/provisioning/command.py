"""`kinwatch provision`: gets the device its certificate in the foreground, and tries it once.

Owns the order and the words. Refuses to go on alone: a daemon replaces certificates by itself.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec

from monitor.defender.link import no_library
from monitor.errors import ConfigInvalid
from monitor.provisioning import look
from monitor.provisioning.identity import Identities, claim_of, due_s
from monitor.sinks.text import safe

if TYPE_CHECKING:
    from collections.abc import Callable

    from monitor.config import Config
    from monitor.provisioning.identity import Generation
    from monitor.schema import Defender, Provisioning


def run(config: Config, say: Callable[[str], None]) -> None:
    """Provision the device, or replace its certificate where that is due; do nothing where neither is.

    Raises ConfigInvalid, AlreadyRunning, Unreachable, Rejected, KeyUnavailable.
    """
    if config.provisioning is None or config.defender is None:
        raise ConfigInvalid(f"{config.origin}: provisioning: there is no such table; name its template and its claim")
    for warning in look.check(config.defender, config.provisioning, config.daemon.state_dir, time.time()):
        say(warning)
    asyncio.run(_run(config.defender, config.provisioning, Identities(config.daemon.state_dir), say))


def told(config: Config, *, as_json: bool) -> str:
    """Where the device stands and what comes next, as lines or as a line of JSON."""
    found = look.described(config, time.time())
    if as_json:
        return msgspec.json.encode(found).decode() + "\n"
    return "".join(f"{safe(line.strip())}\n" for line in look.lines(found))


async def _run(
    defender: Defender, provisioning: Provisioning, identities: Identities, say: Callable[[str], None]
) -> None:
    try:
        from monitor.provisioning.connect import connected  # noqa: PLC0415 - 7 MB, and not on every machine
    except ImportError as error:
        raise no_library("provisioning", error) from error
    with identities.held():
        newest = identities.newest()
        if newest is None or _is_due(newest, provisioning):
            newest = await _made(newest, defender, provisioning, identities)
            thing, number = newest.state.thing, newest.state.certificate_id
            say(f"the service registered certificate {number} for {thing}")
        if newest.state.step == "registered":
            async with connected(newest.applied(defender)):
                pass
            say("the broker took it")
        await asyncio.to_thread(identities.confirm, newest, defender.auth)


async def _made(
    newest: Generation | None, defender: Defender, provisioning: Provisioning, identities: Identities
) -> Generation:
    from monitor.provisioning.connect import connected  # noqa: PLC0415 - as above
    from monitor.provisioning.flow import provision  # noqa: PLC0415
    from monitor.provisioning.service import Service  # noqa: PLC0415

    own = newest is not None and time.time() < newest.validity().not_after_s
    settings = newest.applied(defender) if newest is not None and own else claim_of(defender, provisioning)
    async with connected(settings) as link:
        return await provision(identities, provisioning, defender.auth, Service(link), time.time)


def _is_due(generation: Generation, provisioning: Provisioning) -> bool:
    return due_s(generation.validity(), provisioning) <= time.time()
