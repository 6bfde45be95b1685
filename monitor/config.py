"""What the user asked for, as checked, frozen data: the TOML file and the flags laid over it.

Owns the rules that a type cannot say and the words in which a wrong value is refused. Refuses to know what is done with
the values: no kernel, no socket, no clock. Of the file system it looks only at what a key names.
"""

from __future__ import annotations

import difflib
import os
import pwd
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import msgspec

from monitor.errors import ConfigInvalid
from monitor.expect import (
    Expect,
    ImpossibleValue,
    destination_names,
    destinations,
    edges,
    executables,
    missing,
    ports,
    uids,
)
from monitor.publishing import provisioning_rules, rules
from monitor.schema import (
    TABLES,
    Capture,
    CaptureKind,
    Config,
    Daemon,
    Defender,
    Detect,
    Enforcement,
    File,
    Log,
    Names,
    Provisioning,
    Remote,
    Report,
    Spool,
    WatchTable,
    keys,
    reference,
)
from monitor.watch import (
    COMMAND_PID,
    KINDS,
    MAX_PID,
    Watch,
    WatchKind,
    canonical,
    derived_name,
    is_name,
    legal_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from monitor.schema import ExpectTable

__all__ = [
    "COMMAND_LINE",
    "COMMAND_PID",
    "DEFAULT_PATH",
    "MAX_WATCHES",
    "Capture",
    "CaptureKind",
    "Config",
    "Daemon",
    "Defender",
    "Detect",
    "Enforcement",
    "Expect",
    "Log",
    "Names",
    "Provisioning",
    "Remote",
    "Report",
    "Spool",
    "Watch",
    "WatchKind",
    "expectation_notes",
    "keys",
    "load",
    "notes",
    "overlaid",
    "parse",
    "parse_expect",
    "read",
    "reference",
    "require_watches",
    "with_command_line",
]

DEFAULT_PATH = Path("/etc/kinwatch/config.toml")
COMMAND_LINE = "command line"
MAX_WATCHES = 24  # KW_WATCHES in ebpf/event.h
MAX_FILES = 2048  # half of KW_EXPECTED_ROWS in ebpf/table.h, so that each finds room near where it should lie
MAX_SOCKET_BYTES = 107  # sun_path of unix(7), less the terminating zero
T = TypeVar("T", bound=msgspec.Struct)


def _refuse(origin: str, key: str, what: str, remedy: str) -> NoReturn:
    where = f"{origin}: {key}" if key else origin
    message = f"{where}: {what}; {remedy}"
    raise ConfigInvalid(message)


def load(path: Path) -> Config:
    """Read and check a configuration file.

    Raises ConfigInvalid: the file, the key, what was expected, what was found, what to do.
    """
    return parse(read(path), str(path))


def read(path: Path) -> str:
    """The text of a configuration file. Raises ConfigInvalid."""
    try:
        return path.read_bytes().decode()
    except OSError as error:
        _refuse(str(path), "", f"cannot be read: {error.strerror}", "name a readable TOML file with -c")
    except UnicodeDecodeError as error:
        _refuse(str(path), "", f"is not UTF-8 at byte {error.start}", "TOML files are UTF-8")


def parse(text: str, origin: str) -> Config:
    """Check a configuration's text; `origin` names it in messages. Raises ConfigInvalid."""
    return _checked(_toml(text, origin), origin)


FROM_AFAR: Final[dict[str, frozenset[str]]] = {
    "watch": frozenset(WatchTable.__struct_fields__),
    "report": frozenset({"interval_s", "names", "cpu_usage"}),
    "detect": frozenset({"security_profile"}),
}
"""Tables and keys that may be set from afar: what is watched and told; never who we are, where files are, what is run.
"""


def overlaid(text: str, origin: str, over: str, over_origin: str) -> Config:
    """Check a configuration over which another text is laid: its watches replace, its keys go before.

    Raises ConfigInvalid, also where the text laid over it names what may not be set from afar (FROM_AFAR).
    """
    base, top = _toml(text, origin), _toml(over, over_origin)
    for table, found in top.items():
        if table not in FROM_AFAR:
            remedy = f"tables that are: {', '.join(FROM_AFAR)}; write it into {origin}"
            _refuse(over_origin, table, "is not set from afar", remedy)
        for key in found if isinstance(found, dict) else ():
            if key not in FROM_AFAR[table]:
                remedy = f"keys of {table} that are: {', '.join(sorted(FROM_AFAR[table]))}"
                _refuse(over_origin, f"{table}.{key}", "is not set from afar", remedy)
    _converted(top, over_origin)
    merged = {name: {**base.get(name, {}), **one} if isinstance(one, dict) else one for name, one in top.items()}
    return _checked(base | merged, f"{origin} with {over_origin}")


def _toml(text: str, origin: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        _refuse(origin, "", f"is not TOML: {error}", "see https://toml.io")


def _converted(raw: dict[str, Any], origin: str) -> File:
    try:
        return msgspec.convert(raw, File)
    except msgspec.ValidationError as error:
        _explain(origin, raw, str(error))


def _checked(raw: dict[str, Any], origin: str) -> Config:
    file = _converted(raw, origin)
    _check_tables(origin, file)
    watches = _watches(origin, [(f"watch[{i}]", table) for i, table in enumerate(file.watch)])
    _require_packets(origin, watches, file.capture)
    return Config(
        watches=watches,
        capture=file.capture,
        log=msgspec.structs.replace(file.log, file="") if file.log.file == "-" else file.log,
        report=file.report,
        daemon=file.daemon,
        defender=file.defender,
        provisioning=file.provisioning,
        remote=file.remote,
        detect=file.detect,
        spool=file.spool,
        enforcement=file.enforcement,
        origin=origin,
    )


def with_command_line(  # noqa: PLR0913 - one parameter a flag
    config: Config,
    *,
    names: Sequence[str] = (),
    exes: Sequence[str] = (),
    pids: Sequence[int] = (),
    command: Sequence[str] = (),
    expects: Sequence[str] = (),
    capture: CaptureKind | None = None,
    log: str | None = None,
    report_to: str | None = None,
    interval_s: int | None = None,
) -> Config:
    """Lay flags over a configuration; None and () leave it as it is.

    Watches of the command line replace those of the file; `command` becomes a watch of COMMAND_PID. `expects` (as in
    parse_expect) hold for every watch of the result, each in place of the file's of its kind. Paths are taken from the
    working directory. Raises ConfigInvalid.
    """
    flags = [("--watch", WatchTable(process=name)) for name in names]
    flags += [("--exe", WatchTable(exe=os.path.abspath(path))) for path in exes]  # noqa: PTH100 - resolve() follows links
    flags += [("--pid", WatchTable(pid=pid)) for pid in pids]
    watches = _watches(COMMAND_LINE, flags, command) if flags or command else config.watches
    for text in expects:
        given = {key: value for key, value in msgspec.structs.asdict(parse_expect(text)).items() if value is not None}
        watches = tuple(
            msgspec.structs.replace(watch, expect=msgspec.structs.replace(watch.expect, **given)) for watch in watches
        )
    _require_packets(COMMAND_LINE, watches, config.capture)
    changed = msgspec.structs.replace(config, watches=watches)
    if capture is not None:
        changed = msgspec.structs.replace(changed, capture=_laid_over(config.capture, "--capture", kind=capture))
    if log is not None:
        changed = msgspec.structs.replace(changed, log=Log(file="" if log == "-" else log))
    report = config.report
    if report_to is not None:
        report = _laid_over(report, "--report-to", file=report_to)
    if interval_s is not None:
        report = _laid_over(report, "--interval-s", interval_s=interval_s)
    return msgspec.structs.replace(changed, report=report)


def parse_expect(text: str) -> Expect:
    """One expectation as --expect takes it; the others of the result are None. Raises ConfigInvalid.

    `child_processes=N`, `depth=N`, `forks_per_minute=N`; `memfd=false`, `deleted=false`, `temporary=false`; or a list,
    its members between commas: `executables=PATH,...`, `edges=PATH -> PATH,...`, `uids=USER,...`,
    `destinations=NETWORK,...` (or `NETWORK:PORT`), `destination_names=NAME,...`, `listening_ports=PORT,...`. Nothing
    after = means that none is expected.
    """
    key, separator, value = text.partition("=")
    members = value.split(",") if value else []
    kinds = ", ".join(Expect.__struct_fields__)
    if not separator or key not in Expect.__struct_fields__:
        _refuse(COMMAND_LINE, "--expect", f"expected KIND=VALUE, found {text!r}", f"the kinds are {kinds}")
    found: Any
    try:
        if key in {"child_processes", "depth", "forks_per_minute"}:
            found = _number(value, MAX_PID, f"{key}=N, N being")
        elif key in {"memfd", "deleted", "temporary"}:
            found = _flag(key, value)
        elif key == "listening_ports":
            found = ports(_port(member) for member in members)
        else:
            found = _FORMS[key](members)
    except ImpossibleValue as wrong:
        _refuse(COMMAND_LINE, "--expect", wrong.what, wrong.remedy)
    return Expect(**{key: found})


_FORMS: Final[dict[str, Callable[[Any], Any]]] = {
    "executables": executables,
    "edges": edges,
    "uids": uids,
    "destinations": destinations,
    "destination_names": destination_names,
    "listening_ports": ports,
}
"""How the list of an expectation comes into its one form; others are as they are written."""


def _flag(key: str, text: str) -> bool:
    if text not in {"true", "false"}:
        raise ImpossibleValue(f"expected {key}=false or {key}=true, found {text!r}", "false: there must be none")
    return text == "true"


def _number(text: str, most: int, what: str, least: int = 0) -> int:
    if not re.fullmatch(r"[0-9]{1,7}", text) or not least <= int(text) <= most:
        raise ImpossibleValue(f"expected {what} {least} to {most}, found {text!r}", "write a whole number")
    return int(text)


def _port(text: str) -> int:
    return _number(text, 65535, "ports of", least=1)


def require_watches(config: Config) -> None:
    """Raise ConfigInvalid when there is nothing to watch."""
    if not config.watches:
        _refuse(
            config.origin,
            "watch",
            "nothing to watch",
            "use --watch NAME, --exe PATH, --pid PID or [[watch]]",
        )


def _require_packets(origin: str, watches: Sequence[Watch], capture: Capture) -> None:
    """Names are learnt from the DNS answers in packets."""
    for watch in watches:
        if watch.expect.destination_names is not None and not capture.packets:
            what = f"watch {watch.name} expects destination_names, and capture.packets is false: no name is ever known"
            _refuse(origin, "capture.packets", what, "write packets = true below [capture] in a configuration")


def notes(config: Config) -> tuple[str, ...]:
    """Say what is allowed and yet worth a line to the user, a sentence each. Looks at the file system and /proc."""
    said = []
    for watch in config.watches:
        if watch.kind == "exe" and not os.path.lexists(watch.value):
            said.append(f"watch {watch.name}: {watch.value} does not exist yet; it is watched as soon as it does")
        if watch.kind == "pid" and watch.value != COMMAND_PID and not Path("/proc", watch.value).exists():
            said.append(f"watch {watch.name}: there is no process {watch.value}")
    action = config.detect.action
    if action.command and not os.access(action.command[0], os.X_OK):
        said.append(f"detect.action.command: {action.command[0]} is no program that can be run yet")
    if action.freeze == "cgroup":
        said += [
            f"detect.action.freeze: watch {watch.name} has no cgroup of its own, so nothing of it is frozen"
            for watch in config.watches
            if watch.kind not in {"unit", "cgroup"}
        ]
    return (*said, *expectation_notes(config))


def expectation_notes(config: Config) -> tuple[str, ...]:
    """Say which expected executables are not there, and what enforcement does not reach: also at a start and reload."""
    said = [f"what was set from afar is left out: {config.left_out}"] if config.left_out else []
    for watch in config.watches:
        said += [
            f"watch {watch.name}: the expected executable {path} does not exist; it is not expected before a reload"
            for path in missing(watch.expect)
        ]
        if watch.enforce != "off":
            said += _unenforced(watch)
    return tuple(said)


def _unenforced(watch: Watch) -> list[str]:
    """What enforcement of this watch does not reach."""
    told = {name for name in Expect.__struct_fields__ if not _free(getattr(watch.expect, name))}
    alarms = [name for name in ("edges", "destinations", "destination_names", "listening_ports") if name in told]
    said = []
    if alarms:
        said.append(f"watch {watch.name}: {', '.join(alarms)} raise alarms only, enforce does nothing about them")
    if not told - set(alarms):
        said.append(f"watch {watch.name}: enforce has nothing to act on: no expectation of processes is set")
    return said


def _free(value: object) -> bool:
    return value is None or value is True


def _laid_over(table: T, flag: str, **changes: object) -> T:
    try:
        return msgspec.convert({**msgspec.structs.asdict(table), **changes}, type(table))
    except msgspec.ValidationError as error:
        _refuse(COMMAND_LINE, flag, _in_toml_words(str(error).partition(" - at ")[0]), "see kinwatch run --help")


def _watches(origin: str, tables: Sequence[tuple[str, WatchTable]], command: Sequence[str] = ()) -> tuple[Watch, ...]:
    watches: list[Watch] = []
    for key, table in tables:
        watches.append(_watch(origin, key, table))
    if command:
        name = legal_name(os.path.basename(command[0]))  # noqa: PTH119 - Path("a/").name is not what execvp takes
        if not name:
            _refuse(COMMAND_LINE, "--", f"expected a command, found {command[0]!r}", "name a program after --")
        watches.append(Watch(name=name, kind="pid", value=COMMAND_PID))
    if len(watches) > MAX_WATCHES:
        _refuse(origin, "watch", f"expected at most {MAX_WATCHES} watches, found {len(watches)}", "join some of them")
    files = len({path for watch in watches for path in watch.expect.executables or ()})
    if files > MAX_FILES:
        what = f"expected at most {MAX_FILES} executables in all watches, found {files}"
        _refuse(origin, "watch", what, "leave some of them out, or watch less")
    seen: dict[str, Watch] = {}
    for watch in watches:
        other = seen.setdefault(watch.name, watch)
        if other is not watch:
            _refuse(
                origin,
                "watch",
                f"two watches are called {watch.name} ({other.kind} {other.value}, {watch.kind} {watch.value})",
                "give one of them another name in a configuration file",
            )
    return tuple(watches)


def _watch(origin: str, key: str, table: WatchTable) -> Watch:
    given = [kind for kind in KINDS if getattr(table, kind) is not None]
    if len(given) != 1:
        found = " and ".join(given) if given else "none"
        _refuse(origin, key, f"expected exactly one of {', '.join(KINDS)}, found {found}", "one watch names one thing")
    kind = given[0]
    in_file = origin != COMMAND_LINE
    value_key = f"{key}.{kind}" if in_file else key
    try:
        value = canonical(kind, getattr(table, kind))
        name = table.name if table.name is not None else derived_name(kind, value)
    except ImpossibleValue as wrong:
        _refuse(origin, value_key, wrong.what, wrong.remedy)
    if not is_name(name):
        _refuse(
            origin,
            f"{key}.name" if in_file else key,
            f"expected a name of [a-zA-Z0-9_-], 1 to 64 characters, found {name!r}",
            "the name becomes part of metric names",
        )
    expect = _expect(origin, f"{key}.expect", table.expect)
    return Watch(name=name, kind=kind, value=value, expect=expect, enforce=table.enforce)


def _expect(origin: str, key: str, table: ExpectTable) -> Expect:
    """What is written, each value in its one form."""
    values: dict[str, Any] = {}
    for field in table.__struct_fields__:
        written = getattr(table, field)
        form = _FORMS.get(field)
        try:
            values[field] = written if written is None or form is None else form(written)
        except ImpossibleValue as wrong:
            _refuse(origin, f"{key}.{field}", wrong.what, wrong.remedy)
    return Expect(**values)


def _explain(origin: str, raw: object, message: str) -> NoReturn:
    """Say in our words what msgspec found: it knows the path and the rule, the schema knows the meaning."""
    what, _, path = message.partition(" - at `$")
    key = path.rstrip("`").lstrip(".")
    table = re.sub(r"\[\d+\]", "", key)
    meanings = keys()
    unknown = re.match(r"Object contains unknown field `(.*)`", what, re.DOTALL)
    if unknown:
        dotted = [*meanings, *TABLES] if not table else meanings
        known = [name.rpartition(".")[2] for name in dotted if name.rpartition(".")[0] == table]
        close = difflib.get_close_matches(unknown[1], known, n=1)
        remedy = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
        _refuse(origin, f"{key}.{unknown[1]}".lstrip("."), "unknown key", remedy)
    missing = re.match(r"Object missing required field `(.*)`", what)
    if missing:
        _refuse(origin, f"{key}.{missing[1]}", "expected a value, found none", meanings[f"{table}.{missing[1]}"])
    found = repr(_value_at(raw, key))
    meaning = meanings.get(table, "see the configuration reference")
    if what.startswith("Invalid enum value") or "matching regex" in what:
        _refuse(origin, key, f"expected {meaning}, found {found}", "choose one that fits")
    _refuse(origin, key, f"{_in_toml_words(what)}, found {found}", meaning)


def _in_toml_words(what: str) -> str:
    rule = what.partition(", got ")[0].replace("`", "").replace(" | null", "")
    rule = rule.replace(" int", " an integer").replace(" str", " a string").replace(" object", " a table")
    rule = rule.replace(" bool", " a boolean")
    return rule.replace(" array", " an array").replace("Expected", "expected")


def _value_at(raw: object, key: str) -> object:
    value: Any = raw
    for part in re.findall(r"[^.\[\]]+", key):
        value = value[int(part) if isinstance(value, list) else part]
    return value


def _check_tables(origin: str, file: File) -> None:
    """Rules that a type cannot say."""
    _check_defender(origin, file)
    ring = file.capture.ring_bytes
    if ring & (ring - 1):
        nearest = 1 << (ring.bit_length() - 1)
        _refuse(origin, "capture.ring_bytes", f"expected a power of two, found {ring}", f"{nearest} is one")
    paths = {
        "capture.btf": file.capture.btf,
        "log.file": file.log.file,
        "report.file": file.report.file,
        "daemon.state_dir": file.daemon.state_dir or "nothing",
        "daemon.socket": file.daemon.socket or "nothing",
        "detect.security_profile": file.detect.security_profile,
        "detect.action.command": next(iter(file.detect.action.command), ""),
    }
    for key, path in paths.items():
        stdout = key.endswith(".file") and path == "-"
        if path and not stdout and (not path.startswith("/") or "\0" in path):
            _refuse(origin, key, f"expected an absolute path, found {path!r}", "a daemon has no directory of its own")
    if file.capture.btf and not os.access(file.capture.btf, os.R_OK):
        _refuse(origin, "capture.btf", f"{file.capture.btf} cannot be read", "name a BTF file, or leave it empty")
    if len(os.fsencode(file.daemon.socket)) > MAX_SOCKET_BYTES:
        _refuse(
            origin, "daemon.socket", f"expected at most {MAX_SOCKET_BYTES} bytes", "unix(7) has no longer addresses"
        )
    if file.daemon.user and not _is_user(file.daemon.user):
        _refuse(origin, "daemon.user", f"there is no user {file.daemon.user!r}", "create it, or leave it empty")
    _check_detect(origin, file)


def _check_defender(origin: str, file: File) -> None:
    if file.remote is not None and file.defender is None:
        _refuse(origin, "remote", "there is no [defender]", "endpoint and way to the broker stand there")
    if file.defender is not None and not file.defender.thing and file.provisioning is None:
        _refuse(origin, "defender.thing", "expected a value, found none", keys()["defender.thing"])
    try:
        if file.provisioning is not None:
            provisioning_rules(file.provisioning, file.defender)
        if file.defender is not None:
            rules(file.defender)
    except ConfigInvalid as wrong:
        raise ConfigInvalid(f"{origin}: {wrong}") from None


def _check_detect(origin: str, file: File) -> None:
    profile, other = file.detect.security_profile, file.defender.security_profile if file.defender else ""
    if profile and other and profile != other:
        what = f"{profile!r} here and {other!r} in defender.security_profile"
        _refuse(origin, "detect.security_profile", what, "one profile is judged: keep one of the two keys")
    action = file.detect.action
    for word in action.command:
        if not word.isprintable():
            _refuse(origin, "detect.action.command", f"expected printable words, found {word!r}", "no shell reads them")
    if action.command and not action.command[0]:
        _refuse(origin, "detect.action.command", "expected a program, found ''", "name it by its absolute path")
    if action.command and not _is_user(action.user):
        what = f"there is no user {action.user!r}"
        _refuse(origin, "detect.action.user", what, "create it, or name one that there is")


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except (KeyError, ValueError):
        return False
    return True
