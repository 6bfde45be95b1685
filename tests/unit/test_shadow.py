"""What a shadow wants is taken when it is signed, new, valid and works, and never in part.

Owns the stages against doubles of the agent and the broker. Refuses to know MQTT (tests/mqtt/test_remote.py).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor import cli, config
from monitor.defender.link import Refused, Unreachable
from monitor.errors import ConfigInvalid
from monitor.options import Overrides, settled
from monitor.overlay import CRASHED, Journal, Overlay, Standing, laid_over
from monitor.schema import Remote
from monitor.shadow import signature
from monitor.shadow.document import DocumentInvalid, desired, refusal, reported, topic, wanted
from monitor.shadow.keeper import Changes, Keeper

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

THING = "mything1"
UPDATE, GET = topic(THING, "update"), topic(THING, "get")
TEXT = '[[watch]]\nname = "myapp"\nprocess = "myapp"\nexpect = { child_processes = 3 }\n'
FILE = """\
[[watch]]
name = "local"
process = "local"
[report]
interval_s = 60
names = "short"
[defender]
thing = "mything1"
endpoint = "e"
"""


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pair of keys, and with a stranger's."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("key", "other"):
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", folder / name], check=True)
        subprocess.run(["openssl", "pkey", "-in", folder / name, "-pubout", "-out", folder / f"{name}.pub"], check=True)
    return folder


# -------- the signature --------


def test_a_signature_is_good_for_its_version_and_its_text_alone(keys: Path) -> None:
    made = signature.sign(str(keys / "key"), 7, TEXT)
    public = str(keys / "key.pub")
    assert signature.good(public, 7, TEXT, made)
    assert not signature.good(public, 8, TEXT, made)
    assert not signature.good(public, 7, TEXT + " ", made)
    assert not signature.good(str(keys / "other.pub"), 7, TEXT, made)
    assert not signature.good(public, 7, TEXT, bytes([made[0] ^ 1]) + made[1:])


def test_what_openssl_cannot_judge_is_not_good(keys: Path, tmp_path: Path) -> None:
    (tmp_path / "no.pub").write_text("nothing")
    with pytest.raises(signature.CannotVerify, match="openssl cannot verify with"):
        signature.good(str(tmp_path / "no.pub"), 7, TEXT, bytes(64))
    with pytest.raises(ConfigInvalid, match=r"openssl cannot sign with .*; make one with 'openssl genpkey"):
        signature.sign(str(keys / "key.pub"), 7, TEXT)


def test_a_key_that_others_may_replace_is_refused(keys: Path) -> None:
    signature.check(str(keys / "key.pub"))
    (keys / "key.pub").chmod(0o666)
    with pytest.raises(ConfigInvalid, match=r"remote.public_key: .* has mode 0666, .*; chmod go-w "):
        signature.check(str(keys / "key.pub"))
    (keys / "key.pub").chmod(0o644)
    with pytest.raises(ConfigInvalid, match="is no public key in PEM"):
        signature.check(str(keys / "key"))
    with pytest.raises(ConfigInvalid, match="No such file"):
        signature.check(str(keys / "none"))


def test_a_key_of_another_user_is_refused(keys: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    path = tmp_path / "key.pub"
    path.write_bytes((keys / "key.pub").read_bytes())
    path.chmod(0o644)
    signature.check(str(path))
    os.chown(path, 12_345, -1)
    with pytest.raises(ConfigInvalid, match=r"remote.public_key: .* belongs to user 12345, who .*; chown 0 "):
        signature.check(str(path))


def test_the_command_signs_what_a_device_takes(keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "new.toml").write_text(TEXT)
    arguments = ["sign", "--key", str(keys / "key"), "--version-number", "7", str(tmp_path / "new.toml")]
    assert cli.main(arguments) == 0
    found = wanted(capsys.readouterr().out.encode())
    assert found is not None
    assert found[:2] == (7, TEXT)
    assert signature.good(str(keys / "key.pub"), *found)
    (tmp_path / "new.toml").write_text('[daemon]\nstate_dir = "/x"\n')
    assert cli.main(arguments) == 2
    assert "daemon: is not set from afar; tables that are: watch, report, detect" in capsys.readouterr().err


# -------- the document --------


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "cannot be read"),
        ('{"state": {"desired": {"version": "7"}}}', "cannot be read"),
        ('{"state": {"desired": {"version": 7}}}', "desired needs all of configuration, version and signature"),
        (
            '{"state": {"desired": {"version": 0, "configuration": "", "signature": ""}}}',
            "expected a version of 1 or more, found 0",
        ),
        (
            '{"state": {"desired": {"version": 1, "configuration": "", "signature": "ä"}}}',
            "the signature is not base64",
        ),
        (
            '{"state": {"desired": {"version": 1, "configuration": "", "signature": "AAAA"}}}',
            "expected a signature of 64 bytes (Ed25519), found 3",
        ),
    ],
)
def test_a_document_that_is_not_understood_is_said(document: str, message: str) -> None:
    with pytest.raises(DocumentInvalid) as found:
        wanted(document.encode())
    assert message in str(found.value)


@given(st.binary(max_size=200))
def test_no_document_raises_anything_else(payload: bytes) -> None:
    with contextlib.suppress(DocumentInvalid):
        wanted(payload)
    refusal(payload)


def test_a_shadow_that_is_not_there_or_wants_nothing_is_as_it_should_be() -> None:
    assert wanted(b'{"state": {"reported": {"version": 1}}}') is None
    assert wanted(b'{"state": {"desired": {}}}') is None
    assert refusal(b'{"code": 404, "message": "No shadow exists with name"}') == ""
    assert refusal(b'{"code": 413, "message": "too large"}') == "413 too large"


# -------- what may be set --------


def laid(over: str) -> config.Config:
    """The file with a text over it."""
    return config.overlaid(FILE, "f", over, "r")


def test_watches_are_replaced_and_keys_go_before_those_of_the_file() -> None:
    found = laid(TEXT + "[report]\ninterval_s = 30\n")
    assert [watch.name for watch in found.watches] == ["myapp"]
    assert (found.report.interval_s, found.report.names) == (30, "short")
    assert found.defender == config.parse(FILE, "f").defender
    assert [watch.name for watch in laid("[report]\ninterval_s = 30\n").watches] == ["local"]


@pytest.mark.parametrize("table", sorted(set(config.keys()) | {"log"}))
def test_nothing_but_what_is_listed_may_be_set(table: str) -> None:
    group, _, key = table.rpartition(".")
    name = (group or key).partition(".")[0]
    if name in config.FROM_AFAR and (name == "watch" or (group == name and key in config.FROM_AFAR[name])):
        return
    with pytest.raises(ConfigInvalid, match=r"^r: .* is not set from afar|^r: .*: is not set from afar"):
        laid(f"[{group}]\n{key} = 1\n" if group else f"[{key}]\n")


def test_a_text_that_is_wrong_or_does_not_go_with_the_file_is_refused_by_its_name() -> None:
    for text, message in (
        ("[", "r: is not TOML"),
        ("[report]\ninterval_s = 0\n", "r: report.interval_s: expected an integer >= 1, found 0"),
        (
            '[[watch]]\nprocess = "a"\nexpect = { destination_names = ["x.y"] }',
            "f with r: capture.packets: watch a expects destination_names",
        ),
        (TEXT + TEXT, "f with r: watch: two watches are called myapp"),
    ):
        with pytest.raises(ConfigInvalid) as found:
            laid(text)
        assert str(found.value).startswith(message)


def test_what_a_text_needs_of_the_file_may_be_there() -> None:
    over = '[[watch]]\nprocess = "a"\nexpect = { destination_names = ["x.y"] }\n'
    found = config.overlaid("[capture]\npackets = true\n", "f", over, "r")
    assert found.watches[0].expect.destination_names is not None


# -------- the journal --------


def file(folder: Path, more: str = "") -> Path:
    """A configuration that takes what comes from afar."""
    path = folder / "kinwatch.toml"
    path.write_text(f'{FILE}[daemon]\nstate_dir = "{folder}"\n[remote]\npublic_key = "/k"\n{more}')
    return path


def test_what_is_confirmed_holds_from_the_next_start_on(tmp_path: Path) -> None:
    path, overlay = file(tmp_path), Overlay(7, TEXT)
    journal = Journal(str(tmp_path))
    journal.note(trial=overlay)
    assert [watch.name for watch in settled(path, Overrides()).watches] == ["local"]
    assert [watch.name for watch in settled(path, Overrides(), overlay).watches] == ["myapp"]
    journal.note(trial=None, confirmed=overlay)
    assert [watch.name for watch in settled(path, Overrides()).watches] == ["myapp"]
    assert [watch.name for watch in settled(path, Overrides(names=("other",))).watches] == ["other"]


def test_without_the_table_nothing_is_laid_over_the_file(tmp_path: Path) -> None:
    Journal(str(tmp_path)).note(confirmed=Overlay(7, TEXT))
    path = tmp_path / "kinwatch.toml"
    path.write_text(f'{FILE}[daemon]\nstate_dir = "{tmp_path}"\n')
    assert [watch.name for watch in laid_over(path, None).watches] == ["local"]


def test_what_does_not_go_with_the_file_any_more_is_left_out_and_said(tmp_path: Path) -> None:
    path = file(tmp_path, "[enforcement]\nmax_kills_per_minute = 5\n")
    Journal(str(tmp_path)).note(confirmed=Overlay(7, "[report]\nspeed = 1\n"))
    found = laid_over(path, None)
    assert [watch.name for watch in found.watches] == ["local"]
    assert config.expectation_notes(found)[0].startswith(
        "what was set from afar is left out: remote configuration 7: report.speed: is not set from afar"
    )


def test_what_a_start_finds_on_trial_has_failed(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    journal.note(confirmed=Overlay(6, ""), trial=Overlay(7, TEXT), seen=7, version=7, outcome="on_trial")
    again = Journal(str(tmp_path))
    again.recover()
    assert again.standing == Standing(
        confirmed=Overlay(6, ""), trial=None, seen=7, version=7, outcome="rolled_back", error=CRASHED
    )


def test_a_journal_that_is_damaged_is_said(tmp_path: Path) -> None:
    (tmp_path / "remote.json").write_text("{")
    with pytest.raises(ConfigInvalid, match=r"remote.json cannot be read: .*; remove it to start with"):
        Journal(str(tmp_path)).read()


# -------- the stages --------


class Bench:
    """A keeper with doubles around it."""

    def __init__(self, keys: Path, folder: Path) -> None:
        self.keys, self.folder = keys, folder
        self.journal = Journal(str(folder))
        self.said: list[str] = []
        self.applied: list[int | None] = []
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.refuses: Exception | None = None
        """What the broker makes of a message."""
        self.fails = ""
        """Why what is tried cannot be applied."""
        self.invalid = ""
        self.bug = self.bug_in_validate = False
        self.meanwhile = b""
        """What the shadow says while something is applied."""
        settings = Remote(public_key=str(keys / "key.pub"), confirm_s=1)
        self.keeper = Keeper(settings, self.journal, Changes(self._validate, self._apply), self._publish, self._say)

    def _say(self, text: str) -> None:
        self.said.append(text)

    def _validate(self, overlay: Overlay) -> None:
        if self.bug_in_validate:
            raise RuntimeError("nobody expected this")
        if self.invalid:
            raise ConfigInvalid(f"{overlay.origin}: {self.invalid}; do")

    async def _apply(self, trial: Overlay | None) -> str:
        if trial is not None and self.bug:
            raise RuntimeError("nobody expected this")
        self.applied.append(trial.version if trial else None)
        if self.meanwhile:
            self.keeper.received(f"{GET}/accepted", self.meanwhile)
        return self.fails if trial else ""

    def _publish(self, name: str, payload: bytes) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.refuses is not None:
            done.set_exception(self.refuses)
        else:
            self.sent.append((name, msgspec.json.decode(payload)))
            done.set_result(None)
        return done

    def updates(self) -> list[dict[str, Any]]:
        """What was told, in order."""
        return [body["state"]["reported"] for name, body in self.sent if name == UPDATE]

    def document(self, version: int, text: str = TEXT, key: str = "key") -> bytes:
        """What the shadow wants, signed."""
        return desired(text, version, signature.sign(str(self.keys / key), version, text))

    async def decided(self, document: bytes) -> dict[str, Any]:
        """Have it considered to its end; returns what was reported then."""
        assert self.keeper.received(f"{GET}/accepted", document)
        await self.keeper._turn()
        told: dict[str, Any] = json.loads(self.keeper._report())["state"]["reported"]
        return told

    def run(self, scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Connect, and run."""

        async def connected() -> None:
            self.keeper.connected(THING)
            await scenario()

        asyncio.run(connected())


