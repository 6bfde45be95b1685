"""A window ends with an accepted report and with nothing else: not with a restart, not with a new capture.

Owns counters that begin anew and states that were torn. Refuses to know when reports are due and where they go.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from monitor.detect.device import NetworkStats
from monitor.errors import ConfigInvalid
from monitor.remote import Remote
from monitor.window import FileStore, Report, Window
from tests.unit.service import NO_NETWORK, Counters

if TYPE_CHECKING:
    from pathlib import Path

    from monitor.detect.device import DeviceReading


class Memory:
    """A place for the state, that may fail."""

    def __init__(self) -> None:
        self.state: bytes | None = None
        self.fails = False

    def load(self) -> bytes | None:
        """What was saved."""
        return self.state

    def save(self, state: bytes) -> None:
        """Keep it."""
        if self.fails:
            raise OSError(28, "No space left on device")
        self.state = state


class Machine(Counters):
    """Counters, and an engine that notes when an executable was run."""

    def __init__(self) -> None:
        super().__init__()
        self.run: list[str] = []
        self.bytes_in = 0
        self.sent = 0
        self.remotes: list[Remote] = []

    def mark(self) -> int:
        """How many were run until now."""
        return len(self.run)

    def snapshot(self, reader: int | None, mark: int) -> Any:  # noqa: ANN401 - as Counters
        """With the executables since the mark."""
        self.exes = tuple(dict.fromkeys(self.run[mark:]))
        made = super().snapshot(reader, mark)
        network = {"bytes_out": self.sent, "remotes": tuple(self.remotes), "listening_ports": (80,)}
        watches = tuple(msgspec.structs.replace(watch, **network) for watch in made.watches)
        return msgspec.structs.replace(made, watches=watches)

    def device(self) -> DeviceReading:
        """One interface."""
        stats = NetworkStats(bytes_in=self.bytes_in, bytes_out=0, packets_in=0, packets_out=0)
        return msgspec.structs.replace(NO_NETWORK, interfaces={"eth0": stats})


def window(machine: Machine, store: Memory | FileStore | None = None, generation: int = 1) -> Window:
    """A window of a new process."""
    made = Window(machine, machine, 1, machine.device, store=store, generation=generation)  # type: ignore[arg-type]
    made.begin()
    return made


def told(report: Report) -> dict[str, Any]:
    """The custom metrics of the document, bare."""
    metrics = json.loads(report.payload)["custom_metrics"]
    return {name.removesuffix("_myapp"): next(iter(value[0].values())) for name, value in metrics.items()}


def test_a_report_that_is_not_accepted_is_part_of_the_next(tmp_path: Path) -> None:
    machine = Machine()
    made = window(machine, FileStore(tmp_path / "window.json"))
    machine.spawned += 3
    made.report(100)
    machine.spawned += 2
    report = made.report(100)
    assert (told(report)["child_procs_spawned"], report.report_id) == (5, 101)
    made.accept(report)
    assert made.pending is None
    machine.spawned += 1
    assert told(made.report(100))["child_procs_spawned"] == 1


def test_ids_ascend_whatever_the_clock_and_the_process_do() -> None:
    machine, store, ids = Machine(), Memory(), []
    for now_s in (100, 100, 50, 200, 10):
        ids.append(window(machine, store).report(now_s).report_id)
        ids.append(window(machine, store, generation=now_s).report(now_s).report_id)
    assert ids == sorted(set(ids))


def test_a_restart_in_the_same_capture_goes_on_with_the_window() -> None:
    machine, store = Machine(), Memory()
    first = window(machine, store)
    machine.spawned += 3
    first.accept(first.report(1))
    machine.spawned += 2
    first.report(2)
    second = window(machine, store)
    assert second.pending is not None
    machine.spawned += 1
    assert told(second.report(3))["child_procs_spawned"] == 3


def test_counters_that_went_away_unaccepted_go_on_in_the_next_report() -> None:
    machine, store = Machine(), Memory()
    first = window(machine, store)
    machine.spawned, machine.alive, machine.run = 3, 2, ["/bin/a"]
    first.report(1)
    machine = Machine()  # another boot
    machine.spawned, machine.alive, machine.run = 5, 4, ["/bin/b"]
    second = window(machine, store, generation=2)
    assert second.pending is None
    report = second.report(2)
    seen = told(report)
    assert (seen["child_procs_spawned"], seen["child_procs_alive"]) == (8, 4)
    assert seen["child_exes"] == ["/bin/a", "/bin/b"]
    second.accept(report)
    assert told(second.report(3))["child_procs_spawned"] == 0
    assert "child_exes" not in told(second.report(4))


def test_the_network_of_a_window_that_was_not_accepted_goes_on_in_the_next_report() -> None:
    machine, store = Machine(), Memory()
    first = window(machine, store)
    machine.sent, machine.remotes = 100, [Remote("10.0.0.1", 443, "tcp", incoming=False)]
    first.report(1)
    machine.sent, machine.remotes = 130, [Remote("10.0.0.2", 80, "tcp", incoming=False)]
    second = window(machine, store)  # the counters go on, the engine with its lists is another
    report = second.report(2)
    seen = told(report)
    assert (seen["bytes_out"], seen["destination_ips"], seen["destination_ports"]) == (
        130,
        ["10.0.0.1", "10.0.0.2"],
        [80, 443],
    )
    second.accept(report)
    machine.sent = 131
    seen = told(second.report(3))
    assert (seen["bytes_out"], seen["destination_ips"], seen["listening_ports"]) == (1, ["10.0.0.2"], [80])


def test_a_baseline_keeps_counters_and_no_lists() -> None:
    machine, store = Machine(), Memory()
    machine.sent, machine.remotes, machine.run = 5, [Remote("10.0.0.1", 443, "tcp", incoming=False)], ["/bin/a"]
    made = window(machine, store)
    made.accept(made.report(1))
    assert store.state is not None
    (kept,) = json.loads(store.state)["baseline"]["watches"]
    assert (kept["bytes_out"], kept["remotes"], kept["listening_ports"], kept["exes"]) == (5, [], [], [])


def test_what_is_carried_outlives_any_number_of_restarts() -> None:
    store, machine, total = Memory(), Machine(), 0
    for generation in range(1, 6):
        machine = Machine()
        machine.spawned = generation
        total += generation
        made = window(machine, store, generation)
        assert told(made.report(generation))["child_procs_spawned"] == total
        again = window(machine, store, generation)  # a restart in the same capture
        assert told(again.report(generation))["child_procs_spawned"] == total
    last = window(machine, store, 5)
    last.accept(last.report(6))
    machine.spawned += 7
    assert told(window(machine, store, 5).report(9))["child_procs_spawned"] == 7


def test_a_restart_without_any_report_carries_what_was_carried() -> None:
    store = Memory()
    machine = Machine()
    machine.spawned = 3
    window(machine, store, 1).report(1)
    for generation in (2, 3, 4):
        window(Machine(), store, generation)
    machine = Machine()
    machine.spawned = 1
    assert told(window(machine, store, 5).report(2))["child_procs_spawned"] == 4


def test_executables_of_an_unaccepted_report_outlive_the_process_that_knew_them() -> None:
    machine, store = Machine(), Memory()
    first = window(machine, store)
    machine.run = ["/bin/old"]
    first.report(1)
    machine.run = ["/bin/new"]  # the counters went on, the engine is another one
    second = window(machine, store)
    report = second.report(2)
    assert told(report)["child_exes"] == ["/bin/new", "/bin/old"]
    second.accept(report)
    assert "child_exes" not in told(second.report(3))


def test_the_acceptance_of_an_earlier_lifes_report_does_not_hide_executables() -> None:
    machine, store = Machine(), Memory()
    first = window(machine, store)
    machine.run = ["/bin/old"] * 50
    first.report(1)
    machine.run = []
    second = window(machine, store)
    assert second.pending is not None
    second.accept(second.pending)  # its answer came late, to this process
    machine.run = ["/bin/new"]
    assert told(second.report(2))["child_exes"] == ["/bin/new"]


def test_the_highest_peak_of_all_unaccepted_reports_is_the_windows() -> None:
    machine, store = Machine(), Memory()
    made = window(machine, store)
    peaks = iter([7, 2, 3])
    true_snapshot = machine.snapshot

    def snapshot(reader: int | None, mark: int) -> Any:  # noqa: ANN401 - as the machine's
        seen = true_snapshot(reader, mark)
        watches = tuple(msgspec.structs.replace(watch, window_peak=next(peaks)) for watch in seen.watches)
        return msgspec.structs.replace(seen, watches=watches)

    machine.snapshot = snapshot  # type: ignore[method-assign]
    assert told(made.report(1))["child_procs_peak"] == 7
    report = window(machine, store).report(2)
    assert told(report)["child_procs_peak"] == 7
    made = window(machine, store)
    assert made.pending is not None
    made.accept(made.pending)
    assert told(made.report(3))["child_procs_peak"] == 3


def test_the_device_counts_from_the_last_accepted_report_too() -> None:
    machine, store = Machine(), Memory()

    def bytes_in(report: Report) -> int:
        return int(json.loads(report.payload)["metrics"]["network_stats"]["bytes_in"])

    machine.bytes_in = 1000
    made = window(machine, store)
    machine.bytes_in += 10
    assert bytes_in(made.report(1)) == 10
    made = window(machine, store)
    machine.bytes_in += 5
    report = made.report(2)
    assert bytes_in(report) == 15
    made.accept(report)
    machine.bytes_in += 1
    assert bytes_in(made.report(3)) == 1


@pytest.mark.parametrize("state", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'{"generation":"x"}'])
def test_a_torn_state_is_a_window_from_the_beginning(state: bytes) -> None:
    machine, store = Machine(), Memory()
    machine.spawned, store.state = 3, state
    assert told(window(machine, store).report(1))["child_procs_spawned"] == 3


def test_a_place_that_cannot_be_written_is_said_at_the_start_and_later_costs_no_report() -> None:
    machine, store = Machine(), Memory()
    made = window(machine, store)
    store.fails = True
    machine.spawned = 2
    report = made.report(1)
    made.accept(report)
    assert told(report)["child_procs_spawned"] == 2
    assert told(made.report(2))["child_procs_spawned"] == 0
    with pytest.raises(ConfigInvalid, match=r"daemon\.state_dir: .*No space left"):
        window(machine, store)


def test_a_file_of_state_is_replaced_whole(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "state" / "window.json")
    assert store.load() is None
    for state in (b"one" * 1000, b"two"):
        store.save(state)
        assert store.load() == state
    assert [file.name for file in (tmp_path / "state").iterdir()] == ["window.json"]
