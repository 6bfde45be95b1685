"""Metrics of a window say what a population of processes did, and behaviors judge them.

Refuses to know the metrics of the network: tests/unit/test_metrics_network.py does.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.detect.behaviors import aws_form, expected, rules, violated
from monitor.detect.metrics import FIELDS, Metric, lower_bound_metrics, merged, window_metrics
from monitor.detect.snapshot import NETWORK, Snapshot, WatchSnapshot
from monitor.expect import Expect

NOTHING: dict[str, Any] = dict.fromkeys(
    ("roots", "alive", "peak", "spawned", "adopted", "execs", "exits", "root_starts", "root_exits", "window_peak"), 0
)
ENFORCEMENT = frozenset({"enforced", "would_enforce"})


def watch(name: str = "myapp", **counters: Any) -> WatchSnapshot:  # noqa: ANN401 - any field
    return WatchSnapshot(name=name, **(NOTHING | counters))


def snapshot(*watches: WatchSnapshot, **more: Any) -> Snapshot:  # noqa: ANN401 - any field
    return Snapshot(wall_ns=0, boot_ns=0, watches=watches, **({"lost": {}} | more))


def values(metrics: list[Metric]) -> dict[str, object]:
    of_network = tuple(f"{what}_" for what, fields in FIELDS.items() if not NETWORK.isdisjoint(fields))
    return {metric.name: metric.value for metric in metrics if not metric.name.startswith(of_network)}


class Population:
    """The truth: every descendant by a number of its own, and what a reader of windows should be told of them."""

    def __init__(self) -> None:
        self.made = 0
        self.alive: set[int] = set()
        self.spawned = self.adopted = self.execs = self.exits = self.peak = self.roots = self.root_starts = 0
        self.begin_window()

    def begin_window(self) -> None:
        """Forget what the last report told."""
        self.seen = set(self.alive)
        self.window_peak = len(self.alive)
        self.window_spawned = self.window_execs = 0
        self.exes: set[str] = set()

    def step(self, what: str) -> None:
        """Let one thing happen."""
        if what in {"fork", "adopt"}:
            self.made += 1
            self.alive.add(self.made)
            self.seen.add(self.made)
            self.spawned += what == "fork"
            self.window_spawned += what == "fork"
            self.adopted += what == "adopt"
            self.peak = max(self.peak, len(self.alive))
            self.window_peak = max(self.window_peak, len(self.alive))
        elif what == "exit" and self.alive:
            self.alive.remove(min(self.alive))
            self.exits += 1
        elif what == "exec" and self.alive:
            self.execs += 1
            self.window_execs += 1
            self.exes.add(f"/bin/{self.execs % 3}")
        elif what == "root":
            self.roots += 1
            self.root_starts += 1

    def snapshot(self, lost: int) -> Snapshot:
        """Freeze the counters as a capture does."""
        return snapshot(
            watch(
                roots=self.roots,
                alive=len(self.alive),
                peak=self.peak,
                spawned=self.spawned,
                adopted=self.adopted,
                execs=self.execs,
                exits=self.exits,
                root_starts=self.root_starts,
                window_peak=self.window_peak,
                exes=tuple(sorted(self.exes)),
            ),
            lost={"ring_full": lost, "sink_full": 2 * lost},
        )

    def truth(self, lost: int) -> dict[str, object]:
        """Say what the window's report has to say."""
        return {
            "num_child_procs_myapp": len(self.seen),
            "child_procs_alive_myapp": len(self.alive),
            "child_procs_peak_myapp": self.window_peak,
            "child_procs_spawned_myapp": self.window_spawned,
            "child_execs_myapp": self.window_execs,
            "child_exes_myapp": tuple(sorted(self.exes)),
            "roots_myapp": self.roots,
            "events_lost": 3 * lost,
        }


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from(["fork", "fork", "adopt", "exit", "exec", "root"])), min_size=1))
def test_metrics_are_the_truth_of_any_population_in_any_windows(windows: list[list[str]]) -> None:
    population, baseline, lost = Population(), None, 0
    for number, window in enumerate(windows):
        for what in window:
            population.step(what)
        now = population.snapshot(lost + number)
        assert values(window_metrics(baseline, now)) == population.truth(number)
        baseline, lost = now, lost + number
        population.begin_window()


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["fork", "adopt", "exit", "exec"])),
    st.lists(st.sampled_from(["fork", "adopt", "exit", "exec"])),
)
def test_a_window_that_was_not_accepted_is_part_of_the_next(first: list[str], second: list[str]) -> None:
    population = Population()
    for what in first:
        population.step(what)
    refused = window_metrics(None, population.snapshot(1))
    for what in second:
        population.step(what)
    assert values(window_metrics(None, population.snapshot(2))) == population.truth(2)
    assert values(refused).keys() == population.truth(2).keys()


