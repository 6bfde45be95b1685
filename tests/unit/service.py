"""A Device Defender in memory, a device that reports to it, and clocks that only move when everybody waits.

Owns what the tests of the reporter and the delivery share. Refuses to judge: tests do.
"""

from __future__ import annotations

import asyncio
import json
import selectors
import time
from collections import defaultdict
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import cbor2
import msgspec

from monitor.defender import delivery, reporter
from monitor.defender.delivery import Delivery
from monitor.defender.link import Refused, Unreachable
from monitor.defender.spool import Spool
from monitor.detect.device import DeviceReading
from monitor.detect.snapshot import Snapshot, WatchSnapshot
from monitor.schema import Defender
from monitor.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    import pytest

    from monitor.defender.link import Listener

T = TypeVar("T")

THING: Final = "mything1"
METRICS: Final = f"$aws/things/{THING}/defender/metrics"
ALARMS: Final = f"kinwatch/{THING}/alarms"
EVENTS: Final = f"kinwatch/{THING}/events"
EVENTS_S: Final = 10
SPACING_S: Final = 300.0
INTERVAL_S: Final = 3600.0
ANSWER_S: Final = 30
WALL_S: Final = 2e9
ALARM: Final = b'{"event":"alarm","watch":"myapp","behavior":"b","value":%d}\n'
CLEAR: Final = b'{"event":"clear","watch":"myapp","behavior":"b","value":%d}\n'


class _Selector(selectors.DefaultSelector):
    """Waits for nothing: when there is nothing to do now, it is later."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Move the clock instead of waiting."""
        events = super().select(0)
        if not events and timeout is None:
            raise RuntimeError("everybody waits for ever")
        if not events and timeout is not None:
            self.now_s += timeout
        return events


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time passes at once. Its clocks are those of the machine for the modules under test."""

    def __init__(self) -> None:
        self._clock = _Selector()
        self.wall_s = WALL_S
        """The date when this clock began."""
        super().__init__(self._clock)

    def time(self) -> float:
        """Seconds since some boot."""
        return self._clock.now_s

    def date(self) -> float:
        """Seconds since the epoch."""
        return self.wall_s + self.time()

    def run(self, story: Coroutine[Any, Any, T]) -> T:
        """Tell a story to its end; one that fails leaves nothing running."""
        try:
            return self.run_until_complete(story)
        finally:
            for task in (left := asyncio.all_tasks(self)):
                task.cancel()
            if left:
                self.run_until_complete(asyncio.wait(left))

    def rule(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let this clock be the one the modules look at; their threads run in the loop, one step later."""
        clocks = SimpleNamespace(
            time=self.date,
            monotonic=self.time,
            clock_gettime=lambda _: self.time(),
            CLOCK_BOOTTIME=time.CLOCK_BOOTTIME,
        )
        monkeypatch.setattr(reporter, "time", clocks)
        monkeypatch.setattr(delivery, "time", clocks)
        monkeypatch.setattr(asyncio, "to_thread", self._in_thread)
        self.thread_s = 0.0
        self._inside: set[int] = set()

    async def _in_thread(self, work: Callable[..., T], *args: object) -> T:
        """Do it after `thread_s`. A window is nobody's to enter while another thread is in it."""
        owner = getattr(work, "__self__", None)
        if not isinstance(owner, Window):
            return work(*args)
        assert id(owner) not in self._inside, f"two threads in a window, one of them in {work}"
        self._inside.add(id(owner))
        try:
            await asyncio.sleep(self.thread_s / 2)
            done = work(*args)
            await asyncio.sleep(self.thread_s / 2)
        finally:
            self._inside.discard(id(owner))
        return done


