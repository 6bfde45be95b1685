"""The publishing side of a run: spool, window, link and delivery, put together.

Owns which of them there are and their end. Refuses to know what flows through them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from monitor.defender.delivery import Delivery
from monitor.defender.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable

    from monitor.config import Config
    from monitor.defender.link import Link
    from monitor.window import Store, Window

SPOOL: str = "spool.db"
_WINDOW: str = "window"


class Publication:
    """What `[defender]` asks for. Opened before anything flows, closed after everything has."""

    def __init__(  # noqa: PLR0913 - its parts
        self,
        config: Config,
        window: Callable[[Store], Window],
        *,
        say: Callable[[str], None],
        on_drop: Callable[[int], None],
        link: Link | None = None,
        around: Callable[[Link], Link] | None = None,
    ) -> None:
        """`link`: None connects as configured. `around`: what stands between it and the delivery.

        Raises ConfigInvalid, AlreadyRunning: somebody publishes from there.
        """
        if config.defender is None:
            raise ValueError("nothing is to be published")
        # A link that somebody lends is one that sends nothing: what it takes must not be missing later.
        path = Path(config.daemon.state_dir, SPOOL) if link is None else None
        self._spool = Spool(
            path, max_bytes=config.spool.max_bytes, max_age_s=config.spool.max_age_s, on_drop=on_drop, say=say
        )
        try:
            if link is None:
                from monitor.defender.publish import MqttLink, connection_of  # noqa: PLC0415 - 7 MB, if anybody publishes

                link = MqttLink(connection_of(config.defender))
            self.delivery = Delivery(
                config.defender,
                link if around is None else around(link),
                self._spool,
                window(_State(self._spool)),
                say,
                interval_s=config.report.interval_s,
                names=config.report.names,
            )
        except BaseException:
            self._spool.close()
            raise

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
