"""Which machine BCC is taken on, and what is said where it cannot be."""

from __future__ import annotations

import os
import platform
import re
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from monitor import launch
from monitor.capture import bccsource
from monitor.capture.choose import Choice, Facts, choose
from monitor.capture.procfs import Rules
from monitor.config import Config
from monitor.engine import Engine
from monitor.errors import CaptureUnavailable

if TYPE_CHECKING:
    from pathlib import Path

HAS_BCC: list[str] = []
NO_BTF = "the kernel has no BTF"


def _facts(**changed: bool) -> Facts:
    return Facts(**{name: changed.get(name, False) for name in Facts.__struct_fields__})


def _asked() -> bool:
    pytest.fail("asked")


def _searched() -> list[str]:
    pytest.fail("searched")


def test_without_btf_bcc_is_taken_before_the_connector() -> None:
    choice = choose(_facts(capable=True, ring_buffer=True), "auto", _asked, lambda: HAS_BCC)
    assert (choice.kind, choice.ring) == ("bcc", True)
    assert choice.hooks == ("raw_tp/sched_process_fork", "raw_tp/sched_process_exec", "raw_tp/sched_process_exit")
    assert NO_BTF in choice.reason
    assert "compiles the hooks on this machine" in choice.reason


def test_without_ring_buffers_it_tells_through_perf_buffers() -> None:
    choice = choose(_facts(capable=True, btf=True), "auto", _asked, lambda: HAS_BCC)
    assert (choice.kind, choice.ring) == ("bcc", False)
    assert "perf buffer" in choice.reason


def test_where_core_works_nobody_looks_for_bcc() -> None:
    facts = _facts(btf=True, tracing=True, atomics=True, ring_buffer=True, capable=True)
    assert choose(facts, "auto", _asked, _searched).kind == "core"


def test_without_bcc_the_connector_is_taken_and_the_reason_says_what_is_missing() -> None:
    choice = choose(_facts(capable=True, ring_buffer=True), "auto", lambda: True, lambda: ["BCC is not installed"])
    assert choice.kind == "netlink"
    assert NO_BTF in choice.reason
    assert "BCC is not installed" in choice.reason


@pytest.mark.parametrize(
    ("facts", "lacking", "said"),
    [
        ({"capable": True}, ["BCC is not installed"], "BCC is not installed"),
        ({}, [], "run it as root"),
        ({"capable": True, "lockdown_confidentiality": True}, [], "lockdown=integrity"),
    ],
)
def test_asked_for_where_it_cannot_work_it_is_refused_with_the_reason(
    facts: dict[str, bool], lacking: list[str], said: str
) -> None:
    with pytest.raises(CaptureUnavailable, match='capture "bcc" cannot work here') as refused:
        choose(_facts(**facts), "bcc", _asked, lambda: lacking)
    assert said in str(refused.value)


def test_package_of_that_name_on_pypi_is_not_bcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "bcc"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(bccsource, "_SYSTEM", ())
    monkeypatch.delitem(sys.modules, "bcc", raising=False)
    assert bccsource.binding() is None
    assert any("apt-get install python3-bpfcc" in text for text in bccsource.obstacles())
    with pytest.raises(CaptureUnavailable, match="apt-get install python3-bpfcc"):
        bccsource.load()


def test_binding_that_does_not_load_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "bcc"
    package.mkdir()
    (package / "libbcc.py").write_text("", encoding="utf-8")
    (package / "__init__.py").write_text("raise OSError('libbcc.so.0: cannot open')", encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "bcc", raising=False)
    with pytest.raises(CaptureUnavailable, match=r"libbcc.so.0: cannot open"):
        bccsource.load()
    assert "bcc" not in sys.modules


def test_without_headers_and_type_information_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bccsource, "headers", lambda: ("", ""))
    (said,) = (text for text in bccsource.obstacles("/nothing/there") if "headers" in text)
    assert f"linux-headers-{platform.release()}" in said
    assert "[capture] btf" in said
    with pytest.raises(CaptureUnavailable, match="headers"):
        bccsource.source("/nothing/there")


