"""Every key of the configuration file: its type, default, unit, limits and meaning, once.

Owns the tables and the reference that is made from them. Refuses to know files, flags and how a wrong value is
explained.
"""

from __future__ import annotations

import json
import mmap
from typing import TYPE_CHECKING, Annotated, Final, Literal, get_type_hints

import msgspec
from msgspec import Meta

from monitor.watch import MAX_PID, Enforce, Watch

if TYPE_CHECKING:
    from collections.abc import Iterator

CaptureKind = Literal["auto", "core", "bcc", "netlink", "poll"]
Names = Literal["long", "short"]
Limit = Annotated[int, Meta(ge=0, le=MAX_PID)]
Port = Annotated[int, Meta(ge=1, le=65535)]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A TOML table: unknown keys are errors. A key's Meta description is its one documentation."""


class Capture(Table, frozen=True, kw_only=True):
    """[capture]."""

    kind: Annotated[CaptureKind, Meta(description="auto | core | bcc | netlink | poll")] = "auto"
    ring_bytes: Annotated[int, Meta(ge=mmap.PAGESIZE, le=1 << 31, description="a power of two, at least one page")] = (
        4_194_304
    )
    max_processes: Annotated[
        int, Meta(ge=64, le=MAX_PID, description="kin at once; beyond: counted, told (table_full)")
    ] = 32_768
    btf: Annotated[str, Meta(description="a BTF file that programs are relocated by, in place of the kernel's own")] = (
        ""
    )
    network: Annotated[bool, Meta(description="also watch sockets; false: no network hooks, events and metrics")] = True
    packets: Annotated[
        bool,
        Meta(description="also look at packets: wire bytes, packets, DNS; slows fast loopback streams"),
    ] = False


class Log(Table, frozen=True, kw_only=True):
    """[log]."""

    file: Annotated[str, Meta(description='where event lines go, an absolute path; "" or "-" is stdout')] = ""


class Report(Table, frozen=True, kw_only=True):
    """[report]."""

    file: Annotated[str, Meta(description='where every report goes, as --report-to; "" is nowhere, "-" stdout')] = ""
    interval_s: Annotated[int, Meta(ge=1, le=31_536_000, description="seconds between periodic reports")] = 300
    names: Annotated[Names, Meta(description="long | short: the keys of reports")] = "long"
    cpu_usage: Annotated[bool, Meta(description="also report how busy the processors were, percent")] = False
    namespaces: Annotated[
        tuple[Annotated[str, Meta(pattern="^/")], ...],
        Meta(description="absolute paths of network namespaces whose sockets and traffic are reported, beside its own"),
    ] = ()


class Daemon(Table, frozen=True, kw_only=True):
    """[daemon]."""

    state_dir: Annotated[str, Meta(description="directory of spool, report ids, windows")] = "/var/lib/kinwatch"
    socket: Annotated[str, Meta(description="the control socket")] = "/run/kinwatch/control.sock"
    user: Annotated[str, Meta(description='user to become after loading; "" stays root')] = ""
    keep: Annotated[Literal["crash", "always"], Meta(description="crash | always: when pins outlive the daemon")] = (
        "crash"
    )


class Auth(Table, frozen=True, kw_only=True):
    """defender.auth: a method, and the keys that it needs."""

    method: Annotated[
        Literal["mtls", "pkcs11", "websocket", "custom-authorizer"],
        Meta(description="mtls | pkcs11 | websocket | custom-authorizer"),
    ] = "mtls"
    library: Annotated[str, Meta(description="pkcs11: path of the PKCS#11 module")] = ""
    token: Annotated[str, Meta(description="pkcs11: label of the token")] = ""
    key_label: Annotated[str, Meta(description='pkcs11: label of the private key; "" when the token has one')] = ""
    pin_file: Annotated[str, Meta(description="pkcs11: path of a file with the user PIN, for its owner alone")] = ""
    region: Annotated[str, Meta(description='websocket: AWS region that signs; "" takes it from the endpoint')] = ""
    profile: Annotated[str, Meta(description='websocket: AWS profile; "" is the default chain of credentials')] = ""
    authorizer: Annotated[str, Meta(description='custom-authorizer: its name; "" is the default one')] = ""
    username: Annotated[str, Meta(description="custom-authorizer: user name")] = ""
    password_file: Annotated[str, Meta(description="custom-authorizer: path of a file with the password")] = ""
    token_key: Annotated[str, Meta(description="custom-authorizer: name of the token, where it checks signatures")] = ""
    token_file: Annotated[str, Meta(description="custom-authorizer: path of a file with the token")] = ""
    signature_file: Annotated[str, Meta(description="custom-authorizer: path of a file with its signature")] = ""


