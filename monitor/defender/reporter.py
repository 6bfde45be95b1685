"""One Defender report at a time: made when it is due, sent, answered; only an accepted one ends its window.

Owns the one report in flight and what each answer means. Refuses to know counters and documents (the window's), the
arithmetic of spacing (`schedule`) and MQTT (`link`).
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from monitor.defender.answers import TOPIC, Answer, parse
from monitor.defender.link import Refused, Unreachable
from monitor.defender.schedule import Moment, Schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from monitor.defender.link import Link
    from monitor.defender.report import Format, Names
    from monitor.defender.spool import Spool

LOOK_S: Final = 300.0
"""Longest wait without a look at the clock: asyncio's own stands still while the machine sleeps."""
_SENT: Final = "sent"  # state of the spool: when the last report left


class Windows(Protocol):
    """What a reporter needs of a window; its reports have report_id, payload, dropped, metrics."""

    @property
    def pending(self) -> Any:  # noqa: ANN401 - the window's own type stands above this wing
        """The last report that was made, while it is not accepted."""

    def begin(self) -> None:
        """Note the state of the device, if no report did."""

    def report(self, now_s: int, names: Names, encoding: Format) -> Any:  # noqa: ANN401
        """Make a report of the window so far."""

    def accept(self, report: Any) -> None:  # noqa: ANN401
        """End the window with this report."""


class Counts(msgspec.Struct, kw_only=True):
    """What became of reports, since this start."""

    sent: int = 0
    accepted: int = 0
    rejected: dict[str, int] = {}
    """By the service's ErrorCode."""
    unanswered: int = 0
    refused: int = 0
    """The broker's acknowledgement was an error."""
    undelivered: int = 0
    """The connection broke before the acknowledgement."""
    foreign_answers: int = 0
    """About another report than the one in flight."""
    unreadable_answers: int = 0


