"""`kinwatch learn` on a real service: nginx with a CGI program. KINWATCH_LONG=1 learns for a minute.

What was learned is quiet about the time that follows, and not about a shell that somebody makes the program start; when
the watch is enforced that shell never runs.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from monitor import config
from monitor.detect import profile
from monitor.engine.lines import Alarm, Enforced, Exec, Exit
from tests.contract.conftest import DEADLINE_S, KINWATCH, eventually
from tests.kernel.conftest import kinwatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.conftest import Daemons

PERIOD_S = 60.0 if os.environ.get("KINWATCH_LONG") == "1" else 3.0
PACE_S = 0.25
"""From one request to the next: the load of both periods is the same, however fast the machine is."""
BASH = os.path.realpath("/bin/bash")

INJECTION = "you;echo${IFS}echo${IFS}injected|" + BASH
"""What makes the CGI program pipe a command into another shell, in one word."""

SERVICE = """\
#!/bin/sh
umask 0
fcgiwrap -s unix:{folder}/cgi.sock -c 1 &
nginx -c {folder}/nginx.conf -e {folder}/error.log &
wait
"""
CONFIGURATION = """\
daemon off;
user www-data;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  fastcgi_temp_path {folder}/fastcgi;
  proxy_temp_path {folder}/proxy;
  scgi_temp_path {folder}/scgi;
  uwsgi_temp_path {folder}/uwsgi;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      fastcgi_pass unix:{folder}/cgi.sock;
      fastcgi_param SCRIPT_FILENAME {folder}/hello;
      fastcgi_param QUERY_STRING $query_string;
      fastcgi_param REQUEST_METHOD $request_method;
    }}
  }}
}}
"""
HELLO = """\
#!/bin/sh
echo "Content-Type: text/plain"
echo
eval "echo hello $QUERY_STRING"
date
"""


class Service:
    """nginx, fcgiwrap and a CGI program that evaluates what it is asked, under a script that is the root."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        texts = {name: SERVICE, "nginx.conf": CONFIGURATION, "hello": HELLO}
        for file, text in texts.items():
            filled = text if file == "hello" else text.format(folder=folder, port=self.port)
            (folder / file).write_text(filled)
            (folder / file).chmod(0o755)
        self._process = subprocess.Popen([folder / name], start_new_session=True, stdin=subprocess.DEVNULL)
        eventually(self._answers, "the service to answer")

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return "hello" in self.ask("you")
        return False

    def ask(self, what: str) -> str:
        """What the CGI program answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        try:
            connection.request("GET", f"/?{what}")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def close(self) -> None:
        """End it: the script and all that it started are a session of their own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait(DEADLINE_S)


class Visitor:
    """Asks at its pace, in a thread, for as long as the block lasts."""

    def __init__(self, service: Service) -> None:
        self._service, self._gone = service, threading.Event()
        self._thread = threading.Thread(target=self._visit)
        self.answers: list[str] = []

    def _visit(self) -> None:
        while not self._gone.wait(PACE_S):
            self.answers.append(self._service.ask("you"))

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._gone.set()
        self._thread.join()


@pytest.fixture
def service(name: str) -> Iterator[Service]:
    """A service in a folder that its unprivileged workers can read."""
    with tempfile.TemporaryDirectory(prefix="kinwatch-test-", dir="/var/tmp") as made:
        folder = Path(made)
        folder.chmod(0o755)
        running = Service(folder, name)
        try:
            yield running
        finally:
            running.close()


