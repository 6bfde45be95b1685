"""kinwatch that dies by SIGKILL beside a step of its journal: `python -m tests.mqtt.dying MOMENT[:NAME] ARGUMENTS...`.

MOMENT counts renames, by which what was written becomes true: 2n is right before the nth, 2n + 1 right behind it;
NAME: only those of files whose name ends so.
Owns nothing else. Exit code 77: there were fewer.
"""

from __future__ import annotations

import os
import signal
import sys

from monitor import cli

ENOUGH = 77


def main() -> int:
    """Run the command."""
    number, _, name = sys.argv[1].partition(":")
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
    code = cli.main(sys.argv[2:])
    return code or ENOUGH


if __name__ == "__main__":
    sys.exit(main())