@pytest.fixture
def bench(keys: Path, tmp_path: Path) -> Bench:
    """A bench of this test."""
    return Bench(keys, tmp_path)


def test_a_signed_text_is_tried_and_confirmed(bench: Bench) -> None:
    async def scenario() -> None:
        told = await bench.decided(bench.document(7))
        assert (told["state"], told["version"], told["confirmed"]) == ("applied", 7, 7)
        assert told["digest"] == Overlay(7, TEXT).digest
        assert bench.applied == [7]

    bench.run(scenario)
    assert [name for name, _ in bench.sent][:2] == [UPDATE, GET], "it tells where it is and asks what is wanted"
    assert any(body["state"]["reported"]["state"] == "on_trial" for name, body in bench.sent if name == UPDATE)
    assert Journal(str(bench.folder)).read().confirmed == Overlay(7, TEXT)


def test_a_strange_signature_changes_nothing(bench: Bench) -> None:
    async def scenario() -> None:
        told = await bench.decided(bench.document(7, key="other"))
        assert (told["state"], told["version"], told["confirmed"]) == ("rejected", 7, None)
        assert told["error"] == "the signature is not of the key in remote.public_key"
        assert bench.applied == []
        told = await bench.decided(bench.document(7))
        assert told["state"] == "applied", "a forger does not use up a version"

    bench.run(scenario)