class Service:
    """The broker and the Device Defender behind it: a Link. Every message is kept with the moment it came."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._listener: Listener | None = None
        self._unanswered: list[asyncio.Future[None]] = []
        self.up = True
        """Whether there is a connection."""
        self.ack: Callable[[str, bytes], Exception | bool] = lambda _topic, _payload: True
        """What becomes of a message: True it is taken, False nobody says, or the error of its acknowledgement."""
        self.answer: Callable[[int], Sequence[tuple[float, str, dict[str, Any]]]] = self.accept
        """Answers to a report, by its id: after how many seconds, "accepted" or "rejected", the document."""
        self.deny_subscriptions: Exception | None = None
        self.subscribed: list[list[str]] = []
        self.messages: dict[str, list[tuple[float, bytes]]] = defaultdict(list)
        self.stopped_s: float | None = None

    # -------- what it may answer --------

    @staticmethod
    def accept(report_id: int) -> Sequence[tuple[float, str, dict[str, Any]]]:
        """At once."""
        return [(0.0, "accepted", {"thingName": THING, "reportId": report_id, "status": "ACCEPTED"})]

    @staticmethod
    def reject(report_id: int) -> Sequence[tuple[float, str, dict[str, Any]]]:
        """As the developer guide shows it: without an id."""
        del report_id
        details = {"ErrorCode": "InvalidPayload", "ErrorMessage": "Malformed metrics report"}
        return [(0.0, "rejected", {"thingName": THING, "status": "REJECTED", "statusDetails": details})]

    @staticmethod
    def silent(report_id: int) -> Sequence[tuple[float, str, dict[str, Any]]]:
        """Say nothing."""
        del report_id
        return []

    # -------- the link --------

    def start(self, listener: Listener) -> None:
        """Connect, if there is a connection."""
        self._listener = listener
        if self.up:
            self._clock.call_soon(self.connect)

    def publish(self, topic: str, payload: bytes) -> asyncio.Future[None]:
        """Take it or not."""
        done: asyncio.Future[None] = self._clock.create_future()
        verdict = self.ack(topic, payload) if self.up else Unreachable("no connection")
        if verdict is False:
            self._unanswered.append(done)
        elif verdict is not True:
            assert isinstance(verdict, Exception)
            done.set_exception(verdict)
        else:
            self.messages[topic].append((self._clock.time(), payload))
            done.set_result(None)
            if topic.startswith(METRICS):
                self._answer(topic, payload)
        return done

    async def subscribe(self, filters: Sequence[str]) -> None:
        """Note it."""
        self.subscribed.append(list(filters))
        if self.deny_subscriptions is not None:
            raise self.deny_subscriptions

    async def stop(self, timeout_s: float) -> None:
        """Wait for all of it, as a link may when nobody answers the farewell."""
        if not self.up:
            await asyncio.sleep(timeout_s)
        self.stopped_s = self._clock.time()

    def _answer(self, topic: str, payload: bytes) -> None:
        form = topic.rpartition("/")[2]
        encode = cbor2.dumps if form == "cbor" else msgspec.json.encode
        for delay_s, what, document in self.answer(_decoded(topic, payload)["header"]["report_id"]):
            self._clock.call_later(delay_s, self.say, f"{topic}/{what}", encode(document))

    # -------- what happens to it --------

    def say(self, topic: str, payload: bytes) -> None:
        """A message for the device; there must be a connection."""
        if self.up and self._listener is not None:
            self._listener.received(topic, payload)

    def connect(self, *, resumed: bool = False) -> None:
        """A connection stands."""
        self.up = True
        if self._listener is not None:
            self._listener.connected(resumed=resumed)

    def disconnect(self, why: str = "the cable was pulled") -> None:
        """It broke; nobody will say what became of what was on its way."""
        self.up = False
        if self._listener is not None:
            self._listener.disconnected(why)
        unanswered, self._unanswered = self._unanswered, []
        for future in unanswered:
            if not future.done():
                future.set_exception(Unreachable(why))

    def forget(self) -> None:
        """Whoever listened is no more."""
        self._listener = None

    # -------- what it has seen --------

    def reports(self, form: str = "json") -> list[dict[str, Any]]:
        """Every report, in order."""
        topic = f"{METRICS}/{form}"
        return [_decoded(topic, payload) for _, payload in self.messages[topic]]

    def moments(self, topic: str = f"{METRICS}/json") -> list[float]:
        """When they came."""
        return [moment for moment, _ in self.messages[topic]]

    def alarms(self) -> list[dict[str, Any]]:
        """Every alarm, in order."""
        return [json.loads(payload) for _, payload in self.messages[ALARMS]]


def _decoded(topic: str, payload: bytes) -> Any:  # noqa: ANN401 - whatever it holds
    return cbor2.loads(payload) if topic.endswith("cbor") else json.loads(payload)


def refuse(code: int) -> Callable[[str, bytes], Exception | bool]:
    """Acknowledge everything with an error."""
    return lambda _topic, _payload: Refused(f"refused with {code}", code)


class Counters:
    """A capture and its engine: children that were spawned and are gone again."""

    def __init__(self) -> None:
        self.spawned = 0
        self.alive = 0
        self.exes: tuple[str, ...] = ()

    def mark(self) -> int:
        """No executables, no marks."""
        return 0

    def snapshot(self, reader: int | None, mark: int) -> Snapshot:
        """All counters now."""
        del reader, mark
        watch = WatchSnapshot(
            name="myapp",
            roots=1,
            alive=self.alive,
            peak=1,
            spawned=self.spawned,
            adopted=0,
            execs=0,
            exits=self.spawned - self.alive,
            root_starts=1,
            root_exits=0,
            window_peak=1,
            exes=self.exes,
        )
        return Snapshot(wall_ns=0, boot_ns=0, watches=(watch,), lost={})


NO_NETWORK: Final = DeviceReading(interfaces={})


class _State:
    """The window's place in the spool."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    def load(self) -> bytes | None:
        return self._spool.load("window")

    def save(self, state: bytes) -> None:
        self._spool.save("window", state)


