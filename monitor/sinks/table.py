"""Event lines as a table for people on a terminal; knows the keys of a line, not where it comes from.

It reads the JSON lines that a file would hold, so what is on the screen is what is in the log.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from monitor.sinks.stream import StreamSink
from monitor.sinks.text import columns, duration, fit, pad, safe, size, styled, wants_colour

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import tzinfo

    from monitor.sinks import Sink

Line = dict[str, Any]

TIME_COLUMNS: Final = 12
EVENT_COLUMNS: Final = 7
PID_COLUMNS: Final = 7
WATCH_COLUMNS: Final = 12
PROCESS_COLUMNS: Final = 20
MAX_INDENT: Final = 8
"""Deeper than this the indentation stops growing, so that the name stays readable."""
MAX_LINEAGE: Final = 6

RULES: Final = frozenset(
    {"executables", "edges", "depth", "forks_per_minute", "uids", "memfd", "deleted", "temporary", "root_image"}
)
"""Behaviors of rules on lineage, whose alarms say what was executed."""
UNCUT: Final = frozenset({"alarm", "clear", "enforced", "lost"})

EVENT_STYLES: Final = {
    "root": "root",
    "fork": "blue",
    "adopt": "blue",
    "exec": "",
    "exit": "dim",
    "close": "dim",
    "alarm": "alarm",
    "clear": "clear",
    "enforced": "alarm",
    "lost": "yellow",
}


class Terminal(Protocol):
    """What the table is written to."""

    def write(self, lines: bytes) -> int:
        """Write whole lines; the number of lost ones."""

    def width(self) -> int:
        """Columns of the terminal."""


class TableSink:
    """Renders lines for a terminal; a Sink."""

    def __init__(
        self, terminal: Terminal, *, colour: bool, watch_column: bool = False, timezone: tzinfo | None = None
    ) -> None:
        """`watch_column`: show the watch, for more than one. `timezone`: of the times, None: local."""
        self._terminal = terminal
        self._colour = colour
        self._watch_column = watch_column
        self._timezone = timezone
        self._decoder = msgspec.json.Decoder(Line)
        self._headed = False

    def __str__(self) -> str:
        """Return the name for messages."""
        return str(self._terminal)

    def write(self, lines: bytes) -> int:
        """Write the lines as rows; the number of lost ones."""
        width = self._terminal.width()
        rows = [] if self._headed else [self._heading()]
        self._headed = True
        try:
            rows += [self.row(line, width) for line in self._decoder.decode_lines(lines)]
        except (msgspec.MsgspecError, ValueError, TypeError):
            rows += [safe(line.decode("utf-8", "replace")) for line in lines.splitlines()]
        return self._terminal.write("".join(f"{row}\n" for row in rows).encode("utf-8", "replace"))

    def reopen(self) -> None:
        """Do nothing: a terminal is not rotated."""

    def close(self) -> None:
        """Do nothing: the terminal is not ours."""

    def row(self, line: Line, width: int) -> str:
        """Return one line as one row of at most `width` columns."""
        event = str(line.get("event", "?"))
        cells = [
            (pad(self._clock(str(line.get("time", ""))), TIME_COLUMNS), "dim"),
            (pad(safe(event), EVENT_COLUMNS), EVENT_STYLES.get(event, "")),
            (str(line.get("pid", "")).rjust(PID_COLUMNS), "dim" if event == "exit" else ""),
        ]
        if self._watch_column:
            cells.append((pad(fit(safe(str(line.get("watch", ""))), WATCH_COLUMNS), WATCH_COLUMNS), "dim"))
        style = event_style(line)
        cells.append((pad(fit(_process(line), PROCESS_COLUMNS), PROCESS_COLUMNS), style))
        used = sum(columns(text) + 2 for text, _ in cells)
        # What a reader must not miss is never cut; the terminal wraps it.
        words = what(line) if event in UNCUT else fit(what(line), max(width - used, 20))
        cells.append((words, style))
        return "  ".join(styled(text, name, colour=self._colour) for text, name in cells).rstrip()

    def _heading(self) -> str:
        cells = [pad("TIME", TIME_COLUMNS), pad("EVENT", EVENT_COLUMNS), "PID".rjust(PID_COLUMNS)]
        if self._watch_column:
            cells.append(pad("WATCH", WATCH_COLUMNS))
        cells += [pad("PROCESS", PROCESS_COLUMNS), "WHAT"]
        return styled("  ".join(cells), "dim", colour=self._colour)

    def _clock(self, text: str) -> str:
        moment = _moment(text)
        return safe(text)[:TIME_COLUMNS] if moment is None else f"{moment.astimezone(self._timezone):%H:%M:%S.%f}"[:-3]


def log_sink(
    target: str, form: str, environ: Mapping[str, str], *, watch_column: bool = False, stdout: StreamSink | None = None
) -> Sink:
    """Return the sink for event lines: a table where stdout is a terminal and `form` is auto, JSON Lines otherwise.

    `target`: a path or "-". `stdout`: the sink that others write to stdout through, to share its lock. ConfigInvalid:
    the path cannot be written.
    """
    stream = stdout if target == "-" and stdout is not None else StreamSink.open(target)
    if target == "-" and form == "auto" and stream.isatty():
        return TableSink(stream, colour=wants_colour(environ, terminal=True), watch_column=watch_column)
    return stream


def event_style(line: Line) -> str:
    """Style of the words of a row: calm, but for what a reader should not miss."""
    event = line.get("event")
    if event == "exit" and (line.get("exit_code") or "signal" in line):
        return "yellow"
    if event in {"connect", "dns"} and ("result" in line or line.get("rcode", "NOERROR") != "NOERROR"):
        return "yellow"
    return {
        "alarm": "alarm",
        "clear": "green",
        "enforced": "alarm",
        "lost": "yellow",
        "exit": "dim",
        "close": "dim",
    }.get(str(event), "")


def _process(line: Line) -> str:
    if "comm" in line:
        depth = int(line.get("depth", 0))
        indent = "" if depth == 0 else "  " * min(depth - 1, MAX_INDENT) + "└ "
        return indent + safe(str(line["comm"]))
    return safe(str(line.get("watch", "")))


def what(line: Line) -> str:
    """Return what happened, in words that are safe on a terminal."""
    words = _WORDS.get(str(line.get("event")), _anything)
    return words(line)


def _image(line: Line) -> str:
    argv = [str(word) for word in line.get("argv", ())]
    exe = str(line.get("exe", ""))
    marks = [name for name in ("memfd", "deleted", "temporary", "truncated") if line.get(name)]
    if "script" in line and line["script"] not in argv:
        marks.insert(0, f"script {safe(str(line['script']))}")
    if exe and argv and argv[0].rpartition("/")[2].lstrip("-") == exe.rpartition("/")[2]:
        argv[0] = exe
    elif exe:
        argv.insert(0, f"{exe}:" if argv else exe)
    text = safe(" ".join(argv[:1] + [quoted(word) for word in argv[1:]]))
    return (f"[{', '.join(marks)}] " if marks else "") + text


def quoted(word: str) -> str:
    """Return an argument as a shell would show it."""
    return word if word and not set(word) & set(" '\"\\$`|&;<>()*?") else "'" + word.replace("'", "'\\''") + "'"


def _root(line: Line) -> str:
    cause = {"running": "was running", "moved": "moved in"}.get(str(line.get("cause")), "started")
    return " ".join(filter(None, (cause, _image(line))))


def _fork(line: Line) -> str:
    return f"child of {line['parent_pid']}" if "parent_pid" in line else ""


def _adopt(line: Line) -> str:
    return " ".join(filter(None, ("was running", "(by its session)" if line.get("inferred") else "", _image(line))))


def _exit(line: Line) -> str:
    if "signal" in line:
        end = f"killed by signal {line['signal']}" + (", core dumped" if line.get("core") else "")
    else:
        end = f"exit {line['exit_code']}" if "exit_code" in line else "ended"
    return f"{end} after {duration(line['duration_ms'])}" if "duration_ms" in line else end


def _judgement(line: Line) -> str:
    value = line.get("value", "unknown")
    if line.get("behavior") == "child_processes":
        subject = f"{value} descendant{'' if value == 1 else 's'} alive"
    else:
        shown = (", ".join(map(str, value)) or "none") if isinstance(value, list) else value
        subject = f"{line.get('metric', '?')} is {shown}"
    text = f"{subject}, {_criteria(line.get('criteria'))} expected"
    if line.get("suppressed"):
        text += " (suppressed)"
    if line.get("event") == "clear":
        begun, ended = _moment(str(line.get("since", ""))), _moment(str(line.get("time", "")))
        if line.get("invalidated"):
            text += "; no longer known"
        elif begun is not None and ended is not None:
            text += f"; over after {duration((ended - begun).total_seconds() * 1000)}"
        return safe(text)
    if line.get("behavior") in RULES and (called := _image(line)):
        text += f": {called}"
    steps = [f"{step.get('comm', '?')} {step.get('pid', '?')}" for step in line.get("lineage", ())]
    if len(steps) > MAX_LINEAGE:
        steps = [steps[0], "…", *steps[2 - MAX_LINEAGE :]]
    return safe(text + (f": {' → '.join(steps)}" if steps else ""))


def _criteria(criteria: object) -> str:
    if not isinstance(criteria, dict):
        return "?"
    value = criteria.get("value")
    wanted = next(iter(value.values()), "?") if isinstance(value, dict) else "?"
    if wanted == []:
        return "none"
    wanted = ", ".join(map(str, wanted)) if isinstance(wanted, list) else wanted
    operator = {
        "less-than": "less than",
        "less-than-equals": "at most",
        "greater-than": "more than",
        "greater-than-equals": "at least",
        "in-cidr-set": "only",
        "in-set": "only",
        "in-port-set": "only",
        "not-in-cidr-set": "none of",
        "not-in-port-set": "none of",
        "not-in-set": "none of",
    }.get(str(criteria.get("comparisonOperator")), str(criteria.get("comparisonOperator", "?")))
    return f"{operator} {wanted}"


def _connection(line: Line) -> str:
    arrow = {"accept": "←", "peer": "↔"}.get(str(line.get("event")), "→")
    words = [str(line.get("protocol", "?")), str(line.get("local", "?"))]
    if "remote" in line:
        words += [arrow, str(line["remote"]), f"({line['name']})" if "name" in line else ""]
    words += ["was there" if line.get("cause") == "running" else "", str(line.get("result", ""))]
    text = " ".join(filter(None, words))
    moved = [f"{size(line[key])} {way}" for key, way in (("bytes_in", "in"), ("bytes_out", "out")) if key in line]
    return safe(", ".join([text, *moved]))


def _dns(line: Line) -> str:
    asked = f"{line.get('type') or '?'} {line.get('name') or '?'}"
    if line.get("malformed"):
        return safe(f"{asked}: malformed")
    if "rcode" not in line:
        return safe(f"{asked}?")
    answers = ", ".join(map(str, line.get("answers", ()))) or "no answer"
    return safe(f"{asked} → {answers if line['rcode'] == 'NOERROR' else line['rcode']}")


def _socket(line: Line) -> str:
    return safe(" ".join(str(line[key]) for key in ("family", "type") if key in line))


_DEEDS: Final = {
    "kill": "killed",
    "deny": "refused a child",
    "would": "would be killed",
    "spared": "spared, enforcement has stopped",
}


def _enforced(line: Line) -> str:
    action = str(line.get("action", "?"))
    reason = line.get("reason", "?")
    if action in _DEEDS:
        late = " from user space" if line.get("delegated") else ""
        image = f": {line['exe']}" if "exe" in line else ""
        return safe(f"{_DEEDS[action]}{late}, breaks {reason}{image}")
    words = [action, str(line.get("process_id", "")), f"for {reason}", str(line.get("exe", ""))]
    failed = f", failed: {line['error']}" if "error" in line else ""
    return safe(" ".join(filter(None, words)) + failed)


def _lost(line: Line) -> str:
    return safe(f"{line.get('count', '?')} details lost: {line.get('stage', '?')}")


def _anything(line: Line) -> str:
    shown = ("time", "event", "watch", "pid", "process_id", "comm", "depth")
    return safe("  ".join(f"{key}={value}" for key, value in line.items() if key not in shown))


_WORDS: Final[dict[str, Callable[[Line], str]]] = {
    "root": _root,
    "fork": _fork,
    "exec": _image,
    "adopt": _adopt,
    "exit": _exit,
    "connect": _connection,
    "accept": _connection,
    "listen": _connection,
    "peer": _connection,
    "close": _connection,
    "socket": _socket,
    "dns": _dns,
    "alarm": _judgement,
    "clear": _judgement,
    "enforced": _enforced,
    "lost": _lost,
}


def _moment(text: str) -> datetime | None:
    """Time of a line; nanoseconds are more than datetime holds."""
    try:
        return datetime.fromisoformat(text[:26]).replace(tzinfo=UTC)
    except ValueError:
        return None
