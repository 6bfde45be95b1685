"""An installed kinwatch that runs in a root, and an application that it watches there.

Owns the waiting and the reading of the event log. Refuses to know how it was installed.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable

    from tests.packaging.trees import Tree

DEADLINE_S = 120
ONCE = ["root", "fork", "exec", "exit", "exit"]
"""What the log says of an application that ran once."""


class Daemon:
    """`kinwatch run`, from the moment it says that it watches."""

    def __init__(self, words: list[str], said: Path) -> None:
        self._said = said
        with said.open("wb") as stderr:
            self.process = subprocess.Popen(words, stderr=stderr, stdout=subprocess.DEVNULL)
        until(lambda: "kinwatch: watching (" in said.read_text() or self.process.poll() is not None)
        self.ready = said.read_text()
        assert self.process.poll() is None, self.ready

    def end(self, number: signal.Signals) -> None:
        """Send a signal; it must end well."""
        self.process.send_signal(number)
        assert self.process.wait(DEADLINE_S) == 0, self._said.read_text()


def until(true: Callable[[], bool]) -> None:
    """Wait."""
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def told(root: Tree, log: str, name: str, events: int) -> list[str]:
    """The kinds of the lines about an application, once there are so many."""
    file = Path(f"{root.path}{log}")

    def lines() -> list[dict[str, Any]]:
        text = file.read_text() if file.exists() else ""
        found = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [line for line in found if line.get("watch") == name]

    until(lambda: len(lines()) >= events)
    return [line["event"] for line in lines()]


def run_application(root: Tree, name: str) -> None:
    """Run it once, with one child that lives for a moment."""
    program = Path(f"{root.path}/usr/bin/{name}")
    program.write_bytes(Path(f"{root.path}/bin/sh").read_bytes())
    program.chmod(0o755)
    done = root.run(f"/usr/bin/{name}", "-c", "/bin/true; exit 7")
    program.unlink()
    assert done.returncode == 7, done.stderr
