"""The way to the broker is cut, or the device's clock is set: what waits arrives, and nothing stands still.

Owns a network namespace and a false clock, each for one test.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from monitor.defender.responder import Heard, Responder
from tests.mqtt.broker import LEAST_PRIVILEGE, THING, Authority, Broker
from tests.mqtt.rig import ALARMS, REPORTS, Kinwatch, defender, ids_are_reports, lines_of, shell

if TYPE_CHECKING:
    from collections.abc import Iterator

EXPECT = ("--expect", "child_processes=0")
FAKETIME = str(next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")))
HERE, THERE = "10.213.77.1", "10.213.77.2"
_serial = itertools.count()


class Island:
    """A network namespace with one cable to the machine."""

    def __init__(self) -> None:
        self.name = f"kinwatch-{os.getpid()}-{next(_serial)}"
        self.cable = f"kw{os.getpid() % 100000}{next(_serial)}"
        inside = [*("nsenter", f"--net=/run/netns/{self.name}", "ip")]
        ip("netns", "add", self.name)
        try:
            ip("link", "add", self.cable, "type", "veth", "peer", "name", "cable", "netns", self.name)
            ip("addr", "add", f"{HERE}/30", "dev", self.cable)
            ip("link", "set", self.cable, "up")
            for arguments in (["addr", "add", f"{THERE}/30", "dev", "cable"], ["link", "set", "cable", "up"]):
                subprocess.run([*inside, *arguments], check=True)
        except BaseException:
            self.remove()
            raise

    def cut(self) -> None:
        """What is sent vanishes, and nobody is told."""
        ip("link", "set", self.cable, "down")

    def mend(self) -> None:
        """Everything goes through again."""
        ip("link", "set", self.cable, "up")

    def remove(self) -> None:
        """Nothing of it stays."""
        ip("netns", "delete", self.name)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture
def island() -> Iterator[Island]:
    """A namespace for kinwatch; the broker stands outside."""
    made = Island()
    try:
        yield made
    finally:
        made.remove()


def test_a_cut_connection_loses_nothing(island: Island, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    folder.mkdir()
    acl = LEAST_PRIVILEGE.format(client=f"{THING}-kinwatch", thing=THING)
    acl += "user responder\ntopic readwrite $aws/#\ntopic readwrite kinwatch/#\n"
    with (
        Broker(folder, Authority(folder), acl, address="0.0.0.0", hosts=("localhost", HERE)) as broker,  # noqa: S104
        defender(broker, Responder(None)) as cloud,
    ):
        kinwatch = Kinwatch(
            tmp_path / "k",
            broker,
            defender="min_spacing_s = 1\nanswer_s = 2\nkeep_alive_s = 5",
            endpoint=HERE,
            arguments=EXPECT,
            command=[shell(tmp_path)],
            before=("nsenter", f"--net=/run/netns/{island.name}"),
        )
        with kinwatch:
            kinwatch.tell("/bin/true")
            cloud.wait(REPORTS, bool)
            island.cut()
            for _ in range(5):
                kinwatch.tell("/bin/true")
            kinwatch.wait_until(lambda: "no connection to" in kinwatch.said())
            island.mend()
            kinwatch.tell("/bin/true")
            kinwatch.wait_until(lambda: len(kinwatch.events("alarm", "clear")) == 14)
            messages = cloud.wait(ALARMS, lambda found: lines_of(found) >= 14)
            assert lines_of(messages) == 14
            assert ids_are_reports(cloud)


@pytest.mark.parametrize("jump", ["+1d", "-1d"])
def test_a_clock_that_is_set_stops_neither_reports_nor_alarms(broker: Broker, tmp_path: Path, jump: str) -> None:
    heard: list[Heard] = []
    clock = tmp_path / "clock"
    clock.write_text("+0")
    with defender(broker, Responder(None, heard=heard.append)) as cloud:
        kinwatch = Kinwatch(
            tmp_path / "k",
            broker,
            defender="min_spacing_s = 3",
            arguments=EXPECT,
            command=[shell(tmp_path)],
            environment={
                "LD_PRELOAD": FAKETIME,
                "FAKETIME_TIMESTAMP_FILE": str(clock),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            },
        )
        with kinwatch:
            kinwatch.tell("/bin/true")
            kinwatch.wait_until(lambda: len(heard) == 1)
            clock.write_text(jump)
            kinwatch.tell("/bin/true")
            kinwatch.wait_until(lambda: len(heard) == 2)
            clock.write_text("+0")
            kinwatch.tell("/bin/true")
            kinwatch.wait_until(lambda: len(heard) == 3)
            messages = cloud.wait(ALARMS, lambda found: lines_of(found) == 6)
    assert [report.status for report in heard[:3]] == ["accepted"] * 3
    assert [message["event"] for message in messages] == ["alarm", "clear"] * 3
    times = [message["time"][:10] for message in messages]
    assert times[2] != times[0], "the clock was not set"