def learned(service: Service, *arguments: str | Path) -> str:
    """Learn from it while somebody visits; what was said."""
    command: list[str | Path] = [KINWATCH, "learn", "--watch", service.name, "--duration-s", str(PERIOD_S)]
    with subprocess.Popen(
        [*command, *arguments], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("kinwatch: watching for ")
        with Visitor(service) as visitor:
            _, said = process.communicate(timeout=PERIOD_S + DEADLINE_S)
    assert process.returncode == 0, said
    assert len(visitor.answers) > 3
    return str(said)


def test_what_was_learned_of_a_service_is_quiet_until_a_shell_is_injected(
    service: Service, daemons: Daemons, tmp_path: Path
) -> None:
    said = learned(service, "--write", tmp_path, "--record", tmp_path / "records")
    assert f"watch {service.name}: executables: 0 alarms on what was learned from" in said
    written = tmp_path / "kinwatch.toml"
    (watch,) = config.load(written).watches
    expect = watch.expect
    dash, date = (os.path.realpath(path) for path in ("/bin/sh", "/bin/date"))
    assert expect.executables is not None
    assert {dash, date} <= set(expect.executables)
    assert BASH not in expect.executables
    assert expect.edges is not None
    assert f"{dash} -> {date}" in expect.edges
    assert f"/usr/sbin/fcgiwrap -> {dash}" in expect.edges
    assert expect.listening_ports == (service.port,)
    assert expect.destinations == ()
    assert (expect.memfd, expect.deleted, expect.temporary) == (False, False, False)
    behaviors = profile.load((tmp_path / "profile.json").read_bytes()).behaviors
    assert f"child_exes_{service.name}" in {behavior.metric for behavior in behaviors}

    daemons.configure(written.read_text())
    life = daemons.start()
    with Visitor(service) as visitor:
        time.sleep(PERIOD_S)
    eventually(lambda: len(life.of(Exec, exe=date)) >= len(visitor.answers), "the last visit's lines")
    assert life.of(Alarm) == []

    assert "injected" in service.ask(INJECTION)
    alarm = life.wait_for(Alarm, behavior="executables")
    assert (alarm.exe, alarm.value) == (BASH, (BASH,))
    assert isinstance(alarm.lineage, tuple)
    assert [one.exe for one in alarm.lineage][-2:] == [dash, BASH]
    assert life.wait_for(Alarm, behavior="edges").value == (f"{dash} -> {BASH}",)

    daemons.configure(written.read_text().replace("\n[watch.expect]", 'enforce = "kill"\n\n[watch.expect]', 1))
    life.reload()
    eventually(lambda: life.ask("status")["enforcement"] == "on", "the reload")
    with Visitor(service) as visitor:
        answer = service.ask(INJECTION)
        time.sleep(PERIOD_S)
    assert "hello you" in answer
    assert "injected" not in answer, "the shell ran"
    killed = life.wait_for(Enforced, action="kill", exe=BASH)
    assert killed.reason == "executables"
    assert life.wait_for(Exit, process_id=killed.process_id).signal == signal.SIGKILL
    assert len(life.of(Enforced)) == 1, "nobody else is hurt"
    assert all("hello you" in one for one in visitor.answers)


def test_a_later_run_that_differs_writes_nothing_until_it_is_told_to_widen(service: Service, tmp_path: Path) -> None:
    written, records = tmp_path / "learned.toml", tmp_path / "records"
    learned(service, "-o", written, "--record", records)
    before = written.read_bytes()
    later = tmp_path / "later"
    command: list[str | Path] = [KINWATCH, "learn", "--watch", service.name, "--duration-s", str(PERIOD_S)]
    with subprocess.Popen([*command, "--record", later, "-o", written], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        process.stderr.readline()
        service.ask(f"you;{BASH}")
        _, said = process.communicate(timeout=PERIOD_S + DEADLINE_S)
    assert process.returncode == 1
    assert f"new: watch {service.name}: executables: {BASH}\n" in said
    assert written.read_bytes() == before
    wide = kinwatch("learn", "--from", later, "--widen", written, "--check", records)
    assert wide.returncode == 0, wide.stderr
    (watch,) = config.load(written).watches
    assert watch.expect.executables is not None
    assert BASH in watch.expect.executables
    assert kinwatch("replay", "-c", written, later).returncode == 0
    assert kinwatch("replay", "-c", written, records).returncode == 0


def test_nothing_is_written_about_an_application_that_does_not_run(tmp_path: Path, name: str) -> None:
    done = kinwatch("learn", "--watch", name, "--duration-s", "0.2", "--write", tmp_path)
    assert done.returncode == 1
    assert "nothing was seen" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_profile_is_what_create_security_profile_takes(service: Service, tmp_path: Path) -> None:
    learned(service, "--profile", tmp_path / "profile.json")
    written = json.loads((tmp_path / "profile.json").read_bytes())
    assert written.keys() == {"securityProfileName", "securityProfileDescription", "behaviors"}
    (most,) = [one for one in written["behaviors"] if one["name"] == f"child_processes_{service.name}"]
    assert most["metric"] == f"child_procs_peak_{service.name}"
    assert most["criteria"]["comparisonOperator"] == "less-than-equals"
