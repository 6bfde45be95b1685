"""Runs that end by themselves: `-- COMMAND`, `--once`, `report`; and how a daemon ends."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cbor2
import pytest

from monitor.engine import lines
from monitor.engine.lines import Alarm, Clear, Exit, Fork, Line, Root
from tests.contract.conftest import DEADLINE_S, KINWATCH, eventually
from tests.kernel.conftest import kinwatch, pinned, sentence

if TYPE_CHECKING:
    from tests.contract.conftest import Programs
    from tests.kernel.conftest import Daemons

CORE = ("--capture", "core", "--format", "json")


def _lines(text: str) -> list[Line]:
    return [lines.decode(line.encode()) for line in text.splitlines()]


def _core(tmp_path: Path) -> Path:
    """A configuration for verbs without --capture."""
    path = tmp_path / "core.toml"
    path.write_text('[capture]\nkind = "core"\n')
    return path


# -------- -- COMMAND --------


def test_command_is_watched_from_its_first_instruction(programs: Programs, name: str) -> None:
    exe = programs.path("short_lived", name)
    done = kinwatch("run", *CORE, "--", exe, "3", stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    facts = [line for line in done.stdout.splitlines() if line.startswith('{"fact"')]
    assert json.loads(facts[0])["count"] == 3
    told = _lines("\n".join(line for line in done.stdout.splitlines() if line not in facts))
    root = told[0]
    assert isinstance(root, Root)
    assert (root.watch, root.cause, root.argv, root.exe) == (name, "exec", (str(exe), "3"), str(exe))
    assert [type(line).__name__ for line in told[1:]] == ["Fork", "Exit"] * 3 + ["Exit"]
    last = told[-1]
    assert isinstance(last, Exit)
    assert (last.pid, last.exit_code) == (root.pid, 0)


def test_command_run_ends_with_the_last_of_its_kin_not_with_the_command(tmp_path: Path) -> None:
    fifo, log = tmp_path / "fifo", tmp_path / "events.jsonl"
    os.mkfifo(fifo)
    script = f"cat < {fifo} & exit 7"
    run = subprocess.Popen(
        [KINWATCH, "run", *CORE, "--log", log, "--", "/bin/sh", "-c", script], stdin=subprocess.DEVNULL
    )
    try:
        with fifo.open("w"):  # opens when the background child does
            eventually(lambda: b'"exit_code":7' in log.read_bytes(), "the command's own end")
            assert run.poll() is None, "its background child is alive"
        assert run.wait(DEADLINE_S) == 0, "the command's exit code is in its exit line"
    finally:
        run.kill()
        run.wait()
    told = _lines(log.read_text())
    assert isinstance(told[0], Root)
    assert isinstance(told[-1], Exit)
    assert told[-1].pid != told[0].pid
    assert not pinned()


def test_command_whose_child_became_a_daemon_is_waited_for(programs: Programs, name: str, tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    exe = programs.path("daemonise", name)
    with subprocess.Popen(
        [KINWATCH, "run", *CORE, "--log", log, "--", exe], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as run:
        assert run.stdin is not None
        eventually(log.exists, "the log")
        eventually(lambda: log.read_bytes().count(b'"event":"fork"') >= 1, "the daemon")
        run.stdin.close()
        assert run.wait(DEADLINE_S) == 0
    told = _lines(log.read_text())
    forked = {line.pid for line in told if isinstance(line, Fork)}
    roots = {line.pid for line in told if isinstance(line, Root)}
    assert len(roots) == 1
    assert {line.pid for line in told if isinstance(line, Exit)} == forked | roots


@pytest.mark.parametrize(("command", "why"), [("no-such-command", "No such file"), ("/etc/passwd", "ermission denied")])
def test_command_that_cannot_run_is_a_usage_error(command: str, why: str) -> None:
    done = kinwatch("run", *CORE, "--", command)
    assert done.returncode == 2
    assert why in done.stderr
    assert command in done.stderr
    assert "Traceback" not in done.stderr
    assert not pinned()


def test_command_with_an_expectation_reports_each_breach(programs: Programs, name: str, tmp_path: Path) -> None:
    reports = tmp_path / "reports.jsonl"
    exe = programs.path("short_lived", name)
    expect = ("--expect", "child_processes=0", "--report-to", reports, "--log", tmp_path / "events.jsonl")
    done = kinwatch("run", *CORE, *expect, "--", exe, "2", stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    told = _lines((tmp_path / "events.jsonl").read_text())
    assert [type(line).__name__ for line in told if isinstance(line, Alarm | Clear)] == ["Alarm", "Clear"] * 2
    written = [json.loads(line)["custom_metrics"] for line in reports.read_text().splitlines()]
    assert sum(metrics[f"child_procs_spawned_{name}"][0]["number"] for metrics in written) == 2


def test_signal_ends_the_watching_and_not_the_command(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    command = [str(KINWATCH), "run", *CORE, "--log", str(log), "--", "/bin/sh", "-c", "read line"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as run:
        try:
            eventually(lambda: log.exists() and b'"event":"root"' in log.read_bytes(), "the command")
            run.send_signal(signal.SIGTERM)
            assert run.wait(DEADLINE_S) == 0
        finally:
            run.kill()
    (root,) = _lines(log.read_text())
    assert isinstance(root, Root)


# -------- --once --------


def test_once_ends_with_the_report_of_a_breach(programs: Programs, name: str, tmp_path: Path) -> None:
    reports = tmp_path / "reports.jsonl"
    app = programs.start("family", name, "1")
    app.fact("child")
    options = ("--watch", name, "--expect", "child_processes=0", "--report-to", reports, "--log", tmp_path / "log")
    done = kinwatch("run", "--once", "--interval-s", "3600", *CORE, *options)
    assert done.returncode == 0, done.stderr
    (report,) = [json.loads(line) for line in reports.read_text().splitlines()]
    assert report["custom_metrics"][f"num_child_procs_{name}"] == [{"number": 1}]
    assert not pinned()


def test_once_ends_with_its_periodic_report(name: str, tmp_path: Path) -> None:
    reports = tmp_path / "reports.jsonl"
    options = ("--watch", name, "--report-to", reports, "--log", tmp_path / "log", "--interval-s", "1")
    done = kinwatch("run", "--once", *CORE, *options)
    assert done.returncode == 0, done.stderr
    (report,) = [json.loads(line) for line in reports.read_text().splitlines()]
    assert report["custom_metrics"][f"roots_{name}"] == [{"number": 0}]
    assert report["custom_metrics"][f"num_child_procs_{name}"] == [{"number": 0}]


def test_once_beside_a_daemon_disturbs_nobody(daemons: Daemons, programs: Programs, name: str, tmp_path: Path) -> None:
    daemon = daemons.start("--watch", name)
    done = kinwatch("run", "--once", "--watch", name, "--interval-s", "1", *CORE, "--log", tmp_path / "log")
    assert done.returncode == 0, done.stderr
    assert pinned()
    app = programs.start("family", name, "1")
    daemon.wait_for(Fork, pid=app.fact("child")["pid"])
    daemon.stop()


# -------- report --------


def test_report_tells_whether_the_expectation_holds(programs: Programs, name: str, tmp_path: Path) -> None:
    config = _core(tmp_path)
    expect = ("--watch", name, "--expect", "child_processes=0", "--duration-s", "0.1")
    alone = kinwatch("report", "-c", config, *expect)
    assert alone.returncode == 0, alone.stderr
    app = programs.start("family", name, "2", "1")
    app.fact("child", 4)
    broken = kinwatch("report", "-c", config, *expect)
    assert broken.returncode == 1, broken.stderr
    unjudged = kinwatch("report", "-c", config, "--watch", name, "--duration-s", "0.1")
    assert unjudged.returncode == 0, "nothing was expected"
    metrics = json.loads(broken.stdout)["custom_metrics"]
    assert metrics[f"num_child_procs_{name}"] == [{"number": 4}]
    assert metrics[f"child_procs_alive_{name}"] == [{"number": 4}]
    assert metrics[f"roots_{name}"] == [{"number": 1}]
    assert json.loads(alone.stdout)["custom_metrics"][f"num_child_procs_{name}"] == [{"number": 0}]


def test_report_in_cbor_and_with_short_names_says_the_same(programs: Programs, name: str, tmp_path: Path) -> None:
    app = programs.start("family", name, "2")
    app.fact("child", 2)
    config = _core(tmp_path)

    def report(form: str, names: str) -> dict[str, Any]:
        command = [str(KINWATCH), "report", "-c", str(config), "--watch", name, "--duration-s", "0.1"]
        command += ["--format", form, "--names", names]
        done = subprocess.run(command, capture_output=True, check=True, timeout=DEADLINE_S)
        decoded = json.loads(done.stdout) if form == "json" else cbor2.loads(done.stdout)
        assert isinstance(decoded, dict)
        return decoded

    for form in ("json", "cbor"):
        long, short = report(form, "long"), report(form, "short")
        (number,) = long["custom_metrics"][f"num_child_procs_{name}"]
        (same,) = short["cmet"][f"num_child_procs_{name}"]
        assert (number, same) == ({"number": 2}, {"number": 2})
        assert set(long) == {"header", "metrics", "custom_metrics"}
        assert set(short) == {"hed", "met", "cmet"}
        assert set(long["custom_metrics"]) == set(short["cmet"])


def test_report_that_is_interrupted_is_written_all_the_same(name: str, tmp_path: Path) -> None:
    command = [str(KINWATCH), "report", "-c", str(_core(tmp_path)), "--watch", name, "--duration-s", "3600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        programs_mapped = "anon_inode:bpf_link"
        eventually(lambda: programs_mapped in _open_files(run.pid), "its programs to be attached")
        run.send_signal(signal.SIGTERM)
        document = json.loads(run.stdout.read())
        assert run.wait(DEADLINE_S) == 0
    assert f"roots_{name}" in document["custom_metrics"]


def _open_files(pid: int) -> set[str]:
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.add(str(entry.readlink()))
        except FileNotFoundError:
            continue
    return found


# -------- how a daemon ends --------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_drains_and_writes_the_report_of_the_unfinished_window(
    daemons: Daemons, programs: Programs, name: str, number: signal.Signals
) -> None:
    daemon = daemons.start("--watch", name)
    app = programs.start("short_lived", name, "500")
    app.fact("children")
    daemon.send(number)
    assert daemon.wait() == 0, daemon.said
    assert len(daemon.reports()) == 1
    assert daemon.metrics()[f"num_child_procs_{name}"] == 500
    assert len(daemon.of(Fork)) == len(daemon.of(Exit)) == 500, "everything was drained"
    assert not pinned()
    app.release()


def test_files_are_for_root_alone(daemons: Daemons, name: str) -> None:
    daemon = daemons.start("--watch", name)
    daemon.stop()
    for written in (daemon.log, daemons.directory / "reports.jsonl", daemons.directory / "window.json"):
        assert stat.S_IMODE(written.stat().st_mode) == 0o600, written


def test_log_that_cannot_be_written_is_said_before_anything_starts(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    log = tmp_path / "file" / "log"
    done = kinwatch("run", "--once", *CORE, "--watch", name, "--log", log)
    assert done.returncode == 2
    assert str(log) in sentence(done)
    assert not pinned()