class Proxy(Table, frozen=True, kw_only=True):
    """defender.proxy."""

    host: Annotated[str, Meta(description='an HTTP proxy; "" is none')] = ""
    port: Annotated[int, Meta(ge=1, le=65535, description="its port")] = 8080


class Defender(Table, frozen=True, kw_only=True):
    """[defender]: without this table nothing is published."""

    thing: Annotated[
        str,
        Meta(
            pattern=r"^[a-zA-Z0-9:_-]{0,128}\Z",
            description="a thing's name: 1 to 128 of [a-zA-Z0-9:_-]; with [provisioning] its template names it",
        ),
    ] = ""
    endpoint: Annotated[str, Meta(min_length=1, max_length=253, description="host name of the AWS IoT data endpoint")]
    client_id: Annotated[str, Meta(max_length=128, description='MQTT client id; "" is "{thing}-kinwatch"')] = ""
    client: Annotated[
        Literal["auto", "awscrt", "paho"],
        Meta(description="auto | awscrt | paho: MQTT library; auto: awscrt where it can be imported"),
    ] = "auto"
    port: Annotated[int, Meta(ge=1, le=65535, description="443 uses ALPN")] = 8883
    root_ca: Annotated[str, Meta(description='path of the CA certificates, PEM; "" is those of the system')] = ""
    certificate: Annotated[str, Meta(description="path of the device certificate, PEM")] = ""
    private_key: Annotated[str, Meta(description="path of its private key, PEM")] = ""
    format: Annotated[Literal["json", "cbor"], Meta(description="json | cbor")] = "json"
    min_spacing_s: Annotated[
        int, Meta(ge=0, le=86_400, description="seconds, the service's limit between two reports")
    ] = 300
    keep_alive_s: Annotated[int, Meta(ge=5, le=1200, description="seconds after which a silent link is tried")] = 45
    answer_s: Annotated[
        int, Meta(ge=1, le=3600, description="seconds to wait for the answer to a report; then it was not accepted")
    ] = 30
    alarm_topic: Annotated[str, Meta(description='topic of alarms; "" switches it off')] = "kinwatch/{thing}/alarms"
    events_topic: Annotated[str, Meta(description='topic of batches of event lines; "" is none')] = ""
    events_s: Annotated[int, Meta(ge=1, le=3600, description="seconds that event lines wait for company")] = 5
    events_bytes: Annotated[
        int, Meta(ge=1024, le=131_072, description="most bytes of a batch, before it is compressed")
    ] = 98_304
    events_gzip: Annotated[bool, Meta(description="compress batches of event lines")] = False
    security_profile: Annotated[str, Meta(description='the same as detect.security_profile; "" is none')] = ""
    auth: Annotated[Auth, Meta(description="how the device proves who it is")] = Auth()
    proxy: Annotated[Proxy, Meta(description="an HTTP proxy on the way to the endpoint")] = Proxy()


class Provisioning(Table, frozen=True, kw_only=True):
    """[provisioning]: the device gets its own certificate from AWS IoT fleet provisioning, and a new one in time."""

    template: Annotated[
        str, Meta(pattern=r"^[0-9A-Za-z_-]{1,36}\Z", description="a template's name: 1 to 36 of [0-9A-Za-z_-]")
    ]
    claim_certificate: Annotated[str, Meta(pattern="^/", description="absolute path of the claim certificate, PEM")]
    claim_private_key: Annotated[str, Meta(description="path of its private key, PEM")] = ""
    claim_key_label: Annotated[str, Meta(description="pkcs11: label of its private key in the token")] = ""
    parameters: Annotated[
        dict[str, str],
        Meta(description="for the template: texts; {hostname}, {machine_id} and {file:/path} are filled in"),
    ] = {}
    rotate_days: Annotated[
        int, Meta(ge=0, le=3650, description="days before its end when a certificate is replaced; 0: when it ended")
    ] = 30
    max_age_days: Annotated[
        int, Meta(ge=0, le=36_500, description="days after its beginning when a certificate is replaced; 0: never")
    ] = 0


