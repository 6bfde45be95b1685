"""What is documented exists, and what exists is documented."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, get_args, get_type_hints

import botocore
import botocore.session
import msgspec
import pytest

from monitor import cli, config, schema, verbs
from monitor.detect import metrics
from monitor.engine import lines

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).parents[2]
README = (CHECKOUT / "README.md").read_text()
SHARE = CHECKOUT / "monitor" / "share"
KEYS = schema.keys()
TOML = (SHARE / "kinwatch.toml").read_text()
WITHOUT_DEFAULT = {"watch.expect", "defender.auth", "defender.proxy"}
SWITCHED_OFF = re.compile(r"^#(?=\S)", re.MULTILINE)


def blocks() -> list[str]:
    """Every line of a command block: one whose fence names no language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [line for language, block in found if not language for line in block.splitlines() if line.strip()]


def commands() -> list[list[str]]:
    """The arguments of every documented kinwatch command, in blocks and in running text."""
    spans = [span.replace(r"\|", "|") for span in re.findall(r"`((?:sudo )?kinwatch [^`\n]+)`", README)]
    words = [shlex.split(line) for line in blocks() + spans]
    return [line[line.index("kinwatch") + 1 :] for line in words if "kinwatch" in line[:2]]


def names_of_verbs() -> list[str]:
    """Every verb of the real parser."""
    (sub,) = (action for action in verbs.parser()._actions if action.dest == "verb")
    assert isinstance(sub.choices, dict)
    return list(sub.choices)


def test_there_are_command_blocks() -> None:
    assert len(commands()) >= len(names_of_verbs())
    assert all(line.startswith(("sudo make ", "sudo kinwatch ")) for line in blocks())


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_every_documented_command_is_one_that_the_parser_takes(arguments: list[str]) -> None:
    before, _ = cli._split(arguments)
    parsed = verbs.parser().parse_args(before)
    assert parsed.verb in names_of_verbs()


@pytest.mark.parametrize("line", [line for line in blocks() if "make " in line])
def test_every_documented_make_target_exists(line: str) -> None:
    target = line.partition("make ")[2].partition(" ")[0]
    assert re.search(rf"^{target}:", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("verb", names_of_verbs())
def test_every_verb_is_documented_and_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"| `kinwatch {verb}" in README
    assert cli.main([verb, "--help"]) == 0
    assert f"usage: kinwatch {verb}" in capsys.readouterr().out


def _flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Every flag of a verb, and of its steps."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for step in action.choices.values():
                yield from _flags(step)


@pytest.mark.parametrize("verb", names_of_verbs())
def test_every_flag_is_documented(verb: str) -> None:
    (sub,) = (action for action in verbs.parser()._actions if action.dest == "verb")
    assert isinstance(sub.choices, dict)
    flags = {flag for flag in _flags(sub.choices[verb]) if flag.startswith("--")}
    told = README + TOML + "".join((CHECKOUT / "docs" / page).read_text() for page in ("sample-agent.md", "cloud.md"))
    undocumented = {"--help", "--config", "--json", "--socket", "--names"}
    assert {flag for flag in flags - undocumented if flag not in told} == set()


def test_every_configuration_key_is_in_the_readme() -> None:
    table = README.split("\n## Configuration")[1].split("\n## ")[0]
    told = set(re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", table))
    groups = {key.rpartition(".")[0] for key in KEYS}
    assert told == {key for key in KEYS if key not in groups}


def test_every_default_in_the_readme_is_the_real_one() -> None:
    defaults: dict[str, str] = {}
    group = ""
    for line in schema.reference().splitlines():
        if head := re.match(r"(?:# )?\[+([a-z.]+)\]", line):
            group = head[1]
        elif key := re.match(r"(?:# )?(\w+) = (.*?) +#", line):
            defaults[f"{group}.{key[1]}"] = key[2]
    table = README.split("\n## Configuration")[1].split("\n## ")[0]
    told: dict[str, str] = {}
    for keys, values in re.findall(r"^\| ([^|]+) \| ([^|]+) \|", table, re.MULTILINE):
        names, shown = re.findall(r"`([a-z_.]+)`", keys), re.findall(r"`([^`]+)`", values)
        told |= zip(names, shown * (len(names) if len(shown) == 1 else 1), strict=bool(shown)) if shown else ()
    assert told == {key: value for key, value in defaults.items() if value and key not in WITHOUT_DEFAULT}


def test_every_configuration_key_is_in_the_example() -> None:
    missing = [key for key in KEYS if not re.search(rf"\b{key.rpartition('.')[2]}\b", TOML)]
    assert missing == []


def test_the_example_says_the_defaults() -> None:
    assert config.parse(TOML, "example") == config.Config(origin="example")


def test_the_example_is_right_when_everything_is_switched_on() -> None:
    parsed = config.parse(SWITCHED_OFF.sub("", TOML), "example")
    assert [(watch.name, watch.child_limit) for watch in parsed.watches] == [("myapp", 0)]
    assert parsed.defender is not None
    defaults = config.parse('[defender]\nthing = "mything1"\nendpoint = "x"\n', "example").defender
    assert msgspec.structs.replace(parsed.defender, endpoint="x") == defaults


def test_every_metric_is_in_the_readme_and_no_other() -> None:
    table = README.split("\n## Metrics")[1].split("\n## ")[0]
    told = set(re.findall(r"^\| `([a-z_]+)(?:_<w>)?` \|", table, re.MULTILINE))
    assert told == {*metrics.FIELDS, metrics.EVENTS_LOST}


def test_every_event_is_in_the_readme_with_its_keys() -> None:
    told: dict[str, set[str]] = {}
    table = README.split("\n## Event lines")[1].split("\n## ")[0]
    for names, keys in re.findall(r"^\| (`[a-z`, ]+`) \| (.*) \|$", table, re.MULTILINE):
        plain = re.sub(r"\([^)]*\)|:.*$", "", keys)
        for name in re.findall(r"`([a-z]+)`", names):
            told[name] = set(re.findall(r"[a-z_]+", plain)) - {"or"}
    told["adopt"] = (told["adopt"] - {"as", "plus", "exec"}) | told["exec"]
    real = {kind.__struct_config__.tag: kind for kind in get_args(lines.Line)}
    for name, kind in real.items():
        assert f"`{name}`" in README
        if name in told:
            fields = {field.encode_name for field in msgspec.structs.fields(kind)} - {"time", "lossy"}
            required = {field.encode_name for field in msgspec.structs.fields(kind) if field.required} - {"time"}
            assert required <= told[name] <= fields, name
    assert {"root", "fork", "exec", "exit", "adopt", "alarm", "clear", "lost"} <= set(told)


def test_every_loss_stage_is_in_the_readme_and_no_other() -> None:
    stages = set(get_args(get_type_hints(lines.Lost)["stage"]))
    table = README.split("Losses are counted by stage")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE)) == stages


