"""What is known of the network follows from the hooks that are there, and doctor says why one is not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor import doctor
from monitor.capture import netfacts
from monitor.capture.netfacts import FACTS, probe, unknown
from monitor.capture.network import HOOKS
from monitor.config import Config, parse
from monitor.detect.metrics import FIELDS
from monitor.detect.snapshot import NETWORK, WatchSnapshot, destinations
from monitor.remote import Remote
from tests.unit.service import Counters

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

OF_NETWORK = {f"{what}_<w>" for what, fields in FIELDS.items() if not NETWORK.isdisjoint(fields)}
NAMES = [need for hook in FACTS.values() for need in hook.needs]


def test_hooks_are_those_of_the_loader_in_their_order() -> None:
    header = (Path(netfacts.__file__).parents[1] / "engine" / "native" / "loader.h").read_text()
    enum = header.split("enum kw_net_hook {")[1].split("}")[0]
    names = [part.split("=")[0].strip() for part in enum.split("KW_NET_")[1:]]
    assert names == [*(name.upper() for name in HOOKS), "HOOKS"]


@given(st.sets(st.sampled_from(sorted(HOOKS))), st.sets(st.sampled_from(sorted(HOOKS))))
def test_fewer_hooks_never_mean_more_knowledge(some: AbstractSet[str], more: AbstractSet[str]) -> None:
    assert unknown(some) <= unknown(some | more) <= NETWORK <= set(WatchSnapshot.__struct_fields__)


def test_with_all_hooks_everything_is_known_and_with_none_nothing() -> None:
    assert unknown(()) == frozenset()
    assert unknown(HOOKS) == NETWORK


def test_every_hook_has_its_facts() -> None:
    assert list(FACTS) == list(HOOKS)


@pytest.mark.parametrize("missing", NAMES)
def test_a_name_that_the_kernel_lacks_is_named(missing: str, tmp_path: Path) -> None:
    btf = tmp_path / "vmlinux"
    # A longer name that begins the same is another.
    btf.write_bytes(
        b"\0".join(b"%s" % name.encode() for name in ["", *NAMES, ""] if name != missing)
        + b"\0%sx\0" % missing.encode()
    )
    found = probe(btf)
    for name, hook in FACTS.items():
        assert (f"the kernel has no {missing}" == found[name]) == (missing in hook.needs)


def test_a_btf_file_that_is_not_there_is_the_reason_for_all() -> None:
    assert set(probe(Path("/nowhere")).values()) == {"/nowhere cannot be read: No such file or directory"}


def test_without_cgroup2_its_hooks_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    btf = tmp_path / "vmlinux"
    btf.write_bytes(b"\0" + b"\0".join(name.encode() for name in NAMES) + b"\0")
    monkeypatch.setattr(netfacts, "cgroup2_mount", lambda: None)
    assert set(probe(btf).values()) == {""}, "root reaches what nobody has mounted"
    monkeypatch.setattr(netfacts, "_has", lambda capability: capability == netfacts.CAP_NET_ADMIN)
    found = probe(btf)
    assert {name for name, reason in found.items() if reason} == {name for name, hook in FACTS.items() if hook.cgroup2}
    monkeypatch.setattr(netfacts, "cgroup2_mount", lambda: tmp_path)
    assert set(probe(btf).values()) == {""}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[capture]\nkind = "poll"', "capture poll sees no sockets"),
        ("[capture]\nnetwork = false", "capture.network is false"),
    ],
)
def test_doctor_says_what_is_left_out_and_why(text: str, reason: str) -> None:
    config = parse(text, "f")
    found = doctor.findings(config, connect=False)
    if found["capture"] != "core" and config.capture.kind != "poll":
        reason = f"capture {found['capture']} sees no sockets"
    assert set(found["network"].values()) == {reason}
    assert set(found["left_out"]) == OF_NETWORK
    shown = "\n".join(doctor._lines(found))
    assert reason in shown
    assert "destination_ips_<w>" in shown


def test_doctor_without_a_configuration_speaks_of_this_kernel() -> None:
    found = doctor.findings(None, connect=False)
    assert found["network"].keys() == HOOKS.keys()
    if found["capture"] == "core":
        assert found["network"] == probe() | {"packets": "capture.packets is false"}
    assert found["behaviors"] == []


def test_doctor_writes_expectations_as_behaviors() -> None:
    expect = '{ child_processes = 0, destinations = ["10.0.0.0/8"], listening_ports = [] }'
    config = parse(f'[[watch]]\nprocess = "myapp"\nexpect = {expect}', "f")
    assert isinstance(config, Config)
    behaviors = doctor.findings(config, connect=False)["behaviors"]
    assert [behavior["metric"] for behavior in behaviors] == [
        "num_child_procs_myapp",
        "destination_ips_myapp",
        "listening_ports_myapp",
    ]


def test_status_shows_the_latest_destinations_and_how_many_remotes_there_were() -> None:
    remotes = tuple(Remote(address=f"10.0.0.{n}", port=443, protocol="tcp", incoming=n % 2 == 0) for n in range(1, 21))
    remotes += (Remote(address="fd00::1", port=53, protocol="udp", incoming=False),)
    (watch,) = Counters().snapshot(None, 0).watches
    told = destinations(msgspec.structs.replace(watch, remotes=remotes, remotes_missed=4))
    assert told["remotes"] == 25
    assert told["destinations"] == ["[fd00::1]:53", *(f"10.0.0.{n}:443" for n in (19, 17, 15, 13, 11, 9, 7))]
