"""What counts as a success of a run on another kernel, and what the page says of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

import msgspec
import pytest

from tests.vm import results

if TYPE_CHECKING:
    from pathlib import Path

EXPECTED = results.Expected("6.1", "core", ("no btrfs",), "heart", "abc", "2026-01-02")
LINEAGE = '<testcase classname="tests.contract.test_lineage" name="test_x[{}]">{}</testcase>'


def _files(folder: Path, cases: list[str], *, asked: int, capture: str = "core") -> Path:
    (folder / "doctor.json").write_text(json.dumps({"capture": capture, "core_obstacles": ["no BTF"]}))
    (folder / "output").write_text(f"collecting ... collected {asked + 2} items / 2 deselected / {asked} selected\n")
    (folder / "tests.xml").write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    return folder


def _skipped(why: str) -> str:
    return LINEAGE.format("core", f"<skipped message={quoteattr(why)}/>")


def test_a_run_in_which_everything_passed_has_not_failed(tmp_path: Path) -> None:
    cases = [LINEAGE.format("core", ""), LINEAGE.format("poll", ""), LINEAGE.format("poll", "")]
    outcome = results.judge(EXPECTED, "6.1.0-1", _files(tmp_path, cases, asked=3), 0, 120)
    assert not outcome.failed
    assert (outcome.cells["contract, core"], outcome.cells["contract, poll"]) == ("1 passed", "2 passed")
    assert outcome.ran == "3 of 3 in 2 min"
    assert outcome.cells.keys() == set(results.COLUMNS), "no cell is empty"
    assert all(outcome.cells.values())


@pytest.mark.parametrize(
    ("cases", "asked", "capture", "why"),
    [
        ([LINEAGE.format("core", "<failure message='no'/>")], 1, "core", "a test that failed"),
        ([LINEAGE.format("core", "<error message='no'/>")], 1, "core", "a fixture that failed"),
        ([LINEAGE.format("core", "")], 2, "core", "a test that did not run"),
        ([], 0, "core", "nothing that ran"),
        ([LINEAGE.format("core", "")], 1, "poll", "another capture than the kernel should have"),
        ([_skipped("this kernel has no BTF")], 1, "core", "a skip that is not allowed there"),
    ],
)
def test_a_run_has_failed_by(cases: list[str], asked: int, capture: str, why: str, tmp_path: Path) -> None:
    outcome = results.judge(EXPECTED, "6.1.0-1", _files(tmp_path, cases, asked=asked, capture=capture), 0, 60)
    assert outcome.failed, why


def test_a_skip_that_is_allowed_is_told_with_its_reason(tmp_path: Path) -> None:
    cases = [_skipped("this kernel has no btrfs"), LINEAGE.format("core", "")]
    outcome = results.judge(EXPECTED, "6.1.0-1", _files(tmp_path, cases, asked=2), 0, 60)
    assert not outcome.failed
    assert outcome.cells["contract, core"] == "1 passed, 1 skipped: this kernel has no btrfs"


def test_a_run_whose_time_was_up_says_so(tmp_path: Path) -> None:
    files = _files(tmp_path, [LINEAGE.format("core", "")], asked=5)
    outcome = results.judge(EXPECTED, "6.1.0-1", files, results.TIME_IS_UP, 3600)
    assert outcome.failed
    assert outcome.ran == "1 of 5 in 60 min, then its time was up"


def test_an_outcome_is_kept_for_a_later_page(tmp_path: Path) -> None:
    path = tmp_path / "outcomes" / "6-1.json"
    assert results.kept(path) is None
    outcome = results.judge(EXPECTED, "6.1.0-1", _files(tmp_path, [LINEAGE.format("core", "")], asked=1), 0, 60)
    results.keep(outcome, path)
    assert results.kept(path) == outcome


def test_the_page_has_a_row_for_what_ran_and_for_what_did_not() -> None:
    gone = results.unknown(EXPECTED, "", "the kernel cannot be had (no mirror today or tomorrow)")
    page = results.page([msgspec.structs.replace(gone, name="a|b")], ["7"])
    rows = [line for line in page.splitlines() if line.startswith("|")][2:]
    assert len(rows) == 2
    assert rows[0].count("unknown, note 1") == len(results.COLUMNS)
    assert page.count("no mirror") == 1
    assert page.endswith("\n\n1. the kernel cannot be had (no mirror today or tomorrow)\n")
    assert rows[1].startswith("| 7 |")
    assert rows[1].count("unknown: not run") == len(results.COLUMNS)
