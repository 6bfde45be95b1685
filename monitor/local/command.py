"""`kinwatch defender`: the local Device Defender as a command, on a broker of yours.

Owns its options, its connection and its end. Refuses to know how a report is judged and what a line looks like.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from monitor.defender.client import choose
from monitor.defender.connection import Connection
from monitor.defender.credentials import check
from monitor.defender.link import Unreachable
from monitor.defender.responder import FILTERS, Faults, Heard, Responder
from monitor.detect.profile import Profile, load
from monitor.errors import ConfigInvalid, KinwatchError
from monitor.local.lines import Lines, Table
from monitor.schema import Defender
from monitor.sinks.stream import StreamSink
from monitor.sinks.text import say as to_stderr
from monitor.sinks.text import wants_colour

if TYPE_CHECKING:
    from collections.abc import Callable

    from monitor.defender.link import Link
    from monitor.detect.evaluator import Verdict

EXPIRE_EVERY_S: Final = 60.0
STOP_WITHIN_S: Final = 5.0
LAST_ANSWERS_WITHIN_S: Final = 10.0
MAX_PROFILE_BYTES: Final = 16 << 20
MAX_NAME_BYTES: Final = 128
"""Of a client id, AWS IoT Core's limit; a host name longer than this is none of a broker either."""
RECONNECT_MS: Final = 250


class DefenderOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The flags of `kinwatch defender`."""

    endpoint: str = "localhost"
    port: int = 8883
    root_ca: str = ""
    certificate: str = ""
    private_key: str = ""
    """All three empty: plain TCP."""
    client_id: str = "kinwatch-defender"
    profile: str = ""
    """A security profile's file; "": nothing is judged."""
    min_spacing_s: float = 300.0
    json: bool = False
    once: int = 0
    """End after so many reports; 0: do not."""
    faults: Faults = Faults()


def run(options: DefenderOptions, link: Link | None = None, say: Callable[[str], None] | None = None) -> int:
    """Answer reports until SIGINT or SIGTERM; returns 0.

    The broker keeps the session for an hour: reports that came meanwhile are answered at the next start.

    `link`: None connects as the options say. Raises ConfigInvalid (files, flags), Unreachable and Refused (the broker
    could not be reached, or does not let us hear reports, at the start; later the link tries again), OSError (stdout).
    """
    say = say or to_stderr
    profile = _profile(options.profile)
    if link is None:
        _check(options)
        link = choose("auto", "kinwatch defender").link(
            Connection(
                endpoint=options.endpoint,
                port=options.port,
                client_id=options.client_id,
                root_ca=options.root_ca,
                certificate=options.certificate,
                private_key=options.private_key,
                keep_alive_s=45,
                throttle=False,  # the limits are those of a device; a service answers as fast as reports come
                reconnect_ms=(RECONNECT_MS, 8 * RECONNECT_MS),
            )
        )
    stdout = StreamSink.stdout()
    colour = wants_colour(os.environ, terminal=stdout.isatty())
    written = Lines() if options.json else Table(colour=colour)
    asyncio.run(_Desk(options, profile, link, written, stdout, say).serve())
    return 0


def _check(options: DefenderOptions) -> None:
    """Refuse what cannot connect, before anything is tried."""
    for flag, text in (("--endpoint", options.endpoint), ("--client-id", options.client_id)):
        if not text or not text.isprintable() or len(text.encode()) > MAX_NAME_BYTES:
            raise ConfigInvalid(f"{flag}: expected 1 to {MAX_NAME_BYTES} bytes of printable text, found {text!r}")
    files = (options.root_ca, options.certificate, options.private_key)
    if not any(files):
        return
    if not all(files):
        raise ConfigInvalid(
            "expected --root-ca, --certificate and --private-key together, found only some of them; "
            "name all three, or none for plain TCP"
        )
    settings = Defender(
        thing="any",
        endpoint=options.endpoint,
        root_ca=options.root_ca,
        certificate=options.certificate,
        private_key=options.private_key,
    )
    try:
        check(settings, time.time())
    except ConfigInvalid as error:
        key, _, what = str(error).partition(": ")
        flag = key.removeprefix("defender.").replace("_", "-")
        raise ConfigInvalid(f"--{flag}: {what}") from None


def _profile(file: str) -> Profile | None:
    if not file:
        return None
    try:
        with Path(file).open("rb") as opened:
            data = opened.read(MAX_PROFILE_BYTES + 1)
    except OSError as error:
        raise ConfigInvalid(f"{file}: cannot be read ({error.strerror}); name a security profile's file") from error
    if len(data) > MAX_PROFILE_BYTES:
        raise ConfigInvalid(f"{file}: takes more than {MAX_PROFILE_BYTES} bytes; name a security profile's file")
    return load(data, file)


