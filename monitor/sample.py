"""The command line of AWS's sample agent (AWSIoTDeviceDefenderAgentSDK 2.0.0), understood as a run of ours.

Owns its flags, their meaning here and the words in which a wrong one is refused. Refuses to know how a run is done.
"""

# ruff: noqa: PLC0415 - the flags are known to every call of the program, the rest only to this verb's

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any, Final, NoReturn

from monitor.errors import ConfigInvalid
from monitor.publishing import SERVICE_SPACING_S

if TYPE_CHECKING:
    import argparse

    from monitor.config import Config
    from monitor.options import RunOptions
    from monitor.schema import Defender

DRY_THING: Final = "dry-run"
"""Stands for the thing where nothing is sent."""
WATCH_OF_THE_BLOG: Final = "myapp"
LOG_LEVELS: Final = ("NoLogs", "Fatal", "Error", "Warn", "Info", "Debug", "Trace")
NOWHERE: Final = "/dev/null"

_WEBSOCKET: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_FLAGS: Final = {
    "thing": "-t/--thing_name",
    "client_id": "-id/--client_id",
    "endpoint": "-e/--endpoint",
    "port": "--port",
    "root_ca": "-r/--rootCA",
    "certificate": "-c/--cert",
    "private_key": "-k/--key",
    "auth.region": "-se/--signing-region",
    "proxy.host": "-ph/--proxy-host",
    "proxy.port": "-pp/--proxy-port",
}
"""The flag behind each key of [defender]."""


def add_flags(verb: argparse.ArgumentParser) -> None:
    """Add the sample agent's flags under the names it gave them, then ours."""
    verb.add_argument("-e", "--endpoint", metavar="HOST", help="AWS IoT data endpoint, without a port")
    verb.add_argument("-r", "--rootCA", dest="root_ca", default="", metavar="FILE", help="CA certificates, PEM")
    verb.add_argument("-c", "--cert", dest="certificate", default="", metavar="FILE", help="device certificate, PEM")
    verb.add_argument("-k", "--key", dest="private_key", default="", metavar="FILE", help="its private key, PEM")
    verb.add_argument(
        "-id", "--client_id", metavar="ID", help="MQTT client id, and the thing's name unless -t is given"
    )
    verb.add_argument("-t", "--thing_name", metavar="THING", help="the thing that reports are about")
    verb.add_argument(
        "-w",
        "--use-websocket",
        nargs="?",
        const="true",
        default="false",
        metavar="True|False",
        help="WebSocket and AWS credentials instead of a certificate",
    )
    verb.add_argument("-se", "--signing-region", default="", metavar="REGION", help="for -w (default: the endpoint's)")
    verb.add_argument("-ph", "--proxy-host", default="", metavar="HOST", help="an HTTP proxy")
    verb.add_argument("-pp", "--proxy-port", default="8080", metavar="PORT", help="its port (default: 8080)")
    verb.add_argument("-d", "--dryrun", action="store_true", help="print reports as JSON, connect to nobody")
    verb.add_argument("-i", "--interval", default="300", metavar="N", help="seconds between reports (default: 300)")
    verb.add_argument("-s", "--short_tags", action="store_true", help="short keys in reports")
    verb.add_argument("-f", "--format", choices=("cbor", "json"), default="json", help="of reports (default: json)")
    verb.add_argument(
        "-cm",
        "--include-custom-metrics",
        "--custom-metrics",
        dest="custom_metrics",
        action="store_true",
        help="also report cpu_usage, and watch myapp when nothing else is named",
    )
    verb.add_argument("--verbosity", choices=LOG_LEVELS, default=LOG_LEVELS[0], help="of the AWS runtime, on stderr")
    group = verb.add_argument_group("beyond the sample agent")
    group.add_argument("--port", default="443", help="of the endpoint (default: 443)")
    group.add_argument("--watch", action="append", default=[], metavar="NAME", help="processes called NAME; repeatable")
    group.add_argument("--expect", action="append", default=[], metavar="KIND=VALUE", help="what is normal, as for run")
    group.add_argument("--log", metavar="FILE", help="where event lines go (default: nowhere)")
    group.add_argument("--state-dir", metavar="PATH", help="what a restart needs (default: one for each thing)")


def words(line: str) -> list[str]:
    """Split a line of an @file: one argument, as argparse has it, or a flag and its values."""
    text = line.strip()
    first = text.partition(" ")[0]
    if not text.startswith("-") or first == text or "=" in first:
        return [text] if text else []
    try:
        return shlex.split(text)
    except ValueError:  # an odd quote is a part of the value
        return text.split(maxsplit=1)


def requested(given: argparse.Namespace) -> tuple[Config, RunOptions, list[str]]:
    """Say what a run has to be; the last are notes for the user. Raises ConfigInvalid, in the words of the flags."""
    import msgspec

    from monitor.config import Log, Report
    from monitor.options import RunOptions

    for name, value in vars(given).items():
        if isinstance(value, str) and "\0" in value:
            _refuse(
                _FLAGS.get(name, f"--{name.replace('_', '-')}"), "expected text, found a zero byte", "look at the @file"
            )
    interval_s = _whole("-i/--interval", given.interval, "seconds")
    report = _checked(
        "-i/--interval",
        Report,
        {
            "interval_s": interval_s,
            "names": "short" if given.short_tags else "long",
            "cpu_usage": given.custom_metrics,
        },
    )
    defender = _defender(given, interval_s)
    base, notes = _watches(given)
    if interval_s < SERVICE_SPACING_S:
        notes.append(f"-i {interval_s}: the service promises to take a report every {SERVICE_SPACING_S} s, no more")
    state_dir = _path(given.state_dir) or f"{base.daemon.state_dir}/agent/{defender.thing}"
    config = msgspec.structs.replace(
        base,
        log=Log(),
        report=report,
        daemon=msgspec.structs.replace(base.daemon, state_dir=state_dir),
        defender=defender,
    )
    options = RunOptions(
        log=_path(given.log) or NOWHERE,
        format="json",
        attended=True,
        dry=given.dryrun,
    )
    return config, options, notes