def test_an_older_version_is_not_taken_again_however_well_signed(bench: Bench) -> None:
    async def scenario() -> None:
        await bench.decided(bench.document(7))
        told = await bench.decided(bench.document(5, "[report]\ninterval_s = 9\n"))
        assert (told["state"], told["version"], told["confirmed"]) == ("rejected", 5, 7)
        assert "version 7 was seen before" in told["error"]
        await bench.decided(bench.document(7, "[report]\ninterval_s = 9\n"))
        assert bench.applied == [7]

    bench.run(scenario)


def test_an_invalid_text_is_rejected_before_anything_is_applied(bench: Bench) -> None:
    bench.invalid = "report.speed: unknown key"

    async def scenario() -> None:
        told = await bench.decided(bench.document(7))
        assert (told["state"], bench.applied) == ("rejected", [])
        assert told["error"].startswith("remote configuration 7: report.speed: unknown key")

    bench.run(scenario)


def test_what_cannot_be_applied_is_rolled_back_to_what_held_before(bench: Bench) -> None:
    async def scenario() -> None:
        await bench.decided(bench.document(7))
        bench.fails = "the kernel has no room"
        told = await bench.decided(bench.document(8, "[report]\ninterval_s = 9\n"))
        assert (told["state"], told["error"], told["confirmed"]) == ("rolled_back", "the kernel has no room", 7)
        assert told["digest"] == Overlay(7, TEXT).digest
        assert bench.applied == [7, 8, None]
        await bench.decided(bench.document(8, "[report]\ninterval_s = 9\n"))
        assert bench.applied == [7, 8, None], "it is not tried again"

    bench.run(scenario)


