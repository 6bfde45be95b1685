"""What is said of a network object that cannot be used. Nothing is loaded: it is no object at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitor.capture.network import HOOKS
from monitor.engine._native import ffi, lib

if TYPE_CHECKING:
    from pathlib import Path

NOT_OF_CGROUPS = ("states", "lengths", "bootstrap")


def test_each_hook_is_told_with_its_own_reason_and_no_other_s(tmp_path: Path) -> None:
    garbage = tmp_path / "net.bpf.o"
    garbage.write_bytes(b"no object")
    texts = [ffi.new("char[]", text) for text in (bytes(tmp_path / "none.bpf.o"), b"", b"", b"")]
    names = ("object", "btf", "pins", "net_object")
    config = ffi.new("struct kw_loader_config *", dict(zip(names, texts, strict=True)))
    found = ffi.new("struct kw_loader **")
    assert lib.kw_loader_open(config, found) < 0, "there is no such object"
    loader = found[0]
    try:
        assert lib.kw_loader_net(loader, bytes(garbage), sum(HOOKS.values())) < 0
        said = [ffi.string(lib.kw_loader_net_reason(loader, HOOKS[name])).decode() for name in NOT_OF_CGROUPS]
    finally:
        lib.kw_loader_free(loader, 0)
    assert said[0].startswith("the kernel refused it: ")
    assert said[0].count("libbpf:") == 1
    assert said[1:] == said[:1] * 2