class Reporter:
    """The reports of one thing. Everything runs in the loop's thread but the window, which works in another."""

    def __init__(  # noqa: PLR0913 - its parts and its settings
        self,
        window: Windows,
        spool: Spool,
        link: Link,
        say: Callable[[str], None],
        *,
        thing: str,
        names: Names,
        form: Format,
        interval_s: float,
        spacing_s: float,
        answer_s: float,
    ) -> None:
        """Seconds: of a period, least between two reports, longest wait for an answer."""
        self._window, self._spool, self._link, self._say = window, spool, link, say
        self._names, self._form = names, form
        self._answer_s = answer_s
        self._schedule = Schedule(thing, interval_s, spacing_s, _last_sent(spool), moment())
        self._changed = asyncio.Event()
        self.identify(thing)
        self._sending = asyncio.Lock()
        self._windowing = asyncio.Lock()  # one thread at a time in the window
        self._flight: int | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._first: asyncio.Future[bool]
        self._told: set[str] = set()
        self.counts = Counts()

    def identify(self, thing: str) -> None:
        """Report as this thing from now on."""
        self._thing = thing
        self._topic = TOPIC.format(thing=thing, format=self._form)
        self._schedule.identify(thing)
        self._changed.set()

    @property
    def answers(self) -> list[str]:
        """The topics to subscribe to."""
        return [f"{self._topic}/accepted", f"{self._topic}/rejected"]

    @property
    def next_in_s(self) -> float:
        """Seconds until the next report may leave; negative: it waits for a connection."""
        return self._schedule.due_s - moment().boot_s

    def want(self) -> None:
        """Have a report sent as soon as it may be."""
        self._schedule.want()
        self._changed.set()

    def change(self, interval_s: float, spacing_s: float, names: Names) -> None:
        """Take new settings."""
        self._names = names
        self._schedule.change(interval_s, spacing_s)
        self._changed.set()

    async def run(self, connected: asyncio.Event) -> None:
        """Send reports when they are due and there is a connection, until cancelled."""
        self._first = asyncio.get_running_loop().create_future()
        async with self._windowing:
            await asyncio.to_thread(self._window.begin)
        while True:
            while (left_s := self.next_in_s) > 0:
                self._changed.clear()
                try:
                    async with asyncio.timeout(min(left_s, LOOK_S)):
                        await self._changed.wait()
                except TimeoutError:
                    continue
            await connected.wait()
            async with self._sending:
                if self.next_in_s > 0:
                    continue  # another one left while this one waited
                accepted = await self.attempt(self._answer_s)
            if not self._first.done():
                self._first.set_result(accepted)

    async def first(self) -> bool:
        """Have the first report sent as soon as it may be, and wait what becomes of it; True: accepted."""
        self.want()
        return await self._first

    async def last(self, *, connected: bool, timeout_s: float) -> bool:
        """At the end: send the unfinished window if that may be, else keep it for the next start. True: accepted.

        It is kept as well when this is cancelled because an earlier report is still waiting for its answer.
        """
        attempted = False
        try:
            async with self._sending:
                attempted = connected and self._schedule.allowed_s <= moment().boot_s
                return attempted and await self.attempt(timeout_s)
        finally:
            if not attempted:
                await self._make()

    async def attempt(self, answer_s: float) -> bool:
        """Make a report, send it, wait for its answer; True: it was accepted, and its window is over."""
        # Before the snapshot: an alarm that comes after it is not in this report and must be in a next one.
        self._schedule.making()
        report = await self._make()
        if report.dropped:
            self._say(f"the report was too long: {report.dropped} entries left out, totals are true")
        try:
            await asyncio.to_thread(self._spool.save, _SENT, msgspec.json.encode(moment()))
        except OSError as error:
            self._tell_once("state", f"{error}; the spacing of reports will not survive a restart")
        self._schedule.sent(moment().boot_s)
        self._flight = report.report_id
        self._answer = asyncio.get_running_loop().create_future()
        self.counts.sent += 1
        try:
            async with asyncio.timeout(answer_s) as limit:
                await self._link.publish(self._topic, report.payload)
                limit.reschedule(asyncio.get_running_loop().time() + answer_s)
                answer = await self._answer
        except Refused as error:
            self.counts.refused += 1
            self._tell_once("refused", f"report {report.report_id}: {error}")
        except Unreachable:
            self.counts.undelivered += 1
        except TimeoutError:
            self.counts.unanswered += 1
            self._tell_once(
                "unanswered",
                f"report {report.report_id}: no answer within {answer_s:g} s; it goes with the next one."
                " Without any answer ever: is iot:Receive allowed, and does the account have Device Defender Detect?",
            )
        else:
            if answer.accepted:
                await self._accept(report)
                return True
            code = answer.code or "unknown"
            self.counts.rejected[code] = self.counts.rejected.get(code, 0) + 1
            self._tell_once(f"rejected {code}", f"report {report.report_id} was rejected: {code} {answer.message}")
        finally:
            self._flight = self._answer = None
        self._schedule.failed()
        return False

    async def _make(self) -> Any:  # noqa: ANN401 - the window's own type
        async with self._windowing:
            return await asyncio.to_thread(self._window.report, int(time.time()), self._names, self._form)

    def received(self, topic: str, payload: bytes) -> Coroutine[Any, Any, None] | None:
        """Take what came on a topic. A late acceptance still ends its window: await what is returned."""
        answer = parse(topic, payload, self._thing)
        if answer is None:
            self.counts.unreadable_answers += 1
            self._tell_once("unreadable", f"what came on {topic} is no answer that can be read")
            return None
        pending = self._window.pending
        if self._answer is not None and answer.report_id in (None, self._flight):
            if not self._answer.done():
                self._answer.set_result(answer)
            return None
        if self._flight is None and answer.accepted and pending is not None and answer.report_id == pending.report_id:
            return self._accept(pending)
        self.counts.foreign_answers += 1
        return None

    async def _accept(self, report: Any) -> None:  # noqa: ANN401 - the window's own type
        async with self._windowing:
            pending = self._window.pending
            if pending is None or pending.report_id != report.report_id:
                self.counts.foreign_answers += 1  # it came twice, or the next report has been made meanwhile
                return
            await asyncio.to_thread(self._window.accept, report)
        self.counts.accepted += 1
        self._schedule.accepted()
        self._told.clear()
        self._changed.set()

    def _tell_once(self, kind: str, text: str) -> None:
        """Say a trouble once, until a report is accepted again."""
        if kind not in self._told:
            self._told.add(kind)
            self._say(text)


def moment() -> Moment:
    """Now, on both clocks."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return Moment(wall_s=time.time(), boot_s=time.clock_gettime(time.CLOCK_BOOTTIME), boot_id=boot_id)


def _last_sent(spool: Spool) -> Moment | None:
    state = spool.load(_SENT)
    try:
        return None if state is None else msgspec.json.decode(state, type=Moment)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
