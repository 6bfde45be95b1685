"""A configuration means what the reference says, and what cannot be is refused by file, key and remedy."""

from __future__ import annotations

import json
import mmap
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.config import (
    COMMAND_LINE,
    COMMAND_PID,
    MAX_FILES,
    MAX_WATCHES,
    Config,
    Expect,
    Watch,
    load,
    notes,
    parse,
    reference,
    require_watches,
    with_command_line,
)
from monitor.errors import ConfigInvalid
from monitor.publishing import region_of, topic
from monitor.schema import TABLES, Provisioning, keys
from monitor.schema import Remote as RemoteTable

DOCUMENTED = r"""
[[watch]]
name = "myapp"
process = "myapp"
expect = { child_processes = 0 }
enforce = "off"

[capture]
kind = "auto"
ring_bytes = 4194304
max_processes = 32768
btf = ""
network = true
packets = false

[log]
file = "/var/log/kinwatch/events.jsonl"

[report]
file = ""
interval_s = 300
names = "long"
cpu_usage = false
namespaces = []

[daemon]
state_dir = "/var/lib/kinwatch"
socket = "/run/kinwatch/control.sock"
user = ""
keep = "crash"

[defender]
thing = "mything1"
client_id = ""
endpoint = "example-ats.iot.eu-west-1.amazonaws.com"
client = "auto"
port = 8883
root_ca = "/etc/kinwatch/root.pem"
certificate = "/etc/kinwatch/cert.pem"
private_key = "/etc/kinwatch/key.pem"
format = "json"
min_spacing_s = 300
keep_alive_s = 45
answer_s = 30
alarm_topic = "kinwatch/{thing}/alarms"
events_topic = ""
events_s = 5
events_bytes = 98304
events_gzip = false
security_profile = ""
proxy = { host = "", port = 8080 }

[defender.auth]
method = "mtls"
library = ""
token = ""
key_label = ""
pin_file = ""
region = ""
profile = ""
authorizer = ""
username = ""
password_file = ""
token_key = ""
token_file = ""
signature_file = ""

[detect]
security_profile = ""

[detect.action]
command = []
user = "nobody"
timeout_s = 30
freeze = "off"

[spool]
max_bytes = 67108864
max_age_s = 1209600

[enforcement]
max_kills_per_minute = 600
fail = "closed"
"""


def refused(text: str) -> str:
    with pytest.raises(ConfigInvalid) as caught:
        parse(text, "kin.toml")
    message = str(caught.value)
    assert message.startswith("kin.toml: ")
    return message.removeprefix("kin.toml: ")


def test_the_documented_file_is_accepted_and_means_the_defaults() -> None:
    config = parse(DOCUMENTED, "kin.toml")
    assert config.watches == (
        Watch(name="myapp", kind="process", value="myapp", expect=Expect(child_processes=0), enforce="off"),
    )
    assert config.watches[0].child_limit == 0
    assert config.log.file == "/var/log/kinwatch/events.jsonl"
    assert config.defender is not None
    assert (config.defender.thing, config.defender.port, config.defender.auth.method) == ("mything1", 8883, "mtls")
    default = Config()
    for table in ("capture", "report", "daemon", "detect", "spool", "enforcement"):
        assert getattr(config, table) == getattr(default, table)


def test_the_documented_file_shows_every_key() -> None:
    shown = set(re.findall(r"^([a-z_]+) =|[{,] ([a-z_]+) =", DOCUMENTED, re.MULTILINE))
    words = {first or second for first, second in shown} | {"exe", "pid", "unit", "cgroup", "cmdline"}
    # docs/provisioning.md and docs/remote.md show the others: a device that is provisioned has no thing in its file.
    elsewhere = {*Provisioning.__struct_fields__, *RemoteTable.__struct_fields__}
    words |= {*Expect.__struct_fields__, *elsewhere, "auth", "action"}
    assert {key.rpartition(".")[2] for key in keys()} == words


def test_no_file_and_an_empty_file_mean_the_same() -> None:
    assert parse("", COMMAND_LINE) == Config()


