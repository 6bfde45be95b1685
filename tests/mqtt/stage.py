"""A network of its own with a broker on port 443 and the local Device Defender at it, for programs that take no port.

Owns that network, what stands in it and the end of all of it. Refuses to judge: tests do. As a program it is what runs
inside: `python -m tests.mqtt.stage FOLDER REPORTS COMMAND...`.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from monitor.defender.responder import Responder
from tests.mqtt.broker import DEADLINE_S, EVERYTHING, LEAST_PRIVILEGE, THING, Authority, Broker
from tests.mqtt.rig import defender

if TYPE_CHECKING:
    from monitor.defender.responder import Heard

CHECKOUT = Path(__file__).resolve().parents[2]
HTTPS = 443


@dataclass(frozen=True)
class Play:
    """What was seen."""

    heard: list[tuple[str, str, str]]
    """Of every report that the local Device Defender heard: thing, format, status."""
    reports: list[tuple[str, bytes]]
    """Topic and payload, as they came."""
    returncode: int
    stdout: str
    stderr: str
    rss_kb: int
    """Memory at its end (VmRSS); 0: it had ended already."""


def isolated(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a network namespace of its own, whose loopback is up."""
    script = 'ip link set lo up && exec "$@"'
    return subprocess.run(
        ["unshare", "--net", "sh", "-c", script, "sh", *command],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
        timeout=5 * DEADLINE_S,  # more than all the waits inside
    )


def play(folder: Path, reports: int, *command: str) -> Play:
    """Run a device agent until it has sent so many reports, or ends. FOLDER in an argument is replaced by the folder.

    In the folder: ca.pem, and mything1.pem and .key, who may do what the thing may.
    """
    arguments = [word.replace("FOLDER", str(folder)) for word in command]
    ran = isolated(sys.executable, "-m", "tests.mqtt.stage", str(folder), str(reports), *arguments)
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout)
    return Play(
        heard=[tuple(one) for one in seen["heard"]],
        reports=[(topic, base64.b64decode(payload)) for topic, payload in seen["reports"]],
        returncode=seen["returncode"],
        stdout=seen["stdout"],
        stderr=seen["stderr"],
        rss_kb=seen["rss_kb"],
    )


def _rss_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def _tell_end(process: subprocess.Popen[bytes], enough: threading.Event) -> None:
    process.wait()
    enough.set()


def _perform(folder: Path, reports: int, command: list[str]) -> None:
    authority = Authority(folder)
    authority.identity(THING)
    acl = LEAST_PRIVILEGE.format(client=THING, thing=THING) + EVERYTHING.format(client="responder")
    enough = threading.Event()
    heard: list[Heard] = []

    def hear(one: Heard) -> None:
        heard.append(one)
        if len(heard) >= reports:
            enough.set()

    with (
        Broker(folder, authority, acl, port=HTTPS) as broker,
        defender(broker, Responder(heard=hear)) as listener,
        (folder / "stdout").open("wb") as out,
        (folder / "stderr").open("wb") as err,
        subprocess.Popen(command, stdout=out, stderr=err) as process,
    ):
        try:
            threading.Thread(target=_tell_end, args=(process, enough), daemon=True).start()
            assert enough.wait(DEADLINE_S), (folder / "stderr").read_text(errors="replace")
            rss_kb = 0
            if process.poll() is None:
                listener.wait("$aws/", lambda found: len(found) >= reports or not heard)
                rss_kb = _rss_kb(process.pid)
                process.terminate()
            process.wait(DEADLINE_S)
        finally:
            process.kill()
    print(
        json.dumps(
            {
                "heard": [(one.thing, one.format, one.status) for one in heard],
                "reports": [
                    (topic, base64.b64encode(payload).decode())
                    for topic, payload in listener.messages
                    if topic.startswith("$aws/")
                ],
                "rss_kb": rss_kb,
                "returncode": process.returncode,
                "stdout": (folder / "stdout").read_text(errors="replace"),
                "stderr": (folder / "stderr").read_text(errors="replace"),
            }
        )
    )


if __name__ == "__main__":
    _perform(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
