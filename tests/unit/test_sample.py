"""The sample agent's command line: every flag it has, what it comes to, and the words for a wrong one."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from monitor import cli, config, sample, verbs
from monitor.errors import ConfigInvalid

if TYPE_CHECKING:
    from pathlib import Path

    from monitor.config import Config
    from monitor.options import RunOptions

CONNECTION = ("-e", "a.iot.eu-west-1.amazonaws.com", "-r", "/r", "-c", "/c", "-k", "/k", "-id", "mything1")
THEIR_FLAGS = """
import argparse, json
from AWSIoTDeviceDefenderAgentSDK import agent

def tell(parser):
    found = {flag: [action.nargs, sorted(action.choices or [])] for action in parser._actions
             for flag in action.option_strings}
    print(json.dumps([parser.fromfile_prefix_chars, found]))

argparse.ArgumentParser.parse_args = tell
agent.parse_args()
"""


@pytest.fixture(autouse=True)
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without a configuration; it may be written there."""
    path = tmp_path / "config.toml"
    monkeypatch.setattr(config, "DEFAULT_PATH", path)
    return path


def asked(*flags: str) -> tuple[Config, RunOptions, list[str]]:
    return sample.requested(verbs.parser().parse_args(["agent", *flags]))


def settings(*flags: str) -> Any:  # noqa: ANN401 - [defender], which is there
    return asked(*flags)[0].defender


def test_every_flag_of_the_sample_agent_is_taken_as_it_takes_it() -> None:
    ran = subprocess.run([sys.executable, "-c", THEIR_FLAGS], capture_output=True, text=True, check=True)
    prefix, theirs = json.loads(ran.stdout)
    (told,) = (action for action in verbs.parser()._actions if action.dest == "verb")
    assert isinstance(told.choices, dict)
    ours = told.choices["agent"]
    assert ours.fromfile_prefix_chars == prefix
    assert ours.allow_abbrev
    mine = {flag: action for action in ours._actions for flag in action.option_strings}
    assert theirs.keys() <= mine.keys()
    for flag, (nargs, choices) in theirs.items():
        same = nargs if flag not in {"-w", "--use-websocket"} else "?"  # its own takes a value and is of no use without
        assert mine[flag].nargs == same, flag
        assert sorted(mine[flag].choices or []) == choices, flag


def test_the_blog_s_command_line_comes_to_this() -> None:
    made, run, notes = asked("-f", "json", *CONNECTION, "-cm")
    defender = made.defender
    assert defender is not None
    assert (defender.thing, defender.client_id) == ("mything1", "mything1")
    assert (defender.endpoint, defender.port) == ("a.iot.eu-west-1.amazonaws.com", 443)
    assert (defender.root_ca, defender.certificate, defender.private_key) == ("/r", "/c", "/k")
    assert (defender.format, defender.min_spacing_s, defender.auth.method) == ("json", 300, "mtls")
    assert (made.report.interval_s, made.report.names, made.report.cpu_usage) == (300, "long", True)
    assert [(watch.kind, watch.value, watch.child_limit) for watch in made.watches] == [("process", "myapp", None)]
    assert (run.attended, run.dry, run.log, run.report_to) == (True, False, "/dev/null", None)
    assert made.daemon.state_dir == f"{config.Config().daemon.state_dir}/agent/mything1"
    assert notes == ["-cm: watching myapp; name another application with --watch"]


def test_the_other_flags_come_to_what_they_say(tmp_path: Path) -> None:
    given = ("-t", "other", "-s", "-f", "cbor", "-i", "60", "-ph", "proxy", "-pp", "3128", "--port", "8883")
    more = ("--watch", "a", "--watch", "b", "--expect", "child_processes=2", "--log", f"{tmp_path}/l")
    made, run, notes = asked(*CONNECTION, *given, *more, "--state-dir", f"{tmp_path}/s")
    defender = made.defender
    assert defender is not None
    assert (defender.thing, defender.client_id, defender.format) == ("other", "mything1", "cbor")
    assert (defender.proxy.host, defender.proxy.port, defender.port) == ("proxy", 3128, 8883)
    assert (made.report.interval_s, defender.min_spacing_s, made.report.names) == (60, 60, "short")
    assert not made.report.cpu_usage
    assert [(watch.name, watch.child_limit) for watch in made.watches] == [("a", 2), ("b", 2)]
    assert (run.log, made.daemon.state_dir) == (f"{tmp_path}/l", f"{tmp_path}/s")
    assert len(notes) == 1
    assert "-i 60" in notes[0]


def test_a_longer_interval_leaves_the_spacing_of_the_service() -> None:
    made, _, notes = asked(*CONNECTION, "-i", "900.0")
    assert made.defender is not None
    assert (made.report.interval_s, made.defender.min_spacing_s, notes) == (900, 300, [])


@pytest.mark.parametrize(
    ("flags", "method"),
    [
        ((), "mtls"),
        (("-w",), "websocket"),
        (("-w", "True"), "websocket"),
        (("-w", "-s"), "websocket"),
        (("--use-websocket", "False"), "mtls"),
    ],
)
def test_a_websocket_is_asked_for_with_a_value_or_without(flags: tuple[str, ...], method: str) -> None:
    assert settings(*CONNECTION, *flags).auth.method == method