def test_the_reference_names_every_key_and_means_the_defaults() -> None:
    text = reference()
    assert parse(text, COMMAND_LINE) == Config()
    for table in TABLES:
        assert f"[{table}]" in text
    for key, meaning in keys().items():
        assert meaning
        assert key in TABLES or re.search(
            rf"^(# )?{key.rpartition('.')[2]} = ?.*# {re.escape(meaning)}$", text, re.MULTILINE
        )


def test_limits_are_those_of_the_wire() -> None:
    header = Path(__file__).parents[2] / "ebpf" / "event.h"
    wire = dict(re.findall(r"(KW_\w+) = (\d+)", header.read_text()))
    assert int(wire["KW_WATCHES"]) == MAX_WATCHES
    rows = re.search(r"KW_EXPECTED_ROWS = (\d+)", header.with_name("table.h").read_text())
    assert rows is not None
    assert int(rows[1]) == 2 * MAX_FILES
    longest = "a" * (int(wire["KW_NAME_BYTES"]) - 1)
    assert parse(f'[[watch]]\nname = "w"\nprocess = "{longest}"', "f").watches[0].value == longest
    assert "at most 63 bytes" in refused(f'[[watch]]\nname = "w"\nprocess = "{longest}a"')


# Lines of [defender], and what is said of them.
DEFENDER_REFUSED = (
    ('auth = { method = "password" }', "auth.method: expected mtls | pkcs11 | websocket | custom-authorizer"),
    ('certificate = "cert.pem"', "certificate: expected an absolute path, found 'cert.pem'"),
    ('auth = { method = "pkcs11", library = "p11.so" }', "auth.library: expected an absolute path"),
    ('auth = { region = "eu-west-1" }', "auth.region: auth.method mtls has no use for it; remove it, or choose a"),
    ('auth = { username = "me" }', "auth.username: auth.method mtls has no use for it"),
    ('private_key = "/k"\nauth = { method = "pkcs11" }', "private_key: auth.method pkcs11 has no use for it"),
    (
        'port = 443\ncertificate = "/c"\nauth = { method = "websocket" }',
        "certificate: auth.method websocket has no use",
    ),
    (
        'auth = { method = "custom-authorizer" }',
        "port: 8883 takes certificates only; auth.method custom-authorizer goes",
    ),
    ('auth = { method = "websocket" }', "port: 8883 takes certificates only; auth.method websocket goes to 443"),
    (
        'port = 443\nauth = { method = "custom-authorizer", token_key = "k", token_file = "/t" }',
        "auth.signature_file: expected a value beside auth.token_key, found none",
    ),
    ('client_id = "' + "ä" * 65 + '"', "client_id: expected at most 128 bytes"),
    ('client_id = "a\\n"', "client_id: expected printable characters"),
    ('proxy = { host = "http://proxy" }', "proxy.host: expected a host name, found 'http://proxy'"),
    ('alarm_topic = "{host}/alarms"', "alarm_topic: there is no {host}; {thing} is the only placeholder"),
    ('alarm_topic = "{}/alarms"', "alarm_topic: there is no {}"),
    ('alarm_topic = "{thing.x}"', "alarm_topic: there is no {thing.x}"),
    ('alarm_topic = "{thing!r}"', "alarm_topic: there is no {thing}"),
    ('alarm_topic = "{thing"', "alarm_topic: expected a topic with {thing} at most, found '{thing'"),
    ('events_topic = "a/+/b"', "events_topic: expected a topic, found a filter, 'a/+/b'"),
    ('events_topic = "a/#"', "events_topic: expected a topic, found a filter"),
    ('events_topic = "a\\u0000b"', "events_topic: expected printable characters"),
    ('events_topic = "a/b/c/d/e/f/g/h/i"', "events_topic: expected at most 7 slashes, found 8"),
    ('alarm_topic = "' + "a" * 257 + '"', "alarm_topic: expected at most 256 bytes, found 257"),
    ('alarm_topic = "$aws/things/a/shadow/update"', "alarm_topic: '$aws/things/a/shadow/update' is reserved"),
    ('alarm_topic = "$aws/rules/a b/c"', "alarm_topic: '$aws/rules/a b/c' is reserved"),
    ('alarm_topic = "$aws/rules/r/1/2/3/4/5/6/7/8/9"', "alarm_topic: expected at most 7 slashes, found 8"),
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a", "is not TOML"),
        ("a = " + "[" * 100_000, "is not TOML"),
        ("a = " + "9" * 5000, "is not TOML"),
        ("speed = 1", "speed: unknown key; known here: watch, capture"),
        ("[capure]", "capure: unknown key; did you mean capture?"),
        ("[capture]\nknd = 1", "capture.knd: unknown key; did you mean kind?"),
        ('[[watch]]\nprocess = "a"\n[[watch]]\nproces = "b"', "watch[1].proces: unknown key; did you mean process?"),
        ("watch = 3", "watch: expected an array, found 3"),
        ("capture = 3", "capture: expected a table, found 3"),
        ('[capture]\nkind = "ebpf"', "capture.kind: expected auto | core | bcc | netlink | poll, found 'ebpf'"),
        ("[capture]\nring_bytes = 4097", "capture.ring_bytes: expected a power of two, found 4097"),
        ("[capture]\nring_bytes = 2048", f"capture.ring_bytes: expected an integer >= {mmap.PAGESIZE}, found 2048"),
        ("[capture]\nmax_processes = 63", "capture.max_processes: expected an integer >= 64, found 63"),
        ("[capture]\nmax_processes = 4194305", "capture.max_processes: expected an integer <= 4194304"),
        ('[capture]\nbtf = "/nowhere/vmlinux"', "capture.btf: /nowhere/vmlinux cannot be read"),
        ('[log]\nfile = "events"', "log.file: expected an absolute path, found 'events'"),
        ('[report]\nfile = "r"', "report.file: expected an absolute path, found 'r'"),
        ("[report]\ninterval_s = 0", "report.interval_s: expected an integer >= 1, found 0"),
        ("[report]\ninterval_s = 1.5", "report.interval_s: expected an integer, found 1.5"),
        ("[report]\ninterval_s = true", "report.interval_s: expected an integer, found True"),
        ('[report]\nnames = "tiny"', "report.names: expected long | short"),
        ('[daemon]\nstate_dir = ""', "daemon.state_dir: expected an absolute path"),
        ('[daemon]\nsocket = "/' + "s" * 107 + '"', "daemon.socket: expected at most 107 bytes"),
        ('[daemon]\nuser = "no such user"', "daemon.user: there is no user 'no such user'"),
        ('[daemon]\nkeep = "never"', "daemon.keep: expected crash | always"),
        ('[defender]\nendpoint = "e"', "defender.thing: expected a value, found none"),
        ('[defender]\nthing = "a b"\nendpoint = "e"', "defender.thing: expected a thing's name"),
        ('[defender]\nthing = "a\\n"\nendpoint = "e"', "defender.thing: expected a thing's name"),
        ('[defender]\nthing = "a"\nendpoint = "e"\nport = 0', "defender.port: expected an integer >= 1"),
        *(
            (f'[defender]\nthing = "a"\nendpoint = "e.iot.eu-west-1.amazonaws.com"\n{text}', f"defender.{message}")
            for text, message in DEFENDER_REFUSED
        ),
        ("[spool]\nmax_age_s = 0", "spool.max_age_s: expected an integer >= 1"),
        ("[enforcement]\nmax_kills_per_minute = 0", "enforcement.max_kills_per_minute: expected an integer >= 1"),
        ("[[watch]]", "watch[0]: expected exactly one of process, exe, pid, unit, cgroup, cmdline, found none"),
        ('[[watch]]\nprocess = "a"\npid = 1', "watch[0]: expected exactly one of process, exe, pid, unit"),
        ('[[watch]]\nprocess = "a"\nname = "a b"', "watch[0].name: expected a name of [a-zA-Z0-9_-]"),
        ('[[watch]]\nprocess = "a"\nname = "' + "a" * 65 + '"', "watch[0].name: expected a name"),
        ('[[watch]]\nprocess = "a"\nname = "a\\n"', "watch[0].name: expected a name"),
        (
            '[[watch]]\nprocess = "a"\n[[watch]]\nunit = "a"',
            "watch: two watches are called a (process a, unit a.service)",
        ),
        ('[[watch]]\nprocess = "a"\nenforce = "yes"', "watch[0].enforce: expected off | dry-run | kill"),
        (
            '[[watch]]\nprocess = "a"\nexpect = { child_processes = -1 }',
            "watch[0].expect.child_processes: expected an integer >= 0, found -1",
        ),
        ('[[watch]]\nprocess = "a"\nexpect = { children = 0 }', "watch[0].expect.children: unknown key"),
        (
            "\n".join(f'[[watch]]\nprocess = "a{number}"' for number in range(MAX_WATCHES + 1)),
            f"watch: expected at most {MAX_WATCHES} watches, found {MAX_WATCHES + 1}",
        ),
        (
            "\n".join(
                f'[[watch]]\nprocess = "a{watch}"\n'
                f"expect = {{ executables = {json.dumps([f'/nowhere/{watch * 129 + n}' for n in range(129)])} }}"
                for watch in range(16)
            ),
            f"watch: expected at most {MAX_FILES} executables in all watches, found {16 * 129}",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(text: str, message: str) -> None:
    found = refused(text)
    assert found.startswith(message)
    assert found.count("; ") >= 1  # what to do follows what was found


@settings(deadline=None)
@given(st.sampled_from(sorted(keys())), st.integers() | st.booleans() | st.text() | st.just([]) | st.just({}))
def test_any_value_of_any_key_is_taken_or_refused_by_name(key: str, value: Any) -> None:  # noqa: ANN401
    table, _, name = key.rpartition(".")
    written = "{}" if value == {} else json.dumps(value)
    try:
        parse(f"[{table}]\n{name} = {written}" if table != "watch" else f"[[watch]]\n{name} = {written}", "kin.toml")
    except ConfigInvalid as refusal:
        first = str(refusal).removeprefix("kin.toml: ")
        assert first.startswith((table.split(".")[0], "is not TOML"))


@settings(deadline=None)
@given(st.text())
def test_no_text_raises_anything_but_a_refusal(text: str) -> None:
    try:
        parse(text, "kin.toml")
    except ConfigInvalid as refusal:
        assert str(refusal).startswith("kin.toml: ")  # noqa: PT017


watch_names = st.from_regex(r"[a-zA-Z0-9_-]{1,64}", fullmatch=True)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(watch_names, st.none() | st.integers(0, 4194304)),
        max_size=MAX_WATCHES,
        unique_by=lambda pair: pair[0],
    ),
    st.sampled_from(["auto", "core", "poll"]),
    st.integers(12, 31),
    st.integers(1, 31_536_000),
)
def test_what_is_written_is_what_is_read(
    watches: list[tuple[str, int | None]], kind: str, ring_bits: int, interval_s: int
) -> None:
    lines = []
    for name, limit in watches:
        expect = "" if limit is None else f"child_processes = {limit}"
        lines += ["[[watch]]", f'name = "{name}"', 'process = "myapp"', f"expect = {{ {expect} }}"]
    lines += ["[capture]", f'kind = "{kind}"', f"ring_bytes = {1 << ring_bits}"]
    lines += ["[report]", f"interval_s = {interval_s}"]
    config = parse("\n".join(lines), "kin.toml")
    assert [(watch.name, watch.child_limit) for watch in config.watches] == watches
    assert (config.capture.kind, config.capture.ring_bytes, config.report.interval_s) == (
        kind,
        1 << ring_bits,
        interval_s,
    )