def test_a_text_that_finds_a_bug_is_rolled_back(bench: Bench) -> None:
    bench.bug = True

    async def scenario() -> None:
        told = await bench.decided(bench.document(7))
        assert (told["state"], bench.applied) == ("rolled_back", [None])
        assert "nobody expected this" in told["error"]

    bench.run(scenario)


def test_a_text_that_finds_a_bug_before_anything_is_applied_is_rejected_for_ever(bench: Bench) -> None:
    bench.bug_in_validate = True

    async def scenario() -> None:
        told = await bench.decided(bench.document(7))
        assert (told["state"], bench.applied, bench.journal.standing.seen) == ("rejected", [], 7)
        assert "nobody expected this" in told["error"]

    bench.run(scenario)


def test_what_is_not_understood_while_something_is_tried_is_told_after_it(bench: Bench) -> None:
    bench.meanwhile = b"{"

    async def scenario() -> None:
        told = await bench.decided(bench.document(7))
        assert (told["state"], told["version"], told["error"]) == ("applied", 7, None)
        await bench.keeper._turn()
        assert (bench.journal.standing.outcome, bench.journal.standing.version) == ("rejected", 0)
        assert bench.journal.standing.confirmed == Overlay(7, TEXT)

    bench.run(scenario)


@pytest.mark.parametrize("trouble", [Unreachable("no network"), Refused("publish was refused", 135)])
def test_what_the_broker_does_not_hear_of_is_rolled_back(bench: Bench, trouble: Exception) -> None:
    async def scenario() -> None:
        assert bench.keeper.received(f"{GET}/accepted", bench.document(7))
        bench.refuses = trouble
        await bench.keeper._turn()
        assert bench.journal.standing.outcome == "rolled_back"
        assert bench.journal.standing.error == f"the broker did not hear of it within 1 s: {trouble}"
        assert bench.applied == [7, None]

    bench.run(scenario)