EVENTS = st.lists(st.sampled_from(["fork", "adopt", "exit", "exec", "root"]), max_size=30)


@settings(deadline=None)
@given(EVENTS, EVENTS)
def test_a_window_that_another_life_of_the_capture_goes_on_with_says_what_one_life_would_have(
    first: list[str], second: list[str]
) -> None:
    whole = Population()
    for what in first:
        whole.step(what)
    refused = window_metrics(None, whole.snapshot(1))
    # The next capture knows nothing, finds who is alive, and counts from there.
    anew = Population()
    for _ in whole.alive:
        anew.step("adopt")
    for _ in range(whole.roots):
        anew.step("root")
    for what in second:
        whole.step(what)
        anew.step(what)
    seen = values(merged(refused, window_metrics(None, anew.snapshot(1))))
    truth = whole.truth(2)
    executables = seen.pop("child_exes_myapp")
    assert isinstance(executables, tuple)
    assert set(executables) <= {"/bin/0", "/bin/1", "/bin/2"}
    assert len(executables) == len(set(executables))
    del truth["child_exes_myapp"]
    assert seen == truth


def test_of_two_windows_counts_add_up_peaks_take_the_higher_states_the_later_and_lists_both() -> None:
    earlier = window_metrics(
        None,
        snapshot(watch(roots=2, alive=3, window_peak=9, spawned=20, execs=4, exes=("/bin/a", "/bin/b"))),
    )
    later = window_metrics(
        None,
        snapshot(watch(roots=1, alive=1, window_peak=5, spawned=2, adopted=3, execs=1, exes=("/bin/b", "/bin/c"))),
    )
    assert values(merged(earlier, later)) == {
        "num_child_procs_myapp": 22,  # the three that were alive are not counted twice
        "child_procs_alive_myapp": 1,
        "child_procs_peak_myapp": 9,
        "child_procs_spawned_myapp": 22,
        "child_execs_myapp": 5,
        "child_exes_myapp": ("/bin/a", "/bin/b", "/bin/c"),
        "roots_myapp": 1,
        "events_lost": 0,
    }


def test_those_alive_before_a_reboot_are_not_missing_from_the_children_after_it() -> None:
    earlier = window_metrics(None, snapshot(watch(alive=5, spawned=5)))
    later = window_metrics(None, snapshot(watch(alive=0, spawned=2)))
    # Whether the two were among the five cannot be known; never fewer than the first window had.
    assert values(merged(earlier, later))["num_child_procs_myapp"] == 5


def test_a_metric_of_only_one_window_stays() -> None:
    earlier = window_metrics(None, snapshot(watch("gone", spawned=3), lost={"ring_full": 1}))
    later = window_metrics(None, snapshot(watch("new", spawned=4), lost={"ring_full": 2}))
    seen = values(merged(earlier, later))
    assert (seen["num_child_procs_gone"], seen["num_child_procs_new"], seen["events_lost"]) == (3, 4, 3)
    assert merged(earlier, []) == earlier
    assert merged([], later) == later


def test_watches_whose_names_look_like_metrics_are_merged_apart() -> None:
    names = ("alive_x", "x", "roots_x", "procs_alive_x")
    earlier = window_metrics(None, snapshot(*(watch(name, spawned=1, roots=5) for name in names)))
    later = window_metrics(None, snapshot(*(watch(name, spawned=10, roots=7) for name in names)))
    seen = values(merged(earlier, later))
    assert [seen[f"child_procs_spawned_{name}"] for name in names] == [11] * 4
    assert [seen[f"roots_{name}"] for name in names] == [7] * 4


