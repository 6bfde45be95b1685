"""`kinwatch cloud`: what is written where, and what is refused with which words."""

from __future__ import annotations

import json
import sys
from subprocess import run
from typing import TYPE_CHECKING

import pytest

from monitor import cli, verbs
from monitor.cloud.flags import STEPS
from tests.cloud.configurations import DEFENDER, MYAPP, PROFILE

if TYPE_CHECKING:
    from pathlib import Path

WATCH = ("cloud", "template", "--watch", "myapp")


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a wrong command says, in its one line."""
    assert cli.main(argv) == verbs.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("kinwatch: ")
    assert err.count("\n") == 1
    return err


def test_the_template_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*WATCH, "--expect", "child_processes=0"]) == 0
    written = json.loads(capsys.readouterr().out)
    (behavior,) = written["Resources"]["SecurityProfile"]["Properties"]["Behaviors"]
    assert behavior["Name"] == "child_processes_myapp"


def test_the_template_goes_to_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "kinwatch.json"
    assert cli.main([*WATCH, "--no-detect", "-o", str(path)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "Detect" in err
    assert "AlarmsRule" in json.loads(path.read_text())["Resources"]


def test_the_profile_of_the_configuration_is_in_the_template(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    written, path = tmp_path / "profile.json", tmp_path / "k.toml"
    written.write_text(json.dumps(PROFILE))
    path.write_text(MYAPP + DEFENDER + f'[detect]\nsecurity_profile = "{written}"\n')
    assert cli.main(["cloud", "template", "-c", str(path), "--target", "all", "--export-topic", ""]) == 0
    properties = json.loads(capsys.readouterr().out)["Resources"]["SecurityProfile"]["Properties"]
    assert properties["SecurityProfileName"] == "fleet:1"
    assert [one["Name"] for one in properties["Behaviors"]] == [one["name"] for one in PROFILE["behaviors"]]
    assert "MetricsExportConfig" not in properties


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("template --watch a --quarantine all", "--quarantine: belongs to --no-detect"),
        ("apply --watch a --no-detect --existing-metric events_lost", "--existing-metric: belongs to Detect"),
        ("apply --watch a --existing-metric nothing_a", "'nothing_a' is none of this configuration"),
        ("apply --watch a --stack 1", "--stack: expected letters"),
        ("apply --watch a --retention-days 9", "--retention-days: belongs to --no-detect"),
        ("apply --watch a --no-detect --retention-days 0", "expected a whole number of days"),
        ("apply --watch a --email me", "--email: expected an address"),
        ("apply --watch a --bucket a/b", "--bucket: expected a name"),
        ("mitigate --thing /", "--thing: expected a name"),
        ("destroy --watch a", "unrecognized arguments"),
        ("diff --watch a --yes", "unrecognized arguments"),
        ("apply", "nothing to watch"),
        ("", "STEP"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, "cloud", *flags.split())


@pytest.mark.parametrize("step", STEPS)
def test_each_step_has_help_of_its_own(step: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cloud", step, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: kinwatch cloud {step} ")
    assert ("--region" in out) == (step != "template")
    assert ("--yes" in out) == (step in {"apply", "destroy", "mitigate"})


def test_what_cannot_be_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "nothing to watch" in refused(capsys, "cloud", "template")
    assert "--target" in refused(capsys, *WATCH, "--no-detect", "--target", "all")
    assert "--export-topic" in refused(capsys, *WATCH, "--no-detect", "--export-topic", "a")
    assert "thing group" in refused(capsys, *WATCH, "--target", "mything1")
    assert "No such file" in refused(capsys, *WATCH, "-o", str(tmp_path / "nowhere" / "t.json"))
    assert "STEP" in refused(capsys, "cloud", "improve")


def test_writing_a_template_loads_no_library_of_aws() -> None:
    """The device needs none of them for it."""
    code = (
        "import sys\nfrom monitor import cli, verbs\n"
        f"assert cli.main({list(WATCH)}) == 0\n"
        "print([name for name in sys.modules if name.split('.')[0] in "
        "('boto3', 'botocore', 'yaml', 'awscrt', 'awsiot', 'cfnlint')], file=sys.stderr)"
    )
    done = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
