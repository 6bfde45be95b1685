"""The walkthrough, played by itself: a copy of the shell called myapp starts a child, and kinwatch says so at once.

Owns the story and its processes; it uses the program as a user would and reads nothing but what the program writes.
Exit codes: 0 the alarm and its end were seen, 1 they were not, 3 this machine or user cannot capture.
"""

# ruff: noqa: T201 - it tells a story

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from monitor.sinks.table import TableSink
from monitor.sinks.text import styled, wants_colour

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEADLINE_S: Final = 30.0
"""Per step. A step takes milliseconds; this is for a machine that is busy with other things."""
LOOK_S: Final = 0.02
END_OF_FILE: Final = b"\x04"  # Ctrl-D

Line = dict[str, Any]


class StepFailed(Exception):
    """A step of the story did not happen; the message says which, the code is what the demo ends with."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.code = code


class Growing:
    """A file of JSON lines that somebody else appends to."""

    def __init__(self, path: Path) -> None:
        """`path` may not exist yet."""
        self._path = path
        self._read = 0
        self._waiting: deque[Line] = deque()

    def lines(self) -> Iterator[Line]:
        """Whole lines that nobody has taken yet."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read += len(whole)
            self._waiting += msgspec.json.Decoder(Line).decode_lines(whole)
        while self._waiting:
            yield self._waiting.popleft()