def test_a_file_that_cannot_be_read_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=f"{tmp_path}/none.toml: cannot be read: No such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(ConfigInvalid, match="cannot be read: Is a directory"):
        load(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# \xe4")
    with pytest.raises(ConfigInvalid, match="is not UTF-8 at byte 2"):
        load(tmp_path / "latin.toml")


def test_a_file_is_the_origin_of_its_configuration(tmp_path: Path) -> None:
    path = tmp_path / "kin.toml"
    path.write_text('[[watch]]\nprocess = "myapp"\n[log]\nfile = "-"\n')
    config = load(path)
    assert (config.origin, config.log.file) == (str(path), "")
    require_watches(config)


def test_watches_of_the_command_line_replace_those_of_the_file() -> None:
    file = parse('[[watch]]\nprocess = "old"\n[report]\ninterval_s = 60', "kin.toml")
    assert with_command_line(file) == file
    merged = with_command_line(file, names=["a.b", "c"], exes=["/bin/sh"], pids=[os.getpid()], interval_s=5)
    assert [(watch.name, watch.kind, watch.value) for watch in merged.watches[:3]] == [
        ("a_b", "process", "a.b"),
        ("c", "process", "c"),
        ("sh", "exe", "/bin/sh"),
    ]
    assert (merged.watches[3].kind, merged.watches[3].value) == ("pid", str(os.getpid()))
    assert (merged.report.interval_s, merged.report.names) == (5, "long")


def test_a_command_becomes_a_watch_whose_pid_is_not_known_yet() -> None:
    (watch,) = with_command_line(
        parse(DOCUMENTED, "f"), command=["./my app", "--flag"], expects=["child_processes=2"]
    ).watches
    assert (watch.name, watch.kind, watch.value, watch.child_limit) == ("my_app", "pid", COMMAND_PID, 2)


def test_flags_lie_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = with_command_line(
        parse(DOCUMENTED, "f"),
        exes=["app"],
        capture="poll",
        log="-",
        report_to="reports",
        expects=["child_processes=0"],
    )
    assert (config.capture.kind, config.log.file, config.report.file) == ("poll", "", "reports")
    assert config.capture.max_processes == 32768
    assert config.watches[0].value == str(tmp_path / "app")
    assert notes(config)[0] == f"watch app: {tmp_path}/app does not exist yet; it is watched as soon as it does"


def test_an_expectation_holds_for_every_watch() -> None:
    file = parse('[[watch]]\nprocess = "a"\n[[watch]]\nprocess = "b"\nexpect = { child_processes = 9 }', "f")
    assert [watch.child_limit for watch in with_command_line(file, expects=["child_processes=1"]).watches] == [1, 1]
    assert [watch.child_limit for watch in file.watches] == [None, 9]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"names": ["a", "a"]}, "watch: two watches are called a"),
        ({"names": ["a"], "command": ["/bin/a"]}, "watch: two watches are called a"),
        ({"names": [""]}, "--watch: expected text, found ''"),
        ({"names": ["/bin/sh"]}, "--watch: expected a process name, found the path '/bin/sh'"),
        ({"names": ["\udcff"]}, "--watch: expected UTF-8"),
        (
            {"exes": ["/nowhere/app"]},
            "--exe: expected an executable, found neither /nowhere/app nor the",
        ),
        ({"pids": [0]}, "--pid: expected a pid of 1 to 4194304, found 0"),
        ({"pids": [-5]}, "--pid: expected a pid of 1 to 4194304, found -5"),
        ({"command": [""]}, "--: expected a command"),
        ({"capture": "ebpf"}, "--capture: "),
        ({"interval_s": 0}, "--interval-s: expected an integer >= 1"),
        ({"expects": ["child_processes"]}, "--expect: expected KIND=VALUE, found 'child_processes'"),
        ({"expects": ["child_processes=x"]}, "--expect: expected child_processes=N, N being 0 to 4194304, found 'x'"),
        ({"expects": ["destinations=10.0.0.0/8,x"]}, "--expect: expected a network such as 10.0.0.0/8 or fd00::/8"),
        ({"expects": ["listening_ports=80,0"]}, "--expect: expected ports of 1 to 65535, found '0'"),
    ],
)
def test_an_impossible_flag_is_refused_by_its_name(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        with_command_line(Config(), **flags)
    assert str(caught.value).startswith(f"command line: {message}")


def test_expectations_of_a_file_and_of_flags_go_together() -> None:
    expect = '{ child_processes = 3, destinations = ["10.9.9.9/8"], listening_ports = [] }'
    file = parse(f'[[watch]]\nprocess = "a"\nexpect = {expect}', "f")
    assert file.watches[0].expect == Expect(child_processes=3, destinations=("10.0.0.0/8",), listening_ports=())
    flags = ["listening_ports=80", "destinations=", "listening_ports=81"]
    assert with_command_line(file, expects=flags).watches[0].expect == Expect(
        child_processes=3, destinations=(), listening_ports=(81,)
    )
    assert parse('[[watch]]\nprocess = "a"', "f").watches[0].expect == Expect()


def test_network_hooks_can_be_switched_off() -> None:
    assert Config().capture.network is True
    assert parse("[capture]\nnetwork = false", "f").capture.network is False
    assert refused("[capture]\nnetwork = 0").startswith("capture.network: expected")


def test_nothing_to_watch_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigInvalid, match="nothing to watch; use --watch NAME"):
        require_watches(Config())


