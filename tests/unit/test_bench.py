"""What the bench's figures mean: its arithmetic, its judgement, its reading of others' output."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.bench import NOBODY
from tests.bench.page import KIN, between, peers, seen_row, slower_row
from tests.bench.storms import Result
from tests.bench.table import Spread, at_most, markdown, percentile, ratios
from tests.bench.watcher import lines_by_event
from tests.bench.watchers import children_told

if TYPE_CHECKING:
    from pathlib import Path

TIMES = st.floats(min_value=1, max_value=1e12)


def result(pairs: list[tuple[float, float]], saw: dict[str, int]) -> Result:
    """A condition of storms of 100 children."""
    return Result(KIN, 100, elapsed=pairs, watcher_cpu=[0.04] * len(pairs), saw=[saw] * len(pairs))


@given(st.lists(TIMES, min_size=1))
def test_a_percentile_is_a_value_that_was_measured(values: list[float]) -> None:
    assert percentile(values, 50) in values
    assert percentile(values, 100) == max(values)


def test_of_a_hundred_the_99th_percentile_is_the_last_but_one() -> None:
    assert percentile(range(1, 101), 99) == 99


def test_a_slowdown_is_the_middle_of_the_paired_ratios_and_not_the_ratio_of_sums() -> None:
    pairs = [(100.0, 105.0), (1000.0, 900.0), (100.0, 104.0), (200.0, 208.0), (100.0, 104.0)]
    assert Spread.of(ratios(pairs)).median == pytest.approx(1.04)


def test_one_measurement_decides_nothing() -> None:
    assert Spread.of([1.0]).margin == math.inf
    assert Spread.of([1.0]).at_most(1.05) == "unclear"


def test_a_goal_within_the_margin_is_neither_met_nor_missed() -> None:
    assert Spread(1.04, 0.02).at_most(1.05) == "unclear"
    assert Spread(1.06, 0.02).at_most(1.05) == "unclear"
    assert Spread(1.02, 0.02).at_most(1.05) == "yes"
    assert Spread(1.08, 0.02).at_most(1.05) == "NO"


def test_what_was_not_measured_meets_no_goal_and_says_why() -> None:
    row = at_most("start", "a daemon runs", (300, "ms"))
    assert row.met == ""
    assert "a daemon runs" in row.measured
    missing = Result(KIN, 100, failures=["forkstat is not installed"])
    assert "forkstat is not installed" in slower_row(KIN, missing).measured
    assert "forkstat is not installed" in peers(missing, missing, missing)


@pytest.mark.parametrize("short", ["spawned", "forks", "exits"])
def test_one_child_that_was_not_seen_misses_the_goal(short: str) -> None:
    whole = {"spawned": 100, "forks": 100, "exits": 100, "lost": 0}
    assert seen_row(result([(1.0, 1.0)], whole)).met == "yes"
    assert seen_row(result([(1.0, 1.0)], whole | {short: 99})).met == "NO"
    assert seen_row(result([(1.0, 1.0)], whole | {"lost": 1})).met == "NO"


def test_a_child_counted_twice_misses_the_goal() -> None:
    saw = {"spawned": 101, "forks": 100, "exits": 100, "lost": 0}
    assert seen_row(result([(1.0, 1.0)], saw)).met == "NO"


def test_the_noise_has_no_goal() -> None:
    row = slower_row(NOBODY, result([(1.0, 2.0)] * 5, {}))
    assert (row.goal, row.met) == ("", "")
    assert "+100.0 %" in row.measured


def test_the_fewest_and_the_most_are_told() -> None:
    assert between([5, 3, 9], 100) == "3 to 9 of 100"
    assert between([100, 100], 100) == "100 of 100"


def test_a_pid_that_comes_back_is_another_child_of_forkstats() -> None:
    lines = b"""\
Time     Event   PID Info   Duration Process
04:26:04 fork   6384 parent          /x/kwb-storm 3
04:26:04 fork   6404 child           /x/kwb-storm 3
04:26:04 exit   6404      0   0.001s kwb-storm
04:26:04 fork   6384 parent          /x/kwb-storm 3
04:26:04 fork   6404 child           kwb-storm
04:26:04 exit   6404      0   0.001s kwb-storm
04:26:04 fork     77 parent          bash
04:26:04 fork   6405 child           bash
04:26:04 exit   6405      0   0.001s bash
04:26:05 fork      0 parent          <unknown>
04:26:05 fork   6406 child           <unknown>
""".splitlines()
    assert children_told(lines, 6384) == {"children": 3, "exits": 2}


def test_a_roots_own_lines_are_not_its_childrens(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        '{"event":"root","pid":1}\n'
        '{"event":"fork","pid":2,"depth":1,"comm":"a"}\n'
        '{"event":"exit","pid":2,"depth":1,"comm":"a"}\n'
        '{"event":"exit","pid":1,"depth":0,"comm":"a"}\n',
        encoding="utf-8",
    )
    assert lines_by_event(log) == {"forks": 1, "exits": 1, "execs": 0}


def test_columns_of_a_table_are_of_one_width() -> None:
    lines = markdown(("a", "b"), [("longer", "x"), ("y", "± 3")]).splitlines()
    assert len({len(line) for line in lines}) == 1