def test_a_websocket_needs_no_certificate_and_may_have_a_region() -> None:
    defender = settings("-e", "host", "-id", "me", "-w", "-se", "eu-west-1")
    assert (defender.auth.method, defender.auth.region, defender.certificate) == ("websocket", "eu-west-1", "")
    assert settings("-e", "host", "-id", "me", "-w").auth.region == ""


def test_a_dry_run_needs_nothing() -> None:
    made, run, _ = asked("-d")
    assert run.dry
    assert made.watches == ()
    assert made.defender is not None
    assert made.defender.thing == "dry-run"


def test_watches_come_from_the_flags_else_the_file_else_the_blog(file: Path) -> None:
    assert asked("-d")[0].watches == ()
    assert [watch.name for watch in asked("-d", "-cm")[0].watches] == ["myapp"]
    file.write_text(
        '[[watch]]\nname = "filed"\nprocess = "x"\nexpect = { child_processes = 1 }\n[report]\ninterval_s = 7\n'
        '[capture]\nring_bytes = 8192\n[defender]\nthing = "t"\nendpoint = "e"\nalarm_topic = ""\n'
    )
    made, _, notes = asked("-d", "-cm")
    assert [(watch.name, watch.child_limit) for watch in made.watches] == [("filed", 1)]
    assert any("watching filed" in note for note in notes)
    assert made.capture.ring_bytes == 8192
    assert made.report.interval_s == 300
    assert made.defender is not None
    assert (made.defender.thing, made.defender.alarm_topic) == ("dry-run", "kinwatch/{thing}/alarms")
    assert [watch.name for watch in asked("-d", "-cm", "--watch", "flagged")[0].watches] == ["flagged"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "expected -e/--endpoint, -id/--client_id, -c/--cert, -k/--key; without a connection use -d"),
        (("-w",), "expected -e/--endpoint, -id/--client_id; without"),
        (("-e", "host", "-id", "me"), "expected -c/--cert, -k/--key;"),
        ((*CONNECTION, "-e", "host:8883"), "-e/--endpoint: expected a host name alone, found 'host:8883'; name a port"),
        ((*CONNECTION, "-e", "https://host"), "-e/--endpoint: expected a host name alone"),
        ((*CONNECTION, "-i", "0"), "-i/--interval: found 0; expected seconds between periodic reports"),
        ((*CONNECTION, "-i", "often"), "-i/--interval: expected seconds, a whole number, found 'often'"),
        ((*CONNECTION, "-i", "0.5"), "-i/--interval: expected seconds, a whole number, found '0.5'"),
        ((*CONNECTION, "-id", "my thing"), "-id/--client_id: found 'my thing'; expected a thing's name"),
        ((*CONNECTION, "-t", "a/b"), "-t/--thing_name: found 'a/b'; expected a thing's name"),
        ((*CONNECTION, "-pp", "70000"), "-pp/--proxy-port: found 70000; expected its port"),
        ((*CONNECTION, "--port", "0"), "--port: found 0"),
        ((*CONNECTION, "-w", "perhaps"), "-w/--use-websocket: expected True or False, found 'perhaps'"),
        ((*CONNECTION, "--watch", "a/b"), "--watch: expected a process name"),
        ((*CONNECTION, "--watch", "a", "--expect", "x"), "--expect: expected KIND=VALUE"),
        ((*CONNECTION, "--expect", "child_processes=0"), "--expect: expected a watch, found none"),
        ((*CONNECTION, "-t", "a\0b"), "--thing-name: expected text, found a zero byte"),
    ],
)
def test_a_wrong_value_is_refused_in_the_words_of_the_flags(flags: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigInvalid) as refused:
        asked(*flags)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["-f", "xml"], "argument -f/--format: invalid choice: 'xml'"),
        (["--verbosity", "Loud"], "argument --verbosity: invalid choice"),
        (["@/no/such/file"], "/no/such/file"),
        (["-x"], "unrecognized arguments: -x"),
        (["-r", "/none", *CONNECTION[4:], "-e", "h"], "-c/--cert: /c cannot be read: No such file or directory"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    assert cli.main(["agent", *flags, "--watch", "a"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-e", ["-e"]),
        ("host", ["host"]),
        ("/my certificates/key.pem", ["/my certificates/key.pem"]),
        ("-k /key.pem", ["-k", "/key.pem"]),
        ("-k '/my certificates/key.pem' -cm", ["-k", "/my certificates/key.pem", "-cm"]),
        ("--key=/my certificates/key.pem", ["--key=/my certificates/key.pem"]),
        ("-t it's", ["-t", "it's"]),
        ("  -cm  ", ["-cm"]),
        ("", []),
    ],
)
def test_a_line_of_a_file_is_one_argument_or_a_flag_and_its_values(line: str, words: list[str]) -> None:
    assert sample.words(line) == words


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("defender.private_key: /k has mode 0644", "-k/--key: /k has mode 0644"),
        ("defender.root_ca: expired", "-r/--rootCA: expired"),
        ("daemon.state_dir: cannot be written", "--state-dir: cannot be written"),
        ("defender.answer_s: odd", "defender.answer_s: odd"),
        ("capture.btf: odd", "capture.btf: odd"),
    ],
)
def test_a_refusal_names_the_flag_behind_the_key(message: str, words: str) -> None:
    assert sample.in_flags(message) == words
