"""What publishing costs: how soon an alarm arrives, how fast a backlog leaves, how much memory a connection takes.

Owns a broker for each measurement. Refuses to judge.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final

import msgspec

from monitor.config import parse
from monitor.defender.alarms import BURST
from monitor.defender.connection import connection_of
from monitor.defender.delivery import Delivery
from monitor.defender.publish import MqttLink
from monitor.defender.responder import Responder
from monitor.defender.spool import Spool
from tests.bench import programs
from tests.bench.watcher import Unmeasured, memory_kb
from tests.mqtt import stage
from tests.mqtt.broker import EVERYTHING, LEAST_PRIVILEGE, THING, Authority, Broker
from tests.mqtt.rig import ALARMS, REPORTS, Kinwatch, defender

if TYPE_CHECKING:
    from pathlib import Path

QUIET_S: Final = 0.02
"""Before each fork, as for the first event."""
PER_WATCH: Final = BURST // 2 - 5
"""An alarm and its end are two messages; more than a burst of one watch would be merged."""
SETTLE_S: Final = 2.0
FAR_S: Final = 86_400.0


@dataclass(frozen=True)
class Drain:
    """A backlog that left."""

    messages: int
    per_s: float
    in_order: bool


def broker(folder: Path) -> Broker:
    """A broker of this measurement."""
    folder.mkdir()
    acl = LEAST_PRIVILEGE.format(client=f"{THING}-kinwatch", thing=THING) + EVERYTHING.format(client="responder")
    return Broker(folder, Authority(folder), acl)


def alarm_ns(scratch: Path, samples: int) -> list[int]:
    """From before fork() to the alarm's PUBLISH in the hands of a subscriber, each after some quiet."""
    watches = -(-samples // PER_WATCH)
    names = [f"kwb-alarm-{number}" for number in range(watches)]
    paths = [programs.compiled("fork_when_told.c", scratch / name) for name in names]
    more = "".join(
        f'[[watch]]\nname = "{path.name}"\nexe = "{path}"\nexpect = {{ child_processes = 0 }}\n' for path in paths
    )
    found: list[int] = []
    with broker(scratch / "alarm") as running, defender(running, Responder()) as cloud:
        kinwatch = Kinwatch(scratch / "alarm" / "k", running, more=more)
        with kinwatch:
            kinwatch.wait_until(lambda: "publishing as" in kinwatch.said())
            for path in paths:
                with subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
                    assert process.stdin is not None
                    assert process.stdout is not None
                    time.sleep(SETTLE_S)
                    for _ in range(min(PER_WATCH, samples - len(found))):
                        time.sleep(QUIET_S)
                        before = len(cloud.arrived_ns)
                        process.stdin.write(b"x")
                        process.stdin.flush()
                        began_ns = int(process.stdout.readline())
                        cloud.arrived(before + 2)
                        found.append(cloud.arrived_ns[before] - began_ns)
                    process.stdin.close()
    return found


def connected_rss_kb(scratch: Path) -> int:
    """Memory of the daemon, connected, when its first report was accepted (VmRSS)."""
    with broker(scratch / "rss") as running, defender(running, Responder()) as cloud:
        path = programs.compiled("fork_when_told.c", scratch / "kwb-rss")
        more = f'[[watch]]\nname = "rss"\nexe = "{path}"\nexpect = {{ child_processes = 0 }}\n'
        with (
            Kinwatch(scratch / "rss" / "k", running, more=more) as kinwatch,
            subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process,
        ):
            assert process.stdin is not None
            assert kinwatch.process is not None
            process.stdin.write(b"x")
            process.stdin.flush()
            cloud.wait(REPORTS, bool)
            time.sleep(SETTLE_S)
            rss = memory_kb(kinwatch.process.pid, "VmRSS")
            process.stdin.close()
            return rss


def sample_agent_rss_kb(scratch: Path) -> int:
    """Memory of AWS's sample agent, connected, when it has sent its first report (VmRSS)."""
    folder = scratch / "sample"
    folder.mkdir()
    flags = ["-e", "localhost", "-r", "FOLDER/ca.pem", "-c", f"FOLDER/{THING}.pem", "-k", f"FOLDER/{THING}.key"]
    agent = [sys.executable, "-m", "AWSIoTDeviceDefenderAgentSDK.agent"]
    played = stage.play(folder, 1, *agent, *flags, "-id", THING, "-i", "1", "-f", "json")
    if not played.rss_kb:
        raise Unmeasured(f"the sample agent sent no report: {played.stderr.strip()[-200:]}")
    return played.rss_kb


class _Nothing:
    """A window of nobody: its report, due because there are alarms, is refused, and the backlog goes on."""

    pending = None

    def begin(self) -> None:
        """Nothing to note."""

    def report(self, now_s: int, *_: object) -> object:
        """No report that anybody takes."""
        return SimpleNamespace(report_id=now_s, payload=b"{}", dropped={}, metrics=())

    def accept(self, _: object) -> None:
        """Nothing to end."""


def drained(scratch: Path, messages: int, *, throttle: bool) -> Drain:
    """Send a spool of alarms over loopback, as the daemon does; rate from the first to the last one received."""
    folder = scratch / f"drain-{throttle}"
    with broker(folder) as running, defender(running, Responder()) as cloud:
        spool = Spool(folder / "spool.db", max_bytes=1 << 30, max_age_s=FAR_S)
        known = running.authority.known(f"{THING}-kinwatch")
        settings = parse(
            f'[defender]\nthing = "{THING}"\nendpoint = "localhost"\nport = {running.port}\n'
            f'root_ca = "{running.authority.root_ca}"\ncertificate = "{known.certificate}"\n'
            f'private_key = "{known.private_key}"\n',
            "bench",
        ).defender
        assert settings is not None
        line = (
            b'{"time":"2026-01-01T00:00:00.000000000Z","event":"alarm","watch":"myapp","behavior":"child_processes",'
            b'"metric":"num_child_procs_myapp","value":1,"number":%d,"criteria":{"comparisonOperator":'
            b'"less-than-equals","value":{"number":0}},"process_ids":["1234-567890"]}'
        )
        for first in range(0, messages, 100):
            spool.put("alarm", [line % number for number in range(first, min(first + 100, messages))], time.time())
        link = MqttLink(msgspec.structs.replace(connection_of(settings), throttle=throttle))
        delivery = Delivery(settings, link, spool, _Nothing(), lambda _: None, interval_s=FAR_S, names="long")

        async def send() -> None:
            running = asyncio.create_task(delivery.run())
            deadline = time.monotonic() + 600
            while len(cloud.arrived_ns) < messages and time.monotonic() < deadline:  # noqa: ASYNC110 - another thread's
                await asyncio.sleep(0.05)
            await delivery.finish(5.0, report=False)
            await running

        try:
            asyncio.run(send())
        finally:
            spool.close()
        came = cloud.on(ALARMS)
        if len(came) < messages:
            raise Unmeasured(f"{len(came)} of {messages} arrived")
        seconds = (cloud.arrived_ns[messages - 1] - cloud.arrived_ns[0]) / 1e9
        numbers = [message["number"] for message in came]
        return Drain(messages=len(came), per_s=(messages - 1) / seconds, in_order=numbers == list(range(messages)))
