"""A report of this machine names no metric that the account's template lacks, and none of another type."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from monitor.cloud.template import Wanted, make
from monitor.config import load
from monitor.defender.names import VALUE_KEYS
from monitor.judging.plan import NO_PROFILE
from tests.kernel.conftest import kinwatch

if TYPE_CHECKING:
    from pathlib import Path

    from tests.contract.conftest import Programs


@pytest.mark.parametrize("packets", [False, True], ids=["without packets", "packets"])
@pytest.mark.parametrize("kind", ["core", "poll"])
def test_a_report_names_no_metric_that_the_template_lacks(
    kind: str, programs: Programs, name: str, tmp_path: Path, *, packets: bool
) -> None:
    path = tmp_path / "k.toml"
    path.write_text(
        f'[[watch]]\nprocess = "{name}"\nexpect = {{ child_processes = 0 }}\n'
        f'[capture]\nkind = "{kind}"\npackets = {str(packets).lower()}\n[report]\ncpu_usage = true\n'
    )
    programs.start("family", name, "2", "1").fact("child", 4)
    done = kinwatch("report", "-c", path, "--duration-s", "1.5")
    assert done.returncode == 1, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)["custom_metrics"]
    told = {metric: next(iter(value[0])) for metric, value in document.items()}
    assert told[f"num_child_procs_{name}"] == "number"
    resources = make(load(path), Wanted(), {}, NO_PROFILE).document["Resources"].values()
    defined = {
        one["Properties"]["MetricName"]: VALUE_KEYS[one["Properties"]["MetricType"]]
        for one in resources
        if one["Type"] == "AWS::IoT::CustomMetric"
    }
    assert told.items() <= defined.items()
    assert kind == "poll" or len(defined) - len(told) <= EMPTY, "what is never reported needs no definition"


EMPTY = 4
"""Lists without entries are left out of a report: programs, ports, and the two of destinations."""
