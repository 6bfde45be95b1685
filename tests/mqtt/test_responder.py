"""`kinwatch defender` at a real broker: reports are answered and judged, and the command begins and ends as it says."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import cbor2
import pytest

from tests.mqtt.broker import DEADLINE_S, THING, Authority, Broker, free_port
from tests.mqtt.rig import KINWATCH, REPORTS, Listener

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ANSWERS = [f"{REPORTS}{kind}/{status}" for kind in ("json", "cbor") for status in ("accepted", "rejected")]
METRIC = "num_child_procs_myapp"
LONG = {
    "header": {"report_id": 1, "version": "1.0"},
    "metrics": {
        "listening_tcp_ports": {"ports": [{"port": 22, "interface": "lo"}], "total": 1},
        "network_stats": {"bytes_in": 1, "bytes_out": 2, "packets_in": 3, "packets_out": 4},
    },
    "custom_metrics": {METRIC: [{"number": 0}], "child_exes_myapp": [{"string_list": ["/bin/cat"]}]},
}
SHORT = {
    "hed": {"rid": 2, "v": "1.0"},
    "met": {"tp": {"pts": [{"pt": 22, "if": "lo"}], "t": 1}, "ns": {"bi": 1, "bo": 2, "pi": 3, "po": 4}},
    "cmet": {METRIC: [{"number": 0}], "child_exes_myapp": [{"string_list": ["/bin/cat"]}]},
}
PROFILE = {
    "securityProfileName": "kinwatch",
    "behaviors": [
        {
            "name": "no-descendants",
            "metric": METRIC,
            "criteria": {"comparisonOperator": "less-than-equals", "value": {"number": 0}},
        },
        {"name": "peers", "metric": METRIC, "criteria": {"mlDetectionConfig": {"confidenceLevel": "LOW"}}},
    ],
}


def report(report_id: int, value: float = 0) -> dict[str, Any]:
    return {"header": {"report_id": report_id, "version": "1.0"}, "custom_metrics": {METRIC: [{"number": value}]}}


@dataclass
class Command:
    """`kinwatch defender` with what it wrote. A context manager that ends it, whatever state it is in."""

    folder: Path
    arguments: list[str]
    terminal: bool = False
    """stdout is a terminal."""
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        """Start it and wait until it hears reports."""
        environment = {**os.environ, "TERM": "xterm", "TZ": "UTC"}
        environment.pop("NO_COLOR", None)
        self.shown = b""
        self._terminal = -1
        with (self.folder / "out").open("wb") as out, (self.folder / "err").open("wb") as err:
            inner = -1
            if self.terminal:
                self._terminal, inner = pty.openpty()
                os.set_blocking(self._terminal, False)
            try:
                self.process = subprocess.Popen(
                    [*KINWATCH, "defender", *self.arguments],
                    stdout=inner if self.terminal else out,
                    stderr=err,
                    env=environment,
                )
            finally:
                if self.terminal:
                    os.close(inner)
        try:
            self.wait(lambda: "ready (" in self.said())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1

    def said(self) -> str:
        """What it wrote to stderr."""
        return (self.folder / "err").read_text()

    def out(self) -> str:
        """What it wrote to stdout."""
        if not self.terminal:
            return (self.folder / "out").read_text()
        with contextlib.suppress(BlockingIOError, OSError):  # EIO: it has ended
            while some := os.read(self._terminal, 65_536):
                self.shown += some
        return self.shown.decode().replace("\r\n", "\n")

    def lines(self) -> list[dict[str, Any]]:
        """Stdout as JSON Lines, as far as they are whole."""
        return [json.loads(line) for line in self.out().splitlines(keepends=True) if line.endswith("\n")]

    def wait(self, true: Callable[[], bool]) -> None:
        """Wait for a fact; it must live meanwhile."""
        deadline = time.monotonic() + DEADLINE_S
        while not true():
            assert self.process is not None
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, (self.said(), self.out())
            time.sleep(0.01)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)


def flags(broker: Broker, *more: str) -> list[str]:
    """The flags that lead to the broker."""
    identity = broker.authority.identity("responder")
    return [
        *("--port", str(broker.port), "--root-ca", str(broker.authority.root_ca)),
        *("--certificate", str(identity.certificate), "--private-key", str(identity.private_key), *more),
    ]


def device(broker: Broker) -> Listener:
    """A device with least privilege, which hears its answers."""
    return Listener(broker, ANSWERS, name=f"{THING}-kinwatch")


def answer(to: Listener, kind: str, payload: bytes) -> dict[str, Any]:
    """Publish a report; returns the answer, with the topic it came on as `on`."""
    before = len(to.messages)
    to.publish(f"{REPORTS}{kind}", payload)
    to.wait(REPORTS, lambda found: len(found) > before)
    topic, came = to.messages[before]
    found: dict[str, Any] = cbor2.loads(came) if "/cbor/" in topic else json.loads(came)
    return {"on": topic.removeprefix(REPORTS), **found}


def test_reports_of_every_form_are_accepted_and_broken_ones_rejected_with_the_documented_code(
    tmp_path: Path, broker: Broker
) -> None:
    with Command(tmp_path, flags(broker, "--min-spacing-s", "0", "--json")) as command, device(broker) as publisher:
        for report_id, (kind, document) in enumerate(
            [("json", LONG), ("json", SHORT), ("cbor", LONG), ("cbor", SHORT)], start=1
        ):
            numbered = json.loads(json.dumps(document))
            numbered["header" if "header" in numbered else "hed"]["report_id" if "header" in numbered else "rid"] = (
                report_id
            )
            payload = cbor2.dumps(numbered) if kind == "cbor" else json.dumps(numbered).encode()
            found = answer(publisher, kind, payload)
            moment_ms = found.pop("timestamp")
            assert abs(moment_ms / 1000 - time.time()) < 3600
            expected = {"on": f"{kind}/accepted", "thingName": THING, "reportId": report_id, "status": "ACCEPTED"}
            assert found == expected
        for kind, payload in (
            ("json", b"{"),
            ("json", cbor2.dumps(LONG)),
            ("cbor", b"\xff"),
            ("json", json.dumps({**report(9), "custom_metrics": {METRIC: {"number": 0}}}).encode()),
            ("json", json.dumps({**report(9), "hed": {}}).encode()),
            ("json", json.dumps(report(9)).encode().ljust(131_073)),
        ):
            found = answer(publisher, kind, payload)
            assert (found["on"], found["status"]) == (f"{kind}/rejected", "REJECTED")
            assert found["statusDetails"]["ErrorCode"] == "InvalidPayload"
            assert "reportId" not in found
        found = answer(publisher, "json", json.dumps(report(4)).encode())
        assert (found["reportId"], found["statusDetails"]["ErrorCode"]) == (4, "InvalidPayload")
        command.wait(lambda: len(command.lines()) == 11)
        lines = command.lines()
        assert [line["status"] for line in lines] == ["accepted"] * 4 + ["rejected"] * 7
        assert [line.get("report_id") for line in lines] == [1, 2, 3, 4, *[None] * 6, 4]
        for line in lines[:4]:
            assert line["metrics"][METRIC] == 0
            assert line["metrics"]["child_exes_myapp"] == ["/bin/cat"]
            assert line["metrics"]["aws:all-bytes-out"] == 2
            assert line["metrics"]["aws:listening-tcp-ports"] == [22]
        assert command.end() == 0


def test_a_report_too_soon_is_throttled_and_the_slot_is_kept(tmp_path: Path, broker: Broker) -> None:
    with Command(tmp_path, flags(broker, "--min-spacing-s", "3600", "--json")) as command, device(broker) as publisher:
        assert answer(publisher, "json", json.dumps(report(1)).encode())["on"] == "json/accepted"
        for report_id in (2, 3):
            found = answer(publisher, "json", json.dumps(report(report_id)).encode())
            assert (found["reportId"], found["statusDetails"]["ErrorCode"]) == (report_id, "Throttled")
        assert command.end(signal.SIGINT) == 0


def test_the_profile_s_verdicts_are_printed_as_the_alarm_begins_and_ends(tmp_path: Path, broker: Broker) -> None:
    (tmp_path / "profile.json").write_text(json.dumps(PROFILE))
    more = ("--min-spacing-s", "0", "--profile", str(tmp_path / "profile.json"))
    with Command(tmp_path, flags(broker, *more)) as command, device(broker) as publisher:
        assert "profile kinwatch: 1 of 2 behaviors judged" in command.said()
        command.wait(lambda: "behavior peers is not judged" in command.said())
        for report_id, value in enumerate((0, 2, 3, 0), start=1):
            answer(publisher, "json", json.dumps(report(report_id, value)).encode())
        command.wait(lambda: "CLEARED" in command.out())
        assert command.end() == 0
        text = re.sub(r"(?m)^\d\d:\d\d:\d\d\.\d\d\d  ", "", command.out())
        assert text == (
            f"{THING}  report 1  accepted\n    {METRIC} 0\n"
            f"{THING}  report 2  accepted\n    {METRIC} 2\n"
            f"IN ALARM  no-descendants  {THING}  {METRIC} 2  (normal: <= 0)\n"
            f"{THING}  report 3  accepted\n    {METRIC} 3\n"
            f"{THING}  report 4  accepted\n    {METRIC} 0\n"
            f"CLEARED  no-descendants  {THING}  {METRIC} 0  (normal: <= 0)\n"
        )


def test_on_a_terminal_it_is_coloured_and_what_comes_from_outside_is_harmless(tmp_path: Path, broker: Broker) -> None:
    (tmp_path / "profile.json").write_text(json.dumps(PROFILE))
    more = ("--min-spacing-s", "0", "--profile", str(tmp_path / "profile.json"))
    with (
        Command(tmp_path, flags(broker, *more), terminal=True) as command,
        Listener(broker, ["$aws/things/+/defender/metrics/+/rejected"], name="reader") as stranger,
    ):
        stranger.publish(f"{REPORTS}json", json.dumps(report(1, 2)).encode())
        stranger.publish("$aws/things/\u202eevil/defender/metrics/json", json.dumps(report(1)).encode())
        stranger.publish(f"{REPORTS}json", json.dumps({"\x1b[2J": 1}).encode())
        command.wait(lambda: "unknown key" in command.out())
        text = command.out()
        assert "\x1b[1;31mIN ALARM\x1b[0m" in text
        assert "\x1b[32maccepted\x1b[0m" in text
        assert "\x1b[31mrejected\x1b[0m" in text
        assert "\\u{202e}evil" in text
        assert not re.search(r"[^\n -~]", re.sub(r"\x1b\[[0-9;]*m", "", text).replace("…", ""))
        assert command.end() == 0


def test_it_ends_by_itself_after_the_wanted_number_of_reports_with_every_answer_sent(
    tmp_path: Path, broker: Broker
) -> None:
    more = ("--min-spacing-s", "0", "--json", "--once", "2", "--late-s", "0.2")
    with Command(tmp_path, flags(broker, *more)) as command, device(broker) as publisher:
        for report_id in (1, 2):
            publisher.publish(f"{REPORTS}json", json.dumps(report(report_id)).encode())
        assert command.process is not None
        assert command.process.wait(DEADLINE_S) == 0
        found = publisher.wait(REPORTS, lambda found: len(found) == 2)
        assert [accepted["reportId"] for accepted in found] == [1, 2]


def test_it_goes_on_after_its_broker_was_away(tmp_path: Path, broker: Broker) -> None:
    with Command(tmp_path, flags(broker, "--min-spacing-s", "0", "--json")) as command:
        broker.kill()
        command.wait(lambda: "trying again" in command.said())
        broker.start()
        command.wait(lambda: "connected again" in command.said())
        with device(broker) as publisher:
            assert answer(publisher, "json", json.dumps(report(1)).encode())["on"] == "json/accepted"
        assert command.end() == 0


def test_without_certificates_it_connects_in_plain_tcp(tmp_path: Path, authority: Authority) -> None:
    port = free_port()
    more = ["allow_anonymous true", f"listener {port} 127.0.0.1"]
    with (
        Broker(tmp_path, authority, "topic readwrite $aws/#\n", more=more),
        Command(tmp_path, ["--endpoint", "127.0.0.1", "--port", str(port)]) as command,
    ):
        assert f"127.0.0.1:{port}" in command.said()
        assert command.end() == 0


@pytest.mark.parametrize(
    ("more", "code", "why"),
    [
        ((), 4, "nobody listens"),
        (("--profile", "/absent.json"), 2, "/absent.json"),
        (("--root-ca", "/absent.pem"), 2, "together"),
        (("--min-spacing-s", "soon"), 2, "--min-spacing-s"),
    ],
)
def test_it_refuses_to_start_where_it_could_not_serve(more: tuple[str, ...], code: int, why: str) -> None:
    done = subprocess.run(
        [*KINWATCH, "defender", "--port", str(free_port()), *more],
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert why in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_key_of_somebody_else_or_for_everybody_is_refused_before_the_connection(
    tmp_path: Path, authority: Authority
) -> None:
    ours, theirs = authority.identity("responder"), authority.identity("theirs")
    for key, mode, why in ((theirs.private_key, 0o600, "is not the key of"), (ours.private_key, 0o644, "chmod 600")):
        key.chmod(mode)
        done = subprocess.run(
            [
                *(*KINWATCH, "defender", "--port", str(free_port()), "--root-ca", str(authority.root_ca)),
                *("--certificate", str(ours.certificate), "--private-key", str(key)),
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            cwd=tmp_path,
        )
        assert done.returncode == 2
        assert done.stderr.startswith("kinwatch: --private-key: ")
        assert why in done.stderr
