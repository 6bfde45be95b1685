"""Which MQTT library is taken, and what is said where it cannot do what is asked.

Owns the choice. Refuses to connect: tests/mqtt does.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.config import parse
from monitor.defender.client import choose, chosen
from monitor.defender.pace import BYTES_PER_S, PUBLISHES_PER_S, Pace
from monitor.errors import ConfigInvalid

if TYPE_CHECKING:
    from monitor.config import Config
    from monitor.schema import Defender

REMOTE = 'thing = "a"\nendpoint = "e-ats.iot.eu-west-1.amazonaws.com"\n'
BEYOND = (
    (
        'port = 443\nauth = { method = "websocket" }',
        "defender.auth.method: expected mtls, which paho can do, found websocket",
    ),
    (
        'port = 443\nauth = { method = "custom-authorizer", authorizer = "a" }',
        "defender.auth.method: expected mtls, which paho can do, found custom-authorizer",
    ),
    (
        'auth = { method = "pkcs11", library = "/l", pin_file = "/p" }',
        "defender.auth.method: expected mtls, which paho can do, found pkcs11",
    ),
    ('proxy = { host = "proxy" }', "defender.proxy.host: expected none, because paho goes through no proxy"),
)


def read(text: str) -> Config:
    """A configuration file."""
    return parse(text, "kinwatch.toml")


def settings(lines: str = "") -> Defender:
    """[defender] with further lines."""
    found = read(f"[defender]\n{REMOTE}{lines}\n").defender
    assert found is not None
    return found


@pytest.fixture
def without_awscrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has no wheel of it."""
    monkeypatch.setitem(sys.modules, "awscrt", None)
    monkeypatch.delitem(sys.modules, "monitor.defender.publish", raising=False)


def test_the_runtime_of_aws_is_taken_where_it_is() -> None:
    assert chosen(settings())[:2] == ("awscrt", "it is installed")
    assert chosen(settings('client = "awscrt"'))[:2] == ("awscrt", "defender.client says so")


def test_paho_is_taken_where_it_is_asked_for() -> None:
    assert chosen(settings('client = "paho"'))[:2] == ("paho", "defender.client says so")


@pytest.mark.usefixtures("without_awscrt")
def test_paho_is_taken_where_there_is_no_other_and_the_reason_is_kept() -> None:
    choice = chosen(settings())
    assert choice.name == "paho"
    assert choice.why.startswith("awscrt cannot be imported: ")


@pytest.mark.usefixtures("without_awscrt")
def test_a_library_that_is_asked_for_and_not_there_is_a_wrong_configuration() -> None:
    with pytest.raises(ConfigInvalid, match=r"^defender: awscrt cannot be imported: .*; install awsiotsdk"):
        chosen(settings('client = "awscrt"'))


@pytest.mark.usefixtures("without_awscrt")
def test_no_library_at_all_is_said_with_both_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "paho"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "paho", None)
    monkeypatch.delitem(sys.modules, "monitor.defender.paho", raising=False)
    with pytest.raises(
        ConfigInvalid, match=r"^here: awscrt .*; paho cannot either: .*; install awsiotsdk, or paho-mqtt"
    ):
        choose("auto", "here")


@pytest.mark.parametrize(("lines", "text"), BEYOND)
def test_what_paho_cannot_do_is_refused_when_the_file_is_read(lines: str, text: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        read(f'[defender]\n{REMOTE}client = "paho"\n{lines}\n')
    assert text in str(caught.value)


@pytest.mark.usefixtures("without_awscrt")
@pytest.mark.parametrize(("lines", "text"), BEYOND)
def test_what_paho_cannot_do_is_refused_where_it_stands_in(lines: str, text: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        chosen(settings(lines))
    assert str(caught.value).startswith(text)
    assert "(paho is used here: awscrt cannot be imported: " in str(caught.value)


def test_paho_is_refused_where_the_device_is_to_be_provisioned() -> None:
    text = '[defender]\nendpoint = "e"\nclient = "paho"\n'
    text += '[provisioning]\ntemplate = "t"\nclaim_certificate = "/c"\nclaim_private_key = "/k"\n'
    with pytest.raises(ConfigInvalid, match=r"defender\.client: paho cannot be provisioned; "):
        read(text)


@given(st.lists(st.tuples(st.floats(0, 0.1), st.integers(0, 131_072)), min_size=1, max_size=400))
def test_what_is_sent_keeps_its_order_and_the_limits_of_a_connection(sent: list[tuple[float, int]]) -> None:
    pace, now_s, due_s = Pace(), 0.0, []
    for after_s, size in sent:
        now_s += after_s
        due_s.append(pace.due_s(now_s, size))
    assert due_s == sorted(due_s)
    for first, begin_s in enumerate(due_s):
        for last in range(first, len(due_s)):
            within_s = due_s[last] - begin_s
            # One bucket full at once, and what runs in meanwhile; the last message may be larger than what is left.
            assert last - first <= PUBLISHES_PER_S * (1 + within_s) + 1
            assert sum(size for _, size in sent[first:last]) <= BYTES_PER_S * (1 + within_s) + 131_072
