"""The command line: parses, calls, prints. Owns the verbs, their help and the exit codes; no logic of its own.

Everything that costs time to import is imported by the verb that needs it, so that help is instant.
"""

# ruff: noqa: PLC0415, T201 - a verb imports what it needs, after its flags are found right; a command line prints

from __future__ import annotations

import argparse
import math
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from monitor import __version__, sample
from monitor.errors import ConfigInvalid, KinwatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from _typeshed import SupportsWrite

    from monitor.config import Config
    from monitor.options import Overrides

USAGE: Final = 2
NO_CAPTURE: Final = 3
UNDELIVERED: Final = 4
BUG: Final = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED: Final = 130  # 128 + SIGINT, as a shell reports it
PIPE_CLOSED: Final = 141  # 128 + SIGPIPE, as a shell reports it

EXIT_CODES: Final = """\
exit codes:
  0  ok
  1  an alarm was raised (report, replay); nothing, too little or something new was seen (learn);
     something differs (cloud diff), or it was not confirmed (cloud apply, destroy, mitigate)
  2  wrong usage or configuration; nothing was started
  3  cannot capture, or no daemon answers
  4  cannot publish or write the report (report, run --once, agent), no broker is there (defender),
     no certificate came (provision), or a step to the broker failed (doctor); AWS refused, or was not reached
     (cloud)
  70 a bug in kinwatch; the traceback is on stderr
"""


class _StdoutFailed(Exception):
    """What was asked for could not be written."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(USAGE, f"kinwatch: {message}; see '{self.prog} --help'\n")

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        """Split a line of an @file, where a verb takes one."""
        return sample.words(arg_line)

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        """Print through the one door that knows what to do when stdout fails; argparse has no public one."""
        if file is sys.stdout:
            _print(message)
        else:
            super()._print_message(message, file)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code and never raises."""
    try:
        code = _command(sys.argv[1:] if argv is None else list(argv))
        _print("")
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
    code: int = options.call(options)
    return code


