"""Whoever listens at the broker, and a kinwatch that publishes to it.

Owns a listener's thread and a daemon's process, folder and configuration. Refuses to judge: tests do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import cbor2

from monitor.defender.connection import Connection
from monitor.defender.publish import MqttLink
from monitor.defender.responder import FILTERS, Responder
from tests.kernel.conftest import LOCK_S, lock_is_held
from tests.mqtt.broker import DEADLINE_S, THING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.mqtt.broker import Broker

ALARMS: Final = f"kinwatch/{THING}/alarms"
EVENTS: Final = f"kinwatch/{THING}/events"
REPORTS: Final = f"$aws/things/{THING}/defender/metrics/"
KINWATCH: Final = (sys.executable, "-m", "monitor")


class Listener:
    """A client that may hear everything; with a responder it is the local Device Defender. A context manager."""

    def __init__(
        self,
        broker: Broker,
        filters: Sequence[str],
        *,
        name: str = "reader",
        client_id: str = "",
        responder: Responder | None = None,
    ) -> None:
        identity = broker.authority.known(name)
        self._link = MqttLink(
            Connection(
                endpoint="localhost",
                port=broker.port,
                client_id=client_id or f"{name}-{id(self)}",
                root_ca=str(broker.authority.root_ca),
                certificate=str(identity.certificate),
                private_key=str(identity.private_key),
                keep_alive_s=10,
                throttle=False,
                reconnect_ms=(50, 500),
            )
        )
        self._filters = list(filters)
        self.responder = responder
        """Who answers; None: nobody."""
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        # A daemon: a test that fails in the middle must not keep the run from ending.
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self.ready = threading.Event()
        self.messages: list[tuple[str, bytes]] = []
        """Topic and payload, as they came."""
        self.arrived_ns: list[int] = []
        """When each message of the topic of alarms came (CLOCK_REALTIME)."""
        self.trouble: list[str] = []

    def __enter__(self) -> Self:
        """Connect and subscribe."""
        self._thread.start()
        self._loop.call_soon_threadsafe(self._link.start, self)
        if not self.ready.wait(DEADLINE_S):
            self.__exit__()
            raise AssertionError(self.trouble)
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnect."""
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._link.stop(2.0), self._loop).result(DEADLINE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def connected(self, *, resumed: bool) -> None:  # noqa: ARG002 - to subscribe again does no harm
        """Subscribe."""
        task = self._loop.create_task(self._subscribe())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _subscribe(self) -> None:
        await self._link.subscribe(self._filters)
        self.ready.set()

    def disconnected(self, why: str) -> None:
        """Keep the reason for the message of a failed test."""
        self.ready.clear()
        self.trouble.append(why)

    def received(self, topic: str, payload: bytes) -> None:
        """Keep it, answer it."""
        if topic == ALARMS:
            self.arrived_ns.append(time.time_ns())
        if self.responder is not None:
            for answer in self.responder.answer(topic, payload, time.time()):
                self._link.publish(*answer)
        with self._changed:
            self.messages.append((topic, payload))
            self._changed.notify_all()

    def arrived(self, least: int) -> None:
        """Wait for so many messages of the topic of alarms; nothing is decoded meanwhile."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.arrived_ns) >= least, DEADLINE_S), self.trouble

    def publish(self, topic: str, payload: bytes) -> None:
        """Say something oneself."""

        async def send() -> None:
            await self._link.publish(topic, payload)

        asyncio.run_coroutine_threadsafe(send(), self._loop).result(DEADLINE_S)

    def on(self, topic: str) -> list[Any]:
        """What came on a topic (its beginning is enough), decoded."""
        with self._changed:
            return [_decoded(name, payload) for name, payload in self.messages if name.startswith(topic)]

    def wait(self, topic: str, enough: Callable[[list[Any]], bool], deadline_s: float = DEADLINE_S) -> list[Any]:
        """Wait until what came on a topic is enough."""
        deadline = time.monotonic() + deadline_s
        while True:
            with self._changed:
                count = len(self.messages)
            found = self.on(topic)
            if enough(found):
                return found
            with self._changed:
                left = deadline - time.monotonic()
                assert left > 0, (topic, found, self.trouble)
                if len(self.messages) == count:
                    self._changed.wait(left)


def defender(broker: Broker, responder: Responder, *more: str) -> Listener:
    """The local Device Defender at a broker, which hears alarms and events as well."""
    return Listener(broker, [*FILTERS, ALARMS, EVENTS, *more], name="responder", responder=responder)


def _decoded(topic: str, payload: bytes) -> Any:  # noqa: ANN401
    if "/cbor" in topic:
        return cbor2.loads(payload)
    return json.loads(payload) if payload[:1] == b"{" and b"\n" not in payload.strip() else payload


@dataclass
class Kinwatch:
    """`kinwatch run` for one test; its state_dir stays between starts. A context manager that ends it."""

    folder: Path
    broker: Broker
    defender: str = ""
    """Further lines of [defender]."""
    more: str = ""
    """Further tables, or watches."""
    report: str = "interval_s = 3600"
    identity: str = f"{THING}-kinwatch"
    arguments: Sequence[str] = ()
    command: Sequence[str] = ()
    """`-- COMMAND`; none: the daemon."""
    endpoint: str = "localhost"
    before: Sequence[str] = ()
    """What the command line begins with."""
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Write the configuration."""
        self.folder.mkdir(exist_ok=True)
        known = self.broker.authority.known(self.identity)
        self.log = self.folder / "events.jsonl"
        self.stderr = self.folder / "stderr"
        self.configuration = self.folder / "kinwatch.toml"
        self.configuration.write_text(
            f"""\
[log]
file = "{self.log}"
[report]
{self.report}
[daemon]
state_dir = "{self.folder / "state"}"
socket = "{self.folder / "control.sock"}"
[defender]
thing = "{THING}"
endpoint = "{self.endpoint}"
port = {self.broker.port}
root_ca = "{self.broker.authority.root_ca}"
certificate = "{known.certificate}"
private_key = "{known.private_key}"
{self.defender}
{self.more}
"""
        )

    def __enter__(self) -> Self:
        """Start it."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """End it, whatever state it is in."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._close_stdin()

    def start(self) -> Self:
        """Start it and wait until it watches."""
        before = len(self.said())
        self._spawn()
        try:
            self.wait_until(lambda: "watching (" in self.said()[before:])
        except BaseException:
            self.__exit__()
            raise
        return self

    def refused(self) -> int:
        """Start it where it must not start; returns the exit code."""
        self._spawn()
        assert self.process is not None
        try:
            return self.process.wait(DEADLINE_S)
        finally:
            self.process.kill()
            self.process.wait()
            self._close_stdin()

    def _spawn(self) -> None:
        self._close_stdin()
        if not self.command and not {"--once", "--pid"} & set(self.arguments):
            deadline = time.monotonic() + LOCK_S
            while lock_is_held() and time.monotonic() < deadline:
                time.sleep(0.05)
        with self.stderr.open("ab") as stderr:
            self.process = subprocess.Popen(
                [*self.before, *KINWATCH, "run", "-c", str(self.configuration), *self.arguments]
                + (["--", *self.command] if self.command else []),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={**os.environ, **self.environment},
            )

    def _close_stdin(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()

    def said(self) -> str:
        """What it wrote to stderr, over all starts."""
        return self.stderr.read_text(errors="replace") if self.stderr.exists() else ""

    def wait_until(self, true: Callable[[], bool]) -> None:
        """Wait for a fact; the daemon must live meanwhile."""
        deadline = time.monotonic() + DEADLINE_S
        while not true():
            assert self.process is not None
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.01)

    def tell(self, text: str) -> None:
        """Write a line to the command's stdin."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def live(self, seconds: float) -> None:
        """Let it live for a while; it must not end by itself."""
        assert self.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise AssertionError((self.process.wait(seconds), self.said()))

    def kill(self) -> None:
        """Send SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(DEADLINE_S)

    def events(self, *names: str) -> list[dict[str, Any]]:
        """The event log's lines of these events."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        found = [json.loads(line) for line in lines]
        return [line for line in found if line["event"] in names]

    def status(self) -> dict[str, Any]:
        """What `kinwatch status --json` says."""
        output = subprocess.run(
            [*KINWATCH, "status", "--json", "--socket", str(self.folder / "control.sock")],
            check=True,
            capture_output=True,
        ).stdout
        answer: dict[str, Any] = json.loads(output)
        return answer


def shell(folder: Path, name: str = "myapp") -> str:
    """A shell called `name`: an application that does what is written to its stdin."""
    program = folder / name
    if not program.exists():
        program.write_bytes(Path("/bin/sh").resolve().read_bytes())
        program.chmod(0o755)
    return str(program)


def told(messages: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Which alarm and clear lines messages are, without what they gained on the way."""
    return [(message["event"], message["time"]) for message in messages]


def lines_of(messages: Sequence[dict[str, Any]]) -> int:
    """How many lines they stand for; a message that came twice counts once."""
    most: dict[str, int] = {}
    for message in messages:
        most[message["alarm_id"]] = max(most.get(message["alarm_id"], 0), 1 + message.get("merged", 0))
    return sum(most.values())


def spawned(reports: Sequence[dict[str, Any]]) -> int:
    """How many children reports tell of, together."""
    return sum(report["custom_metrics"]["child_procs_spawned_myapp"][0]["number"] for report in reports)


def once(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each message where it came first: a copy may come later, even from a connection that was given up."""
    first: dict[str, dict[str, Any]] = {}
    for message in messages:
        first.setdefault(message["alarm_id"], message)
    return list(first.values())


def ids_are_reports(cloud: Listener) -> bool:
    """Whether each report id was used for one report, however often that came (QoS 1)."""
    ids = {report["header"]["report_id"] for report in cloud.on(REPORTS)}
    return len(ids) == len({payload for topic, payload in cloud.messages if topic.startswith(REPORTS)})
