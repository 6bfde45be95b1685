"""kinwatch that dies by SIGKILL beside a step of its journal: `python -m tests.mqtt.dying MOMENT[:NAME] ARGUMENTS...`.

MOMENT counts renames, by which what was written becomes true: 2n is right before the nth, 2n + 1 right behind it; NAME:
only those of files whose name ends so. Exit code 77: there were fewer. With `--serve` it reads a list of these
arguments a line, as JSON, and has a child of its own live and die for each: what is slow to import is imported once.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Self

from monitor import cli

if TYPE_CHECKING:
    from collections.abc import Sequence

ENOUGH = 77
PRELOADED = ("config", "provisioning.command", "provisioning.connect", "provisioning.flow", "provisioning.service")


class Mortal:
    """A server of short lives. A context manager."""

    def __enter__(self) -> Self:
        """Start it."""
        command = [sys.executable, "-m", "tests.mqtt.dying", "--serve"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.communicate()

    def die(self, moment: str, *arguments: str) -> int:
        """One life; returns how it ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([moment, *arguments]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def live(where: str, arguments: Sequence[str]) -> int:
    """Run the command until that moment."""
    number, _, name = where.partition(":")
    moment = int(number)
    rename = os.replace
    done = 0

    def dying(source: str, target: str) -> None:
        nonlocal done
        if not str(target).endswith(name):
            rename(source, target)
            return
        if moment == 2 * done:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)
        if moment == 2 * done + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1

    os.replace = dying  # type: ignore[assignment]
    return cli.main(arguments) or ENOUGH


def serve() -> None:
    """Fork for each line. Nothing here has a thread."""
    for module in PRELOADED:
        importlib.import_module(f"monitor.{module}")
    for line in sys.stdin:
        where, *arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            os.dup2(2, 1)
            os._exit(live(where, arguments))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve()
    else:
        sys.exit(live(sys.argv[1], sys.argv[2:]))
