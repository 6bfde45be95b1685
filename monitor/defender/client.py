"""Which MQTT library a link is kept with, and why: awsiotsdk where it can be imported, paho-mqtt elsewhere.

Owns the choice and its words. Refuses to know what either does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from monitor.errors import ConfigInvalid
from monitor.publishing import paho_rules

if TYPE_CHECKING:
    from collections.abc import Callable

    from monitor.defender.connection import Connection
    from monitor.defender.link import Link
    from monitor.schema import Defender

# Both are imported late: awscrt is 7 MB and not on every machine, and paho is not where that is.
# ruff: noqa: PLC0415


class Choice(NamedTuple):
    """A library."""

    name: str
    """awscrt or paho."""
    why: str
    link: Callable[[Connection], Link]
    """Makes one."""


def chosen(settings: Defender) -> Choice:
    """The library for these settings. Raises ConfigInvalid: there is none, or it cannot do what they ask for."""
    choice = choose(settings.client, "defender")
    if choice.name == "paho":
        try:
            paho_rules(settings)
        except ConfigInvalid as error:
            raise ConfigInvalid(f"{error} (paho is used here: {choice.why})") from error
    return choice


def choose(wanted: str, key: str) -> Choice:
    """The library, by what can be imported. `wanted`: as defender.client; `key`: what asks. Raises ConfigInvalid."""
    missing = ""
    if wanted != "paho":
        try:
            from monitor.defender.publish import MqttLink
        except ImportError as error:
            missing = f"awscrt cannot be imported: {error}"
        else:
            return Choice("awscrt", "defender.client says so" if wanted == "awscrt" else "it is installed", MqttLink)
    if wanted == "awscrt":
        raise ConfigInvalid(f"{key}: {missing}; install awsiotsdk, which has wheels for x86_64 and aarch64")
    try:
        from monitor.defender.paho import PahoLink
    except ImportError as error:
        missing = f"{missing}; paho cannot either: {error}" if missing else f"paho cannot be imported: {error}"
        remedy = "install awsiotsdk, or paho-mqtt 2.1 or later where that has no wheel"
        raise ConfigInvalid(f"{key}: {missing}; {remedy}") from error
    return Choice("paho", missing or "defender.client says so", PahoLink)
