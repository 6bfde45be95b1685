"""The Greengrass component: its recipe is whole, and its scripts, run as Greengrass would, install and watch.

Owns what Greengrass fills in. Refuses to know Greengrass: no part of it runs here.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.packaging.trees import copy_of, tree
from tests.packaging.watching import ONCE, Daemon, run_application, told

pytestmark = pytest.mark.packages

ROOT = Path(__file__).resolve().parents[2]
MACHINE = os.uname().machine
NAME = f"kwgreen{os.getpid() % 1_000_000}"
LOG = "/var/log/kinwatch-greengrass.jsonl"

# AWS IoT Greengrass V2 Developer Guide, "Component recipe reference"; Uninstall since nucleus 2.12.
NEEDED = {"RecipeFormatVersion", "ComponentName", "ComponentVersion", "ComponentPublisher", "Manifests"}
OPTIONAL = {
    *("ComponentDescription", "ComponentConfiguration", "ComponentDependencies", "ComponentType", "ComponentSource"),
    "Lifecycle",
}
MANIFEST = {"Name", "Platform", "Lifecycle", "Selections", "Artifacts"}
ARTIFACT = {"URI", "Unarchive", "Permission"}
STEPS = {"Setenv", "Bootstrap", "Install", "Run", "Startup", "Shutdown", "Recover", "Uninstall"}
STEP = {"Script", "RequiresPrivilege", "Skipif", "Timeout", "Setenv"}


@pytest.fixture(scope="module")
def component(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The recipe and the archive."""
    folder = tmp_path_factory.mktemp("component")
    command = [sys.executable, str(ROOT / "build" / "greengrass.py"), "--bucket", "a-bucket", "--dist", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    archive, recipe = map(Path, done.stdout.split())
    return yaml.safe_load(recipe.read_text()), archive


def test_the_recipe_has_the_documented_keys_and_no_others(component: tuple[dict[str, Any], Path]) -> None:
    recipe, _ = component
    assert NEEDED <= recipe.keys() <= NEEDED | OPTIONAL
    assert recipe["RecipeFormatVersion"] == "2020-01-25"
    assert recipe["ComponentType"] == "aws.greengrass.generic"
    assert re.fullmatch(r"[a-zA-Z0-9-_.]{1,128}", recipe["ComponentName"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", recipe["ComponentVersion"])
    assert recipe["ComponentConfiguration"].keys() == {"DefaultConfiguration"}
    for manifest in recipe["Manifests"]:
        assert manifest.keys() <= MANIFEST
        assert all(artifact.keys() <= ARTIFACT and artifact["Unarchive"] == "ZIP" for artifact in manifest["Artifacts"])
        steps = manifest["Lifecycle"]
        assert steps.keys() <= STEPS
        assert not {"Run", "Startup"} <= steps.keys(), "there may be only one of them"
        for step in steps.values():
            assert {"Script"} <= step.keys() <= STEP
            assert isinstance(step["RequiresPrivilege"], bool)


def test_one_manifest_serves_both_machines_and_no_other(component: tuple[dict[str, Any], Path]) -> None:
    recipe, archive = component
    (manifest,) = recipe["Manifests"]
    assert manifest["Platform"]["os"] == "linux"
    slash, expression, end = manifest["Platform"]["architecture"].split("/")
    assert (slash, end) == ("", ""), "a regular expression stands in slashes"
    told = [name for name in ("amd64", "aarch64", "arm", "x86") if re.fullmatch(expression, name)]
    assert told == ["amd64", "aarch64"]
    assert [artifact["URI"] for artifact in manifest["Artifacts"]] == [f"s3://a-bucket/{archive.name}"]
    wheels = [name for name in zipfile.ZipFile(archive).namelist() if name.startswith("kinwatch-")]
    assert {machine for machine in ("x86_64", "aarch64") for name in wheels if name.endswith(f"_{machine}.whl")} == {
        "x86_64",
        "aarch64",
    }


def test_its_scripts_install_without_a_network_and_watch(
    component: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    recipe, archive = component
    root = copy_of(tree("bookworm", MACHINE, "python3-venv", installed=True), tmp_path / "root")
    Path(f"{root.path}/greengrass/work").mkdir(parents=True)
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(f"{root.path}/greengrass/unarchived/{archive.stem}")
    toml = recipe["ComponentConfiguration"]["DefaultConfiguration"]["toml"]
    toml += f'[[watch]]\nname = "{NAME}"\nprocess = "{NAME}"\n'
    lifecycle = recipe["Manifests"][0]["Lifecycle"]
    filled = {"{work:path}": "/greengrass/work", "{artifacts:decompressedPath}": "/greengrass/unarchived"}

    def script(step: str) -> list[str]:
        text = lifecycle[step]["Script"]
        for placeholder, value in filled.items():
            text = text.replace(placeholder, value)
        assert not re.search(r"\{\w+:", text), text
        variables = [f"{key}={value}" for key, value in lifecycle[step].get("Setenv", {}).items()]
        assert variables in ([], ["KINWATCH_TOML={configuration:/toml}"])
        words = ["env", f"KINWATCH_TOML={toml}", "sh", "-c", text]
        return ["unshare", "--net", *root.words(*words)] if step == "Install" else root.words(*words, kernel=True)

    done = subprocess.run(script("Install"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    daemon = Daemon(script("Run"), tmp_path / "said")
    try:
        run_application(root, NAME)
        assert told(root, LOG, NAME, 5) == ONCE
        daemon.end(signal.SIGTERM)
        done = subprocess.run(script("Uninstall"), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    finally:
        daemon.process.kill()