def test_a_journal_that_cannot_be_written_means_that_nothing_is_tried(bench: Bench) -> None:
    (bench.folder / "remote.json.partial").mkdir()

    async def scenario() -> None:
        await bench.decided(bench.document(7))
        assert bench.applied == []
        assert "what is set from afar cannot be kept" in bench.said[0]

    bench.run(scenario)


def test_what_the_shadow_says_that_nobody_understands_is_said_and_changes_nothing(bench: Bench) -> None:
    async def scenario() -> None:
        assert bench.keeper.received(f"{GET}/accepted", b"{")
        await bench.keeper._turn()
        assert bench.keeper.received(f"{UPDATE}/rejected", b'{"code": 413, "message": "too large"}')
        assert bench.keeper.received(f"{GET}/rejected", b'{"code": 404}')
        assert not bench.keeper.received("$aws/things/mything1/defender/metrics/json/accepted", b"{}")
        assert bench.journal.standing.outcome == "rejected"

    bench.run(scenario)
    assert len(bench.said) == 2
    assert bench.said[1] == "the shadow's service refuses update: 413 too large"


def test_the_same_is_not_told_twice_in_a_connection_for_each_telling_rings_the_bell_again(bench: Bench) -> None:
    async def scenario() -> None:
        for document in (bench.document(7), bench.document(7), bench.document(8, key="other")) * 3:
            bench.keeper.received(f"{GET}/accepted", document)
            await bench.keeper._turn()
        states = [(told["version"], told["state"]) for told in bench.updates()]
        assert states == [(None, "none"), (7, "on_trial"), (7, "applied"), (8, "rejected")]
        bench.keeper.connected(THING)
        assert len(bench.updates()) == 5, "another connection hears where we are"

    bench.run(scenario)
    assert (
        bench.said.count("remote configuration 8 is rejected: the signature is not of the key in remote.public_key")
        == 1
    )


def test_a_delta_rings_the_bell(bench: Bench) -> None:
    async def scenario() -> None:
        before = len(bench.sent)
        assert bench.keeper.received(f"{UPDATE}/delta", b'{"state": {"version": 7}}')
        assert [name for name, _ in bench.sent[before:]] == [GET]

    bench.run(scenario)


def test_what_is_told_fits_into_a_shadow() -> None:
    payload = reported(version=1, state="rejected", error="x" * 9000, confirmed=0, digest="")
    assert len(payload) < 1024


def test_a_signature_that_is_made_by_hand_as_documented_is_good(keys: Path, tmp_path: Path) -> None:
    (tmp_path / "new.toml").write_text(TEXT)
    script = (
        "{ printf 'kinwatch configuration 7\\n'; cat new.toml; } > signed\n"
        f"openssl pkeyutl -sign -rawin -inkey {keys}/key -in signed | base64 -w0\n"
    )
    made = subprocess.run(["sh", "-ec", script], cwd=tmp_path, capture_output=True, check=True).stdout
    assert signature.good(str(keys / "key.pub"), 7, TEXT, base64.b64decode(made))
