"""The first half of `run`: who may run, which capture, and its programs into the kernel.

Loading takes the kernel longest and lets go of Python's lock, so the rest of the program is imported meanwhile. Owns
the lock of the pins and the order of opening. Refuses to know what happens once the capture is open: agent.py does.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from monitor.capture.choose import HOOKS, Choice, choose, decide, probe
from monitor.capture.core import PINS, CoreCapture
from monitor.capture.idle import IdleCapture
from monitor.command import Command
from monitor.engine import Engine
from monitor.errors import AlreadyRunning, CaptureUnavailable, ConfigInvalid
from monitor.notify import Notifier
from monitor.sinks.text import say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from monitor.capture import LiveCapture
    from monitor.config import Config
    from monitor.judging.plan import Plan
    from monitor.options import RunOptions
    from monitor.schema import Defender

LOCK: Final = Path("/run/kinwatch.lock")
"""Held by the daemon that owns the pins."""


NOTHING: Final = Choice(kind="none", reason="nothing is watched, only the device reports", hooks=HOOKS["none"])
"""What a run without watches captures with."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What `run` consists of when the capture is open and nothing flows yet."""

    config: Config
    plan: Plan | None
    """None: no security profile is configured."""
    options: RunOptions
    choice: Choice
    engine: Engine
    capture: LiveCapture
    notifier: Notifier
    command: Command | None


@contextlib.contextmanager
def launched(config: Config, options: RunOptions, meanwhile: str) -> Iterator[Parts]:
    """Open everything that `run` needs before something flows. `meanwhile`: a module to import while the kernel loads.

    Raises ConfigInvalid, AlreadyRunning, CaptureUnavailable.
    """
    if config.daemon.user:
        msg = f"{config.origin}: daemon.user: running as another user is not in this version; leave it empty"
        raise ConfigInvalid(msg)
    if config.defender is not None and not options.dry:
        for warning in _credentials(config, config.defender):
            say(warning)
    planned = None
    if config.security_profile:
        from monitor.judging.plan import plan  # noqa: PLC0415 - as above: nothing of the kernel goes on meanwhile

        planned = plan(config)
        config = planned.config
    notifier = Notifier.from_environment()
    choice = decide(config.capture) if config.watches else NOTHING
    # Whoever sits in front of a run ends it with the terminal: nothing may stay in the kernel, no daemon be in the way.
    alone = options.once or options.attended or bool(options.command)
    with contextlib.ExitStack() as stack:
        if not alone and choice.kind == "core":
            stack.enter_context(only_daemon())
        command = Command(options.command) if options.command else None  # forks: before any thread
        if command is not None:
            stack.callback(command.abandon)
            if choice.kind != "core":  # core waits for its exec, so that the root line tells the command
                config = _with_pid(config, command.pid)
        engine = stack.enter_context(Engine(config.capture.max_processes))
        importing = threading.Thread(target=_import, args=(meanwhile, config, options), name="import")
        importing.start()
        try:
            choice, capture = open_capture(choice, engine, config, pins="" if alone else PINS, fresh=options.fresh)
        finally:
            importing.join()
        yield Parts(config, planned, options, choice, engine, capture, notifier, command)


def _credentials(config: Config, settings: Defender) -> list[str]:
    """Look at the files that publishing needs; warnings. ConfigInvalid: it is of no use to start like this."""
    if config.provisioning is not None:
        from monitor.provisioning import look  # noqa: PLC0415 - for the few who are provisioned

        return look.check(settings, config.provisioning, config.daemon.state_dir, time.time())
    from monitor.defender import credentials  # noqa: PLC0415 - for the few who publish

    return credentials.check(settings, time.time())


def _import(meanwhile: str, config: Config, options: RunOptions) -> None:
    importlib.import_module(meanwhile)
    if config.defender is not None:
        importlib.import_module("monitor.publication")
        if not options.dry:
            link = "monitor.defender.paho" if config.defender.client == "paho" else "monitor.defender.publish"
            link = "monitor.provisioning.link" if config.provisioning is not None else link
            with contextlib.suppress(ImportError):  # who needs it says so
                importlib.import_module(link)


def _with_pid(config: Config, pid: int) -> Config:
    """The watch of `-- COMMAND` learns whom it watches."""
    watches = tuple(
        msgspec.structs.replace(watch, value=str(pid)) if (watch.kind, watch.value) == ("pid", "0") else watch
        for watch in config.watches
    )
    return msgspec.structs.replace(config, watches=watches)


@contextlib.contextmanager
def only_daemon() -> Iterator[None]:
    """Hold the lock of the pins. AlreadyRunning: somebody does."""
    try:
        fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        msg = f"{LOCK}: {error.strerror}; run as root"
        raise CaptureUnavailable(msg) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            msg = f"another kinwatch daemon is running (it holds {LOCK}); stop it first, or use --once or -- COMMAND"
            raise AlreadyRunning(msg) from None
        yield
    finally:
        os.close(fd)


def open_capture(
    choice: Choice, engine: Engine, config: Config, *, pins: str, fresh: bool
) -> tuple[Choice, LiveCapture]:
    """Open the capture that was chosen. `pins`: where it is pinned and taken over from, "" for neither.

    Whether BCC's program is true to the kernel shows only when it has been compiled and tried; where it is not and
    nobody asked for it, the next one is chosen. Raises CaptureUnavailable.
    """
    try:
        return choice, _open(choice, engine, config, pins=pins, fresh=fresh)
    except CaptureUnavailable as error:
        if choice.kind != "bcc" or config.capture.kind != "auto":
            raise
        why = str(error)
    choice = choose(probe(config.capture.btf), "auto", lacking=lambda: [why])
    return choice, _open(choice, engine, config, pins=pins, fresh=fresh)


def _open(choice: Choice, engine: Engine, config: Config, *, pins: str, fresh: bool) -> LiveCapture:
    if choice.kind == "none":
        return IdleCapture()
    if choice.kind == "core":
        return CoreCapture(engine, config.watches, config.capture, pins=pins, fresh=fresh, enforcing=config.enforcement)
    if choice.kind == "bcc":
        from monitor.capture.bcc import BccCapture  # noqa: PLC0415 - as below

        return BccCapture(engine, config.watches, config.capture, ring=choice.ring)
    if choice.kind == "netlink":
        from monitor.capture.netlink import NetlinkCapture  # noqa: PLC0415 - as below

        return NetlinkCapture(engine, config.watches)
    from monitor.capture.poll import PollCapture  # noqa: PLC0415 - psutil, which core can do without

    return PollCapture(engine, config.watches)
