"""The command line: parses, calls, prints. Owns the exit codes and what each verb calls; no logic of its own.

Everything that costs time to import is imported by the verb that needs it, so that help is instant.
"""

# ruff: noqa: PLC0415 - a verb imports what it needs, after its flags are found right

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from monitor import __version__, sample
from monitor.errors import ConfigInvalid, KinwatchError
from monitor.stdout import StdoutFailed, abandon, put
from monitor.verbs import USAGE, parser

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from monitor.config import Config
    from monitor.options import Overrides

NO_CAPTURE: Final = 3
UNDELIVERED: Final = 4
BUG: Final = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED: Final = 130  # 128 + SIGINT, as a shell reports it
PIPE_CLOSED: Final = 141  # 128 + SIGPIPE, as a shell reports it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code and never raises."""
    try:
        code = _command(sys.argv[1:] if argv is None else list(argv))
        put("")
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last resort
        code = _explain(error)
    return code


def _command(argv: list[str]) -> int:
    arguments, command = _split(argv)
    try:
        options = parser().parse_args(arguments)
    except SystemExit as end:  # argparse has said what is wrong, or printed help
        return int(end.code or 0)
    if command is not None and options.verb != "run":
        return _fail("only 'kinwatch run' takes a command after --", USAGE)
    options.command = tuple(command or ())
    if command is not None and not command:
        return _fail("expected a command after --; see 'kinwatch run --help'", USAGE)
    return _CALLS[options.verb](options)


