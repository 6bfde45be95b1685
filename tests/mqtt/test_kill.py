"""kinwatch dies at any moment, again and again: every alarm arrives, no report id comes twice.

Owns the killing. KINWATCH_LONG=1 does it 200 times.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from typing import TYPE_CHECKING

from monitor.defender.responder import Responder
from tests.contract.conftest import compiled
from tests.mqtt.rig import ALARMS, REPORTS, Kinwatch, defender

if TYPE_CHECKING:
    from pathlib import Path

    from tests.mqtt.broker import Broker

__all__ = ["compiled"]

KILLS = 200 if os.environ.get("KINWATCH_LONG") == "1" else 20
PAUSE_US = 100_000
"""Between two children: slow enough that no alarm is merged with another one, for each is looked for."""
LIFE_S = (0.0, 1.0)
"""How long a life lasts beyond its first moment of watching."""


def test_every_alarm_arrives_however_often_kinwatch_is_killed(broker: Broker, tmp_path: Path, compiled: Path) -> None:
    program = tmp_path / "steadyapp"
    program.write_bytes((compiled / "steady").read_bytes())
    program.chmod(0o755)
    kinwatch = Kinwatch(
        tmp_path / "k",
        broker,
        defender="min_spacing_s = 0",
        more=f'[[watch]]\nname = "steadyapp"\nexe = "{program}"\nexpect = {{ child_processes = 0 }}',
    )
    with defender(broker, Responder(None)) as cloud, kinwatch, (tmp_path / "children").open("wb") as told:
        application = subprocess.Popen([program, str(PAUSE_US)], stdin=subprocess.PIPE, stdout=told)
        try:
            cloud.wait(ALARMS, bool)
            for _ in range(KILLS):
                # Not a moment of a clock but of the daemon's life: between any two of its steps.
                kinwatch.live(random.uniform(*LIFE_S))  # noqa: S311 - no secret
                kinwatch.kill()
                kinwatch.start()
            assert application.poll() is None
            assert application.stdin is not None
            application.stdin.close()
            application.wait(60)
            children = {json.loads(line)["pid"] for line in (tmp_path / "children").read_text().splitlines() if line}
            assert len(children) > KILLS
            cloud.wait(ALARMS, lambda found: children <= offenders(found))
            kinwatch.wait_until(lambda: cloud.on(REPORTS) != [])
            status = kinwatch.status()
        finally:
            application.kill()
            application.wait()
        spawned = next(watch["spawned"] for watch in status["watches"] if watch["name"] == "steadyapp")
        assert spawned == len(children)
        assert status["publisher"]["spool"]["dropped"] == {}
        assert status["publisher"]["alarms"]["merged"] == 0
    # Each alarm has one id, however often it was sent; each report has an id of its own.
    assert offenders(cloud.on(ALARMS)) == children
    ids = [report["header"]["report_id"] for report in cloud.on(REPORTS)]
    assert ids == sorted(set(ids))


def offenders(messages: list[dict[str, object]]) -> set[int]:
    """The pids of children that alarms tell of."""
    found: set[int] = set()
    for message in messages:
        ids = message.get("process_ids", []) if message["event"] == "alarm" else []
        assert isinstance(ids, list)
        found |= {int(process_id.partition("-")[0]) for process_id in ids}
    return found
