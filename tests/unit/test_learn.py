"""What was seen becomes expectations, and expectations become text that says the same: without a machine."""

from __future__ import annotations

import argparse
import json
import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor import config
from monitor.detect import profile as profiles
from monitor.detect.learn import Observed, Terms, learned, limit, news, widened
from monitor.detect.written import configuration, profile, watch_table, with_watches
from monitor.expect import ARROW, Expect
from monitor.learning import flags
from monitor.learning.observing import Observer
from monitor.options import LearnOptions

TIME = "2026-01-02T03:04:05.000000000Z"
NAMES = st.text(
    st.characters(exclude_characters="/\0\N{REPLACEMENT CHARACTER}", exclude_categories=["Cs"]), min_size=1, max_size=12
)
PATHS = NAMES.filter(lambda name: name == name.strip() and name not in {".", ".."}).map(lambda name: f"/nowhere/{name}")
EDGES = st.tuples(PATHS, PATHS).map(ARROW.join)
ADDRESSES = st.ip_addresses().filter(lambda address: getattr(address, "ipv4_mapped", None) is None).map(str)
AMOUNTS = st.integers(0, 5000)


def anything(_rule: str, _member: object) -> str:
    """Nothing is impossible."""
    return ""


def seen(most: dict[str, int], members: dict[str, list[Any]]) -> Observed:
    """Somebody did this."""
    observed = Observed(began=True)
    for rule, amount in most.items():
        observed.reached(rule, amount)
    for rule, found in members.items():
        for member in found:
            observed.note(rule, member, TIME)
    return observed


RUNS = st.builds(
    seen,
    st.fixed_dictionaries({"child_processes": AMOUNTS, "depth": AMOUNTS, "forks_per_minute": AMOUNTS}),
    st.fixed_dictionaries(
        {
            "executables": st.lists(PATHS, max_size=5),
            "edges": st.lists(EDGES, max_size=5),
            "uids": st.lists(st.integers(0, 70_000), max_size=5),
            "destinations": st.lists(ADDRESSES, max_size=5),
            "listening_ports": st.lists(st.integers(1, 65_535), max_size=5),
            "memfd": st.lists(PATHS, max_size=1),
            "deleted": st.lists(PATHS, max_size=1),
            "temporary": st.lists(PATHS, max_size=1),
        }
    ),
)
TERMS = st.builds(
    Terms,
    head_room=st.sampled_from([0, 20, 100]),
    networks=st.sampled_from([None, (24, 64), (0, 0)]),
    seconds=st.sampled_from([0.0, 3.5, 60.0, 3600.0]),
    unknown=st.sampled_from([frozenset(), frozenset({"destinations", "listening_ports"}), frozenset({"temporary"})]),
)


@settings(deadline=None)
@given(RUNS, TERMS)
def test_the_file_says_what_was_learned(observed: Observed, terms: Terms) -> None:
    made = learned(observed, terms, anything)
    table = watch_table("app", "process", 'a "quoted" \\ name', "off", made, {0: "root\n"})
    (watch,) = config.parse(configuration(["a heading\n\x7f"], [table]), "test").watches
    assert watch.expect == made.expect
    assert (watch.name, watch.kind, watch.value, watch.enforce) == ("app", "process", 'a "quoted" \\ name', "off")


@settings(deadline=None)
@given(RUNS, RUNS, TERMS)
def test_what_is_widened_knows_both_and_does_not_grow_again(one: Observed, other: Observed, terms: Terms) -> None:
    first, second = learned(one, terms, anything), learned(other, terms, anything)
    assert news(first.expect, first) == []
    wide = widened(first.expect, second)
    assert news(wide.expect, first) == []
    assert news(wide.expect, second) == []
    assert widened(wide.expect, second).expect == wide.expect
    assert widened(Expect(), second) == second
    table = watch_table("app", "process", "app", "kill", wide, {})
    (watch,) = config.parse(table, "test").watches
    assert (watch.expect, watch.enforce) == (wide.expect, "kill")