def _explain(error: BaseException) -> int:
    """Say what ended a command, in one line where it is no bug; returns the exit code."""
    if isinstance(error, _StdoutFailed):
        _abandon_stdout()
        return _fail(f"stdout: {error}; what was asked for is not complete", UNDELIVERED)
    if isinstance(error, KinwatchError):
        return _fail(" ".join(str(error).split()), error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        _abandon_stdout()
        return PIPE_CLOSED
    if isinstance(error, ModuleNotFoundError) and error.name == "monitor.engine._native":
        return _fail("its native part is not built; run 'make build' in the checkout, or install a wheel", NO_CAPTURE)
    traceback.print_exception(error)
    return _fail(f"this is a bug in kinwatch {__version__}; please report the lines above", BUG)


def parser() -> argparse.ArgumentParser:
    """Return the parser of every verb."""
    top = _Parser(
        prog="kinwatch",
        description="Watches every process that an application starts, however short-lived.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"kinwatch {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    _add_run(verbs)
    _add_report(verbs)
    _add_asking(verbs)
    _add_replay(verbs)
    _add_learn(verbs)
    _add_machine(verbs)
    _add_provision(verbs)
    _add_sign(verbs)
    _add_defender(verbs)
    _add_agent(verbs)
    _add_cloud(verbs)
    return top


Verbs = Any  # argparse names the type of add_subparsers() only privately


def _add(verbs: Verbs, name: str, call: Callable[[argparse.Namespace], int], text: str, more: str = "") -> _Parser:
    added: _Parser = verbs.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.{more}",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    added.set_defaults(call=call)
    return added


def _add_watches(verb: argparse.ArgumentParser, *, expecting: bool = True) -> None:
    _add_config(verb, "configuration; without it and without watches: /etc/kinwatch/config.toml")
    group = verb.add_argument_group("watches", "each repeatable; they replace those of the file")
    group.add_argument("--watch", action="append", default=[], metavar="NAME", help="processes called NAME")
    group.add_argument("--exe", action="append", default=[], metavar="PATH", help="processes that execute PATH")
    group.add_argument("--pid", action="append", default=[], metavar="PID", type=int, help="one running process")
    if not expecting:
        return
    group.add_argument(
        "--expect",
        action="append",
        default=[],
        metavar="KIND=VALUE",
        help="raise an alarm when it is not so: child_processes=N (at most N descendants alive), "
        "destinations=10.0.0.0/8:443,fd00::/8 (connections go there alone), listening_ports=80,443 (no other port is "
        "listened on); nothing after = means none",
    )


def _add_config(verb: argparse.ArgumentParser, text: str) -> None:
    verb.add_argument("-c", "--config", type=Path, metavar="FILE", help=text)


def _add_json(verb: _Parser) -> None:
    verb.add_argument("--json", action="store_true", help="JSON instead of a table")


def _add_run(verbs: Verbs) -> None:
    verb = _add(
        verbs,
        "run",
        _run,
        "watch until stopped: event lines, alarms, reports",
        "\nAfter -- a command may follow; it is run and watched, and the watching ends\nwith the last of its kin.",
    )
    verb.usage = "kinwatch run [-c FILE] [WATCHES] [options] [-- COMMAND ARG...]"
    _add_watches(verb)
    verb.add_argument(
        "--capture", choices=("auto", "core", "bcc", "netlink", "poll"), help="where records come from (default: auto)"
    )
    verb.add_argument("--log", metavar="FILE|-", help="where event lines go; - is stdout, the default")
    verb.add_argument(
        "--format",
        choices=("auto", "json"),
        default="auto",
        help="auto: a table on a terminal, JSON Lines elsewhere; json: JSON Lines everywhere",
    )
    verb.add_argument("--report-to", metavar="FILE|-", help="where every report goes, one JSON document a line")
    verb.add_argument("--interval-s", type=_whole, metavar="N", help="seconds between periodic reports (default: 300)")
    verb.add_argument("--once", action="store_true", help="end after the first report")
    verb.add_argument("--record", type=Path, metavar="FILE", help="also keep the binary records, for 'kinwatch replay'")
    verb.add_argument("--fresh", action="store_true", help="start anew instead of taking over what a daemon left")


def _add_report(verbs: Verbs) -> None:
    verb = _add(verbs, "report", _report, "watch for a while and print one Device Defender report")
    _add_watches(verb)
    verb.add_argument("--format", choices=("json", "cbor"), default="json", help="of the report (default: json)")
    verb.add_argument("--names", choices=("long", "short"), default="long", help="of its keys (default: long)")
    verb.add_argument(
        "--duration-s", type=_seconds, default=10.0, metavar="N", help="how long to watch, seconds (default: 10)"
    )


def _add_asking(verbs: Verbs) -> None:
    for name, call, text in (
        ("status", _status, "show counters, losses and the capture of the running daemon"),
        ("tree", _tree, "show roots and live descendants of the running daemon"),
    ):
        verb = _add(verbs, name, call, text)
        _add_json(verb)
        verb.add_argument("--socket", type=Path, metavar="PATH", help="of the daemon (default: as configured)")


def _add_replay(verbs: Verbs) -> None:
    verb = _add(verbs, "replay", _replay, "turn a record file into event lines, and alarms with a configuration")
    _add_config(verb, "configuration with the expectations; without it: no alarms")
    verb.add_argument("--format", choices=("auto", "json"), default="auto", help="as for run")
    verb.add_argument("file", type=Path, metavar="FILE", help="made by 'kinwatch run --record'")


def _add_learn(verbs: Verbs) -> None:
    from monitor.learning import flags

    verb = _add(verbs, "learn", _learn, flags.SUMMARY, flags.MORE)
    _add_watches(verb, expecting=False)
    flags.add(verb)


def _add_machine(verbs: Verbs) -> None:
    verb = _add(verbs, "doctor", _doctor, "say what this machine can do, what it cannot, why, and what to do about it")
    _add_config(verb, "configuration (default: /etc/kinwatch/config.toml, where it exists)")
    _add_json(verb)
    way = verb.add_mutually_exclusive_group()
    way.add_argument("--no-connect", action="store_true", help="do not try the connection that [defender] describes")
    way.add_argument(
        "--send-report", action="store_true", help="try it with a report, which takes the slot of the next real one"
    )
    _add(verbs, "unload", _unload, "remove every pinned program and map that a daemon left in the kernel")


def _add_provision(verbs: Verbs) -> None:
    verb = _add(
        verbs,
        "provision",
        _provision,
        "get the device its own certificate from AWS IoT fleet provisioning",
        "\nWhat was reached is kept, and the next call goes on there. 'kinwatch run' does the\nsame by itself, and"
        " gets another certificate before one ends.",
    )
    _add_config(verb, "configuration with [provisioning] (default: /etc/kinwatch/config.toml)")
    _add_json(verb)


def _add_sign(verbs: Verbs) -> None:
    verb = _add(
        verbs,
        "sign",
        _sign,
        "sign a configuration for devices that take one from their shadow",
        "\nIt prints the document for 'aws iot-data update-thing-shadow --shadow-name kinwatch'.\nThe private key need"
        " not be on a device, and should not.",
    )
    verb.add_argument("--key", required=True, metavar="FILE", help="private key, Ed25519, PEM")
    verb.add_argument(
        "--version-number", required=True, type=_whole_number, metavar="N", help="above that of every one before"
    )
    verb.add_argument("file", type=Path, metavar="FILE", help="the configuration: [[watch]], [report], [detect]")


def _add_defender(verbs: Verbs) -> None:
    from monitor.local import flags

    flags.add(_add(verbs, "defender", _defender, flags.SUMMARY, flags.MORE))


def _add_agent(verbs: Verbs) -> None:
    verb = _add(
        verbs,
        "agent",
        _agent,
        "publish reports, called as AWS's sample agent is",
        "\nFlags that begin with @ name a file of flags, one argument or one flag with its values a line.",
    )
    verb.allow_abbrev = True  # as there
    verb.fromfile_prefix_chars = "@"
    sample.add_flags(verb)


def _add_cloud(verbs: Verbs) -> None:
    from monitor.cloud import flags

    verb = _add(verbs, "cloud", _cloud, flags.SUMMARY, flags.MORE)
    verb.usage = "kinwatch cloud STEP [options]"
    flags.add(verb, _add_watches, lambda step: _add_config(step, "configuration (default: /etc/kinwatch/config.toml)"))


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
        _print(msgspec.json.encode(answer).decode() + "\n")
    else:
        _print(draw(answer, wants_colour(os.environ, terminal=sys.stdout.isatty())))
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
    import time

    from monitor import config
    from monitor.provisioning import command, look
    from monitor.sinks.text import safe, say

    settings = config.load(options.config or config.DEFAULT_PATH)
    command.run(settings, say)
    found = look.described(settings, time.time())
    if options.json:
        import msgspec

        _print(msgspec.json.encode(found).decode() + "\n")
    else:
        _print("".join(f"{safe(line.strip())}\n" for line in look.lines(found)))
    return 0


def _sign(options: argparse.Namespace) -> int:
    from monitor import config
    from monitor.shadow import document, signature

    text = config.read(options.file)
    # Whether a device looks at packets is its own affair.
    config.overlaid("[capture]\npackets = true\n", "the file on the device", text, str(options.file))
    signed = signature.sign(options.key, options.version_number, text)
    _print(document.desired(text, options.version_number, signed).decode() + "\n")
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

        _print(command.template(settings, wanted, options.output))
        return 0
    order = flags.order(options)
    settings = _watched(options, _overrides(options))[1] if options.step in flags.NEEDS_WATCHES else _named(options)
    from monitor.cloud import command

    return command.run(settings, wanted, order, _print)


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


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        msg = f"expected a whole number of seconds, 1 or more, found {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _whole_number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:20]) < 1 << 53:
        msg = f"expected a whole number, 1 or more, found {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        msg = f"expected a number of seconds above 0, found {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return value


def _split(argv: list[str]) -> tuple[list[str], list[str] | None]:
    """What stands before the first --, and what stands after it (None: there is none)."""
    if "--" not in argv:
        return argv, None
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def _fail(text: str, code: int) -> int:
    if sys.stderr is not None:  # print would take stdout instead
        print(f"kinwatch: {text}", file=sys.stderr)
    return code


def _print(text: str) -> None:
    """Write to stdout, through to the end. _StdoutFailed, BrokenPipeError: it did not go out."""
    if sys.stdout is None:  # it was closed before we began
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _StdoutFailed(error.strerror or str(error)) from error


def _abandon_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's own flush at exit does not fail again."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)