class Remote(Table, frozen=True, kw_only=True):
    """[remote]: tables of this file may be set from afar, through the device shadow."""

    public_key: Annotated[
        str, Meta(pattern="^/", description="absolute path of the Ed25519 public key that signs, PEM")
    ]
    confirm_s: Annotated[
        int, Meta(ge=1, le=3600, description="seconds within which the broker must hear of it, or it is rolled back")
    ] = 60


class Action(Table, frozen=True, kw_only=True):
    """detect.action: what the device does by itself when an alarm is raised."""

    command: Annotated[
        tuple[str, ...],
        Meta(description="a program, by its absolute path, and its arguments, run on each alarm; [] is none"),
    ] = ()
    user: Annotated[str, Meta(min_length=1, description="user that the command runs as")] = "nobody"
    timeout_s: Annotated[
        int, Meta(ge=1, le=3600, description="seconds after which the command and all it started are killed")
    ] = 30
    freeze: Annotated[
        Literal["off", "cgroup", "stop"],
        Meta(description="off | cgroup: freeze the watch's cgroup | stop: SIGSTOP its descendants, on each alarm"),
    ] = "off"


class Detect(Table, frozen=True, kw_only=True):
    """[detect]."""

    security_profile: Annotated[
        str,
        Meta(description='a profile file to evaluate on the device, as the AWS API writes it; "" is none'),
    ] = ""
    action: Annotated[Action, Meta(description="what is done on an alarm")] = Action()


class Spool(Table, frozen=True, kw_only=True):
    """[spool]."""

    max_bytes: Annotated[int, Meta(ge=65_536, description="most bytes kept on disk")] = 67_108_864
    max_age_s: Annotated[int, Meta(ge=1, description="seconds after which something unsent is dropped")] = 1_209_600