@pytest.mark.parametrize(
    "old",
    [
        Expect(destinations=("10.0.0.0/8:443", "[fd00::/8]:443")),
        Expect(destination_names=("a.example",)),
        Expect(destinations=("10.0.0.0/8",), destination_names=("*.example",)),
    ],
)
def test_destinations_by_port_or_name_are_kept_as_a_person_wrote_them(old: Expect) -> None:
    observed = seen({}, {"destinations": ["192.0.2.1", "10.1.2.3"]})
    observed.told("destinations", "192.0.2.1:443", TIME)
    observed.told("destinations", "[2001:db8::1]:443", TIME)
    made = learned(observed, Terms(), anything)
    assert made.expect.destinations == ("192.0.2.1/32", "10.1.2.3/32", "2001:db8::1/128")
    assert news(old, made) == []
    wide = widened(old, made)
    assert wide.expect == old
    table = watch_table("app", "process", "app", "off", wide, {})
    (watch,) = config.parse(f"[capture]\npackets = true\n{table}", "test").watches
    assert watch.expect == old


@settings(deadline=None)
@given(RUNS, TERMS)
def test_the_security_profile_is_one_that_the_service_takes(observed: Observed, terms: Terms) -> None:
    text = profile([("app", learned(observed, terms, anything).expect)])
    read = profiles.load(text.encode())
    assert read.elsewhere == ()
    assert all(behavior.number is not None or behavior.texts or behavior.numbers for behavior in read.behaviors)


@pytest.mark.parametrize(
    ("most", "percent", "expected"),
    [(0, 20, 0), (1, 20, 2), (5, 20, 6), (6, 20, 8), (100, 20, 120), (101, 20, 122), (3, 0, 3), (3, 100, 6), (1, 1, 2)],
)
def test_head_room_is_rounded_up_and_one_at_least_but_none_stays_none(most: int, percent: int, expected: int) -> None:
    assert limit(most, percent) == expected


def test_forks_of_less_than_a_minute_are_counted_as_if_it_had_gone_on() -> None:
    observed = seen({"forks_per_minute": 10}, {})
    assert learned(observed, Terms(head_room=0, seconds=10.0), anything).expect.forks_per_minute == 60
    assert learned(observed, Terms(head_room=0, seconds=600.0), anything).expect.forks_per_minute == 10


def test_addresses_are_joined_only_when_told() -> None:
    observed = seen({}, {"destinations": ["192.0.2.1", "192.0.2.9", "2001:db8::1", "2001:db8::2"]})
    apart = learned(observed, Terms(), anything)
    assert apart.expect.destinations == ("192.0.2.1/32", "192.0.2.9/32", "2001:db8::1/128", "2001:db8::2/128")
    joined = learned(observed, Terms(networks=(24, 64)), anything)
    assert joined.expect.destinations == ("192.0.2.0/24", "2001:db8::/64")
    assert joined.seen["destinations"]["192.0.2.0/24"].times == 2


def test_more_than_an_expectation_holds_is_left_out_and_said() -> None:
    observed = seen({}, {"destinations": [f"198.51.{i // 256}.{i % 256}" for i in range(257)]})
    made = learned(observed, Terms(), anything)
    assert made.expect.destinations is None
    assert made.left_out["destinations"] == (
        "257 were seen, and at most 256 can be expected; join them with --networks"
    )
    assert "# destinations is not judged: 257 were seen" in watch_table("app", "process", "app", "off", made, {})
    assert [rule for rule, _ in news(Expect(destinations=()), made)] == ["destinations"]


def test_what_cannot_be_expected_is_named_and_left_out() -> None:
    made = learned(seen({}, {"executables": ["/a", "/b"]}), Terms(), lambda _, member: "gone" if member == "/a" else "")
    assert made.expect.executables == ("/b",)
    assert made.refused == ("executables: /a: gone",)