def test_every_line_of_the_unit_has_a_reason() -> None:
    unit = (SHARE / "kinwatch.service").read_text()
    directives = re.findall(r"^(\w+)=(.+)$", unit, re.MULTILINE)
    assert {"Type", "WatchdogSec", "Restart", "CapabilityBoundingSet", "ProtectSystem"} <= {
        name for name, _ in directives
    }
    assert dict(directives)["Type"] == "notify"
    verb = dict(directives)["ExecStart"].split("kinwatch ")[1]
    assert verbs.parser().parse_args(verb.split()).verb == "run"


def test_every_command_of_the_page_about_the_cloud_is_one_that_the_parser_takes() -> None:
    page = (CHECKOUT / "docs" / "cloud.md").read_text().replace("\\\n", "")
    found = re.findall(r"^(?:sudo )?kinwatch (.*)$", page, re.MULTILINE) + re.findall(r"`sudo kinwatch ([^`]+)`", page)
    assert len(found) > 5
    for line in found:
        verbs.parser().parse_args(shlex.split(line))


def test_every_call_of_aws_on_the_page_about_the_cloud_exists() -> None:
    session = botocore.session.get_session()
    page = (CHECKOUT / "docs" / "cloud.md").read_text().replace("\\\n", "")
    calls = re.findall(r"\baws ([a-z]+) ([a-z-]+)([^`\n]*)", page)
    assert len(calls) > 10
    for service, name, rest in calls:
        if (service, name) == ("cloudformation", "deploy"):
            continue  # of the command line alone
        model = session.get_service_model(service)
        operations = {botocore.xform_name(operation, "-"): operation for operation in model.operation_names}
        assert name in operations, name
        shape = model.operation_model(operations[name]).input_shape
        known = {botocore.xform_name(member, "-") for member in shape.members}
        local = {"certificate-pem-outfile", "private-key-outfile"}  # of the command line alone
        assert set(re.findall(r"--([a-z-]+)", rest)) <= known | local, name


def test_the_page_about_provisioning_shows_commands_and_configurations_that_are_right() -> None:
    page = (CHECKOUT / "docs" / "provisioning.md").read_text()
    commands = re.findall(r"^sudo kinwatch (.*)$", page, re.MULTILINE)
    assert {verbs.parser().parse_args(shlex.split(line)).verb for line in commands} == {"run", "provision", "doctor"}
    shown = re.findall(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(shown) == 2
    assert all(config.parse(text, "page").provisioning is not None for text in shown)
    example = "\n".join(re.findall(r"^# (\[provisioning\]|\w+ = .*)$", TOML, re.MULTILINE)[:8])
    parsed = config.parse('[defender]\nendpoint = "e"\n' + example, "example").provisioning
    assert parsed is not None
    told = {"template", "claim_certificate", "claim_private_key", "parameters"}
    defaults = schema.Provisioning(template="a", claim_certificate="/a")
    same = {name: getattr(defaults, name) for name in schema.Provisioning.__struct_fields__ if name not in told}
    assert {name: getattr(parsed, name) for name in same} == same


def test_the_page_about_configuration_from_afar_says_what_may_be_set_and_shows_what_is_right() -> None:
    page = (CHECKOUT / "docs" / "remote.md").read_text()
    for line in re.findall(r"^kinwatch (.*?)(?: > .*)?$", page, re.MULTILINE):
        assert verbs.parser().parse_args(shlex.split(line)).verb == "sign"
    (shown,) = re.findall(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    parsed = config.parse('[defender]\nthing = "a"\nendpoint = "e"\n' + shown, "page").remote
    assert parsed is not None
    assert parsed.confirm_s == schema.Remote(public_key="/a").confirm_s
    may = "".join(re.findall(r"^\| ([^|]+) \|", page.partition("\n## ")[0], re.MULTILINE))
    told = set(re.findall(r"`([a-z]+)\.([a-z_]+)`", may))
    assert told == {(table, key) for table, keys in config.FROM_AFAR.items() if table != "watch" for key in keys}
    session = botocore.session.get_session().get_service_model("iot-data")
    for call in re.findall(r"aws iot-data ([a-z-]+)", page):
        assert call in {botocore.xform_name(name, "-") for name in session.operation_names}


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (CHECKOUT / link).exists()] == []


def test_no_line_is_a_placeholder() -> None:
    assert "<!--" not in README
