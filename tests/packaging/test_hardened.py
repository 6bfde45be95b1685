"""Every feature under the restrictions of the unit: as it comes, and with what its comments say that some of them need.

Owns the machine that an administrator works on (administrator.py). Refuses to know how it is booted.
"""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

import pytest

from tests.packaging import booted
from tests.packaging.debs import package
from tests.packaging.trees import ROOT, copy_of, tree
from tests.vm import root as checkout

pytestmark = pytest.mark.packages

MACHINE = os.uname().machine
SIZE_MB = 2500
ADMINISTRATOR = """
cd /kinwatch && PYTHONPATH=/kinwatch .venv/bin/python -B -m tests.packaging.administrator /run/result
"""


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the administrator saw."""
    folder = tmp_path_factory.mktemp("hardened")
    root = copy_of(tree("bookworm", MACHINE, *booted.PACKAGES, installed=True), folder / "root")
    done = root.run("dpkg", "--install", package(), shares=(package().parent,))
    assert done.returncode == 0, done.stderr
    # The suite's own broker, fleet and shadow, with what they need of the checkout's environment.
    home = root.path / "kinwatch"
    checkout.put_checkout(home)
    (here, there) = (next((place / ".venv" / "lib").glob("python3*")) / "site-packages" for place in (ROOT, home))
    for part in here.glob("cryptography*"):  # the authority's, which the machines of other tests do without
        shutil.copytree(part, there / part.name)
    booted.image(root, ADMINISTRATOR, folder / "root.ext4", SIZE_MB)
    (folder / "left").mkdir()
    # Without the BPF LSM, which would refuse the fork: then the daemon has to kill, with what the unit lets it.
    left = booted.boot(folder / "root.ext4", folder / "left", timeout_s=1800, append="lsm=lockdown,yama,apparmor")
    found: dict[str, Any] = json.loads((left / "facts.json").read_text()) if (left / "facts.json").exists() else {}
    found["output"] = (left / "output").read_text() + (left / "journal").read_text()
    return found


def _fact(facts: dict[str, Any], name: str) -> Any:  # noqa: ANN401 - whatever was noted
    assert name in facts, facts["output"][-6000:]
    return facts[name]


def test_an_image_that_is_not_expected_is_killed(facts: dict[str, Any]) -> None:
    assert _fact(facts, "exec") == 7, "the application itself lives on"
    killed = [line for line in _fact(facts, "enforced") if (line["watch"], line["action"]) == ("image", "kill")]
    assert [line.get("error") for line in killed] == [None]


def test_a_child_of_another_user_too_many_is_killed_by_the_daemon(facts: dict[str, Any]) -> None:
    killed = [line for line in _fact(facts, "enforced") if (line["watch"], line["action"]) == ("limit", "kill")]
    assert killed
    assert all(line["delegated"] and "error" not in line for line in killed), killed


def test_a_descendant_of_another_user_is_stopped(facts: dict[str, Any]) -> None:
    assert _fact(facts, "stopped") == "T"
    (stopped,) = [line for line in facts["enforced"] if (line["watch"], line["action"]) == ("app", "stop")]
    assert "error" not in stopped


def test_a_command_that_may_not_become_its_user_is_said_at_the_start(facts: dict[str, Any]) -> None:
    said = _fact(facts, "said at the start")
    assert "detect.action.command: to run it as kinwatch takes CAP_SETGID and CAP_SETUID" in said


def test_a_configuration_from_afar_is_verified_applied_and_kept(facts: dict[str, Any]) -> None:
    told = _fact(facts, "remote")
    assert (told["state"], told["version"], told["confirmed"]) == ("applied", 1, 1), told
    assert _fact(facts, "watches") == ["remote"]


def test_the_daemon_gets_a_certificate_of_its_own(facts: dict[str, Any]) -> None:
    assert _fact(facts, "thing") == "camera-4711"
    modes = _fact(facts, "identity")
    assert {"key.pem", "certificate.pem", "state.json"} <= modes.keys()
    assert modes["key.pem"] == "0o600"


def test_with_the_added_capabilities_a_command_runs_as_its_user(facts: dict[str, Any]) -> None:
    assert "takes CAP_" not in _fact(facts, "said with all of it")
    assert _fact(facts, "user") == "kinwatch"
    assert _fact(facts, "alarm")["watch"] == "app"


def test_with_writable_control_groups_a_unit_is_frozen(facts: dict[str, Any]) -> None:
    assert "is read-only here" not in _fact(facts, "said with all of it")
    assert _fact(facts, "frozen") == "1", _fact(facts, "freezing")


def test_with_network_namespaces_allowed_another_one_is_reported(facts: dict[str, Any]) -> None:
    ports = _fact(facts, "report")["metrics"]["listening_tcp_ports"]["ports"]
    assert 7777 in {port["port"] for port in ports}