class Device:
    """A daemon's publishing side, over its lives. Each `begin` is a new process with the same disk."""

    def __init__(self, clock: Clock, service: Service, path: Path | None = None, **settings: Any) -> None:  # noqa: ANN401
        self.clock, self.service, self._path = clock, service, path
        self.counters = Counters()
        self.generation = 1
        self.said: list[str] = []
        self.dropped: list[int] = []
        self.interval_s = float(settings.pop("interval_s", INTERVAL_S))
        settings.setdefault("alarm_topic", ALARMS)
        self.settings = Defender(
            thing=THING, endpoint="example.org", min_spacing_s=int(SPACING_S), answer_s=ANSWER_S, **settings
        )
        self.spool: Spool
        self.delivery: Delivery
        self.running: asyncio.Task[None]

    @property
    def troubles(self) -> list[str]:
        """What it said, but for where it publishes."""
        return [text for text in self.said if not text.startswith("publishing as ")]

    def open(self) -> Delivery:
        """Everything before the loop runs."""
        self.service.stopped_s = None
        self.spool = Spool(self._path, max_bytes=1 << 30, max_age_s=1e9, on_drop=self.dropped.append)
        window = Window(
            self.counters,  # type: ignore[arg-type]
            self.counters,  # type: ignore[arg-type]
            1,
            lambda: NO_NETWORK,
            store=_State(self.spool),
            generation=self.generation,
        )
        self.delivery = Delivery(
            self.settings,
            self.service,
            self.spool,
            window,
            self.said.append,
            interval_s=self.interval_s,
            names="long",
        )
        return self.delivery

    async def begin(self) -> Delivery:
        """A process begins."""
        self.open()
        return await self.go()

    async def go(self) -> Delivery:
        """What was opened runs, and is connected if it can be."""
        self.running = asyncio.create_task(self.delivery.run())
        await asyncio.sleep(0.001)
        return self.delivery

    async def kill(self) -> None:
        """The process is gone; what it had not written down with it."""
        self.service.forget()
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        self.spool.close()

    async def finish(self, timeout_s: float = 5.0, *, report: bool = True) -> bool:
        """The process ends in good order."""
        accepted = await self.delivery.finish(timeout_s, report=report)
        await self.running
        self.spool.close()
        return accepted

    def spawn(self, count: int) -> None:
        """So many children come and go."""
        self.counters.spawned += count


def spawned(report: dict[str, Any]) -> int:
    """How many children a report tells of."""
    return int(report["custom_metrics"]["child_procs_spawned_myapp"][0]["number"])


def report_id(report: dict[str, Any]) -> int:
    """Its id."""
    return int(report["header"]["report_id"])


def values(service: Service) -> list[int]:
    """What the alarms say, in order."""
    return [alarm["value"] for alarm in service.alarms()]


def events(service: Service) -> list[bytes]:
    """Batches of event lines."""
    return [payload for _, payload in service.messages[EVENTS]]
