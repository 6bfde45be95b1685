"""cfn-lint finds nothing in the templates of many configurations. It needs no network."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from cfnlint.api import lint
from cfnlint.core import get_rules

from tests.cloud.configurations import EXPECTING, PROFILE, TEXTS, made

if TYPE_CHECKING:
    from cfnlint.rules import RulesCollection


@pytest.mark.parametrize("detect", [True, False], ids=["detect", "no detect"])
@pytest.mark.parametrize("profile", [None, PROFILE], ids=["no file", "file"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_cfn_lint_finds_nothing(text: str, profile: dict[str, Any] | None, *, detect: bool) -> None:
    document = made(text, profile, detect=detect).document
    assert found(document) == []


@pytest.mark.parametrize("name", ["a watch", "a name of 64", "everything expected"])
def test_cfn_lint_finds_nothing_in_a_quarantine(name: str) -> None:
    assert found(made(TEXTS[name], PROFILE, detect=False, quarantine=("all",)).document) == []


def test_cfn_lint_finds_nothing_where_metrics_are_of_another_stack() -> None:
    document = made(EXPECTING, PROFILE, existing=("events_lost", "num_child_procs_myapp")).document
    assert found(document) == []


def test_cfn_lint_finds_what_is_wrong() -> None:
    document = made(EXPECTING).document
    document["Resources"]["AlarmRole"]["Properties"]["Colour"] = "red"
    assert [text for text in found(document) if "Colour" in text]


def test_only_networks_of_ipv6_switch_a_check_off() -> None:
    with_ipv6 = made(EXPECTING).document["Resources"]["SecurityProfile"]
    without = made(EXPECTING.replace(', "fd00::/8"', "")).document["Resources"]["SecurityProfile"]
    assert "Metadata" in with_ipv6
    assert "Metadata" not in without


def found(document: dict[str, Any]) -> list[str]:
    """What cfn-lint says, in words."""
    return [f"{match.rule.id} {match.message}" for match in lint(json.dumps(document), _rules(), ["eu-west-1"])]


@cache
def _rules() -> RulesCollection:
    """Every rule that fails a template or warns, as the command of that name has them."""
    return get_rules([], [], ["E", "W"])
