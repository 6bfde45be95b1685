"""One run of the alarm command: no shell, nothing inherited, another user, a time limit.

Owns the process and the end of all that it leaves in its group. Refuses to know which alarms deserve one.
"""

from __future__ import annotations

import os
import pwd
import select
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


_CAPABILITIES: Final = {"CAP_SETGID": 6, "CAP_SETUID": 7}
"""What it takes to become another user (linux/capability.h)."""


def hindrance(user: str) -> str:
    """Why this process cannot run a command as a user, and what to do; "" when it can, or there is no such user."""
    try:
        if pwd.getpwnam(user).pw_uid == os.geteuid():
            return ""
    except (KeyError, ValueError):
        return ""
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    lacking = " and ".join(name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1)
    if not lacking:
        return ""
    return f"to run it as {user} takes {lacking}; under systemd add them to the unit's CapabilityBoundingSet"


class Cannot(Exception):
    """It could not be started; the message says why."""


class Running:
    """A command that was started."""

    def __init__(self, argv: Sequence[str], user: str, stdin: bytes, told: Mapping[str, str]) -> None:
        """Start it. `stdin`: what it can read; `told`: of its environment. Raises Cannot."""
        try:
            who = pwd.getpwnam(user)
        except (KeyError, ValueError):
            raise Cannot(f"there is no user {user!r}") from None
        environment = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": who.pw_dir, "USER": user, "LOGNAME": user, **told}
        try:
            # A file in memory: a command that does not read must not block whoever writes.
            fd = os.memfd_create("kinwatch-alarm", os.MFD_CLOEXEC)
        except OSError as error:
            raise Cannot(f"the alarm cannot be handed to it: {error.strerror}") from error
        try:
            os.write(fd, stdin)
            os.lseek(fd, 0, os.SEEK_SET)
            other = who.pw_uid != os.geteuid()
            self._process = subprocess.Popen(
                list(argv),
                stdin=fd,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                close_fds=True,
                cwd="/",
                env=environment,
                start_new_session=True,
                umask=0o077,
                user=who.pw_uid if other else None,
                group=who.pw_gid if other else None,
                extra_groups=os.getgrouplist(user, who.pw_gid) if other else None,
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            why = getattr(error, "strerror", None) or error
            raise Cannot(hindrance(user) or f"it cannot be run as {user}: {why}") from error
        finally:
            os.close(fd)

    @property
    def pid(self) -> int:
        """Of the command, and of its process group."""
        return int(self._process.pid)

    def wait(self, timeout_s: float, hurry: int) -> str:
        """Wait until it ends, at most so long or until `hurry` is readable; then end it. Returns why it failed, or "".

        What it started in its group ends with it. The group's number cannot be another's meanwhile: the command is
        collected last.
        """
        ended, trouble = False, ""
        try:
            fd = os.pidfd_open(self.pid)
            try:
                poll = select.poll()
                for one in (fd, hurry):
                    poll.register(one, select.POLLIN)
                ready = [one for one, _ in poll.poll(timeout_s * 1000)]
                ended = fd in ready
                trouble = "" if ended else ", for kinwatch ends" if ready else f" after {timeout_s:g} s"
            finally:
                os.close(fd)
        except OSError as error:  # no descriptor is left, or the kernel has none of these (before 5.3)
            trouble = f", for it could not be waited for: {error.strerror}"
        how = "killed"
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except PermissionError:
            how = "could not be killed without CAP_KILL"
        code = self._process.wait()
        if not ended:
            return how + trouble
        if code < 0:
            return f"signal {-code}"
        return f"exit {code}" if code else ""
