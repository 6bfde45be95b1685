"""A claim certificate becomes one of the device's own, whatever happens in between.

Owns the way there and the journal. Refuses to know what is published afterwards (test_provisioned).
"""

from __future__ import annotations

import fnmatch
import os
import re
import signal
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

import botocore.session
import msgspec
import pytest

from monitor import cli, config
from monitor.defender.link import Unreachable
from monitor.errors import AlreadyRunning, ConfigInvalid
from monitor.provisioning import command, look, service
from monitor.provisioning.answers import Rejected
from monitor.provisioning.identity import CLAIM_ID, Identities
from tests.mqtt.broker import Authority, Broker
from tests.mqtt.dying import ENOUGH, Mortal
from tests.mqtt.fleet import ACL, CREATE, REGISTER, Device, Fleet

if TYPE_CHECKING:
    from collections.abc import Iterator

RENAMES = 8
"""begun, key, request, requested, issued, certificate, registered, confirmed."""


@pytest.fixture(scope="module")
def mortal() -> Iterator[Mortal]:
    """Who dies."""
    with Mortal() as made:
        yield made


def dies(mortal: Mortal, device: Device, moment: int) -> int:
    """The command, until that moment."""
    return mortal.die(str(moment), "provision", "-c", str(device.configuration))


def provision(device: Device) -> list[str]:
    """The command, in this process; returns what it said."""
    said: list[str] = []
    command.run(config.load(device.configuration), said.append)
    return said


def connected_as(broker: Broker, name: str) -> bool:
    """Whether a client with this certificate was let in."""
    return f"u'{name}'" in broker.log()


# -------- the way --------


def test_a_claim_becomes_a_certificate_of_its_own_with_which_the_device_connects(fleet: Fleet, device: Device) -> None:
    done = device.provision()
    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(done.stdout)
    assert (found["state"], found["thing"], found["certificate_id"]) == ("provisioned", "camera-4711", "certificate1")
    assert found["device_configuration"] == {"site": "north"}
    assert fleet.parameters == [{"SerialNumber": "4711"}]
    assert fleet.calls == [CREATE, REGISTER]
    assert connected_as(fleet.broker, "claim")
    assert connected_as(fleet.broker, "certificate1")
    assert device.generations()[1]["step"] == "confirmed"
    assert device.generations()[1]["ownership_token"] == ""


def test_a_device_that_has_its_certificate_asks_for_nothing(fleet: Fleet, device: Device) -> None:
    provision(device)
    calls, claims = list(fleet.calls), fleet.broker.log().count("u'claim'")
    assert provision(device) == []
    assert fleet.calls == calls
    assert fleet.broker.log().count("u'claim'") == claims


