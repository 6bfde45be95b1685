"""`kinwatch agent` stands where the sample agent stood: the same command line, the same topics, a truer count."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from monitor.defender.responder import Responder
from monitor.defender.validate import parse, validate
from tests.mqtt.broker import DEADLINE_S, EVERYTHING, LEAST_PRIVILEGE, THING, Broker, free_port
from tests.mqtt.rig import ALARMS, KINWATCH, defender, shell
from tests.mqtt.stage import play

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.mqtt.broker import Authority
    from tests.mqtt.rig import Listener

FILES = ("-r", "FOLDER/ca.pem", "-c", f"FOLDER/{THING}.pem", "-k", f"FOLDER/{THING}.key")
CONFIGURED = Path("/etc/kinwatch/config.toml")


class Run:
    """`kinwatch agent` for one test. A context manager that ends it."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.out, self.err = folder / "agent.out", folder / "agent.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [*KINWATCH, "agent", "--state-dir", str(folder / "state"), *flags], stdout=out, stderr=err, cwd=folder
            )

    def __enter__(self) -> Self:
        """It runs already."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()

    def wait(self, true: Callable[[], bool]) -> None:
        """Wait for a fact."""
        deadline = time.monotonic() + DEADLINE_S
        while not true():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)

    def said(self) -> str:
        """What it wrote to stderr."""
        return self.err.read_text(errors="replace")

    def printed(self) -> list[dict[str, Any]]:
        """The JSON documents on stdout, those that are complete."""
        text, found = self.out.read_text(), []
        while text.strip():
            try:
                document, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                break
            found.append(document)
            text = text[end:].lstrip()
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it in good order; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)


@contextlib.contextmanager
def things_broker(folder: Path, authority: Authority) -> Iterator[tuple[Broker, Listener]]:
    """A broker on which the client id is the thing's name, and the local Device Defender at it."""
    authority.identity(THING)
    acl = LEAST_PRIVILEGE.format(client=THING, thing=THING) + EVERYTHING.format(client="responder")
    with Broker(folder, authority, acl) as broker, defender(broker, Responder()) as listener:
        yield broker, listener


