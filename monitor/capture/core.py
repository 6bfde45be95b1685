"""The core capture: CO-RE programs in the kernel through the native loader.

Owns which watch has which slot, and what changes when the watches do (at a takeover, at a reload). Refuses to know
records and lines: the loader pushes them through the engine's door.

Records are fed at least once. Where programs are pinned, what was fed stays in the ring until commit(); a daemon that
is killed before it leaves it to the next one, which feeds it again: lines and alarms may come twice, counters do not.
A swap is the exception: what another version's ring held is fed once, by the first drain of its successor.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from monitor.capture import SlotWatch, enforcement
from monitor.capture.cmdline import Judge
from monitor.capture.network import NetworkSide
from monitor.capture.rules import define, directories, identities, rules
from monitor.detect.snapshot import Snapshot, WatchSnapshot
from monitor.engine import STAGES
from monitor.engine._native import ffi, lib
from monitor.errors import CaptureUnavailable, EngineRefused
from monitor.schema import Enforcement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from monitor.capture.rules import Rule
    from monitor.engine import Engine
    from monitor.engine._native import CData
    from monitor.schema import Capture as CaptureTable
    from monitor.watch import Watch

PINS: Final = "/sys/fs/bpf/kinwatch"
"""Where the daemon pins its links and maps."""

PROGRAMS: Final = Path(__file__).with_name("kinwatch.bpf.o")
"""The object file; wheels are unpacked, so it is a file beside this one."""

NET_PROGRAMS: Final = Path(__file__).with_name("net.bpf.o")
"""The object file of the network side."""

VERDICTS_A_POLL: Final = 256
"""Command lines that are read before lines go out: what a provisional process did is counted when it is told."""

ENFORCEMENT: Final = Enforcement()
"""What holds for all watches when nothing is said."""

ORIGINS: Final = {0: "new", 1: "taken over", 2: "swapped"}


class CoreCapture:
    """The programs in the kernel, and their ring into one engine. Defines the engine's watches.

    Raises CaptureUnavailable when the kernel refuses, with its reason.
    """

    kind: ClassVar[str] = "core"

    def __init__(  # noqa: PLR0913 - what to watch, with what, where it is kept
        self,
        engine: Engine,
        watches: Sequence[Watch],
        settings: CaptureTable,
        *,
        pins: str = "",
        fresh: bool = False,
        programs: Path | None = None,
        paired: bool = False,
        enforcing: Enforcement = ENFORCEMENT,
    ) -> None:
        """Load, or take over.

        `pins`: directory to pin into and to take over from, "" for neither. `fresh`: nothing is taken over. `programs`:
        an object file in place of the package's own. `paired`: with the second hooks of fork, exec and exit although
        this kernel does not skip the first. `enforcing`: as in `enforce`.
        """
        self._engine = engine
        self._wanted = tuple(watches)
        self._enforcing = enforcing
        self._slots: dict[str, SlotWatch] = {}
        self._spoken_for = 0
        """Slots without a watch that records in the ring still mean: no other watch gets one before they are gone."""
        self._judge = Judge({})
        self._stopped = False
        self._pids: set[str] = set()
        self._rules: dict[str, list[Rule]] = {}
        self._loader: CData | None = None
        if pins:
            _mount_bpffs()
            if fresh:
                unpin(pins)
        network = NET_PROGRAMS if settings.network else None
        self._network = NetworkSide(network, packets=settings.packets)
        self._open(os.fsencode(programs or PROGRAMS), settings, pins, paired=paired)
        self._network.begin(self._handle)

    def _open(self, path: bytes, settings: CaptureTable, pins: str, *, paired: bool) -> None:
        texts = [ffi.new("char[]", text) for text in (path, settings.btf.encode(), pins.encode(), self._network.path)]
        config = ffi.new(
            "struct kw_loader_config *",
            {
                "object": texts[0],
                "btf": texts[1],
                "pins": texts[2],
                "ring_bytes": settings.ring_bytes,
                "max_processes": settings.max_processes,
                "net_object": texts[3],
                "net_hooks": self._network.wanted,
                "paired": paired,
            },
        )
        found = ffi.new("struct kw_loader **")
        result = lib.kw_loader_open(config, found)
        if found[0] == ffi.NULL:
            raise CaptureUnavailable("no memory for the loader")
        self._loader = found[0]
        if result < 0:
            text = self._error()
            lib.kw_loader_free(self._loader, 1)  # what is pinned is an earlier daemon's, or whole: it stays
            self._loader = None
            msg = f"capture core: {text}; 'kinwatch doctor' says what this machine can do"
            raise CaptureUnavailable(msg)

    @property
    def watches(self) -> tuple[SlotWatch, ...]:
        """Who has which slot."""
        return tuple(self._slots.values())

    @property
    def origin(self) -> str:
        """Whether the programs are new, taken over, or swapped for an earlier version's."""
        return ORIGINS[self._state().origin]

    @property
    def generation(self) -> int:
        """Names the life of the counters: another number means that they began anew."""
        return int(self._state().generation)

    @property
    def since_boot_ns(self) -> int:
        """CLOCK_BOOTTIME when the counters began."""
        return int(self._state().since_ns)

    def net_hooks(self) -> dict[str, str]:
        """Every hook of the network by name: "" where it is live, else the reason why not."""
        return self._network.hooks()

    def enforcement_state(self) -> str:
        """Whether breaches are acted on: "off", "dry-run", "on", or "stopped by the breaker" until the next apply()."""
        modes = {held.watch.enforce for held in self._slots.values()} - {"off"}
        if not modes:
            return "off"
        if self._state().breaker:
            return "stopped by the breaker"
        return "on" if "kill" in modes else "dry-run"

    def facts(self) -> dict[str, int]:
        """Numbers about the ring, for `status`."""
        state = self._state()
        return {name: int(getattr(state, name)) for name in ("kin", "emitted", "woken", "polls", "syncs")}

    def start(self) -> None:
        """Take over what was pinned, put the watches in place, take in what runs."""
        if self._state().origin != lib.KW_ORIGIN_NEW:
            self._resume()
        self.apply(self._wanted)

    def _resume(self) -> None:
        """Define the watches as the last daemon left them, then let the engine learn what happened meanwhile."""
        wanted = {watch.name: watch for watch in self._wanted}
        name, identity = ffi.new("char[72]"), ffi.new("uint64_t *")
        stale = 0
        for slot in range(lib.KW_WATCHES):
            if self._check(lib.kw_loader_get_watch(self._handle, slot, name, identity)) == 0:
                continue
            text = _text(name)
            watch = wanted.get(text)
            if watch is None or _identity(watch) != identity[0]:
                stale |= 1 << slot
                self._withdraw(slot)
            else:
                self._place(slot, watch)
        if stale:
            self._check(lib.kw_loader_forget(self._handle, stale))
        self._judge = Judge(self._expressions())
        self._watch_breaker(self._wanted)
        mentioned = self._check(lib.kw_loader_resume(self._handle, self._engine.handle))
        self._spoken_for = mentioned & ~sum(1 << held.slot for held in self._slots.values())
        self.drain()
        self._check(lib.kw_loader_sync(self._handle, self._engine.handle))

    def _watch_breaker(self, watches: Sequence[Watch]) -> None:
        """Let the engine raise an alarm when the breaker trips; one that it raised is cleared."""
        acts = any(watch.enforce != "off" for watch in watches)
        self._engine.breaker(self._enforcing.max_kills_per_minute if acts else None)

    def enforce(self, settings: Enforcement) -> None:
        """What the next apply() puts in force for all watches."""
        self._enforcing = settings

    def apply(self, watches: Sequence[Watch]) -> None:
        """Make these the watches: who stays keeps slot, kin and counters, who goes is forgotten, who comes adopts."""
        wanted = {watch.name: watch for watch in watches}
        gone = 0
        for name, held in list(self._slots.items()):
            if name not in wanted or _identity(wanted[name]) != _identity(held.watch):
                gone |= 1 << held.slot
                self._withdraw(held.slot)
                del self._slots[name]
        if gone:
            self._check(lib.kw_loader_forget(self._handle, gone))
            self.drain()
            self._spoken_for |= gone
            for slot in range(lib.KW_WATCHES):
                if gone >> slot & 1:
                    self._engine.unwatch(slot)
        self._check(enforcement.begin(self._handle, self._enforcing))
        self.drain()  # what was spared before is told before the alarm about it is cleared
        self._watch_breaker(watches)
        fresh = 0
        for watch in watches:
            known = self._slots.get(watch.name)
            slot = self._free_slot() if known is None else known.slot
            self._place(slot, watch)
            limit = -1 if watch.child_limit is None else watch.child_limit
            self._check(lib.kw_loader_limit(self._handle, slot, limit))
            enforcement.put(self._handle, slot, watch, self._enforcing, self._check)
            if known is None:
                self._check(lib.kw_loader_set_watch(self._handle, slot, watch.name.encode(), _identity(watch)))
                fresh |= 1 << slot
            self._match(slot, watch)
        self._read_command_lines(fresh)
        self._network.expecting(watches, {name: held.slot for name, held in self._slots.items()})
        if fresh:
            self._check(lib.kw_loader_adopt(self._handle, fresh))

    def _place(self, slot: int, watch: Watch) -> None:
        held = SlotWatch(slot, watch, identities(watch.expect.executables or ()))
        self._slots[watch.name] = held
        define(self._engine, slot, watch, held.files)

    def _read_command_lines(self, fresh: int) -> None:
        """Let the hooks ask about every image from now on; what runs already is looked at once."""
        expressions = self._expressions()
        self._judge = Judge(expressions)
        self._check(lib.kw_loader_cmdline(self._handle, self._judge.slots))
        if fresh & self._judge.slots:
            for pid, mask in self._judge.running():
                for slot in expressions:
                    if mask & fresh & 1 << slot and pid != os.getpid():
                        self._check(lib.kw_loader_match_pid(self._handle, slot, pid))

    def _expressions(self) -> dict[int, str]:
        return {held.slot: held.watch.value for held in self._slots.values() if held.watch.kind == "cmdline"}

    def _refresh(self) -> None:
        """Look again at what the watches' paths name: a file may have been replaced, a link turned elsewhere."""
        for held in self._slots.values():
            if held.watch.kind == "exe":
                self._match(held.slot, held.watch)

    def watch_pid(self, name: str, pid: int) -> None:
        """Make `pid` a root of a watch at its next exec."""
        self._check(lib.kw_loader_match_pid(self._handle, self._slots[name].slot, pid))

    def _match(self, slot: int, watch: Watch) -> None:
        if watch.kind == "pid" and (watch.value == "0" or not self._new_pid(watch)):
            return
        now = rules(watch)
        for rule in now:
            self._check(getattr(lib, f"kw_loader_match_{rule.table}")(self._handle, slot, *rule.arguments))
        for rule in self._rules.get(watch.name, ()):
            if rule not in now and rule.table in {"file", "place"}:
                getattr(lib, f"kw_loader_unmatch_{rule.table}")(self._handle, slot, *rule.arguments)
        self._rules[watch.name] = now
        for directory in directories(watch):
            self._check(lib.kw_loader_watch_directory(self._handle, os.fsencode(directory)))

    def _new_pid(self, watch: Watch) -> bool:
        """A pid is matched once: when it has been, its rule is gone and must not come back for a successor."""
        fresh = watch.value not in self._pids
        self._pids.add(watch.value)
        return fresh

    def _withdraw(self, slot: int) -> None:
        enforcement.withdraw(self._handle, slot, self._check)
        self._check(lib.kw_loader_unmatch(self._handle, slot))
        self._check(lib.kw_loader_limit(self._handle, slot, -1))
        self._check(lib.kw_loader_set_watch(self._handle, slot, b"", 0))

    def _free_slot(self) -> int:
        taken = {held.slot for held in self._slots.values()}
        free = [slot for slot in range(lib.KW_WATCHES) if slot not in taken]
        return next((slot for slot in free if not self._spoken_for >> slot & 1), free[0])

    def poll(self) -> bool:
        """Block until records came and went through the engine's door, or interrupt(); False after stop()."""
        self._check(lib.kw_loader_poll(self._handle, self._engine.handle))
        if lib.kw_loader_paths_changed(self._handle):
            self._refresh()
        for _ in range(VERDICTS_A_POLL):
            if not self._decide():
                break
            self._check(lib.kw_loader_drain(self._handle, self._engine.handle))
        else:
            self._decide()
        return not self._stopped

    def _decide(self) -> bool:
        """Give the verdict about the record at which draining stopped. False: it had not."""
        header = lib.kw_loader_undecided(self._handle)
        if header == ffi.NULL:
            return False
        record = self._judge.judge(self._handle, header)
        if record:
            self._engine.ingest(record)
        return True

    def commit(self) -> None:
        """Give the room of all that was fed back to the ring. In the thread that polls; see Capture."""
        lib.kw_loader_commit(self._handle)
        self._spoken_for = 0

    def interrupt(self) -> None:
        """Make poll() return once, from any thread."""
        lib.kw_loader_interrupt(self._handle)

    def drain(self) -> None:
        """Push everything that is there through the engine's door, without waiting. Not while poll() runs."""
        while True:
            self._check(lib.kw_loader_drain(self._handle, self._engine.handle))
            if not self._decide():
                return

    def stop(self) -> None:
        """Make poll() return False, from any thread."""
        self._stopped = True
        lib.kw_loader_stop(self._handle)

    def snapshot(self, reader: int | None, mark: int) -> Snapshot:
        """The kernel's counters, exact whatever happened to the ring; executables as the engine saw them."""
        cells = ffi.new("struct kw_counters[]", lib.KW_SLOTS)
        self._check(lib.kw_loader_snapshot(self._handle, -1 if reader is None else reader, cells))
        traffic = self._network.counters()
        watches = []
        for held in self._slots.values():
            row = cells[held.slot]
            enforcing = held.watch.enforce != "off"
            exes, missed = self._engine.exes(held.slot, mark)
            watches.append(
                WatchSnapshot(
                    name=held.watch.name,
                    roots=row.roots,
                    alive=row.alive,
                    peak=row.peak,
                    spawned=row.spawned,
                    adopted=row.adopted,
                    execs=row.execs,
                    exits=row.exits,
                    root_starts=row.root_starts,
                    root_exits=row.root_exits,
                    enforced=row.enforced if enforcing else None,
                    would_enforce=row.would_enforce if enforcing else None,
                    window_peak=0 if reader is None else max(row.window_peak[reader], row.alive),
                    exes=exes,
                    exes_missed=missed,
                    **self._network.fields(traffic, self._engine, held.slot, mark),
                )
            )
        return Snapshot(
            wall_ns=time.time_ns(),
            boot_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            watches=tuple(watches),
            lost=self._losses(),
            unknown=self._network.unknown(),
        )

    def _losses(self) -> dict[str, int]:
        cells = ffi.new("uint64_t[]", lib.KW_STAGES)
        self._check(lib.kw_loader_losses(self._handle, cells))
        of_engine = self._engine.losses()
        return {
            stage: int(cells[i]) + (of_engine[stage] if stage in ("bad_record", "sink_full") else 0)
            for i, stage in enumerate(STAGES)
        }

    def close(self, *, keep: bool) -> None:
        """Let go of the kernel side: it is unloaded, unless `keep`."""
        if self._loader is not None:
            lib.kw_loader_free(self._loader, int(keep))
            self._loader = None

    @property
    def _handle(self) -> CData:
        if self._loader is None:
            raise EngineRefused("the core capture is closed")
        return self._loader

    def _state(self) -> CData:
        state = ffi.new("struct kw_loader_state *")
        lib.kw_loader_read_state(self._handle, state)
        return state

    def _error(self) -> str:
        return _text(lib.kw_loader_error(self._handle))

    def _check(self, result: int) -> int:
        if result < 0:
            raise CaptureUnavailable(f"capture core: {self._error()}")
        return result


def unpin(pins: str = PINS) -> bool:
    """Remove every pin at a directory. False: there was none. Raises CaptureUnavailable when it cannot be done."""
    error = ffi.new("char[]", 256)
    result = lib.kw_loader_unpin(pins.encode(), error, 256)
    if result < 0:
        raise CaptureUnavailable(_text(error))
    return result > 0


def _text(cells: CData) -> str:
    return bytes(ffi.string(cells)).decode(errors="replace")


def _identity(watch: Watch) -> int:
    """Of what a watch matches; its name and its limit may change without a new life of its counters."""
    return int.from_bytes(hashlib.sha256(f"{watch.kind}\0{watch.value}".encode()).digest()[:8], "little")


def _mount_bpffs() -> None:
    """Pins need a bpffs; systemd mounts one, a small init may not have."""
    if lib.kw_bpffs_mounted():
        return
    import subprocess  # noqa: PLC0415 - once in a machine's life, and slow to import

    try:
        subprocess.run(["mount", "-t", "bpf", "bpf", "/sys/fs/bpf"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        detail = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        msg = f"no bpffs at /sys/fs/bpf, and it cannot be mounted ({detail}); mount one, or use --capture poll"
        raise CaptureUnavailable(msg) from error