@pytest.mark.parametrize("endpoint", ["https://a.com", "a.com:8883", "a.com/mqtt", "a b", "-", "[::1]"])
def test_an_endpoint_is_a_host_name_alone(endpoint: str) -> None:
    text = f'[defender]\nthing = "a"\nendpoint = "{endpoint}"'
    assert refused(text).startswith(f"defender.endpoint: expected a host name, found '{endpoint}'; without https://")


def test_a_long_thing_needs_a_client_id_of_its_own() -> None:
    text = f'[defender]\nthing = "{"a" * 120}"\nendpoint = "e"\n'
    assert refused(text).endswith("; the thing's name is long: set one")
    parse(text + 'client_id = "short"', "f")


def test_a_region_that_the_endpoint_does_not_name_must_be_said() -> None:
    text = '[defender]\nthing = "a"\nendpoint = "iot.example.com"\nport = 443\nauth = { method = "websocket"'
    assert refused(text + " }").startswith("defender.auth.region: expected an AWS region, found none")
    parse(text + ', region = "eu-west-1" }', "f")


@pytest.mark.parametrize(
    ("endpoint", "region"),
    [
        ("a1-ats.iot.eu-west-1.amazonaws.com", "eu-west-1"),
        ("a1.ats.iot.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("a1.iot.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("broker.iot.example.com", ""),
        ("localhost", ""),
    ],
)
def test_the_region_is_that_of_the_endpoint(endpoint: str, region: str) -> None:
    assert region_of(endpoint) == region


@pytest.mark.parametrize(
    "lines",
    [
        'endpoint = "127.0.0.1"',
        'endpoint = "::1"',
        'alarm_topic = ""',
        'alarm_topic = "$aws/rules/' + "r" * 128 + '/1/2/3/4/5/6/7/8"',
        'alarm_topic = "$aws/rules/r/' + "a" * 256 + '"',
        'alarm_topic = "{{x}}/{thing}"\nevents_topic = "a/b/c/d/e/f/g/h"',
        'certificate = "/c"\nauth = { method = "pkcs11", library = "/l", pin_file = "/p", key_label = "k" }',
        'port = 443\nauth = { method = "websocket", profile = "p", region = "eu-west-1" }',
        'port = 443\nauth = { method = "custom-authorizer", authorizer = "a", username = "u", password_file = "/p" }',
        'port = 443\nproxy = { host = "proxy", port = 3128 }',
    ],
)
def test_what_a_broker_takes_is_taken(lines: str) -> None:
    endpoint = "" if lines.startswith("endpoint") else 'endpoint = "e.iot.eu-west-1.amazonaws.com"\n'
    assert parse(f'[defender]\nthing = "a"\n{endpoint}{lines}', "f").defender is not None


def test_a_topic_names_the_thing() -> None:
    config = parse('[defender]\nthing = "t:1"\nendpoint = "e"\nalarm_topic = "{{a}}/{thing}"', "f")
    assert config.defender is not None
    assert topic(config.defender, "alarm_topic") == "{a}/t:1"


def test_a_file_that_publishes_has_nothing_to_be_said_about() -> None:
    assert notes(parse(DOCUMENTED, "f")) == ()