class _Desk:
    """One service; hears the link, which calls it in the thread of the loop."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts, once
        self,
        options: DefenderOptions,
        profile: Profile | None,
        link: Link,
        written: Lines | Table,
        stdout: StreamSink,
        say: Callable[[str], None],
    ) -> None:
        self._options = options
        self._profile = profile
        self._link = link
        self._written = written
        self._stdout = stdout
        self._say = say
        self._responder = Responder(
            profile, min_spacing_s=options.min_spacing_s, faults=options.faults, heard=self._heard, judged=self._judged
        )
        self._reports = 0
        self._thing = ""
        self._told: set[str] = set()
        self._ready = False
        self._interrupted = asyncio.Event()
        self._pending: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._subscribing: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """Until a signal comes, or enough reports."""
        loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = loop.create_future()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt)
        expiring = loop.create_task(self._expire())
        try:
            self._link.start(self)
            await self._ended
            await self._last_answers()
        finally:
            for task in (expiring, self._subscribing, self._timer):
                if task is not None:
                    task.cancel()
            await self._link.stop(STOP_WITHIN_S)

    def _interrupt(self) -> None:
        self._interrupted.set()
        self._end()

    def _end(self, error: BaseException | None = None) -> None:
        if self._ended.done():
            return
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)

    def connected(self, *, resumed: bool) -> None:  # noqa: ARG002 - to subscribe again does no harm
        """Subscribe."""
        self._subscribing = asyncio.get_running_loop().create_task(self._subscribe())

    async def _subscribe(self) -> None:
        try:
            await self._link.subscribe(FILTERS)
        except KinwatchError as error:
            if not (self._ready and isinstance(error, Unreachable)):  # the next connection subscribes
                self._end(error)
            return
        except Exception as error:  # noqa: BLE001 - a bug must not end in a service that hears nothing
            self._end(error)
            return
        if self._ready:
            self._say("connected again")
            return
        self._ready = True
        where = f"{self._options.endpoint}:{self._options.port}"
        if self._profile is None:
            self._say(f"local Device Defender ready ({where}, no security profile)")
            return
        here, there = len(self._profile.behaviors), len(self._profile.elsewhere)
        name = self._profile.name or self._options.profile
        self._say(f"local Device Defender ready ({where}, profile {name}: {here} of {here + there} behaviors judged)")
        for behavior, why in self._profile.elsewhere:
            self._say(f"behavior {behavior} is not judged: {why}")

    def disconnected(self, why: str) -> None:
        """End at the start; say it later."""
        if self._ready:
            self._say(f"disconnected ({why}); trying again")
        else:
            where = f"{self._options.endpoint}:{self._options.port}"
            self._end(Unreachable(f"cannot connect to {where}: {why}; start a broker there, or name another"))

    def received(self, topic: str, payload: bytes) -> None:
        """Answer one message."""
        if self._ended.done():
            return
        try:
            self._publish(self._responder.answer(topic, payload, time.time()))
            self._say_unfit()
            self._wait_for_late()
            if self._options.once and self._reports >= self._options.once:
                self._end()
        except Exception as error:  # noqa: BLE001 - nothing may be lost in the loop's own log
            self._end(error)

    def _publish(self, messages: list[tuple[str, bytes]]) -> None:
        for message in messages:
            try:
                pending = self._link.publish(*message)
            except Exception as error:  # noqa: BLE001 - the answer's topic is somebody else's text
                self._say(f"an answer could not be sent: {error}")
                continue
            self._pending.add(pending)
            pending.add_done_callback(self._sent)

    def _sent(self, pending: asyncio.Future[None]) -> None:
        self._pending.discard(pending)
        if not pending.cancelled() and (error := pending.exception()) is not None:
            self._say(f"an answer could not be sent: {error}")

    def _wait_for_late(self) -> None:
        due_s = self._responder.next_due_s()
        if due_s is not None and self._timer is None:
            delay_s = max(0.0, due_s - time.time())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._send_late)

    def _send_late(self) -> None:
        self._timer = None
        self._publish(self._responder.due(time.time()))
        self._wait_for_late()

    async def _last_answers(self) -> None:
        """Send what was still to be said after the last report, unless a signal came."""
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[object]] = {
            loop.create_task(self._send_rest()),
            loop.create_task(self._interrupted.wait()),
        }
        done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        for task in done:
            task.result()

    async def _send_rest(self) -> None:
        while (due_s := self._responder.next_due_s()) is not None:
            await asyncio.sleep(max(0.0, due_s - time.time()))
            self._publish(self._responder.due(time.time()))
        if self._pending:
            await asyncio.wait(self._pending, timeout=LAST_ANSWERS_WITHIN_S)

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE_EVERY_S)
            try:
                self._responder.expire(time.time())
            except Exception as error:  # noqa: BLE001 - as in received
                self._end(error)

    def _say_unfit(self) -> None:
        evaluator = self._responder.evaluator(self._thing)
        for behavior, why in evaluator.unfit.items() if evaluator else ():
            self._say_once(f"behavior {behavior} cannot be judged: {why}")

    def _heard(self, heard: Heard) -> None:
        self._reports += 1
        self._thing = heard.thing
        self._write(self._written.report(heard, time.time_ns()))

    def _judged(self, thing: str, verdict: Verdict) -> None:
        self._write(self._written.verdict(thing, verdict, time.time_ns()))

    def _write(self, lines: str) -> None:
        if self._stdout.write(lines.encode("utf-8", "replace")):
            self._say_once("stdout is full; lines are missing there")

    def _say_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._say(text)
