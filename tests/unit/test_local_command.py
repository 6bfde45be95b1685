"""The local Device Defender as a command: how it begins, what it says when something fails, how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from monitor import cli, verbs
from monitor.defender.link import Refused, Unreachable
from monitor.defender.responder import FILTERS, Faults
from monitor.errors import ConfigInvalid
from monitor.local import flags
from monitor.local.command import DefenderOptions, run
from monitor.sinks.stream import StreamSink

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from monitor.defender.link import Listener

    Script = Callable[["Broker"], Coroutine[Any, Any, None]]

DEADLINE_S = 30.0
JSON = "$aws/things/mything1/defender/metrics/json"


def report(report_id: int, value: object = 1) -> tuple[str, bytes]:
    kind = "number_list" if isinstance(value, list) else "number"
    document = {"header": {"report_id": report_id, "version": "1.0"}, "custom_metrics": {"kin": [{kind: value}]}}
    return JSON, json.dumps(document).encode()


class Broker:
    """A link whose other side a test plays."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.listener: Listener
        self.filters: list[list[str]] = []
        self.sent: list[tuple[str, bytes]] = []
        self.stopped = False
        self.overdue = False
        """The command did not end by itself."""
        self.refusal: Exception | None = None
        """Of subscriptions."""
        self.raised: Exception | None = None
        """By the next publish."""
        self.failed: Exception | None = None
        """By the future of the next one."""

    def start(self, listener: Listener) -> None:
        """Let the test play."""
        self.listener = listener
        self.subscribed, self.published = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        self._playing = loop.create_task(self._play())
        self._deadline = loop.call_later(DEADLINE_S, self._overdue)

    async def _play(self) -> None:
        try:
            await self._script(self)
        except BaseException:
            os.kill(os.getpid(), signal.SIGTERM)
            raise

    def _overdue(self) -> None:
        self.overdue = True
        os.kill(os.getpid(), signal.SIGTERM)
        self._playing.cancel()

    def publish(self, topic: str, payload: bytes) -> asyncio.Future[None]:
        """Keep it."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        raised, self.raised = self.raised, None
        if raised is not None:
            raise raised
        failed, self.failed = self.failed, None
        if failed is not None:
            done.set_exception(failed)
            return done
        self.sent.append((topic, payload))
        self.published.set()
        done.set_result(None)
        return done

    async def subscribe(self, filters: Sequence[str]) -> None:
        """Keep them."""
        if self.refusal is not None:
            raise self.refusal
        self.filters.append(list(filters))
        self.subscribed.set()

    async def stop(self, timeout_s: float) -> None:
        """Remember it."""
        assert timeout_s > 0
        self.stopped = True
        self._deadline.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._playing
        assert not self.overdue, self.sent

    async def connect(self) -> None:
        """Tell that a connection stands, and wait until it was used."""
        self.subscribed.clear()
        self.listener.connected(resumed=False)
        await self.subscribed.wait()


def served(script: Script, said: list[str], **options: Any) -> Broker:  # noqa: ANN401 - any of the options
    """The broker after the command has ended, with 0."""
    broker = Broker(script)
    assert run(DefenderOptions(**options), broker, said.append) == 0
    assert broker.stopped
    return broker


def profile(folder: Path, *metrics: str) -> str:
    criteria = {"comparisonOperator": "less-than-equals", "value": {"number": 0}}
    behaviors = [{"name": metric, "metric": metric, "criteria": criteria} for metric in metrics]
    learnt = {"name": "learnt", "metric": "kin", "criteria": {"mlDetectionConfig": {"confidenceLevel": "LOW"}}}
    path = folder / "profile.json"
    path.write_text(json.dumps({"securityProfileName": "p", "behaviors": [*behaviors, learnt]}))
    return str(path)


def test_it_subscribes_says_that_it_is_ready_answers_and_ends_after_so_many_reports(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async def script(broker: Broker) -> None:
        await broker.connect()
        for report_id in (1, 2, 3):
            broker.listener.received(*report(report_id))

    said: list[str] = []
    broker = served(script, said, once=2, json=True, min_spacing_s=0)
    assert broker.filters == [list(FILTERS)]
    assert said == ["local Device Defender ready (localhost:8883, no security profile)"]
    assert [json.loads(payload)["reportId"] for _, payload in broker.sent] == [1, 2]
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["report_id"] for line in lines] == [1, 2]


def test_verdicts_follow_their_report_and_what_cannot_be_judged_is_said_by_name(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def script(broker: Broker) -> None:
        await broker.connect()
        broker.listener.received(*report(1, 3))

    said: list[str] = []
    served(script, said, once=1, profile=profile(tmp_path, "kin"))
    ready, elsewhere = said
    assert ready.endswith("profile p: 1 of 2 behaviors judged)")
    assert elsewhere.startswith("behavior learnt is not judged: ")
    assert [line.split("  ")[1:3] for line in capfd.readouterr().out.splitlines() if "mything1" in line] == [
        ["mything1", "report 1"],
        ["IN ALARM", "kin"],
    ]


def test_a_metric_of_the_wrong_type_is_said_once(tmp_path: Path) -> None:
    async def script(broker: Broker) -> None:
        await broker.connect()
        for report_id in (1, 2):
            broker.listener.received(*report(report_id, [1]))

    said: list[str] = []
    served(script, said, once=2, min_spacing_s=0, profile=profile(tmp_path, "kin"))
    assert [text for text in said if "cannot be judged" in text] == [
        "behavior kin cannot be judged: less-than-equals judges a number, the metric is a list"
    ]


def test_no_broker_at_the_start_is_the_end_and_later_it_is_waited_for() -> None:
    async def absent(broker: Broker) -> None:
        broker.listener.disconnected("nobody listens")

    broker = Broker(absent)
    with pytest.raises(Unreachable, match="localhost:8883: nobody listens") as caught:
        run(DefenderOptions(), broker)
    assert caught.value.exit_code == 4
    assert broker.stopped

    async def away(broker: Broker) -> None:
        await broker.connect()
        broker.listener.disconnected("it hung up")
        await broker.connect()
        broker.listener.received(*report(1))

    said: list[str] = []
    assert len(served(away, said, once=1).filters) == 2
    assert said[1:] == ["disconnected (it hung up); trying again", "connected again"]


def test_a_refused_subscription_is_the_end() -> None:
    async def script(broker: Broker) -> None:
        broker.refusal = Refused("subscribe to x was refused", 135)
        broker.listener.connected(resumed=False)

    with pytest.raises(Refused) as caught:
        run(DefenderOptions(), Broker(script))
    assert caught.value.exit_code == 4


def test_an_answer_that_cannot_be_sent_is_said_and_the_next_one_is_sent() -> None:
    async def script(broker: Broker) -> None:
        await broker.connect()
        broker.raised = ValueError("no topic")
        broker.listener.received(*report(1))
        broker.failed = Unreachable("gone")
        broker.listener.received(*report(2))
        await asyncio.sleep(0)
        broker.listener.received(*report(3))

    said: list[str] = []
    broker = served(script, said, once=3, min_spacing_s=0)
    assert len(broker.sent) == 1
    assert said[1:] == ["an answer could not be sent: no topic", "an answer could not be sent: gone"]


def test_late_answers_are_still_sent_before_the_end_unless_a_signal_comes() -> None:
    async def script(broker: Broker) -> None:
        await broker.connect()
        broker.listener.received(*report(1))

    assert len(served(script, [], once=1, faults=Faults(late_s=0.05)).sent) == 1

    async def impatient(broker: Broker) -> None:
        await script(broker)
        os.kill(os.getpid(), signal.SIGTERM)

    assert served(impatient, [], once=1, faults=Faults(late_s=3600)).sent == []


def test_late_answers_are_sent_while_it_goes_on() -> None:
    async def script(broker: Broker) -> None:
        await broker.connect()
        for report_id in (1, 2):
            broker.listener.received(*report(report_id))
            await broker.published.wait()
            broker.published.clear()
        os.kill(os.getpid(), signal.SIGINT)

    broker = served(script, [], min_spacing_s=0, faults=Faults(late_s=0.02))
    assert [json.loads(payload)["reportId"] for _, payload in broker.sent] == [1, 2]


def test_an_output_that_nobody_reads_any_more_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(broker: Broker) -> None:
        await broker.connect()
        broker.listener.received(*report(1))

    reading, writing = os.pipe()
    os.close(reading)
    try:
        monkeypatch.setattr(StreamSink, "stdout", lambda: StreamSink(writing))
        with pytest.raises(BrokenPipeError):
            run(DefenderOptions(), Broker(script))
    finally:
        os.close(writing)


def test_a_profile_that_cannot_be_read_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"behaviors": {}}')
    for path, why in (("absent.json", "No such file"), ("", "directory"), ("broken.json", "'behaviors', a list")):
        with pytest.raises(ConfigInvalid, match=f"^{tmp_path / path}: .*{why}"):
            run(DefenderOptions(profile=str(tmp_path / path)), Broker(None))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"endpoint": ""}, "^--endpoint: "),
        ({"endpoint": "a\nb"}, "^--endpoint: "),
        ({"client_id": ""}, "^--client-id: "),
        ({"client_id": "a" * 129}, "^--client-id: "),
        ({"client_id": "\udcff"}, "^--client-id: "),
        ({"root_ca": "ca.pem"}, "together"),
        ({"certificate": "a.pem", "private_key": "a.key"}, "together"),
        (
            {"root_ca": "/absent/ca", "certificate": "/absent/a", "private_key": "/absent/k"},
            "^--certificate: /absent/a",
        ),
    ],
)
def test_what_cannot_connect_is_refused_by_its_flag(options: dict[str, str], why: str) -> None:
    with pytest.raises(ConfigInvalid, match=why):
        run(DefenderOptions(**options))  # type: ignore[arg-type]


def test_the_flags_are_the_options() -> None:
    assert flags.options(verbs.parser().parse_args(["defender"])) == DefenderOptions()
    line = (
        "defender --endpoint e --port 1 --root-ca r --certificate c --private-key k --client-id i --profile p"
        " --min-spacing-s 0 --once 3 --json --drop-every 2 --late-s 0.5 --foreign-id --reject-code X"
    )
    assert flags.options(verbs.parser().parse_args(line.split())) == DefenderOptions(
        endpoint="e",
        port=1,
        root_ca="r",
        certificate="c",
        private_key="k",
        client_id="i",
        profile="p",
        min_spacing_s=0,
        json=True,
        once=3,
        faults=Faults(drop_every=2, late_s=0.5, foreign_id=True, reject_code="X"),
    )
    assert flags.options(verbs.parser().parse_args(["defender", "--once"])).once == 1


@pytest.mark.parametrize(
    "flag",
    [
        *("--port 0", "--port 65536", "--port x", "--once 0", "--once -1", "--min-spacing-s -1", "--min-spacing-s nan"),
        *("--late-s inf", "--drop-every 0", "--drop-every 99999999999999999999"),
    ],
)
def test_a_wrong_flag_ends_with_2_and_one_line(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["defender", *flag.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("kinwatch: ")
    assert err.count("\n") == 1