class Story:
    """Shows what the daemon writes while it waits for a line that moves the story on."""

    def __init__(self, events: Path, reports: Path, alive: Callable[[], bool]) -> None:
        """`alive`: whether the daemon still runs."""
        self._events = Growing(events)
        self._reports = Growing(reports)
        self._alive = alive
        self._colour = wants_colour(os.environ, terminal=sys.stdout.isatty())
        self._table = TableSink(_Nowhere(), colour=self._colour)

    def tell(self, text: str) -> None:
        """Print a sentence of the story."""
        print(styled(f"\n▸ {text}", "bold", colour=self._colour), flush=True)

    def until_line(self, event: str, **keys: object) -> Line:
        """Show lines until one of that event with those values has come."""
        width = shutil.get_terminal_size((120, 24)).columns - 4
        wanted = {"event": event, **keys}
        for line in self._come(self._events, f"{event} line"):
            print("   " + self._table.row(line, width), flush=True)
            if wanted.items() <= {key: line.get(key) for key in wanted}.items():
                return line
        raise AssertionError

    def until_report(self) -> Line:
        """Show the next Device Defender report."""
        report = next(self._come(self._reports, "report"))
        print("\n".join("   " + row for row in pretty(report)), flush=True)
        return report

    def _come(self, file: Growing, what: str) -> Iterator[Line]:
        """Lines of a file as they come. StepFailed: no more came."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            alive = self._alive()
            yield from file.lines()
            if not alive:
                raise StepFailed(f"kinwatch ended before the {what} came")
            if time.monotonic() > deadline:
                raise StepFailed(f"no {what} within {DEADLINE_S:g} s")
            time.sleep(LOOK_S)


def pretty(report: Line) -> Iterator[str]:
    """Lines of a report: one for each block and each metric, as JSON that a person can read."""
    yield "{"
    for last, (block, metrics) in _with_last(report):
        yield f'  "{block}": {{'
        for final, (name, value) in _with_last(metrics):
            yield f'    "{name}": {json.dumps(value)}{"" if final else ","}'
        yield "  }" if last else "  },"
    yield "}"


def _with_last(items: dict[str, Any]) -> Iterator[tuple[bool, tuple[str, Any]]]:
    return ((number == len(items), item) for number, item in enumerate(items.items(), 1))


class _Nowhere:
    """A terminal that rows are rendered for and never written to."""

    def write(self, _lines: bytes) -> int:
        return 0

    def width(self) -> int:
        return 120


def main(story: Callable[[Path, contextlib.ExitStack], None] | None = None) -> int:
    """Play a walkthrough, without one this one, in a folder of its own; returns the exit code."""
    if os.geteuid() != 0:
        print("kinwatch: the demo loads programs into the kernel; run it as root: sudo make demo", file=sys.stderr)
        return 3
    with tempfile.TemporaryDirectory(prefix="kinwatch-demo-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        try:
            (story or play)(folder, stack)
        except StepFailed as failure:
            print(f"\nkinwatch: the demo failed: {failure}", file=sys.stderr)
            sys.stderr.write(_said(folder))
            return failure.code
        except KeyboardInterrupt:
            return 130
    return 0


def play(folder: Path, stack: contextlib.ExitStack) -> None:
    """Tell and do every step. What it starts ends with `stack`. StepFailed: something did not come."""
    application = folder / "myapp"
    shell = shutil.which("sh") or "/bin/sh"
    shutil.copy(shell, application)
    daemon = start_daemon(folder, application, stack)
    story = Story(folder / "events.jsonl", folder / "reports.jsonl", lambda: daemon.poll() is None)
    story.tell(f"cp {shell} ./myapp: a shell plays the application. It should never start a child.")
    story.tell("kinwatch run --exe ./myapp --expect child_processes=0 --log events.jsonl --report-to reports.jsonl")
    print("   " + wait_ready(folder, daemon), flush=True)

    story.tell("./myapp starts.")
    terminal, myapp = start_on_terminal(application, stack)
    story.until_line("root", watch="myapp", pid=myapp.pid)

    story.tell("Somebody makes it run `cat`, a child that waits for input. The alarm comes with the fork.")
    os.write(terminal, b"cat\n")
    alarm = story.until_line("alarm", watch="myapp")
    cat = story.until_line("exec", comm="cat")

    story.tell(f"kinwatch reports to Device Defender at once: num_child_procs_myapp is {alarm['value']}.")
    metric = "num_child_procs_myapp"
    number = story.until_report().get("custom_metrics", {}).get(metric, [{}])[0].get("number", 0)
    if number < 1:
        raise StepFailed(f"the report says {metric} = {number}, and a child was alive")

    story.tell("Ctrl-D: cat ends, and with it the alarm.")
    os.write(terminal, END_OF_FILE)
    story.until_line("exit", pid=cat["pid"])
    story.until_line("clear", watch="myapp")

    story.tell("exit: myapp ends.")
    os.write(terminal, b"exit\n")
    story.until_line("exit", pid=myapp.pid)
    myapp.wait(DEADLINE_S)

    story.tell("kinwatch stops: it reports the unfinished window and takes its programs out of the kernel.")
    daemon.send_signal(signal.SIGTERM)
    try:
        code = daemon.wait(DEADLINE_S)
    except subprocess.TimeoutExpired:
        raise StepFailed(f"kinwatch did not stop within {DEADLINE_S:g} s") from None
    if code != 0:
        raise StepFailed(f"kinwatch ended with {code}")
    print("   done", flush=True)


def start_daemon(folder: Path, application: Path, stack: contextlib.ExitStack) -> subprocess.Popen[bytes]:
    """Start `kinwatch run` with files of its own in `folder`; it is stopped and unloaded with `stack`."""
    settings = folder / "config.toml"
    settings.write_text(f'[daemon]\nsocket = "{folder}/control.sock"\nstate_dir = "{folder}/state"\n')
    files = [f"--log={folder}/events.jsonl", f"--report-to={folder}/reports.jsonl"]
    arguments = ["-c", str(settings), "--exe", str(application), "--expect", "child_processes=0", *files]
    with (folder / "stderr").open("wb") as stderr:
        daemon = subprocess.Popen([sys.executable, "-m", "monitor", "run", *arguments], stderr=stderr)
    stack.callback(end, daemon, unload=True)
    return daemon


def wait_ready(folder: Path, daemon: subprocess.Popen[bytes]) -> str:
    """Wait for the line that says that every hook is live, and return it."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        ready = [line for line in _said(folder).splitlines() if line.startswith("kinwatch: watching (")]
        if ready:
            return ready[0]
        if daemon.poll() is not None:
            raise StepFailed("kinwatch did not start", daemon.returncode or 1)
        time.sleep(LOOK_S)
    raise StepFailed(f"kinwatch was not ready within {DEADLINE_S:g} s")


def start_on_terminal(application: Path, stack: contextlib.ExitStack) -> tuple[int, subprocess.Popen[bytes]]:
    """Start the application as a person would, on a terminal; returns the keyboard's side and the process."""
    keyboard, screen = pty.openpty()
    stack.callback(os.close, keyboard)
    try:
        process = subprocess.Popen(
            ["./myapp"], cwd=application.parent, stdin=screen, stdout=screen, stderr=screen, start_new_session=True
        )
    finally:
        os.close(screen)
    stack.callback(end, process)
    return keyboard, process


def end(process: subprocess.Popen[bytes], *, unload: bool = False) -> None:
    """Stop a process that the story started; `unload`: also what it may have left in the kernel."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if unload:
            subprocess.run([sys.executable, "-m", "monitor", "unload"], check=False)


def _said(folder: Path) -> str:
    try:
        return (folder / "stderr").read_text(errors="replace")
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
