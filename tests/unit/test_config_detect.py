"""[detect] and detect.action: what they mean, and what is refused by its key."""

from __future__ import annotations

import pytest

from monitor.config import notes, parse
from monitor.errors import ConfigInvalid

# Text about [detect], and what is said of it.
DETECT_REFUSED = (
    ('[detect]\nsecurity_profile = "p.json"', "security_profile: expected an absolute path, found 'p.json'"),
    (
        '[detect]\nsecurity_profile = "/a"\n[defender]\nthing = "t"\nendpoint = "e"\nsecurity_profile = "/b"',
        "security_profile: '/a' here and '/b' in defender.security_profile; one profile is judged",
    ),
    ('[detect.action]\ncommand = "ls"', "action.command: expected an array, found 'ls'"),
    ('[detect.action]\ncommand = ["ls"]', "action.command: expected an absolute path, found 'ls'"),
    ('[detect.action]\ncommand = [""]', "action.command: expected a program, found ''"),
    ('[detect.action]\ncommand = ["/bin/ls", "a\\u0000"]', "action.command: expected printable words, found"),
    (
        '[detect.action]\ncommand = ["/bin/ls"]\nuser = "no such user"',
        "action.user: there is no user 'no such user'",
    ),
    ("[detect.action]\ntimeout_s = 0", "action.timeout_s: expected an integer >= 1, found 0"),
    ('[detect.action]\nfreeze = "ice"', "action.freeze: expected off | cgroup"),
    ("[detect.action]\ncmd = []", "action.cmd: unknown key; did you mean command?"),
)


@pytest.mark.parametrize(("text", "message"), DETECT_REFUSED)
def test_what_cannot_be_is_refused_by_its_key(text: str, message: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        parse(text, "kin.toml")
    found = str(caught.value)
    assert found.startswith(f"kin.toml: detect.{message}")
    assert found.count("; ") >= 1  # what to do follows what was found


def test_either_key_names_the_profile() -> None:
    defender = '[defender]\nthing = "t"\nendpoint = "e"\nsecurity_profile = "/p"\n'
    for text in ('[detect]\nsecurity_profile = "/p"', defender, defender + '[detect]\nsecurity_profile = "/p"'):
        assert parse(text, "f").security_profile == "/p"
    assert parse("", "f").security_profile == ""


def test_an_action_that_cannot_work_yet_is_worth_a_note() -> None:
    text = '[[watch]]\nprocess = "a"\n[detect.action]\ncommand = ["/no/such/program"]\nfreeze = "cgroup"'
    assert notes(parse(text, "f")) == (
        "detect.action.command: /no/such/program is no program that can be run yet",
        "detect.action.freeze: watch a has no cgroup of its own, so nothing of it is frozen",
    )
    assert notes(parse('[detect.action]\ncommand = ["/bin/true"]', "f")) == ()
