"""Sockets that are neither IPv4 nor IPv6: that kin made one, and of which family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitor.engine.lines import Connect, Socket

if TYPE_CHECKING:
    from tests.net.rig import Net


def test_every_family_of_which_kin_made_a_socket_is_told(net: Net) -> None:
    watcher = net.watch("families")
    program = net.start("families")
    owner = program.fact("done")["process_id"]
    made = {fact["name"] for fact in program.facts("family") if fact["made"]}
    program.release()
    assert {"unix", "netlink"} <= made
    watcher.wait_for(Socket, len(made))
    watcher.finish()
    assert {line.family for line in watcher.of(Socket)} == made
    assert {line.process_id for line in watcher.of(Socket)} == {owner}
    assert not watcher.of(Connect)