def test_headers_are_told_with_the_kernel_they_are_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    generated = tmp_path / "include" / "generated"
    generated.mkdir(parents=True)
    (generated / "utsrelease.h").write_text('#define UTS_RELEASE "6.1.0-56-amd64"\n', encoding="utf-8")
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(tmp_path))
    assert bccsource.headers() == (str(tmp_path), f"headers in {tmp_path}, of kernel 6.1.0-56-amd64")


@pytest.mark.parametrize(("field", "flag"), [("start_boottime", False), ("real_start_time", True)])
def test_older_name_of_the_start_is_read_from_the_headers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, field: str, *, flag: bool
) -> None:
    (tmp_path / "include" / "linux").mkdir(parents=True)
    (tmp_path / "include" / "linux" / "sched.h").write_text(f"struct task_struct {{ u64 {field}; }};", encoding="utf-8")
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(tmp_path))
    source = bccsource.source("/nothing/there")
    assert (source.offsets, source.headers) == (False, str(tmp_path))
    assert ("-DKW_START=real_start_time" in source.flags) is flag


def test_what_headers_said_is_remembered_for_the_same_kernel_and_headers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fields = {field: 8 * number for number, field in enumerate(bccsource.FIELDS)}
    monkeypatch.setattr(bccsource, "CACHE", tmp_path / "kinwatch" / "offsets.json")
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(tmp_path))
    first = bccsource.source("/nothing/there")
    assert (first.offsets, first.remembered) == (False, False)
    bccsource.remember(first, fields)
    again = bccsource.source("/nothing/there")
    assert (again.offsets, again.remembered) == (True, True)
    assert f"-DKW_linux_binprm__interp={fields['linux_binprm.interp']}" in again.flags
    assert not bccsource.source("/nothing/there", anew=True).offsets
    monkeypatch.setattr(platform, "version", lambda: "#2 another build")
    assert not bccsource.source("/nothing/there").offsets, "another kernel"


@pytest.mark.parametrize("content", [b"", b"{}", b'{"kernel":"x","headers":"y","fields":{"task_struct.pid":"much"}}'])
def test_what_cannot_be_read_of_it_is_as_if_it_were_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes
) -> None:
    cache = tmp_path / "offsets.json"
    cache.write_bytes(content)
    monkeypatch.setattr(bccsource, "CACHE", cache)
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(tmp_path))
    assert not bccsource.source("/nothing/there").offsets


def test_where_nothing_can_be_written_nothing_is_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(bccsource, "CACHE", tmp_path / "file" / "offsets.json")
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(tmp_path))
    bccsource.remember(bccsource.source("/nothing/there"), dict.fromkeys(bccsource.FIELDS, 0))
    assert not bccsource.source("/nothing/there").offsets


def test_refused_by_its_own_trial_it_gives_way_to_the_next_unless_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    why = "what is known of the kernel's structs is not of this kernel"

    tried: list[str] = []

    def opened(choice: Choice, *_: object, **__: object) -> None:
        tried.append(choice.kind)
        if choice.kind == "bcc":
            raise CaptureUnavailable(why)

    monkeypatch.setattr(launch, "_open", opened)
    monkeypatch.setattr(launch, "probe", lambda _: _facts(capable=True))
    chosen = Choice(kind="bcc", reason="", hooks=())
    with Engine(64) as engine:
        choice, _ = launch.open_capture(chosen, engine, Config(), pins="", fresh=False)
        asked = msgspec.convert({"capture": {"kind": "bcc"}}, Config)
        with pytest.raises(CaptureUnavailable, match=why):
            launch.open_capture(chosen, engine, asked, pins="", fresh=False)
    assert tried == ["bcc", choice.kind, "bcc"]
    assert choice.kind in {"netlink", "poll"}
    assert why in choice.reason


@pytest.mark.parametrize("command_line", [False, True])
def test_any_image_may_match_where_a_command_line_decides(*, command_line: bool) -> None:
    rules = Rules()
    rules._names = {b"a-name-longer-than-a-comm": 1}
    rules._paths = {"/bin/sh": 2}
    rules._pids = {7: 4}
    if command_line:
        rules._cmdlines = [(re.compile("x"), 8)]
    assert rules.undecided is command_line
    names = {name for name, *others in rules.wanted() if not any(others)}
    assert {b"a-name-longer-t", b"sh", os.path.realpath("/bin/sh").rpartition("/")[2].encode()} <= names
    assert (b"", 0, 0, 7) in rules.wanted()
