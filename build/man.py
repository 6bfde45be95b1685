#!/usr/bin/env python3
"""Print kinwatch's manual page, in the language of man(7), from what the program's own parser says.

Owns the form of the page. Refuses to know commands and flags: they are the parser's.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from monitor import __version__, verbs
from recipe import source_date_s

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = (
    ("/etc/kinwatch/config.toml", "The configuration. Every key stands in it with its default and its meaning."),
    ("/var/lib/kinwatch/", "What waits for the broker, report ids and windows."),
    ("/var/cache/kinwatch/", "What capture bcc learned from the kernel's headers."),
    ("/run/kinwatch/control.sock", "Where status and tree ask the daemon."),
    ("/sys/fs/bpf/kinwatch/", "Programs and maps that outlive the daemon, until a clean stop or kinwatch unload."),
)
SIGNALS = (
    ("SIGTERM, SIGINT", "The daemon drains, writes the report of the unfinished window and unloads its programs."),
    ("SIGUSR2", "The same, but its programs stay in the kernel for the daemon that comes next: a restart."),
    ("SIGHUP", "It reads the configuration again and reopens its files. No event is lost."),
)


def page() -> str:
    """The whole page."""
    date = time.strftime("%Y-%m-%d", time.gmtime(source_date_s()))
    return "\n".join([f'.TH KINWATCH 8 "{date}" "kinwatch {__version__}"', *_lines(verbs.parser())]) + "\n"


def _lines(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield from (".SH NAME", _text(f"kinwatch - {_description(parser)}"))
    yield from (".SH SYNOPSIS", r"\fBkinwatch\fR \fICOMMAND\fR [\fIFLAG\fR...]")
    yield ".SH COMMANDS"
    verbs, shared = _verbs(parser)
    for name, verb in verbs.items():
        yield from (f".SS kinwatch {_text(name)}", _text(_sentence(_description(verb))))
        for action in verb._actions:  # noqa: SLF001 - argparse has no other way to its flags
            if "--help" not in action.option_strings:
                yield from _flag(verb, action)
    if shared:
        yield from (".SH EXIT STATUS", ".nf", *(_text(line) for line in shared), ".fi")
    for title, rows in (("SIGNALS", SIGNALS), ("FILES", FILES)):
        yield f".SH {title}"
        for name, meaning in rows:
            yield from (".TP", rf"\fB{_text(name)}\fR", _text(meaning))


def _verbs(parser: argparse.ArgumentParser) -> tuple[dict[str, argparse.ArgumentParser], list[str]]:
    """Commands by name, those of a command after it, and the lines about exit codes, which all have in common."""
    found: dict[str, argparse.ArgumentParser] = {}
    shared: list[str] = []
    for action in parser._actions:  # noqa: SLF001 - as above
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for name, verb in action.choices.items():
                found[name] = verb
                below, _ = _verbs(verb)
                found |= {f"{name} {other}": parser for other, parser in below.items()}
                _, _, codes = (verb.epilog or "").partition("exit codes:\n")
                shared = shared or [line.strip() for line in codes.splitlines() if line.strip()]
    return found, shared


def _flag(verb: argparse.ArgumentParser, action: argparse.Action) -> Iterator[str]:
    if isinstance(action, argparse._SubParsersAction) or action.help == argparse.SUPPRESS:  # noqa: SLF001
        return
    formatter = verb._get_formatter()  # noqa: SLF001
    name = formatter._format_action_invocation(action)  # noqa: SLF001 - as its help shows it
    meaning = formatter._expand_help(action) if action.help else ""  # noqa: SLF001
    yield from (".TP", rf"\fB{_text(name)}\fR", _text(_sentence(meaning)))


def _description(parser: argparse.ArgumentParser) -> str:
    return " ".join((parser.description or "").split())


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?")) else ".") if text else ""


def _text(text: str) -> str:
    """Text that roff shows as it is."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return r"\&" + escaped if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    sys.stdout.write(page())