def _explain(error: BaseException) -> int:
    """Say what ended a command, in one line where it is no bug; returns the exit code."""
    if isinstance(error, StdoutFailed):
        abandon()
        return _fail(f"stdout: {error}; what was asked for is not complete", UNDELIVERED)
    if isinstance(error, KinwatchError):
        return _fail(" ".join(str(error).split()), error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        abandon()
        return PIPE_CLOSED
    if isinstance(error, ModuleNotFoundError) and error.name == "monitor.engine._native":
        return _fail("its native part is not built; run 'make build' in the checkout, or install a wheel", NO_CAPTURE)
    import traceback

    with contextlib.suppress(OSError):
        traceback.print_exception(error)
    return _fail(f"this is a bug in kinwatch {__version__}; please report the lines above", BUG)


def _run(options: argparse.Namespace) -> int:
    from monitor.options import RunOptions

    overrides = _overrides(options)
    path, config = _watched(options, overrides)
    run = RunOptions(
        config_path=path,
        log=_absolute(config.log.file) or "-",
        format=options.format,
        report_to=_absolute(config.report.file) or None,
        once=options.once,
        record=options.record,
        fresh=options.fresh,
        command=options.command,
        overrides=overrides,
    )
    from monitor.launch import launched

    with launched(config, run, meanwhile="monitor.agent") as parts:
        from monitor import agent

        return agent.run(parts)


def _report(options: argparse.Namespace) -> int:
    from monitor.options import ReportOptions

    _, config = _watched(options, _overrides(options))
    wanted = ReportOptions(format=options.format, names=options.names, duration_s=options.duration_s)
    from monitor import oneshot

    return oneshot.report(config, wanted)


def _status(options: argparse.Namespace) -> int:
    return _ask(options, "status", lambda answer, colour: _drawing().render_status(answer, colour=colour))


def _tree(options: argparse.Namespace) -> int:
    return _ask(options, "tree", lambda answer, colour: _drawing().render_tree(answer.get("tree", []), colour=colour))


def _drawing() -> Any:  # noqa: ANN401 - a module
    from monitor import tree

    return tree


def _ask(options: argparse.Namespace, what: str, draw: Callable[[dict[str, Any], bool], str]) -> int:
    import msgspec

    from monitor.control import ask
    from monitor.sinks.text import wants_colour

    answer = ask(options.socket or _default_socket(), what)
    if options.json:
        put(msgspec.json.encode(answer).decode() + "\n")
    else:
        put(draw(answer, wants_colour(os.environ, terminal=sys.stdout.isatty())))
    return 0


def _replay(options: argparse.Namespace) -> int:
    from monitor import config

    settings = config.load(options.config) if options.config else None
    from monitor import oneshot

    return oneshot.replay(settings, options.file, options.format)


def _learn(options: argparse.Namespace) -> int:
    from monitor.learning import flags

    wanted = flags.options(options)
    settings = None if wanted.source is not None else _watched(options, _overrides(options))[1]
    from monitor.learning import command

    return command.learn(settings, wanted)


def _doctor(options: argparse.Namespace) -> int:
    from monitor import config
    from monitor.overlay import laid_over

    path = options.config or (config.DEFAULT_PATH if config.DEFAULT_PATH.exists() else None)
    settings = laid_over(path, None) if path else None
    from monitor import doctor

    return doctor.main(settings, options.json, connect=not options.no_connect, send_report=options.send_report)


def _provision(options: argparse.Namespace) -> int:
    from monitor import config
    from monitor.provisioning import command
    from monitor.sinks.text import say

    settings = config.load(options.config or config.DEFAULT_PATH)
    command.run(settings, say)
    put(command.told(settings, as_json=options.json))
    return 0


def _sign(options: argparse.Namespace) -> int:
    from monitor.shadow import command

    put(command.signed(options.file, options.key, options.version_number))
    return 0


def _unload(_options: argparse.Namespace) -> int:
    from monitor import oneshot

    return oneshot.unload()


def _defender(options: argparse.Namespace) -> int:
    from monitor.local import command, flags

    return command.run(flags.options(options))


def _cloud(options: argparse.Namespace) -> int:
    from monitor.cloud import flags

    wanted = flags.wanted(options)
    if options.step == "template":
        _, settings = _watched(options, _overrides(options))
        from monitor.cloud import command

        put(command.template(settings, wanted, options.output))
        return 0
    order = flags.order(options)
    settings = _watched(options, _overrides(options))[1] if options.step in flags.NEEDS_WATCHES else _named(options)
    from monitor.cloud import command

    return command.run(settings, wanted, order, put)


def _named(options: argparse.Namespace) -> Config:
    """Return the configuration, for its names; without a file the defaults."""
    from monitor import config

    path = options.config or (config.DEFAULT_PATH if config.DEFAULT_PATH.exists() else None)
    return config.load(path) if path else config.Config()


def _agent(options: argparse.Namespace) -> int:
    from monitor.defender.link import no_library
    from monitor.launch import launched
    from monitor.sinks.text import say

    config, run, notes = sample.requested(options)
    for note in notes:
        say(note)
    if options.verbosity != sample.LOG_LEVELS[0] and not run.dry:
        try:
            from monitor.defender.publish import log_to_stderr
        except ImportError as error:
            raise no_library("kinwatch agent", error) from error
        log_to_stderr(options.verbosity)
    try:
        with launched(config, run, meanwhile="monitor.agent") as parts:
            from monitor import agent

            return agent.run(parts)
    except ConfigInvalid as error:
        raise ConfigInvalid(sample.in_flags(str(error))) from error


_CALLS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {
    "run": _run,
    "report": _report,
    "status": _status,
    "tree": _tree,
    "replay": _replay,
    "learn": _learn,
    "doctor": _doctor,
    "unload": _unload,
    "provision": _provision,
    "sign": _sign,
    "defender": _defender,
    "agent": _agent,
    "cloud": _cloud,
}


def _overrides(options: argparse.Namespace) -> Overrides:
    from monitor.options import Overrides

    return Overrides(
        names=tuple(options.watch),
        exes=tuple(os.path.abspath(path) for path in options.exe),  # noqa: PTH100 - resolve() would follow links
        pids=tuple(options.pid),
        command=options.command,
        expects=tuple(getattr(options, "expect", ())),
        capture=getattr(options, "capture", None),
        log=_absolute(getattr(options, "log", None)),
        report_to=_absolute(getattr(options, "report_to", None)),
        interval_s=getattr(options, "interval_s", None),
    )


def _watched(options: argparse.Namespace, overrides: Overrides) -> tuple[Path | None, Config]:
    """Return the file that was read and what to watch. ConfigInvalid: nothing, or not like this."""
    from monitor import config
    from monitor.options import settled

    path = options.config
    if path is None and not (overrides.names or overrides.exes or overrides.pids or overrides.command):
        path = config.DEFAULT_PATH
        if not path.exists():
            msg = f"nothing to watch; name an application (--watch, --exe, --pid) or a file (-c), or write {path}"
            raise ConfigInvalid(msg)
    result = settled(path, overrides)
    config.require_watches(result)
    return path, result


def _default_socket() -> Path:
    from monitor import config

    try:
        return Path(config.load(config.DEFAULT_PATH).daemon.socket)
    except ConfigInvalid:
        return Path(config.Config().daemon.socket)


def _absolute(target: str | None) -> str | None:
    """A path that a daemon can open again wherever it stands; - and nothing stay as they are."""
    return os.path.abspath(target) if target and target != "-" else target  # noqa: PTH100 - resolve() would follow links


def _split(argv: list[str]) -> tuple[list[str], list[str] | None]:
    """What stands before the first --, and what stands after it (None: there is none)."""
    if "--" not in argv:
        return argv, None
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def _fail(text: str, code: int) -> int:
    from monitor.sinks.text import say

    say(text)
    return code
