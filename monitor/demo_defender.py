"""The walkthrough with a broker: an alarm reaches whoever subscribes, and a local Device Defender judges the report.

Owns the broker, its throw-away certificates and the story; everything else is the program as a user would run it.
Exit codes: 0 alarm, violation and their ends were seen, 1 they were not, 3 this machine or user cannot capture.
"""

# ruff: noqa: T201 - it tells a story

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from monitor.demo import DEADLINE_S, END_OF_FILE, LOOK_S, StepFailed, end, main, start_on_terminal, wait_ready
from monitor.detect.behaviors import aws_form, expected
from monitor.expect import Expect
from monitor.sinks.text import styled, wants_colour

if TYPE_CHECKING:
    from typing import IO

    from monitor.defender.link import Link

THING: Final = "demo-device"
SPACING_S: Final = 3
"""Between two reports. The service wants 300 s; nobody likes to wait that long for a demonstration."""
_CLIENTS: Final = (f"{THING}-kinwatch", "defender", "reader")
_POLICY: Final = f"""\
user {THING}-kinwatch
topic write $aws/things/{THING}/defender/metrics/json
topic read $aws/things/{THING}/defender/metrics/json/+
topic write kinwatch/{THING}/alarms

user defender
topic read $aws/things/+/defender/metrics/+
topic write $aws/things/+/defender/metrics/+/+

user reader
topic read kinwatch/#
"""


class Teller:
    """Prints what somebody writes, under his name, and knows it afterwards."""

    def __init__(self, name: str, colour: bool) -> None:  # noqa: FBT001 - whether it is a terminal
        self._name, self._colour = name, colour
        self._lines: list[str] = []

    def read(self, process: subprocess.Popen[bytes]) -> None:
        """Print every line until the end; for a thread."""
        for line in process.stdout or ():
            text = line.decode(errors="replace").rstrip()
            print(f"   {styled(self._name, 'dim', colour=self._colour)} {text}", flush=True)
            self._lines.append(text)

    def wait(self, *words: str) -> None:
        """Wait for a line with these words. StepFailed: none came."""
        deadline = time.monotonic() + DEADLINE_S
        while not any(all(word in line for word in words) for line in list(self._lines)):
            if time.monotonic() > deadline:
                raise StepFailed(f"nothing like {' '.join(words)!r} from {self._name} within {DEADLINE_S:g} s")
            time.sleep(LOOK_S)


def play(folder: Path, stack: contextlib.ExitStack) -> None:
    """Tell and do every step. What it starts ends with `stack`. StepFailed: something did not come."""
    colour = wants_colour(os.environ, terminal=sys.stdout.isatty())

    def tell(text: str) -> None:
        print(styled(f"\n▸ {text}", "bold", colour=colour), flush=True)

    tell("A broker with certificates that live for this demonstration, and a policy of what a device needs.")
    port = start_broker(folder, stack)
    print(f"   mosquitto listens on localhost:{port}", flush=True)

    tell("kinwatch defender: a local Device Defender with a security profile: myapp has no child.")
    behaviors = expected("myapp", Expect(child_processes=0))
    profile = {"securityProfileName": "NoChildren", "behaviors": list(map(aws_form, behaviors))}
    (folder / "profile.json").write_bytes(msgspec.json.format(msgspec.json.encode(profile)))
    judge = Teller("defender", colour)
    arguments = ["defender", *connection(folder, port, "defender"), "--profile", str(folder / "profile.json")]
    follow([*arguments, "--min-spacing-s", "1"], judge, stack)
    judge.wait("ready")

    tell(f"Somebody subscribes to kinwatch/{THING}/alarms.")
    reader = Teller("alarms", colour)
    follow(["-m", "monitor.demo_defender", str(folder), str(port)], reader, stack, program=())
    reader.wait("subscribed")

    tell("kinwatch run: watches myapp, expects no child, publishes.")
    daemon = start_daemon(folder, port, stack)
    print("   " + wait_ready(folder, daemon), flush=True)
    print("   " + wait_said(folder, "kinwatch: publishing as "), flush=True)

    tell("./myapp starts, and somebody makes it run `cat`. Alarm and report leave at once.")
    shutil.copy(shutil.which("sh") or "/bin/sh", folder / "myapp")
    terminal, myapp = start_on_terminal(folder / "myapp", stack)
    os.write(terminal, b"cat\n")
    reader.wait("alarm")
    judge.wait("IN ALARM", "num_child_procs_myapp")

    tell("Ctrl-D: cat ends. The alarm's end leaves at once, the violation ends with the next report.")
    os.write(terminal, END_OF_FILE)
    reader.wait("clear")
    judge.wait("CLEARED", "num_child_procs_myapp")

    tell("myapp and kinwatch end.")
    os.write(terminal, b"exit\n")
    myapp.wait(DEADLINE_S)
    daemon.send_signal(signal.SIGTERM)
    if (code := daemon.wait(DEADLINE_S)) != 0:
        raise StepFailed(f"kinwatch ended with {code}")
    print("   done", flush=True)


