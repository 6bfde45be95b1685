"""Expectations as they are written: each kind has one form, and what cannot be is refused by its key."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.config import Expect, parse, parse_expect, with_command_line
from monitor.errors import ConfigInvalid

# What stands in expect, and what is said of it.
EXPECT_REFUSED = (
    ('executables = "/bin/sh"', "executables: expected an array, found '/bin/sh'"),
    ('executables = ["bin/sh"]', "executables: expected an absolute path, found 'bin/sh'"),
    ('executables = ["/bin"]', "executables: expected an executable file, found /bin, which is none"),
    ('executables = ["/dev/null"]', "executables: expected an executable file, found /dev/null, which is none"),
    ('executables = ["/etc/passwd"]', "executables: expected an executable file, found /etc/passwd, which nobody may"),
    ('executables = ["/bin/sh/x"]', "executables: expected an executable file, but /bin/sh/x cannot be looked at: Not"),
    ('executables = ["/a\\u0000b"]', "executables: expected an absolute path"),
    (f'executables = ["/{"a" * 4095}"]', "executables: expected at most 4095 bytes, found 4096"),
    (f"executables = {[f'/nowhere/{n}' for n in range(257)]}", "executables: expected at most 256"),
    ('edges = ["/bin/sh"]', "edges: expected BEFORE -> EXECUTED, two paths, found '/bin/sh'"),
    ('edges = ["/bin/sh -> cat"]', "edges: expected an absolute path, found 'cat'"),
    ('edges = ["/bin/sh -> /bin/a -> /bin/b"]', "edges: expected an absolute path, found '/bin/a -> /bin/b'"),
    ("depth = -1", "depth: expected an integer >= 0, found -1"),
    ("forks_per_minute = 1.5", "forks_per_minute: expected an integer, found 1.5"),
    ('uids = ["no such user"]', "uids: there is no user 'no such user'"),
    ("uids = [4294967295]", "uids: expected user ids of 0 to 4294967294, found 4294967295"),
    ("uids = [-1]", "uids: expected user ids of 0 to 4294967294, found -1"),
    ("memfd = 0", "memfd: expected a boolean, found 0"),
    ('destinations = "10.0.0.0/8"', "destinations: expected an array, found '10.0.0.0/8'"),
    ("destinations = [10]", "destinations[0]: expected a string, found 10"),
    *(
        (
            f'destinations = ["::1", "{text}"]',
            f"destinations: expected a network such as 10.0.0.0/8 or fd00::/8, found '{text}'",
        )
        for text in (
            "",
            "localhost",
            "10.0.0.0/33",
            "fd00::/129",
            "10.0.0.0/255.0.0.0",
            "fe80::1%eth0",
            "10",
            "10.0.0.0/ 8",
            "localhost:80",
            ":80",
            "10.0.0.0/8:",
            "10.0.0.0/8:443x",
            "10.0.0.0/8:443:443",
            "10.0.0.0:443/8",
            "fd00::/8:443",
            "[fd00::/8]",
            "[fd00::/8]443",
            "[[fd00::/8]]:443",
        )
    ),
    ('destinations = ["10.0.0.0/8:0"]', "destinations: expected ports of 1 to 65535, found '10.0.0.0/8:0'"),
    ('destinations = ["[::1]:65536"]', "destinations: expected ports of 1 to 65535, found '[::1]:65536'"),
    (
        "destinations = [" + ", ".join(f'"10.0.{number}.0/24"' for number in range(257 - 1)) + ', "::/0"]',
        "destinations: expected at most 256 networks, found 257",
    ),
    ("destination_names = [1]", "destination_names[0]: expected a string, found 1"),
    *(
        (
            f'destination_names = ["{text}"]',
            "destination_names: expected a name of DNS such as broker.local or *.examp",
        )
        for text in ("", ".", "*", "*.", "a..b", "a.*.b", "a b", "a/8", "*a.b", "b\u00fccher.de", "\u212a.de", "a" * 64)
    ),
    (
        'destination_names = ["10.0.0.1"]',
        "destination_names: expected a name, found '10.0.0.1', which is an address",
    ),
    (
        f"destination_names = {[f'{n}.test' for n in range(257)]}",
        "destination_names: expected at most 256 names, found 257",
    ),
    ("listening_ports = 80", "listening_ports: expected an array, found 80"),
    ("listening_ports = [80, 0]", "listening_ports[1]: expected an integer >= 1, found 0"),
    ("listening_ports = [65536]", "listening_ports[0]: expected an integer <= 65535, found 65536"),
    ("listening_ports = [true]", "listening_ports[0]: expected an integer, found True"),
    (f"listening_ports = {list(range(1, 258))}", "listening_ports: expected at most 256 ports, found 257"),
)


@pytest.mark.parametrize(("text", "message"), EXPECT_REFUSED)
def test_what_cannot_be_expected_is_refused_by_its_key(text: str, message: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        parse(f'[[watch]]\nprocess = "a"\nexpect = {{ {text} }}', "kin.toml")
    assert str(caught.value).startswith(f"kin.toml: watch[0].expect.{message}")


@settings(deadline=None)
@given(st.integers(0, 4194304))
def test_an_expectation_is_a_number_of_children(number: int) -> None:
    assert parse_expect(f"child_processes={number}") == Expect(child_processes=number)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "=",
        "child_processes",
        "child_processes=",
        "child_processes=-1",
        "child_processes=1_0",
        "child_processes=\uff11",
        "child_processes=4194305",
        "child_processes=1 ",
        "children=1",
        "executables",
        "executables=1",
        "executables=/bin,",
        "edges=/bin/sh",
        "depth=",
        "depth=-1",
        "forks_per_minute=x",
        "uids=no such user",
        "memfd=",
        "deleted=no",
        "temporary=0",
        "destinations",
        "destinations=,",
        "destinations=10.0.0.0/8,",
        "destinations=10.0.0.0/8 ,::1",
        "destinations=localhost",
        "destination_names",
        "destination_names=,",
        "destination_names=10.0.0.1",
        "listening_ports",
        "listening_ports=80,,81",
        "listening_ports=0",
        "listening_ports=65536",
        "listening_ports=ssh",
    ],
)
def test_an_expectation_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigInvalid, match="command line: --expect: "):
        parse_expect(text)


@pytest.mark.parametrize(
    ("text", "expect"),
    [
        ("executables=", Expect(executables=())),
        ("executables=/nowhere/b,/nowhere/a,/nowhere/b", Expect(executables=("/nowhere/b", "/nowhere/a"))),
        ("edges=/nowhere/a -> /nowhere/b", Expect(edges=("/nowhere/a -> /nowhere/b",))),
        ("edges=", Expect(edges=())),
        ("depth=2", Expect(depth=2)),
        ("forks_per_minute=60", Expect(forks_per_minute=60)),
        ("uids=33,root,0", Expect(uids=(0, 33))),
        ("memfd=false", Expect(memfd=False)),
        ("deleted=false", Expect(deleted=False)),
        ("temporary=true", Expect(temporary=True)),
        ("destinations=", Expect(destinations=())),
        ("destinations=10.1.2.3/8,fd00::1", Expect(destinations=("10.0.0.0/8", "fd00::1/128"))),
        (
            "destinations=10.1.2.3/8:443,[fd00::1/8]:443,192.0.2.7:53,[::1]:53,[::ffff:10.0.0.1]:1,10.0.0.0/8:443",
            Expect(
                destinations=(
                    *("10.0.0.0/8:443", "[fd00::/8]:443", "192.0.2.7/32:53", "[::1/128]:53", "10.0.0.1/32:1"),
                )
            ),
        ),
        ("destination_names=", Expect(destination_names=())),
        (
            "destination_names=Broker.Local,*.Example.COM.,broker.local,_x.a-b,localhost",
            Expect(destination_names=("broker.local", "*.example.com", "_x.a-b", "localhost")),
        ),
        ("listening_ports=", Expect(listening_ports=())),
        ("listening_ports=443,80,443", Expect(listening_ports=(80, 443))),
    ],
)
def test_an_expectation_has_one_form(text: str, expect: Expect) -> None:
    assert parse_expect(text) == expect


def test_names_are_refused_where_no_packet_is_looked_at() -> None:
    text = '[[watch]]\nprocess = "a"\nexpect = { destination_names = ["broker.local"] }\n'
    said = "watch a expects destination_names, and capture.packets is false"
    with pytest.raises(ConfigInvalid, match=rf"^kin.toml: capture.packets: {said}"):
        parse(text, "kin.toml")
    assert parse(f"{text}[capture]\npackets = true", "kin.toml").watches[0].expect.destination_names == (
        "broker.local",
    )
    plain = '[[watch]]\nprocess = "a"\n'
    with pytest.raises(ConfigInvalid, match=rf"^command line: capture.packets: {said}"):
        with_command_line(parse(plain, "kin.toml"), expects=["destination_names=broker.local"])
    looked = parse(f"{plain}[capture]\npackets = true", "kin.toml")
    changed = with_command_line(looked, expects=["destination_names=broker.local"])
    assert changed.watches[0].expect == Expect(destination_names=("broker.local",))
