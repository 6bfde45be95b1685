"""Sockets that are neither IPv4 nor IPv6: that kin uses one, and of which family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitor.engine.lines import Connect, Exit, Socket

if TYPE_CHECKING:
    from tests.net.rig import Net


def test_every_family_that_kin_uses_is_told(net: Net) -> None:
    watcher = net.watch("families")
    program = net.start("families")
    owner = program.fact("done")["process_id"]
    used = {fact["name"] for fact in program.facts("family") if fact["used"]}
    program.release()
    assert {"unix", "netlink"} <= used
    watcher.wait_for(Exit)
    watcher.finish()
    assert {line.family for line in watcher.of(Socket)} == used
    assert {line.process_id for line in watcher.of(Socket)} == {owner}
    assert not watcher.of(Connect)
