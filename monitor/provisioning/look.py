"""What there is to say about the device's identity, and what is looked at before a connection is tried.

Owns the words. Refuses to change anything.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from monitor.defender import credentials
from monitor.errors import ConfigInvalid
from monitor.provisioning.identity import Identities, claim_of, due_s

if TYPE_CHECKING:
    from monitor.config import Config
    from monitor.defender.x509 import Validity
    from monitor.provisioning.identity import Generation
    from monitor.schema import Defender, Provisioning


def check(defender: Defender, provisioning: Provisioning, state_dir: str, now_s: float) -> list[str]:
    """Look at the files of the own certificate, or of the claim where it is needed; returns warnings.

    `now_s`: seconds since the epoch. Raises ConfigInvalid: the key, the path, what is wrong, what to do.
    """
    newest = Identities(state_dir).newest()
    if newest is None:
        return _claim(defender, provisioning, now_s)
    not_after_s = _validity(newest).not_after_s
    if not_after_s < now_s:
        ended = f"the device's own certificate expired on {_day(not_after_s)}"
        return [f"{ended}: a new one is asked for with the claim", *_claim(defender, provisioning, now_s)]
    return credentials.check(newest.applied(defender), now_s)


def used(defender: Defender, state_dir: str) -> Defender | None:
    """The settings with the device's own certificate; None: it has none yet."""
    newest = Identities(state_dir).newest()
    return None if newest is None else newest.applied(defender)


def described(config: Config, now_s: float) -> dict[str, Any]:
    """What `kinwatch doctor` and `provision --json` say: where the device stands, and what comes next."""
    if config.provisioning is None:
        raise ValueError("nothing is to be provisioned")
    identities = Identities(config.daemon.state_dir)
    newest, unfinished = identities.newest(), identities.unfinished()
    found: dict[str, Any] = {"template": config.provisioning.template}
    if newest is None:
        step = unfinished.state.step if unfinished is not None else ""
        found["state"] = f"unfinished ({step})" if step else "not provisioned"
        found["next"] = "'kinwatch provision' or 'kinwatch run' " + ("goes on there" if step else "asks with the claim")
        return found
    validity = _validity(newest)
    found |= {
        "state": "expired" if validity.not_after_s < now_s else "provisioned",
        "thing": newest.state.thing,
        "certificate_id": newest.state.certificate_id,
        "certificate": str(newest.certificate),
        "key": f"token, label {newest.state.key_label}" if newest.state.key_label else str(newest.folder / "key.pem"),
        "expires": _day(validity.not_after_s),
        "device_configuration": newest.state.device_configuration,
    }
    due = due_s(validity, config.provisioning)
    if newest.state.step != "confirmed":
        found["next"] = "the first connection with this certificate"
    elif unfinished is not None:
        found["next"] = f"its replacement, which is begun ({unfinished.state.step})"
    else:
        found["next"] = f"replaced {'on ' + _day(due) if due > now_s else 'as soon as there is a connection'}"
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """What `described` found, for people."""
    texts = {key: value for key, value in found.items() if isinstance(value, str)}
    texts |= {f"device_configuration.{key}": value for key, value in found.get("device_configuration", {}).items()}
    return [f"  {key.replace('_', ' '):26} {value}" for key, value in texts.items()]


def _claim(defender: Defender, provisioning: Provisioning, now_s: float) -> list[str]:
    try:
        found = credentials.check(claim_of(defender, provisioning), now_s)
    except ConfigInvalid as error:
        raise ConfigInvalid(_of_claim(str(error))) from error
    return [_of_claim(text) for text in found]


def _of_claim(text: str) -> str:
    text = text.replace("defender.certificate:", "provisioning.claim_certificate:")
    return text.replace("defender.private_key:", "provisioning.claim_private_key:")


def _validity(generation: Generation) -> Validity:
    try:
        return generation.validity()
    except (OSError, ValueError) as error:
        raise ConfigInvalid(f"daemon.state_dir: {generation.certificate}: {error}; remove its directory") from error


def _day(at_s: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(at_s))