def test_the_key_is_for_its_owner_alone_before_its_first_byte(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: dict[str, set[int]] = {}
    write = os.write

    def seen(file: int, data: bytes) -> int:
        name = str(Path(f"/proc/self/fd/{file}").readlink())
        if name.startswith(str(device.state)):
            empty = os.fstat(file).st_size == 0
            modes.setdefault(name, set()).add(stat.S_IMODE(os.fstat(file).st_mode) if empty else -1)
        return write(file, data)

    monkeypatch.setattr(os, "write", seen)
    before = os.umask(0)
    try:
        provision(device)
    finally:
        os.umask(before)
    assert any(name.endswith("key.pem.partial") for name in modes)
    assert set.union(*modes.values()) == {0o600}
    for path in device.files():
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    holders = [path.name for path in device.files() if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    assert holders == ["key.pem"]


def test_only_one_at_a_time_provisions_a_device(device: Device) -> None:
    with Identities(str(device.state)).held(), pytest.raises(AlreadyRunning, match="somebody provisions this device"):
        provision(device)


# -------- crashes --------


@pytest.mark.parametrize("moment", range(2 * RENAMES))
def test_a_device_that_dies_at_any_step_goes_on_there(
    fleet: Fleet, device: Device, mortal: Mortal, moment: int
) -> None:
    assert dies(mortal, device, moment) == -signal.SIGKILL
    keys = [path.read_bytes() for path in device.identity.rglob("key.pem")]
    provision(device)
    assert [journal["step"] for journal in device.generations().values()] == ["confirmed"]
    assert [one.thing for one in fleet.active] == ["camera-4711"], "one certificate is active, whatever happened"
    # A certificate that came and was not noted: the service deletes it within the hour.
    assert len(fleet.issued) == (2 if moment == 8 else 1)
    if keys:
        assert [path.read_bytes() for path in device.identity.rglob("key.pem")] == keys, "the key is kept"
    assert connected_as(fleet.broker, fleet.active[0].name)


def test_there_is_no_further_step_to_die_at(device: Device, mortal: Mortal) -> None:
    assert dies(mortal, device, 2 * RENAMES) == ENOUGH
    assert device.generations()[1]["step"] == "confirmed"


# -------- refusals --------


def documented(*operations: str) -> list[tuple[str, int, str]]:
    """Every error that the service's API documents: topic, status, code."""
    model = botocore.session.get_session().get_service_model("iot")
    found = []
    for operation, topic in zip(operations, (CREATE, REGISTER), strict=True):
        shapes = model.operation_model(operation).error_shapes
        found += [(topic, shape.metadata["error"]["httpStatusCode"], shape.name) for shape in shapes]
    return found


ERRORS = [
    (CREATE, 403, "Forbidden"),
    *documented("CreateCertificateFromCsr", "RegisterThing"),
    (REGISTER, 403, "Forbidden"),
    (REGISTER, 429, "TooManyRequests"),
]


def test_every_refusal_is_said_and_the_next_attempt_goes_on_where_it_came(fleet: Fleet, device: Device) -> None:
    assert len({code for _, _, code in ERRORS}) > 6
    for error in ERRORS:
        fleet.refusals.append(error)
        with pytest.raises(Rejected) as found:
            provision(device)
        _, status, code = error
        assert f"was rejected: {status} {code}: says {code}; " in str(found.value)
        transient = status >= 429 or code.startswith("Throttl")
        assert str(found.value).endswith("try again later") == transient
        step = next(iter(device.generations().values()))["step"]
        assert step == ("requested" if error[0] == CREATE else "issued")
    provision(device)
    assert len(fleet.issued) == 1
    assert list(device.generations()) == [1]


def test_a_refusal_ends_the_command_with_4(fleet: Fleet, device: Device) -> None:
    fleet.refusals.append((REGISTER, 400, "InvalidRequestException"))
    done = device.provision()
    assert done.returncode == 4
    assert "RegisterThing was rejected: 400 InvalidRequestException" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_token_that_the_service_calls_void_costs_another_certificate_with_the_same_key(
    fleet: Fleet, device: Device
) -> None:
    fleet.refusals.append((REGISTER, 400, "InvalidCertificateOwnershipToken"))
    provision(device)
    assert fleet.calls == [CREATE, REGISTER, CREATE, REGISTER]
    assert [one.name for one in fleet.active] == ["certificate2"]
    assert list(device.generations()) == [1]


def test_a_token_that_is_never_good_is_a_refusal(fleet: Fleet, device: Device) -> None:
    fleet.late_s = 4000
    with pytest.raises(Rejected, match="InvalidCertificateOwnershipToken"):
        provision(device)
    assert fleet.calls.count(REGISTER) == 3


def test_a_token_older_than_an_hour_is_not_tried(fleet: Fleet, device: Device) -> None:
    fleet.refusals.append((REGISTER, 500, "InternalFailureException"))
    with pytest.raises(Rejected):
        provision(device)
    generation = Identities(str(device.state)).unfinished()
    assert generation is not None
    generation.note(issued_s=time.time() - 3600)
    provision(device)
    assert fleet.calls == [CREATE, REGISTER, CREATE, REGISTER]
    assert [one.name for one in fleet.active] == ["certificate2"]


def test_no_answer_is_said_with_what_the_policy_must_allow(
    fleet: Fleet, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "ANSWER_S", 1)
    fleet.silent = True
    with pytest.raises(Unreachable, match=r"no answer .*: the policy|no answer .*; the policy must allow"):
        provision(device)
    fleet.silent = False
    provision(device)
    assert len(fleet.issued) == 1


def test_the_claim_s_policy_of_the_page_permits_what_the_flow_here_works_with_and_nothing_else() -> None:
    page = (Path(__file__).parents[2] / "docs" / "provisioning.md").read_text()
    (policy,) = (msgspec.json.decode(text) for text in re.findall(r"```json\n(.*?)```", page, re.DOTALL))
    permitted = {
        (action, resource.removeprefix("arn:aws:iot:REGION:ACCOUNT:"))
        for one in policy["Statement"]
        for action in ([one["Action"]] if isinstance(one["Action"], str) else one["Action"])
        for resource in ([one["Resource"]] if isinstance(one["Resource"], str) else one["Resource"])
    }
    calls = [topic.removesuffix("json") + "*" for topic in (CREATE, REGISTER)]
    assert permitted == {
        ("iot:Connect", f"client/{CLAIM_ID}*"),
        *((action, f"topic/{call}") for action in ("iot:Publish", "iot:Receive") for call in calls),
        *(("iot:Subscribe", f"topicfilter/{call}") for call in calls),
    }
    (mine,) = (part for part in ACL.split("user ") if part.startswith("claim\n"))
    topics = [line.split()[2] for line in mine.splitlines() if line.startswith("topic ")]
    assert topics
    assert all(any(fnmatch.fnmatch(topic, call) for call in calls) for topic in topics)


def test_a_certificate_of_an_unknown_authority_is_refused_by_the_broker_and_that_is_said(
    fleet: Fleet, device: Device, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    fleet.signs = Authority(tmp_path / "other")
    with pytest.raises(Unreachable, match=r"no connection to localhost:\d+ with .*/identity/1/certificate.pem: "):
        provision(device)
    assert device.generations()[1]["step"] == "registered"


# -------- replacing --------


def test_a_certificate_that_ends_is_replaced_through_its_own_connection(fleet: Fleet, device: Device) -> None:
    fleet.days, fleet.age_days = 40, 30
    provision(device)
    claims = fleet.broker.log().count("u'claim'")
    old_key = (device.identity / "1" / "key.pem").read_bytes()
    fleet.age_days = 0
    provision(device)
    assert [one.name for one in fleet.active] == ["certificate1", "certificate2"]
    assert fleet.broker.log().count("u'claim'") == claims, "the claim is not used again"
    assert connected_as(fleet.broker, "certificate2")
    assert list(device.generations()) == [2], "the old one goes when the new one has connected"
    assert (device.identity / "2" / "key.pem").read_bytes() != old_key, "with a new key"
    assert provision(device) == []


def test_a_certificate_that_has_ended_is_replaced_with_the_claim(fleet: Fleet, device: Device) -> None:
    fleet.days, fleet.age_days = 10, 5
    provision(device)
    generation = Identities(str(device.state)).newest()
    assert generation is not None
    ended = fleet.broker.authority.sign(generation.request.read_text(), "ended", days=1, age_days=2)
    generation.certificate.write_text(ended)
    assert look.described(config.load(device.configuration), time.time())["state"] == "expired"
    fleet.age_days = 0
    said = provision(device)
    assert said[0].startswith("the device's own certificate expired on ")
    assert list(device.generations()) == [2]


@pytest.mark.parametrize("moment", [9, 15])
def test_a_device_that_dies_while_it_replaces_its_certificate_has_one_that_works(
    fleet: Fleet, device: Device, mortal: Mortal, moment: int
) -> None:
    fleet.days, fleet.age_days = 40, 30
    provision(device)
    fleet.age_days = 0
    assert dies(mortal, device, moment) == -signal.SIGKILL
    usable = Identities(str(device.state)).newest()
    assert usable is not None
    assert usable.certificate.exists()
    provision(device)
    assert {number: journal["step"] for number, journal in device.generations().items()} == {2: "confirmed"}


# -------- what doctor and a wrong configuration say --------


def test_what_is_known_and_what_comes_next_is_told_at_every_stage(fleet: Fleet, device: Device) -> None:
    settings = config.load(device.configuration)

    def told() -> tuple[str, str]:
        found = look.described(settings, time.time())
        return found["state"], found["next"]

    assert told() == ("not provisioned", "'kinwatch provision' or 'kinwatch run' asks with the claim")
    fleet.refusals.append((REGISTER, 500, "InternalFailureException"))
    with pytest.raises(Rejected):
        provision(device)
    assert told() == ("unfinished (issued)", "'kinwatch provision' or 'kinwatch run' goes on there")
    provision(device)
    state, following = told()
    assert state == "provisioned"
    assert following.startswith("replaced on 20")


def test_doctor_tells_who_the_device_is_and_tries_its_connection(
    fleet: Fleet, device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(device.configuration)
    assert cli.main(["doctor", "-c", file]) == 0
    assert "not provisioned" in capsys.readouterr().out
    provision(device)
    assert cli.main(["doctor", "-c", file]) == 0
    told = capsys.readouterr().out
    assert "  thing                      camera-4711\n" in told
    assert "camera-4711-kinwatch-doctor" in fleet.broker.log()
    (device.identity / "1" / "key.pem").chmod(0o644)
    assert cli.main(["doctor", "-c", file, "--no-connect"]) == 4
    assert "has mode 0644" in capsys.readouterr().out


def test_a_claim_that_others_may_read_is_refused_by_its_key(device: Device) -> None:
    claim = device.broker.authority.known("claim")
    claim.private_key.chmod(0o640)
    with pytest.raises(ConfigInvalid, match=r"^provisioning.claim_private_key: .* has mode 0640"):
        provision(device)


def test_a_journal_that_cannot_be_read_is_said(device: Device) -> None:
    provision(device)
    (device.identity / "1" / "state.json").write_text("{")
    with pytest.raises(ConfigInvalid, match=r"identity/1/state.json: .*; make it readable, or remove it"):
        provision(device)