@contextlib.contextmanager
def application(folder: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A shell of that name which runs what is written to its stdin."""
    with subprocess.Popen([shell(folder, name)], stdin=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            for child in children(process.pid):
                os.kill(child, signal.SIGKILL)
            process.kill()
            process.wait()


def tell(process: subprocess.Popen[bytes], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text.encode())
    process.stdin.flush()


def misbehave(process: subprocess.Popen[bytes], times: int = 1) -> None:
    """Have the application start so many short-lived children, one after the other."""
    tell(process, "/bin/true\n" * times)


def flags(broker: Broker) -> list[str]:
    folder = broker.folder
    given = [word.replace("FOLDER", str(folder)) for word in FILES]
    return ["-e", "localhost", *given, "-id", THING, "--port", str(broker.port)]


def metric(report: dict[str, Any], name: str) -> float:
    value: float = report["custom_metrics"][name][0]["number"]
    return value


@pytest.mark.skipif(CONFIGURED.exists(), reason=f"{CONFIGURED} names what is watched on this machine")
def test_the_blog_s_command_line_works_with_our_program(tmp_path: Path) -> None:
    # ... agent.py -f json -e <your-endpoint> -r <root_cert_path> -c <cert_path> -k <private_key_path> -cm -id mything1
    blog = ("-f", "json", "-e", "localhost", *FILES, "-cm", "-id", THING)
    ours = (*KINWATCH, "agent", *blog, "-i", "1", "--state-dir", "FOLDER/state")
    with application(tmp_path, "myapp") as myapp:
        tell(myapp, "sleep 600 & sleep 600 & cat\n")  # the blog's `cat`, and two more
        wait_for_children(myapp.pid, 3)
        seen = play(tmp_path, 2, *ours)
    assert seen.returncode == 0
    assert seen.heard[:2] == [(THING, "json", "accepted")] * 2
    first = parse(seen.reports[0][1], "json")
    assert metric(first, "num_child_procs_myapp") == 3
    assert "cpu_usage" in parse(seen.reports[1][1], "json")["custom_metrics"]
    assert "watching myapp" in seen.stderr
    assert "was accepted" in seen.stderr
    assert seen.stdout == ""


@pytest.mark.parametrize("form", ["json", "cbor"])
@pytest.mark.parametrize("short", [[], ["-s"]], ids=["long", "short"])
def test_reports_are_accepted_in_both_formats_with_both_names(
    tmp_path: Path, authority: Authority, form: str, short: list[str]
) -> None:
    with (
        things_broker(tmp_path, authority) as (broker, listener),
        application(tmp_path, "agent_app") as app,
        Run(tmp_path, *flags(broker), "-f", form, "-i", "1", "--watch", "agent_app", *short) as run,
    ):
        topic = f"$aws/things/{THING}/defender/metrics/{form}"
        run.wait(lambda: "was accepted" in run.said())
        misbehave(app, 5)
        found = listener.wait(topic, lambda reports: sum(counted(report) for report in reports) >= 5)
        assert run.stop() == 0
    assert sum(counted(report) for report in found) == 5
    assert ("hed" in found[0]) == bool(short)
    assert all("cpu_usage" not in validate(report)["custom_metrics"] for report in found)


def counted(report: dict[str, Any]) -> float:
    return metric(validate(report), "child_procs_spawned_agent_app")


def test_an_expectation_that_breaks_is_published_at_once(tmp_path: Path, authority: Authority) -> None:
    lines = tmp_path / "events.jsonl"
    more = ("-i", "3600", "--watch", "agent_app", "--expect", "child_processes=0", "--log", str(lines))
    with (
        things_broker(tmp_path, authority) as (broker, listener),
        application(tmp_path, "agent_app") as app,
        Run(tmp_path, *flags(broker), *more) as run,
    ):
        run.wait(lambda: "connected" in run.said() and "watching (" in run.said())
        misbehave(app)
        (alarm, *_) = listener.wait(ALARMS, bool)
        listener.wait(f"$aws/things/{THING}/defender/metrics/json", bool)
        assert run.stop() == 0
    assert alarm["event"] == "alarm"
    assert {json.loads(line)["event"] for line in lines.read_text().splitlines()} >= {"root", "fork", "alarm"}


@pytest.mark.skipif(CONFIGURED.exists(), reason=f"{CONFIGURED} names what is watched on this machine")
def test_without_a_watch_the_device_reports_itself(tmp_path: Path, authority: Authority) -> None:
    with things_broker(tmp_path, authority) as (broker, listener), Run(tmp_path, *flags(broker), "-i", "1") as run:
        found = listener.wait(f"$aws/things/{THING}/defender/metrics/json", lambda reports: len(reports) > 1)
        assert run.stop(signal.SIGINT) == 0
    for report in found:
        assert set(validate(report)) == {"header", "metrics"}
        assert broker.port in {entry["port"] for entry in report["metrics"]["listening_tcp_ports"]["ports"]}
    assert "nothing is watched" in run.said()


def test_a_thing_may_have_another_name_than_the_client(tmp_path: Path, authority: Authority) -> None:
    with things_broker(tmp_path, authority) as (broker, listener):
        given = [*flags(broker), "-t", THING, "-i", "1", "--watch", "agent_app"]
        given[given.index("-id") + 1] = "another"
        with Run(tmp_path, *given) as run:
            listener.wait(f"$aws/things/{THING}/defender/metrics/json", bool)
            assert run.stop() == 0
        assert " as another " in broker.log()
    assert "thing's name" not in run.said()


def test_flags_may_stand_in_a_file(tmp_path: Path, authority: Authority) -> None:
    with things_broker(tmp_path, authority) as (broker, listener):
        folder = tmp_path / "with space"
        folder.mkdir()
        given = flags(broker)
        for flag in ("-r", "-c", "-k"):
            path = Path(given[given.index(flag) + 1])
            given[given.index(flag) + 1] = str(path.rename(folder / path.name))
        (tmp_path / "args").write_text("\n".join(given) + "\n-i 1\n\n--watch agent_app\n")
        with Run(tmp_path, "@args") as run:
            listener.wait(f"$aws/things/{THING}/defender/metrics/json", bool)
            assert run.stop() == 0


@pytest.mark.parametrize("form", ["json", "cbor"])
def test_a_dry_run_prints_reports_and_connects_to_nobody(tmp_path: Path, form: str) -> None:
    with application(tmp_path, "agent_app") as app:
        more = ("--watch", "agent_app", "--expect", "child_processes=0")
        with Run(tmp_path, "-d", "-f", form, "-i", "1", *more) as run:
            run.wait(lambda: bool(run.printed()))
            misbehave(app, 3)
            run.wait(lambda: sum(counted(report) for report in run.printed()) >= 3)
            assert not connected(run.process.pid)
            assert run.stop() == 0
        reports = run.printed()
    assert [validate(report) for report in reports] == reports
    assert sum(counted(report) for report in reports) == 3
    ids = [report["header"]["report_id"] for report in reports]
    assert ids == sorted(set(ids))
    assert "would be published to kinwatch/dry-run/alarms" in run.said()
    assert not (tmp_path / "state").exists()


def test_a_dry_run_in_a_pipe_ends_with_its_reader(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ran = subprocess.run(
            [*KINWATCH, "agent", "-d", "--watch", "agent_app", "--state-dir", str(tmp_path)],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=DEADLINE_S,
        )
    finally:
        os.close(writing)
    assert "Traceback" not in ran.stderr
    assert ran.returncode == 0


def test_no_broker_ends_it_with_4_and_says_why(tmp_path: Path, authority: Authority) -> None:
    authority.identity(THING)
    given = [word.replace("FOLDER", str(tmp_path)) for word in FILES]
    port = free_port()
    with Run(tmp_path, "-e", "localhost", *given, "-id", THING, "--port", str(port), "--watch", "agent_app") as run:
        assert run.process.wait(DEADLINE_S) == 4
    assert f"cannot connect to localhost:{port}: nobody listens on that port" in run.said()


def test_a_certificate_that_the_broker_refuses_ends_it_with_4(tmp_path: Path, authority: Authority) -> None:
    with things_broker(tmp_path, authority) as (broker, _):
        foreign = type(authority)(tmp_path, "other-ca").identity("stranger")
        given = flags(broker)
        given[given.index("-c") + 1] = str(foreign.certificate)
        given[given.index("-k") + 1] = str(foreign.private_key)
        with Run(tmp_path, *given, "--watch", "agent_app") as run:
            assert run.process.wait(2 * DEADLINE_S) == 4
    assert "cannot connect to localhost" in run.said()


def test_a_connection_that_breaks_later_is_made_again(tmp_path: Path, authority: Authority) -> None:
    with things_broker(tmp_path, authority) as (broker, listener):
        topic = f"$aws/things/{THING}/defender/metrics/json"
        with Run(tmp_path, *flags(broker), "-i", "1", "--watch", "agent_app") as run:
            listener.wait(topic, bool)
            broker.kill()
            run.wait(lambda: "no connection to localhost" in run.said())
            before = len(listener.on(topic))
            broker.start()
            listener.wait(topic, lambda reports: len(reports) > before)
            assert run.stop() == 0


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def wait_for_children(pid: int, count: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while len(children(pid)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def connected(pid: int) -> bool:
    """Whether a process has a socket of the internet (it is among those of /proc/net)."""
    sockets = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(fd.readlink())
            if target.startswith("socket:["):
                sockets.add(target[8:-1])
    rows = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]
    return bool(sockets & {row[9] for row in rows[1:] if len(row) > 9})