def connection(folder: Path, port: int, client: str) -> list[str]:
    """Flags of a connection to the broker."""
    return [
        *("--endpoint", "localhost", "--port", str(port), "--root-ca", str(folder / "ca.pem")),
        *("--certificate", str(folder / f"{client}.pem"), "--private-key", str(folder / f"{client}.key")),
    ]


def follow(
    arguments: list[str], teller: Teller, stack: contextlib.ExitStack, program: tuple[str, ...] = ("-m", "monitor")
) -> None:
    """Start a part of kinwatch and print what it writes."""
    process = subprocess.Popen([sys.executable, *program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    thread = threading.Thread(target=teller.read, args=(process,))
    thread.start()
    stack.callback(thread.join)
    stack.callback(end, process)


def start_broker(folder: Path, stack: contextlib.ExitStack) -> int:
    """Make certificates, start mosquitto; returns its port. StepFailed: it is not installed, or does not start."""
    certificates(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    (folder / "acl").write_text(_POLICY)
    (folder / "mosquitto.conf").write_text(
        f"user root\nallow_anonymous false\nacl_file {folder}/acl\npersistence false\nlistener {port} 127.0.0.1\n"
        f"cafile {folder}/ca.pem\ncertfile {folder}/broker.pem\nkeyfile {folder}/broker.key\n"
        "require_certificate true\nuse_identity_as_username true\n"
    )
    with (folder / "mosquitto.log").open("wb") as log:
        broker = run(["mosquitto", "-c", str(folder / "mosquitto.conf")], log)
    stack.callback(end, broker)
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline and broker.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return port
        time.sleep(LOOK_S)
    raise StepFailed("mosquitto did not start")


def certificates(folder: Path) -> None:
    """A certificate authority, the broker's certificate and the clients', by openssl."""
    (folder / "san").write_text("subjectAltName=DNS:localhost\n")
    authority = ["-CA", str(folder / "ca.pem"), "-CAkey", str(folder / "ca.key"), "-CAcreateserial"]
    new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    with (folder / "openssl.log").open("ab") as log:
        finished([*new, "-x509", "-subj", "/CN=demo CA", "-days", "1", *keys(folder, "ca")], log)
        for name in ("broker", *_CLIENTS):
            subject = "/CN=localhost" if name == "broker" else f"/CN={name}"
            request = str(folder / f"{name}.csr")
            finished([*new, "-subj", subject, "-keyout", str(folder / f"{name}.key"), "-out", request], log)
            sign = ["openssl", "x509", "-req", "-in", request, *authority, "-days", "1"]
            finished([*sign, "-extfile", str(folder / "san"), "-out", str(folder / f"{name}.pem")], log)
    for key in folder.glob("*.key"):
        key.chmod(0o600)


def keys(folder: Path, name: str) -> list[str]:
    """Where openssl writes a key and its certificate."""
    return ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")]


def run(command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a program of the system. StepFailed: it is not installed."""
    try:
        return subprocess.Popen(command, stdout=log, stderr=log)
    except FileNotFoundError:
        raise StepFailed(f"{command[0]} is not installed; run: sudo make demo-defender") from None


def finished(command: list[str], log: IO[bytes]) -> None:
    """Run a program of the system to its end. StepFailed: it failed."""
    if run(command, log).wait(DEADLINE_S) != 0:
        raise StepFailed(f"{' '.join(command)} failed")


def start_daemon(folder: Path, port: int, stack: contextlib.ExitStack) -> subprocess.Popen[bytes]:
    """Start `kinwatch run` with a configuration of its own; it is stopped and unloaded with `stack`."""
    client = f"{THING}-kinwatch"
    (folder / "config.toml").write_text(
        f"""\
[[watch]]
name = "myapp"
exe = "{folder}/myapp"
expect = {{ child_processes = 0 }}
[log]
file = "{folder}/events.jsonl"
[report]
interval_s = {SPACING_S}
[daemon]
socket = "{folder}/control.sock"
state_dir = "{folder}/state"
[defender]
thing = "{THING}"
endpoint = "localhost"
port = {port}
root_ca = "{folder}/ca.pem"
certificate = "{folder}/{client}.pem"
private_key = "{folder}/{client}.key"
min_spacing_s = {SPACING_S}
"""
    )
    with (folder / "stderr").open("wb") as stderr:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "monitor", "run", "-c", str(folder / "config.toml")], stderr=stderr
        )
    stack.callback(end, daemon, unload=True)
    return daemon


def wait_said(folder: Path, beginning: str) -> str:
    """Wait for a line of the daemon's and return it. StepFailed: it did not come."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        for line in (folder / "stderr").read_text(errors="replace").splitlines():
            if line.startswith(beginning):
                return line
        time.sleep(LOOK_S)
    raise StepFailed(f"kinwatch did not say {beginning!r} within {DEADLINE_S:g} s")


def read_alarms(folder: Path, port: int) -> None:
    """Print what comes on the topic of alarms, until SIGTERM."""
    import asyncio  # noqa: PLC0415 - only the process that reads

    from monitor.defender.client import choose  # noqa: PLC0415
    from monitor.defender.connection import Connection  # noqa: PLC0415

    class Reader:
        def __init__(self, link: Link) -> None:
            self._link = link

        def connected(self, *, resumed: bool) -> None:  # noqa: ARG002
            self._task = asyncio.get_running_loop().create_task(self._subscribe())

        async def _subscribe(self) -> None:
            await self._link.subscribe([f"kinwatch/{THING}/alarms"])
            print("subscribed", flush=True)

        def disconnected(self, why: str) -> None:
            print(why, flush=True)

        def received(self, topic: str, payload: bytes) -> None:  # noqa: ARG002
            message = msgspec.json.decode(payload)
            chain = " → ".join(f"{kin['comm']}({kin['pid']})" for kin in message.get("lineage", []))
            after_ms = (time.time_ns() - _nanoseconds(message["time"])) / 1e6
            text = f"{message['event']:5} {message['metric']} = {message['value']}"
            text += f", {after_ms:.1f} ms after the kernel saw it"
            print(text + (f": {chain}" if chain else ""), flush=True)

    async def listen() -> None:
        done = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done.set)
        client = str(folder / "reader")
        link = choose("auto", "the demonstration").link(
            Connection(
                endpoint="localhost",
                port=port,
                client_id="reader",
                root_ca=str(folder / "ca.pem"),
                certificate=f"{client}.pem",
                private_key=f"{client}.key",
            )
        )
        link.start(Reader(link))
        await done.wait()
        await link.stop(1.0)

    asyncio.run(listen())


def _nanoseconds(moment: str) -> int:
    import datetime as dt  # noqa: PLC0415 - only the process that reads

    whole = dt.datetime.fromisoformat(moment[:19]).replace(tzinfo=dt.UTC)
    return int(whole.timestamp()) * 10**9 + int(moment[20:29])


if __name__ == "__main__":
    if sys.argv[1:]:
        read_alarms(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        sys.exit(main(play))
