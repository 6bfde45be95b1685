"""The publishing side of a run: spool, window, link and delivery, put together.

Owns which of them there are and their end. Refuses to know what flows through them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from monitor.defender.client import chosen
from monitor.defender.connection import connection_of
from monitor.defender.delivery import Delivery
from monitor.defender.link import no_library
from monitor.defender.spool import Spool
from monitor.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Callable

    from monitor.config import Config
    from monitor.defender.link import Link
    from monitor.schema import Defender, Remote
    from monitor.shadow.keeper import Changes, Keeper
    from monitor.window import Store, Window

SPOOL: str = "spool.db"
_WINDOW: str = "window"


class Audience(NamedTuple):
    """Somebody sits in front of the run."""

    show: Callable[[bytes], int]
    """Takes reports that are not sent, as a StreamSink's write."""
    no_connection: Callable[[], None]
    """The first attempt failed; it was said."""
    gone: Callable[[], None]
    """Nobody reads any more."""


class Publication:
    """What `[defender]` asks for. Opened before anything flows, closed after everything has."""

    def __init__(  # noqa: PLR0913 - its parts
        self,
        config: Config,
        window: Callable[[Store], Window],
        *,
        say: Callable[[str], None],
        on_drop: Callable[[int], None],
        audience: Audience | None = None,
        dry: bool = False,
        changes: Changes | None = None,
    ) -> None:
        """`dry`: show to the audience, send nothing and keep nothing. `changes`: what may be set from afar is set so.

        Raises ConfigInvalid, AlreadyRunning: somebody publishes from there.
        """
        if config.defender is None:
            raise ValueError("nothing is to be published")
        path = None if dry else Path(config.daemon.state_dir, SPOOL)
        self._spool = Spool(
            path, max_bytes=config.spool.max_bytes, max_age_s=config.spool.max_age_s, on_drop=on_drop, say=say
        )
        try:
            link = self._link(config, audience, say, dry=dry)
            self.delivery = Delivery(
                config.defender,
                link,
                self._spool,
                window(_State(self._spool)),
                say,
                interval_s=config.report.interval_s,
                names=config.report.names,
            )
            if config.remote is not None and changes is not None:
                self.delivery.accompany(_keeper(config, config.remote, changes, link, say))
        except BaseException:
            self._spool.close()
            raise
        if dry:  # somebody waits for it
            self.delivery.reporter.want()

    def _link(self, config: Config, audience: Audience | None, say: Callable[[str], None], *, dry: bool) -> Link:
        settings = config.defender
        if settings is None:
            raise ValueError("nothing is to be published")
        if config.provisioning is not None:
            try:
                from monitor.provisioning.link import ProvisionedLink  # noqa: PLC0415 - for the few who are provisioned
            except ImportError as error:
                raise no_library("provisioning", error) from error
            return ProvisionedLink(settings, config.provisioning, config.daemon.state_dir, self._identified, say)
        if audience is None:
            return _mqtt(settings)
        from monitor.defender import attended  # noqa: PLC0415 - the local Device Defender, for the few who look

        if dry:
            return attended.dry_link(audience.show, say, audience.gone)

        def failed(why: str) -> None:
            say(f"cannot connect to {settings.endpoint}:{settings.port}: {why}")
            audience.no_connection()

        return attended.AttendedLink(_mqtt(settings), settings.thing, say, failed)

    def _identified(self, settings: Defender) -> None:
        self.delivery.identify(settings)

    def close(self) -> None:
        """Close the spool; what has not arrived waits in it for the next start."""
        self._spool.close()


class _State:
    """The window's state, in the spool."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    def load(self) -> bytes | None:
        return self._spool.load(_WINDOW)

    def save(self, state: bytes) -> None:
        self._spool.save(_WINDOW, state)


def _keeper(config: Config, settings: Remote, changes: Changes, link: Link, say: Callable[[str], None]) -> Keeper:
    """Who sets what comes from afar. Raises ConfigInvalid, OSError."""
    from monitor.overlay import Journal  # noqa: PLC0415 - for the few who are configured from afar
    from monitor.shadow import signature  # noqa: PLC0415
    from monitor.shadow.keeper import Keeper  # noqa: PLC0415

    signature.check(settings.public_key)
    journal = Journal(config.daemon.state_dir)
    try:
        journal.recover()
        if config.left_out and journal.standing.confirmed is not None:
            journal.note(version=journal.standing.confirmed.version, outcome="rejected", error=config.left_out)
    except OSError as error:
        raise ConfigInvalid(f"daemon.state_dir: {error}; make it a directory that root can write to") from error
    return Keeper(settings, journal, changes, link.publish, say)


def _mqtt(settings: Defender) -> Link:
    return chosen(settings).link(connection_of(settings))
