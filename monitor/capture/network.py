"""The network side of the core capture: which of its hooks are live, what their counters say, what is not known.

Owns which field of a snapshot comes from which hook. Refuses to know records: they come through the same ring.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from monitor.capture import netfacts
from monitor.capture.netfacts import NEEDS
from monitor.detect.snapshot import NETWORK
from monitor.engine._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from monitor.engine import Engine
    from monitor.engine._native import CData
    from monitor.watch import Watch

HOOKS: Final = {
    "states": lib.KW_NET_STATES,
    "sockets": lib.KW_NET_SOCKETS,
    "lengths": lib.KW_NET_LENGTHS,
    "packets": lib.KW_NET_PACKETS,
    "bootstrap": lib.KW_NET_BOOTSTRAP,
}

_NOT_LOADED: Final = "not loaded"
"""What the loader says of a hook when the reason is one for all of them."""

PACKETS_OFF: Final = "switched off: capture.packets = false"
_CELLS: Final = tuple(name for name, _ in ffi.typeof("struct kw_net_counters").fields)


class NetworkSide:
    """The second object of the kernel side, beside the loader that has the first."""

    def __init__(self, programs: Path | None, *, packets: bool) -> None:
        """What is to be loaded; None: the network is not watched.

        `packets`: look at each packet too, which everybody on the device pays for.
        """
        self._left_out = dict.fromkeys(HOOKS, "")
        if programs is not None:
            self._left_out = netfacts.probe() | ({} if packets else {"packets": PACKETS_OFF})
        self.wanted = 0
        """enum kw_net_hook: what this kernel offers of what is not switched off."""
        if programs is not None:
            self.wanted = sum(bit for name, bit in HOOKS.items() if not self._left_out[name])
        self.path = os.fsencode(programs) if programs is not None and self.wanted else b""
        """Of the object, b"" when nothing of it is wanted."""
        self._loader = ffi.NULL
        self._error = _NOT_LOADED if programs is not None else "switched off: capture.network = false"

    def begin(self, loader: CData) -> None:
        """Put it in place or take it over. A kernel that offers nothing is no error."""
        self._loader = loader
        if self.path and lib.kw_loader_net(loader, self.path, self.wanted) < 0:
            self._error = bytes(ffi.string(lib.kw_loader_error(loader))).decode(errors="replace")

    def hooks(self) -> dict[str, str]:
        """Every hook by name: "" where it is live, else the reason why not."""
        reasons = {name: _text(lib.kw_loader_net_reason(self._loader, bit)) for name, bit in HOOKS.items()}
        told = {name: self._error if reason == _NOT_LOADED else reason for name, reason in reasons.items()}
        return {name: reason and (self._left_out[name] or reason) for name, reason in told.items()}

    def unknown(self) -> frozenset[str]:
        """Fields of WatchSnapshot that the live hooks do not tell."""
        live = lib.kw_loader_net_hooks(self._loader)
        if not live:
            return NETWORK
        return frozenset(field for field in NETWORK if any(not HOOKS[hook] & live for hook in NEEDS[field]))

    def expecting(self, watches: Iterable[Watch], slots: Mapping[str, int]) -> None:
        """Tell the hooks which watches expect certain destinations: an unexpected one is told before it answers."""
        mask = sum(1 << slots[watch.name] for watch in watches if watch.expect.somewhere)
        lib.kw_loader_net_expecting(self._loader, mask)

    def counters(self) -> CData | None:
        """One row a slot, live sockets included; None: nothing is known."""
        if not lib.kw_loader_net_hooks(self._loader):
            return None
        rows = ffi.new("struct kw_net_counters[]", lib.KW_SLOTS)
        return rows if lib.kw_loader_net_snapshot(self._loader, rows) == 0 else None

    def fields(self, rows: CData | None, engine: Engine, slot: int, mark: int) -> dict[str, Any]:
        """The network fields of a watch's snapshot."""
        if rows is None:
            return {}
        cells = {name: int(getattr(rows[slot], name)) for name in _CELLS}
        remotes, remotes_missed = engine.remotes(slot, mark)
        listening, listening_missed = engine.listening(slot, mark)
        return {
            **cells,
            "remotes": remotes,
            "remotes_missed": remotes_missed,
            "listening_ports": tuple(sorted({port for _, port in listening})),
            "listening_missed": listening_missed,
        }


def _text(cells: CData) -> str:
    return bytes(ffi.string(cells)).decode(errors="replace")
