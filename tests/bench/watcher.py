"""Processes that watch, and what they cost. Owns their start and their end; refuses to know what is measured with them.

A kinwatch that measures runs unpinned (`run --once`), so that it neither takes over nor disturbs a daemon; what only
a daemon has (pins, the control socket) is measured with one, and waits for its turn at the lock.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final, Self

import msgspec

KINWATCH: Final = Path(sys.executable).with_name("kinwatch")
PINS: Final = Path("/sys/fs/bpf/kinwatch")
NEVER_S: Final = 31_536_000
"""Seconds between reports: longer than any bench."""
LOCKED: Final = 3
"""Exit code of a second daemon."""
START_S: Final = 60.0
STOP_S: Final = 60.0


class Unmeasured(Exception):
    """Something could not be measured; the text says why, and stands in the table."""


def cpu_ns(pid: int) -> int:
    """CPU time of a process, user and system (proc(5): utime, stime; clock ticks)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def memory_kb(pid: int, field: str) -> int:
    """VmRSS or VmHWM of a process, kB (proc(5))."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise Unmeasured(f"/proc/{pid}/status has no {field}")


def voluntary_switches(pid: int) -> int:
    """How often the threads of a process have gone to sleep (proc(5): voluntary_ctxt_switches)."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                total += int(line.split()[1])
    return total


def end(process: subprocess.Popen[Any], number: signal.Signals = signal.SIGINT) -> int:
    """Ask a process to end, insist after STOP_S; returns its exit code."""
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


class Kinwatch:
    """One `kinwatch run`, from its start until every hook is live. A context manager; ends with the block.

    Raises Unmeasured when it does not start, with what it said.
    """

    def __init__(  # noqa: PLR0913 - each is one way to run it
        self,
        scratch: Path,
        watch: str,
        *,
        daemon: bool = False,
        log_to: int | None = None,
        packets: bool = False,
        capture: str = "auto",
        rules: str = "",
    ) -> None:
        """`log_to`: a descriptor for the event lines instead of a file. `packets`, `capture`: of [capture].

        `rules`: more keys of the watch, and whatever comes behind it, as lines of TOML.
        """
        self.watch = watch
        self.log = scratch / f"{watch}.jsonl"
        self.report = scratch / f"{watch}.report"
        self.socket = scratch / f"{watch}.sock"
        config = scratch / f"{watch}.toml"
        config.write_text(
            f'[daemon]\nsocket = "{self.socket}"\nstate_dir = "{scratch / "state"}"\n'
            f'[capture]\nkind = "{capture}"\npackets = {str(packets).lower()}\n'
            f'[[watch]]\nname = "{watch}"\nprocess = "{watch}"\n{rules}\n',
            encoding="utf-8",
        )
        for path in (self.log, self.report):
            path.unlink(missing_ok=True)
        self._daemon = daemon
        self._log_to = log_to
        self._arguments = ["-c", str(config), "--log", "-" if log_to is not None else str(self.log)]
        self._arguments += ["--report-to", str(self.report), "--interval-s", str(NEVER_S)]
        self._arguments += [] if daemon else ["--once"]
        self._process: subprocess.Popen[bytes] | None = None
        self.ready_ms = 0.0

    @property
    def pid(self) -> int:
        """Of the running process."""
        if self._process is None:
            raise Unmeasured("kinwatch is not running")
        return self._process.pid

    def __enter__(self) -> Self:
        """Start it; a daemon waits until the lock is free and no pins of another life are there."""
        deadline = time.monotonic() + (120.0 if self._daemon else 0.0)
        while self._daemon and PINS.exists():
            if time.monotonic() > deadline:
                raise Unmeasured(f"a daemon runs, or left {PINS}: stop it, or kinwatch unload")
            time.sleep(0.3)
        while True:
            said = self._start()
            if said is None:
                return self
            if not self._daemon or time.monotonic() > deadline or "another" not in said:
                raise Unmeasured(f"kinwatch did not start: {said}")
            time.sleep(0.3)

    def _start(self) -> str | None:
        """None when it watches; else what it said instead."""
        began = time.monotonic()
        command = [str(KINWATCH), "run", *self._arguments]
        output: int = subprocess.DEVNULL if self._log_to is None else self._log_to
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        self._process = process
        stream = process.stderr
        assert stream is not None
        said = ""
        patience = threading.Timer(START_S, process.kill)
        patience.start()
        try:
            for line in iter(stream.readline, b""):
                said += line.decode(errors="replace")
                if b"watching (" in line:
                    self.ready_ms = (time.monotonic() - began) * 1000
                    return None
        finally:
            patience.cancel()
        end(process)
        stream.close()
        return said.strip().rpartition("\n")[2] or f"it ended with {process.returncode}"

    def __exit__(self, *exception: object) -> None:
        """Stop it: it drains, writes its report, unloads. What it says last is read, so that it cannot block."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            if self._daemon:
                subprocess.run([KINWATCH, "unload"], check=False, capture_output=True)

    def status(self) -> dict[str, Any]:
        """What a daemon says of itself."""
        done = subprocess.run(
            [KINWATCH, "status", "--json", "--socket", self.socket], check=True, capture_output=True, timeout=START_S
        )
        return msgspec.json.decode(done.stdout, type=dict[str, Any])

    def counted(self, watch: str = "") -> dict[str, int]:
        """After the end: what the report counted for a watch (its own), and the lines of the log."""
        watch = watch or self.watch
        try:
            document = msgspec.json.decode(self.report.read_bytes().splitlines()[-1], type=dict[str, Any])
            custom = document["custom_metrics"]
            counts = {
                "spawned": custom[f"child_procs_spawned_{watch}"][0]["number"],
                "lost": custom["events_lost"][0]["number"],
            }
            for name in ("enforced", "would_enforce"):
                if f"{name}_{watch}" in custom:
                    counts[name] = custom[f"{name}_{watch}"][0]["number"]
        except (OSError, LookupError, msgspec.MsgspecError) as error:
            raise Unmeasured(f"kinwatch wrote no usable report: {error!r}") from error
        return counts | {"forks": 0, "exits": 0, "execs": 0} | lines_by_event(self.log)


def lines_by_event(log: Path) -> dict[str, int]:
    """How many lines of each kind of event of descendants a log holds; a root's depth is 0."""
    counts = {"forks": 0, "exits": 0, "execs": 0}
    with log.open("rb") as stream:
        for line in stream:
            if b'"depth":0,' in line:
                continue
            for kind in counts:
                counts[kind] += b'"event":"%s"' % kind[:-1].encode() in line
    return counts


class Sleeper:
    """A live process of a given name that does nothing: a root, for as long as the block lasts."""

    def __init__(self, scratch: Path, name: str) -> None:
        """The name is that of a link to sleep(1)."""
        self._path = scratch / name
        if not self._path.exists():
            self._path.symlink_to("/bin/sleep")

    def __enter__(self) -> Self:
        """Start it."""
        self._process = subprocess.Popen([self._path, "1000000"])
        return self

    def __exit__(self, *exception: object) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