class Enforcement(Table, frozen=True, kw_only=True):
    """[enforcement]."""

    max_kills_per_minute: Annotated[
        int, Meta(ge=1, description="beyond: nobody is killed until a reload, and an alarm says so")
    ] = 600
    fail: Annotated[
        Literal["closed", "open"],
        Meta(description="closed | open: open kills nobody without a daemon, nor for want of room"),
    ] = "closed"


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the user asked for. `Config()` is what no file and no flag ask for: all defaults, no watch."""

    watches: tuple[Watch, ...] = ()
    capture: Capture = Capture()
    log: Log = Log()
    report: Report = Report()
    daemon: Daemon = Daemon()
    defender: Defender | None = None
    provisioning: Provisioning | None = None
    remote: Remote | None = None
    detect: Detect = Detect()
    spool: Spool = Spool()
    enforcement: Enforcement = Enforcement()
    origin: str = "command line"
    """Name of the file it came from, for messages."""
    left_out: str = ""
    """Why what was set from afar and confirmed does not hold here; "": it does, or there is nothing."""

    @property
    def security_profile(self) -> str:
        """Path of the profile to evaluate on the device, whichever of the two keys names it; "": none."""
        return self.detect.security_profile or (self.defender.security_profile if self.defender else "")


class ExpectTable(Table, frozen=True, kw_only=True):
    """watch.expect, as written."""

    child_processes: Annotated[
        Limit | None, Meta(description="most descendants alive at once; more is an alarm, at once")
    ] = None
    executables: Annotated[
        list[str] | None,
        Meta(description="absolute paths that descendants may execute; [] is none, another is an alarm, at once"),
    ] = None
    edges: Annotated[
        list[str] | None,
        Meta(description='which image may execute which, as "/bin/a -> /bin/b"; another is an alarm, at once'),
    ] = None
    depth: Annotated[
        Limit | None, Meta(description="how far below their root descendants may be; deeper is an alarm, at once")
    ] = None
    forks_per_minute: Annotated[
        Limit | None, Meta(description="most descendants forked within 60 s; more is an alarm, at once")
    ] = None
    uids: Annotated[
        list[int | str] | None,
        Meta(description="users that descendants may run as, numbers or names; another is an alarm, at once"),
    ] = None
    memfd: Annotated[bool | None, Meta(description="false: an image in memory only is an alarm, at once")] = None
    deleted: Annotated[bool | None, Meta(description="false: an image without a file name is an alarm, at once")] = None
    temporary: Annotated[
        bool | None, Meta(description="false: an image that lies where anybody may write is an alarm, at once")
    ] = None
    destinations: Annotated[
        list[str] | None,
        Meta(
            description="networks that may be connected and sent to, with a port or for any; [] is none, another is an"
            " alarm, at once"
        ),
    ] = None
    destination_names: Annotated[
        list[str] | None,
        Meta(
            description="names of DNS that may be connected and sent to as well; needs capture.packets; another is an"
            " alarm, at once"
        ),
    ] = None
    listening_ports: Annotated[
        list[Port] | None,
        Meta(description="ports of 1 to 65535 to listen on; [] is none, another is an alarm, at once"),
    ] = None


class WatchTable(Table, frozen=True, kw_only=True):
    """[[watch]], as written; monitor.watch.Watch is what it means."""

    name: Annotated[str | None, Meta(description="[a-zA-Z0-9_-]{1,64}, for metric names and lines")] = None
    process: Annotated[str | None, Meta(description="comm or base name of the executed file or script")] = None
    exe: Annotated[str | None, Meta(description="absolute path of an executable")] = None
    pid: Annotated[int | None, Meta(description="one running process")] = None
    unit: Annotated[str | None, Meta(description="a systemd unit; .service when it has no suffix")] = None
    cgroup: Annotated[str | None, Meta(description="path of a cgroup, as in /proc/PID/cgroup")] = None
    cmdline: Annotated[str | None, Meta(description="a regular expression, searched in the command line")] = None
    expect: Annotated[ExpectTable, Meta(description="what is normal; more than that breaks it")] = ExpectTable()
    enforce: Annotated[Enforce, Meta(description="off | dry-run | kill: what becomes of who breaks it")] = "off"


class File(Table, frozen=True, kw_only=True):
    """The file, as written."""

    watch: list[WatchTable] = []
    capture: Capture = Capture()
    log: Log = Log()
    report: Report = Report()
    daemon: Daemon = Daemon()
    defender: Defender | None = None
    provisioning: Provisioning | None = None
    remote: Remote | None = None
    detect: Detect = Detect()
    spool: Spool = Spool()
    enforcement: Enforcement = Enforcement()


TABLES: Final[dict[str, type[Table]]] = {
    "watch": WatchTable,
    "watch.expect": ExpectTable,
    "capture": Capture,
    "log": Log,
    "report": Report,
    "daemon": Daemon,
    "defender": Defender,
    "defender.auth": Auth,
    "defender.proxy": Proxy,
    "provisioning": Provisioning,
    "remote": Remote,
    "detect": Detect,
    "detect.action": Action,
    "spool": Spool,
    "enforcement": Enforcement,
}
"""Every table by its dotted name, in the order of the reference."""


def keys() -> dict[str, str]:
    """Every key, dotted (`capture.kind`), and its meaning."""
    return {f"{table}.{name}": meaning for table, of in TABLES.items() for name, meaning, _ in _fields(of)}


def reference() -> str:
    """Render every key with its default as commented TOML.

    Tables that mean something by being there ([[watch]], [defender], [provisioning], [remote]) are commented out; the
    text means the defaults.
    """
    lines: list[str] = []
    for name, table in TABLES.items():
        off = "# " if name.startswith(("watch", "defender", "provisioning", "remote")) else ""
        lines.append(f"{off}[[{name}]]" if name == "watch" else f"{off}[{name}]")
        for key, meaning, default in _fields(table):
            if f"{name}.{key}" in TABLES:
                continue
            unset = default in (None, msgspec.NODEFAULT)
            value = f"{key} =" if unset else f"{key} = {json.dumps(default)}"
            lines.append(f"{'# ' if unset else off}{value:<40} # {meaning}")
        lines.append("")
    return "\n".join(lines)


def _fields(table: type[Table]) -> Iterator[tuple[str, str, object]]:
    hints = get_type_hints(table, include_extras=True)
    for field in msgspec.structs.fields(table):
        made = field.default_factory
        default = field.default if made is msgspec.NODEFAULT else made()
        yield field.name, hints[field.name].__metadata__[0].description, default