def test_a_metric_that_became_one_of_another_kind_is_the_later_one() -> None:
    later = [Metric("m", "string-list", ("a",))]
    assert merged([Metric("m", "number", 1)], later) == later


def test_a_child_of_one_moment_is_counted_though_none_is_alive_at_either_end() -> None:
    before, after = snapshot(watch(spawned=5, exits=5)), snapshot(watch(spawned=6, exits=6, window_peak=1))
    seen = values(window_metrics(before, after))
    assert (seen["num_child_procs_myapp"], seen["child_procs_alive_myapp"], seen["child_procs_peak_myapp"]) == (1, 0, 1)


def test_a_child_that_lives_through_several_windows_is_in_each_of_them() -> None:
    same = snapshot(watch(spawned=1, alive=1, window_peak=1))
    assert values(window_metrics(same, same))["num_child_procs_myapp"] == 1


def test_a_watch_that_the_baseline_does_not_know_counts_from_zero() -> None:
    before, after = snapshot(watch("old", spawned=9)), snapshot(watch("new", spawned=3, alive=2))
    assert values(window_metrics(before, after))["num_child_procs_new"] == 3
    assert "num_child_procs_old" not in values(window_metrics(before, after))


def test_counters_that_began_anew_count_from_zero() -> None:
    before = snapshot(watch(spawned=900, alive=7, exits=893), lost={"ring_full": 50})
    after = snapshot(watch(spawned=3, alive=1, exits=2), lost={"ring_full": 4})
    seen = values(window_metrics(before, after))
    assert (seen["num_child_procs_myapp"], seen["child_procs_spawned_myapp"], seen["events_lost"]) == (3, 3, 4)


def test_watches_keep_apart() -> None:
    seen = values(window_metrics(None, snapshot(watch("a", spawned=1), watch("b", adopted=2, roots=1))))
    assert (seen["num_child_procs_a"], seen["num_child_procs_b"], seen["roots_a"], seen["roots_b"]) == (1, 2, 0, 1)


@settings(deadline=None)
@given(st.frozensets(st.sampled_from(sorted(NOTHING))), st.booleans())
def test_what_is_unknown_is_left_out_not_zero(unknown: frozenset[str], in_baseline: bool) -> None:  # noqa: FBT001
    before = snapshot(watch(), unknown=unknown if in_baseline else frozenset())
    now = snapshot(watch(), unknown=frozenset() if in_baseline else unknown)
    present = {
        f"{what}_myapp" for what, fields in FIELDS.items() if (unknown | NETWORK | ENFORCEMENT).isdisjoint(fields)
    }
    assert values(window_metrics(before, now)).keys() == present | {"events_lost"}


def test_lower_bounds_are_sent_and_named() -> None:
    polled = snapshot(
        watch(spawned=2, alive=1),
        lower_bounds=frozenset({"spawned", "window_peak", "execs"}),
        unknown=frozenset({"execs"}),
    )
    assert lower_bound_metrics(polled) == [
        "num_child_procs_myapp",
        "child_procs_peak_myapp",
        "child_procs_spawned_myapp",
    ]
    assert values(window_metrics(None, polled))["child_procs_spawned_myapp"] == 2


def test_more_executables_than_were_kept_make_the_list_a_lower_bound() -> None:
    assert lower_bound_metrics(snapshot(watch(exes=("/bin/cat",), exes_missed=1))) == ["child_exes_myapp"]
    assert lower_bound_metrics(snapshot(watch(exes=("/bin/cat",)))) == []


def test_every_counter_of_a_snapshot_has_its_test_here() -> None:
    fields = {field.name for field in msgspec.structs.fields(WatchSnapshot)}
    assert fields == {*NOTHING, *ENFORCEMENT, "name", "exes", "exes_missed", *NETWORK}


