"""Every verb's flags, and their help. Owns how they are called; refuses to know what a verb does.

The help of the verbs with many flags lies beside what they do, and is imported when a parser is made.
"""

# ruff: noqa: PLC0415 - as the docstring says

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from monitor import __version__, sample
from monitor.stdout import put

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

USAGE: Final = 2
"""Exit code: wrong usage."""

EXIT_CODES: Final = """\
exit codes:
  0  ok
  1  an alarm was raised (report, replay); nothing, too little or something new was seen (learn);
     something differs (cloud diff), or it was not confirmed (cloud apply, destroy, mitigate)
  2  wrong usage or configuration; nothing was started
  3  cannot capture, or no daemon answers
  4  cannot publish or write the report (report, run --once, agent), no broker is there (defender),
     no certificate came (provision), or a step to the broker failed (doctor); AWS refused, or was not reached
     (cloud); stdout could not be written
  70 a bug in kinwatch; the traceback is on stderr
"""

Verbs = Any  # argparse names the type of add_subparsers() only privately


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
            put(message)
        else:
            with contextlib.suppress(OSError):  # nobody can be told; the exit code still says it
                super()._print_message(message, file)


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


def _add(verbs: Verbs, name: str, text: str, more: str = "") -> _Parser:
    added: _Parser = verbs.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.{more}",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
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
    verb = _add(verbs, "report", "watch for a while and print one Device Defender report")
    _add_watches(verb)
    verb.add_argument("--format", choices=("json", "cbor"), default="json", help="of the report (default: json)")
    verb.add_argument("--names", choices=("long", "short"), default="long", help="of its keys (default: long)")
    verb.add_argument(
        "--duration-s", type=_seconds, default=10.0, metavar="N", help="how long to watch, seconds (default: 10)"
    )


def _add_asking(verbs: Verbs) -> None:
    for name, text in (
        ("status", "show counters, losses and the capture of the running daemon"),
        ("tree", "show roots and live descendants of the running daemon"),
    ):
        verb = _add(verbs, name, text)
        _add_json(verb)
        verb.add_argument("--socket", type=Path, metavar="PATH", help="of the daemon (default: as configured)")


def _add_replay(verbs: Verbs) -> None:
    verb = _add(verbs, "replay", "turn a record file into event lines, and alarms with a configuration")
    _add_config(verb, "configuration with the expectations; without it: no alarms")
    verb.add_argument("--format", choices=("auto", "json"), default="auto", help="as for run")
    verb.add_argument("file", type=Path, metavar="FILE", help="made by 'kinwatch run --record'")


def _add_learn(verbs: Verbs) -> None:
    from monitor.learning import flags

    verb = _add(verbs, "learn", flags.SUMMARY, flags.MORE)
    _add_watches(verb, expecting=False)
    flags.add(verb)


def _add_machine(verbs: Verbs) -> None:
    verb = _add(verbs, "doctor", "say what this machine can do, what it cannot, why, and what to do about it")
    _add_config(verb, "configuration (default: /etc/kinwatch/config.toml, where it exists)")
    _add_json(verb)
    way = verb.add_mutually_exclusive_group()
    way.add_argument("--no-connect", action="store_true", help="do not try the connection that [defender] describes")
    way.add_argument(
        "--send-report", action="store_true", help="try it with a report, which takes the slot of the next real one"
    )
    _add(verbs, "unload", "remove every pinned program and map that a daemon left in the kernel")


def _add_provision(verbs: Verbs) -> None:
    verb = _add(
        verbs,
        "provision",
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

    flags.add(_add(verbs, "defender", flags.SUMMARY, flags.MORE))


def _add_agent(verbs: Verbs) -> None:
    verb = _add(
        verbs,
        "agent",
        "publish reports, called as AWS's sample agent is",
        "\nFlags that begin with @ name a file of flags, one argument or one flag with its values a line.",
    )
    verb.allow_abbrev = True  # as there
    verb.fromfile_prefix_chars = "@"
    sample.add_flags(verb)


def _add_cloud(verbs: Verbs) -> None:
    from monitor.cloud import flags

    verb = _add(verbs, "cloud", flags.SUMMARY, flags.MORE)
    verb.usage = "kinwatch cloud STEP [options]"
    flags.add(verb, _add_watches, lambda step: _add_config(step, "configuration (default: /etc/kinwatch/config.toml)"))


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
