"""What leaves the device and when: alarms at once, reports when they may, batches of event lines behind them.

Owns the connection's listener, the senders of the two queues and the end in good order. Refuses to know MQTT (`link`),
disks (`spool`) and what a report says (`reporter`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from monitor.defender.alarms import ALARM, PER_S, AlarmQueue
from monitor.defender.batches import FLUSH_S, EventSink, joined
from monitor.defender.link import Refused, Unreachable
from monitor.defender.reporter import Reporter
from monitor.publishing import topic

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from monitor.defender.link import Link
    from monitor.defender.report import Names
    from monitor.defender.reporter import Windows
    from monitor.defender.spool import Entry, Kind, Spool
    from monitor.schema import Defender

PIPELINE: Final = 64
"""Messages on their way at once. The service takes 100 without an acknowledgement."""
BACK_OFF_S: Final = (1.0, 300.0)
"""First and longest wait after a message that the broker did not take; random within, doubled each time."""
HOUR_S: Final = 3600.0
HOPELESS: Final = frozenset({144, 149, 153})
"""MQTT 5 reasons that no later attempt changes: topic name invalid, packet too large, payload format invalid."""
MOST_EVENT_CHUNKS: Final = 4096
LOOK_S: Final = 0.01
EVENTS_LOOK_S: Final = 1.0
CONNECT_S: Final = 60.0
"""How long a run of one report waits for its connection; a wrong CA takes s2n up to 30 s to refuse."""
LAST_S: Final = 1.0
"""For the farewell to the broker, when everything else took all the time."""


class Channel:
    """One queue of the spool and its topic."""

    def __init__(self, kind: Kind, topic: str) -> None:
        self.kind, self.topic = kind, topic
        self.wake = asyncio.Event()
        """There is something new."""
        self.empty = asyncio.Event()
        """Nothing is left that may be sent now."""
        self.delivered = 0
        """Messages that the broker acknowledged."""
        self.refused = 0
        """Messages that it acknowledged with an error."""
        self.undelivered = 0
        """Attempts that ended with the connection."""
        self.told = ""
        """The trouble that was said last."""

    def counts(self) -> dict[str, int]:
        """What became of its messages, since this start."""
        return {"delivered": self.delivered, "refused": self.refused, "undelivered": self.undelivered}


class Companion(Protocol):
    """Somebody else who uses the connection. Everything is called in the loop's thread."""

    def filters(self, thing: str) -> list[str]:
        """The topics to subscribe to."""

    def connected(self, thing: str) -> None:
        """A connection stands, and is subscribed to them."""

    def received(self, name: str, payload: bytes) -> bool:
        """Take a message; False: it is for somebody else."""

    async def run(self) -> None:
        """Until cancelled."""

    def status(self) -> dict[str, Any]:
        """What `kinwatch status` says of it."""