FILE = """\
# mine
[log]
file = "/var/log/k"  # here

[[watch]]
name = "one"
process = "one"
expect = { child_processes = 0 }

# about two
[[watch]]
process = "two"
[watch.expect]
executables = [
    "/bin/x",
]
# memfd is not judged

# about the report
[report]
interval_s = 60
"""


def test_a_watch_is_replaced_and_all_else_stays_as_it_is_written() -> None:
    table = watch_table("two", "process", "two", "off", learned(seen({}, {}), Terms(), anything), {})
    text = with_watches(FILE, ["one", "two"], {"two": table})
    assert text.startswith(FILE[: FILE.index("[[watch]]\nprocess")])
    assert text.endswith(FILE[FILE.index("\n# about the report") :])
    assert "/bin/x" not in text
    assert "# memfd is not judged" not in text
    assert with_watches(text, ["one", "two"], {"two": table}) == text
    more = tomllib.loads(with_watches(FILE, ["one", "two"], {"three": table.replace("two", "three")}))
    assert [watch["process"] for watch in more["watch"]] == ["one", "two", "three"]


def test_lines_are_counted_and_dated() -> None:
    def line(event: str, second: int, **keys: object) -> bytes:
        told = {"time": f"2026-01-02T03:04:{second:02d}.000000000Z", "event": event, "watch": "app", **keys}
        return json.dumps(told).encode() + b"\n"

    observer = Observer(["app"])
    observer.take(line("root", 1, process_id="1-100", exe="/root"))
    for number, second in ((2, 10), (3, 20), (4, 30)):
        child = f"{number}-{second * 100}"
        observer.take(
            line("fork", second, process_id=child, parent_process_id="1-100", depth=1, uid=7)
            + line("exec", second, process_id=child, depth=1, exe="/child", uid=7)
            + line("exit", second, process_id=child, depth=1)
        )
    observer.take(line("connect", 40, remote="[2001:db8::1]:443") + line("listen", 41, local="0.0.0.0:80"))
    made = learned(observer.watches["app"], Terms(), anything)
    table = watch_table("app", "process", "app", "off", made, {7: "lp"})
    assert '"/child",  # 3 times, 2026-01-02T03:04:10Z to 2026-01-02T03:04:30Z' in table
    assert '"/root -> /child",  # 3 times' in table
    assert "7,  # lp, 6 times" in table
    assert '"2001:db8::1/128",  # once, 2026-01-02T03:04:40Z' in table
    assert "80,  # once" in table
    assert "forks_per_minute = 4  # 3 forked in the busiest minute" in table


def test_forks_are_counted_within_any_minute() -> None:
    observer = Observer(["app"])
    for pid, start in ((2, 0), (3, 3000), (4, 6000), (5, 9200), (6, 12_400)):
        told = {"time": TIME, "event": "fork", "watch": "app", "process_id": f"{pid}-{start}"}
        observer.take(json.dumps(told).encode())
    assert observer.watches["app"].most["forks_per_minute"] == 3


def parsed(*arguments: str) -> LearnOptions:
    """The options that these flags mean."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.set_defaults(config=None, watch=[], exe=[], pid=[])
    flags.add(parser)
    return flags.options(parser.parse_args(arguments))


def test_flags_mean_what_they_say(tmp_path: Any) -> None:  # noqa: ANN401 - a path of pytest's
    assert parsed() == LearnOptions()
    made = parsed("--write", str(tmp_path), "--networks", "24", "--head-room", "0", "--duration-s", "1.5")
    assert (made.output, made.profile) == (tmp_path / "kinwatch.toml", tmp_path / "profile.json")
    assert (made.networks, made.head_room, made.duration_s) == ((24, 128), 0, 1.5)
    assert parsed("--networks", "8,48").networks == (8, 48)
    for wrong in (["--networks", "33"], ["--networks", "24,64,1"], ["--networks", ""], ["--head-room", "-1"]):
        with pytest.raises(argparse.ArgumentError):
            parsed(*wrong)