def in_flags(message: str) -> str:
    """Say a refusal of the configuration in the words of the flags."""
    key = re.match(r"(?:command line: )?(?:defender\.([a-z_.]+)|(daemon\.state_dir))(?=[: ])", message)
    if key is None:
        return message
    return (_FLAGS.get(key[1], key[0]) if key[1] else "--state-dir") + message[key.end() :]


def _defender(given: argparse.Namespace, interval_s: int) -> Defender:
    import msgspec

    from monitor.schema import Defender

    websocket = _WEBSOCKET.get(given.use_websocket.lower())
    if websocket is None:
        _refuse(
            "-w/--use-websocket", f"expected True or False, found {given.use_websocket!r}", "or say nothing after -w"
        )
    if not given.dryrun:
        _complete(given, websocket=websocket)
    endpoint = given.endpoint or "localhost"
    if re.search(r"[:/\s]", endpoint):
        _refuse(_FLAGS["endpoint"], f"expected a host name alone, found {endpoint!r}", "name a port with --port")
    values = {
        "thing": given.thing_name or given.client_id or DRY_THING,
        "client_id": given.client_id or "",
        "endpoint": endpoint,
        "port": _whole("--port", given.port, "a port"),
        "root_ca": _path(given.root_ca),
        "certificate": _path(given.certificate),
        "private_key": _path(given.private_key),
        "format": given.format,
        "min_spacing_s": min(SERVICE_SPACING_S, interval_s),
        "auth": {"method": "websocket", "region": given.signing_region} if websocket else {},
        "proxy": {"host": given.proxy_host, "port": _whole("-pp/--proxy-port", given.proxy_port, "a port")},
    }
    made: Defender = _checked("-id/--client_id" if given.thing_name is None else "", Defender, values)
    # a report that nobody answers must not take the place of the next
    return msgspec.structs.replace(made, answer_s=min(made.answer_s, interval_s))


def _complete(given: argparse.Namespace, *, websocket: bool) -> None:
    """Everything that a connection needs, named at once."""
    needed = {"endpoint": given.endpoint, "client_id": given.client_id}
    if not websocket:
        needed |= {"certificate": given.certificate, "private_key": given.private_key}
    missing = [_FLAGS[name] for name, value in needed.items() if not value]
    if missing:
        _refuse("", f"expected {', '.join(missing)}", "without a connection use -d")


def _watches(given: argparse.Namespace) -> tuple[Config, list[str]]:
    """Who is watched: the flags' names, else the file's, else with -cm the blog's, else nobody.

    Of the file watches and [capture] are taken: everything else of a run like this the flags say.
    """
    import msgspec

    from monitor import config

    notes: list[str] = []
    base = config.Config()
    names = tuple(given.watch)
    if not names and config.DEFAULT_PATH.exists():
        file = config.load(config.DEFAULT_PATH)
        base = msgspec.structs.replace(base, watches=file.watches, capture=file.capture, origin=file.origin)
        if base.watches:
            notes.append(f"watching {', '.join(watch.name for watch in base.watches)}, as {config.DEFAULT_PATH} says")
    if not names and not base.watches and given.custom_metrics:
        names = (WATCH_OF_THE_BLOG,)
        notes.append(f"-cm: watching {WATCH_OF_THE_BLOG}; name another application with --watch")
    if given.expect and not names and not base.watches:
        _refuse("--expect", "expected a watch, found none", "name an application with --watch")
    return config.with_command_line(base, names=names, expects=tuple(given.expect)), notes


def _checked(flag: str, table: Any, values: dict[str, Any]) -> Any:  # noqa: ANN401 - whatever table it is
    """Make a table of values. `flag`: what to name where the key is not the flag's own (the thing's name from -id)."""
    import msgspec

    from monitor.schema import keys

    try:
        return msgspec.convert(values, table)
    except msgspec.ValidationError as error:
        _, _, path = str(error).partition(" - at `$.")
        key = path.rstrip("`")
        found: Any = values
        for part in key.split("."):
            found = found[part]
        meaning = keys().get(f"{table.__name__.lower()}.{key}", "a value that fits")
        _refuse(
            flag if key in {"thing", "interval_s"} and flag else _FLAGS[key], f"found {found!r}", f"expected {meaning}"
        )


def _whole(flag: str, text: str, what: str) -> int:
    """A whole number, be it written as 300.0: the sample agent takes that."""
    if not re.fullmatch(r"[0-9]{1,9}(\.0*)?", text, re.ASCII):
        _refuse(flag, f"expected {what}, a whole number, found {text!r}", "fractions are of no use here")
    return int(text.partition(".")[0])


def _path(text: str | None) -> str:
    """An absolute path: a run may be told to reopen it wherever it stands."""
    import os

    return os.path.abspath(text) if text else ""  # noqa: PTH100 - resolve() would follow links


def _refuse(flag: str, what: str, remedy: str) -> NoReturn:
    raise ConfigInvalid(f"{flag}: {what}; {remedy}" if flag else f"{what}; {remedy}")