@pytest.mark.parametrize("name", ["", "a b", "a" * 129, "aws:x", "a\n", "ä"])
def test_a_metric_cannot_have_a_name_that_aws_refuses(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name"):
        Metric(name, "number", 1)


def test_the_longest_watch_name_still_makes_metric_names() -> None:
    longest = "w" * 64
    assert f"child_procs_spawned_{longest}" in values(window_metrics(None, snapshot(watch(longest))))


@pytest.mark.parametrize(("limit", "count", "broken"), [(0, 0, False), (0, 1, True), (3, 3, False), (3, 4, True)])
def test_more_children_than_expected_break_the_expectation(limit: int, count: int, broken: bool) -> None:  # noqa: FBT001
    behaviors = expected("myapp", Expect(child_processes=limit))
    metrics = window_metrics(None, snapshot(watch(spawned=count, window_peak=count), watch("other", spawned=99)))
    metric = "child_procs_peak_myapp" if limit else "num_child_procs_myapp"
    found = [(violation.behavior.metric, violation.value) for violation in violated(behaviors, metrics)]
    assert found == ([(metric, count)] if broken else [])
    one_after_the_other = window_metrics(None, snapshot(watch(spawned=count, window_peak=min(1, count))))
    assert bool(violated(behaviors, one_after_the_other)) == (broken and not limit)


def test_no_expectation_and_an_absent_metric_are_not_judged() -> None:
    assert expected("myapp", Expect()) == ()
    assert violated(expected("myapp", Expect(child_processes=0)), []) == []


def test_what_enforcement_did_is_a_metric_of_watches_that_are_enforced() -> None:
    before, now = watch(enforced=2, would_enforce=None), watch(enforced=5, would_enforce=7)
    found = values(window_metrics(snapshot(before), snapshot(now, watch("other"))))
    assert (found["enforced_myapp"], found["would_enforce_myapp"]) == (3, 7)
    assert not {"enforced_other", "would_enforce_other"} & set(found)
    joined = merged(window_metrics(None, snapshot(now)), window_metrics(None, snapshot(now)))
    assert values(joined)["enforced_myapp"] == 10


def test_executables_are_judged_at_the_end_of_a_window_too() -> None:
    (behavior,) = expected("myapp", Expect(executables=("/bin/cat",)))
    assert aws_form(behavior)["criteria"]["comparisonOperator"] == "in-set"
    for exes, broken in ((("/bin/cat",), False), (("/bin/cat", "/bin/sh"), True), ((), False)):
        assert bool(violated([behavior], window_metrics(None, snapshot(watch(exes=exes))))) == broken


def test_rules_that_no_behavior_can_express_are_shown_as_they_are() -> None:
    expect = Expect(
        child_processes=1, edges=("/a -> /b",), depth=2, forks_per_minute=3, uids=(0,), memfd=False, deleted=True
    )
    assert {rule["rule"]: rule["value"] for rule in rules("myapp", expect)} == {
        "edges": ("/a -> /b",),
        "depth": 2,
        "forks_per_minute": 3,
        "uids": (0,),
        "memfd": False,
    }
    assert rules("myapp", Expect(child_processes=1, executables=())) == ()


def test_an_expectation_is_written_as_aws_writes_behaviors() -> None:
    assert [aws_form(behavior) for behavior in expected("myapp", Expect(child_processes=0))] == [
        {
            "name": "child_processes_myapp",
            "metric": "num_child_procs_myapp",
            "criteria": {
                "comparisonOperator": "less-than-equals",
                "value": {"number": 0},
                "consecutiveDatapointsToAlarm": 1,
                "consecutiveDatapointsToClear": 1,
            },
        }
    ]


@settings(deadline=None)
@given(
    st.sampled_from(["less-than", "less-than-equals", "greater-than", "greater-than-equals"]),
    st.integers(),
    st.integers(),
)
def test_a_behavior_says_what_is_normal(comparison: Any, number: int, value: int) -> None:  # noqa: ANN401 - a Literal
    (behavior,) = expected("a", Expect(child_processes=0))
    behavior = msgspec.structs.replace(behavior, operator=comparison, number=number, metric="m")
    normal = {
        "less-than": value < number,
        "less-than-equals": value <= number,
        "greater-than": value > number,
        "greater-than-equals": value >= number,
    }
    assert bool(violated([behavior], [Metric("m", "number", value)])) != normal[comparison]