class Delivery:
    """Everything that is published for one thing."""

    def __init__(  # noqa: PLR0913 - its parts
        self,
        settings: Defender,
        link: Link,
        spool: Spool,
        window: Windows,
        say: Callable[[str], None],
        *,
        interval_s: float,
        names: Names,
    ) -> None:
        """`interval_s`: between periodic reports. `say`: a line for the user."""
        self._settings, self._link, self._spool, self._say = settings, link, spool, say
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connected = asyncio.Event()
        self._unsynced = asyncio.Event()
        self._ending = asyncio.Event()
        self._finishing = False
        self._alarmed = False
        self._events: EventSink | None = None
        self._synced_s = 0.0
        self._trouble = ""
        self._connections = 0
        self._told_where = False
        self._subscribed = False
        """The broker's session has our subscriptions."""
        self._companion: Companion | None = None
        self._alarms = AlarmQueue(spool, settings.thing)
        self._alarm_channel = Channel("alarm", topic(settings, "alarm_topic"))
        self._event_channel = Channel("events", topic(settings, "events_topic"))
        self._channels = [channel for channel in (self._alarm_channel, self._event_channel) if channel.topic]
        self.reporter = Reporter(
            window,
            spool,
            link,
            say,
            thing=settings.thing,
            names=names,
            form=settings.format,
            interval_s=interval_s,
            spacing_s=settings.min_spacing_s,
            answer_s=settings.answer_s,
        )

    def accompany(self, companion: Companion) -> None:
        """Share the connection. Before `run`."""
        self._companion = companion

    # -------- from any thread --------

    def alarm(self, lines: bytes) -> None:
        """Take the alarms among event lines. When this returns they survive the end of the process."""
        if self._alarm_channel.topic:
            self._alarms.put(lines, time.time(), time.clock_gettime(time.CLOCK_BOOTTIME))
        # The end of an alarm can wait for the next report; it must not take the slot of an alarm.
        if ALARM in lines:
            self._alarmed = True
            self._call(self._alarm_came)
        else:
            self._call(self._clear_came)

    def event_sink(self) -> EventSink | None:
        """A sink for the event log; None: no topic is configured."""
        if not self._event_channel.topic:
            return None

        def flush_later(loop: asyncio.AbstractEventLoop) -> None:
            loop.call_later(FLUSH_S, flush)

        def flush() -> None:
            sink.flush()
            self._event_channel.wake.set()
            self._sync_soon()

        sink = EventSink(self._spool, self._settings.events_bytes, time.time, lambda: self._call(flush_later))
        self._events = sink
        return sink

    def _call(self, what: Callable[[asyncio.AbstractEventLoop], object]) -> None:
        """Have something done in the loop; `run` knows what came before it, the spool has what comes after."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(what, self._loop)

    def _clear_came(self, _: asyncio.AbstractEventLoop) -> None:
        self._alarm_channel.wake.set()
        self._unsynced.set()

    def _alarm_came(self, loop: asyncio.AbstractEventLoop) -> None:
        self._clear_came(loop)
        self.reporter.want()

    # -------- begin and end --------

    async def run(self) -> None:
        """Connect and send, until `finish`."""
        self._loop = asyncio.get_running_loop()
        # What came until now could not be told.
        if self._alarmed:
            self._alarm_came(self._loop)
        if self._events is not None:
            await asyncio.to_thread(self._events.flush)
        self._link.start(self)  # what it calls comes in a later turn of the loop
        async with asyncio.TaskGroup() as group:
            self._group = group
            work = [self.reporter.run(self._connected), self._sync(), self._expire(), *map(self._send, self._channels)]
            work += [] if self._companion is None else [self._companion.run()]
            tasks = [group.create_task(one) for one in work]
            await self._ending.wait()
            for task in tasks:
                task.cancel()

    def change(self, interval_s: float, spacing_s: float, names: Names) -> None:
        """Take new settings. In the loop's thread."""
        self.reporter.change(interval_s, spacing_s, names)

    def identify(self, settings: Defender) -> None:
        """Learn who the device is, before the first connection as that. In the loop's thread."""
        self._subscribed = self._subscribed and settings.thing == self._settings.thing
        self._settings = settings
        self._alarms.identify(settings.thing)
        self._alarm_channel.topic = topic(settings, "alarm_topic")
        self._event_channel.topic = topic(settings, "events_topic")
        self.reporter.identify(settings.thing)

    async def first_report(self) -> bool:
        """Have the first report sent as soon as it may be; True: accepted, False: not, or there is no connection."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_S):
                await self._connected.wait()
            if (left_s := self.reporter.next_in_s) > 1 and not self.reporter.counts.sent:
                self._say(f"the report leaves in {left_s:.0f} s: defender.min_spacing_s after the one before")
            return await self.reporter.first()
        return False

    async def finish(self, timeout_s: float, *, report: bool) -> bool:
        """Send what can be sent in the time, keep the rest, disconnect. True: a last report was accepted.

        `report`: about the unfinished window, now if that may be, else with the first one of the next start. Called
        while `run` runs and when nothing more comes: the alarms and lines of the end are put already.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        accepted = False
        self._finishing = True
        if self._events is not None:
            await asyncio.to_thread(self._events.flush)
        if not self._connections and not self._trouble:  # a short run: the first connection is still being made
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._connected.wait()
        for channel in self._channels:
            channel.empty.clear()
            channel.wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                if report:
                    accepted = await self.reporter.last(connected=self._connected.is_set(), timeout_s=timeout_s)
                for channel in self._channels if self._connected.is_set() else ():
                    await channel.empty.wait()
        self._ending.set()
        await self._link.stop(max(LAST_S, deadline - loop.time()))
        await asyncio.to_thread(self._spool.sync)
        return accepted

    # -------- the link's listener --------

    def connected(self, *, resumed: bool) -> None:
        """Subscribe where the broker forgot, then send what waits."""
        if self._ending.is_set():
            return
        if self._trouble and self._connections:
            self._say("connected again")
        self._trouble = ""
        self._connections += 1
        if resumed and self._subscribed:
            self._stand()
        else:
            self._subscribed = False
            self._group.create_task(self._subscribe(self._connections))

    def disconnected(self, why: str) -> None:
        """Say it once; the link goes on trying."""
        self._connected.clear()
        if why != self._trouble and not self._ending.is_set():
            self._trouble = why
            self._say(f"no connection to {self._settings.endpoint}: {why}; trying again, nothing is lost meanwhile")

    def received(self, topic: str, payload: bytes) -> None:
        """An answer to a report, or something for the companion."""
        if self._companion is not None and self._companion.received(topic, payload):
            return
        late = self.reporter.received(topic, payload)
        if late is not None and self._ending.is_set():
            late.close()  # nobody is left to wait for it; the next life says it all again
        elif late is not None:
            self._group.create_task(late)

    async def _subscribe(self, connection: int) -> None:
        wanted = [(self.reporter.answers, "reports are sent, but no answer will come")]
        if self._companion is not None:
            wanted.append((self._companion.filters(self._settings.thing), "nothing can be set from afar"))
        granted = True
        for filters, lacking in wanted:
            try:
                await self._link.subscribe(filters)
            except Refused as error:
                granted = False
                self._say(f"{error}; {lacking}")
            except Unreachable:
                return  # the link says so itself, and connects again
        self._subscribed = granted
        if connection != self._connections or self._trouble:
            return  # it broke behind the acknowledgement
        if not self._told_where:
            self._told_where = True
            settings = self._settings
            self._say(f"publishing as {settings.thing} to {settings.endpoint}:{settings.port}")
        self._stand()

    def _stand(self) -> None:
        self._connected.set()
        if self._companion is not None:
            self._companion.connected(self._settings.thing)

    # -------- the senders --------

    async def _send(self, channel: Channel) -> None:
        """Send what a queue holds, in order."""
        back_off_s = BACK_OFF_S[0]
        while True:
            await self._connected.wait()
            channel.wake.clear()
            messages = self._next(channel)
            if not messages:
                channel.empty.set()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._wait_s(channel)):
                        await channel.wake.wait()
            elif await self._publish(channel, messages):
                back_off_s = BACK_OFF_S[0]
            else:
                await asyncio.sleep(back_off_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                back_off_s = min(2 * back_off_s, BACK_OFF_S[1])

    def _next(self, channel: Channel) -> list[tuple[list[int], bytes]]:
        """The next messages: ids of the spool, payload."""
        now_s = time.time()
        if channel.kind == "alarm":
            # At the end nothing is held back for company.
            entries = self._spool.waiting("alarm", math.inf if self._finishing else now_s, PIPELINE)
            return [([entry.id], self._alarms.message(entry)) for entry in entries]
        settings = self._settings
        entries = self._spool.waiting("events", now_s, MOST_EVENT_CHUNKS, settings.events_bytes)
        if not entries or not self._batch_is_due(entries, now_s):
            return []
        return [([entry.id for entry in entries], joined(entries, compress=settings.events_gzip))]

    def _batch_is_due(self, entries: Sequence[Entry], now_s: float) -> bool:
        """Full, or old enough; a date in the future was written before the clock was set back."""
        age_s = now_s - entries[0].created_s
        bulk = sum(len(entry.payload) for entry in entries)
        full = bulk * 2 > self._settings.events_bytes
        return full or self._finishing or not 0 <= age_s < self._settings.events_s

    def _wait_s(self, channel: Channel) -> float | None:
        """How long until something waits that may be sent; None: until there is something."""
        ready_s = self._spool.ready_s(channel.kind)
        if ready_s is None:
            return None
        if channel.kind == "events":  # looked at again before it is old enough, for it was not from its beginning
            return min(self._settings.events_s, EVENTS_LOOK_S)
        return min(max(ready_s - time.time(), LOOK_S), 1 / PER_S)

    async def _publish(self, channel: Channel, messages: Sequence[tuple[list[int], bytes]]) -> bool:
        """Publish them at once and wait for every acknowledgement; False: some were not taken and stay."""
        futures = [self._link.publish(channel.topic, payload) for _, payload in messages]
        results = await asyncio.gather(*futures, return_exceptions=True)
        arrived: list[int] = []
        hopeless: list[int] = []
        good = True
        for (ids, _), result in zip(messages, results, strict=True):
            if result is None:
                arrived += ids
                channel.delivered += 1
            elif isinstance(result, Refused):
                channel.refused += 1
                good = self._refused(channel, result, ids, hopeless) and good
            elif isinstance(result, Unreachable):
                channel.undelivered += 1
                good = False
            else:
                raise result
        await asyncio.to_thread(self._settle, arrived, hopeless)
        if good:
            channel.told = ""
        return good

    def _refused(self, channel: Channel, error: Refused, ids: list[int], hopeless: list[int]) -> bool:
        """True: it is of no use to try again, so it is dropped and counted."""
        if channel.told != str(error):
            channel.told = str(error)
            self._say(f"{channel.kind} message: {error}")
        if error.reason_code not in HOPELESS:
            return False
        hopeless += ids
        return True

    def _settle(self, arrived: list[int], hopeless: list[int]) -> None:
        if arrived:
            self._spool.done(arrived)
        if hopeless:
            self._spool.drop(hopeless)

    def _sync_soon(self) -> None:
        """Lines of the log are worth a write to the disk now and then."""
        now_s = time.monotonic()
        if now_s - self._synced_s >= self._settings.events_s:
            self._synced_s = now_s
            self._unsynced.set()

    async def _sync(self) -> None:
        """An alarm is on its way first and on the disk right afterwards."""
        while True:
            await self._unsynced.wait()
            self._unsynced.clear()
            await asyncio.to_thread(self._spool.sync)

    async def _expire(self) -> None:
        while True:
            await asyncio.to_thread(self._spool.expire, time.time())
            await asyncio.sleep(HOUR_S)

    # -------- answers --------

    def status(self) -> dict[str, Any]:
        """What `kinwatch status` says of it. `trouble`: why there is no connection."""
        sizes = self._spool.sizes()
        return {
            "endpoint": f"{self._settings.endpoint}:{self._settings.port}",
            "thing": self._settings.thing,
            "connected": self._connected.is_set(),
            "connections": self._connections,
            **({"trouble": self._trouble} if self._trouble else {}),
            "next_report_in_s": max(0, round(self.reporter.next_in_s)),
            "reports": msgspec.to_builtins(self.reporter.counts),
            "alarms": self._alarm_channel.counts()
            | {"taken": self._alarms.put_lines, "merged": self._alarms.merged_lines},
            "events": self._event_channel.counts(),
            "spool": msgspec.to_builtins(sizes),
            **({"remote": self._companion.status()} if self._companion is not None else {}),
        }
