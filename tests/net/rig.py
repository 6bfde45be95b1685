"""Two network namespaces with one wire between them, a peer on the far side, and kinwatch watching the near side.

Owns namespaces, wire, peer, programs and kinwatch of a test, and their end. Refuses to judge: facts stand in the tests.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from unittest.mock import ANY

from monitor.engine import lines
from tests.contract.conftest import DEADLINE_S, KINWATCH, Program, Spoken, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from monitor.engine.lines import Event, Line

HERE: Final = Path(__file__).resolve().parent
PROGRAMS: Final = HERE / "programs"
NETNS: Final = Path("/run/netns")

NEAR4: Final = "10.77.1.1"
FAR4: Final = "10.77.1.2"
NEAR6: Final = "fd77:1::1"
FAR6: Final = "fd77:1::2"
MAPPED: Final = f"::ffff:{FAR4}"
HOLE4: Final = "10.77.1.99"
"""On the wire's network, with a link address that nobody has: packets there vanish without a word."""
NOBODY4: Final = "192.0.2.7"
"""No route leads there."""

WATCH: Final = "app"
ETHERNET_BYTES: Final = 14
"""An interface counts the link header, which no packet program sees."""
SAYS_LENGTHS: Final = " __traceiter_sock_send_length\n" in Path("/proc/kallsyms").read_text()
"""The kernel tells how much was sent and received (6.3): without, sums of payload are left out of reports."""
_serial = itertools.count()


def run(*command: str | Path) -> str:
    """Run a command that must succeed; its output."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Traffic:
    """What an interface has carried."""

    packets_in: int
    packets_out: int
    bytes_in: int
    bytes_out: int

    def __sub__(self, other: Traffic) -> Traffic:
        """What it carried since."""
        return Traffic(
            self.packets_in - other.packets_in,
            self.packets_out - other.packets_out,
            self.bytes_in - other.bytes_in,
            self.bytes_out - other.bytes_out,
        )

    @property
    def wire_in(self) -> int:
        """Bytes without link headers."""
        return self.bytes_in - ETHERNET_BYTES * self.packets_in

    @property
    def wire_out(self) -> int:
        """Bytes without link headers."""
        return self.bytes_out - ETHERNET_BYTES * self.packets_out


class Wire:
    """The two namespaces. Neighbours are told, nothing is discovered: only the programs' packets are on the wire."""

    def __init__(self) -> None:
        self.near, self.far = f"kwnear{os.getpid()}", f"kwfar{os.getpid()}"
        self._interface = "wire"
        _sweep()
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        links = {self.near: "02:00:00:00:77:01", self.far: "02:00:00:00:77:02"}
        for namespace in links:
            run("ip", "netns", "add", namespace)
            run("ip", "-n", namespace, "link", "set", "lo", "up")
        ends = [f"kw{os.getpid()}n", f"kw{os.getpid()}f"]
        run("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for (namespace, link), end in zip(links.items(), ends, strict=True):
            run("ip", "link", "set", end, "netns", namespace, "name", self._interface, "address", link)
            settings = {"accept_ra": 0, "router_solicitations": 0, "accept_dad": 0, "addr_gen_mode": 1}
            for key, value in settings.items():
                self.inside(namespace, "sysctl", "-qw", f"net.ipv6.conf.{self._interface}.{key}={value}")
        for namespace, v4, v6, other4, other6, link in (
            (self.near, NEAR4, NEAR6, FAR4, FAR6, links[self.far]),
            (self.far, FAR4, FAR6, NEAR4, NEAR6, links[self.near]),
        ):
            ip = ("ip", "-n", namespace)
            run(*ip, "address", "add", f"{v4}/24", "dev", self._interface)
            run(*ip, "address", "add", f"{v6}/64", "dev", self._interface, "nodad")
            run(*ip, "link", "set", self._interface, "up")
            for address in (other4, other6):
                run(*ip, "neigh", "replace", address, "lladdr", link, "dev", self._interface, "nud", "permanent")
        hole = ("neigh", "replace", HOLE4, "lladdr", "02:00:00:00:77:99", "dev", self._interface, "nud", "permanent")
        run("ip", "-n", self.near, *hole)
        self._wait_quiet()

    def _wait_quiet(self) -> None:
        """An interface that comes up reports its multicast groups a few times; wait until it has said its say."""
        seen, since = self.traffic(), time.monotonic()
        deadline = since + DEADLINE_S
        while time.monotonic() < since + 1.5:
            assert time.monotonic() < deadline, "the wire never falls silent"
            time.sleep(0.1)
            if (now := self.traffic()) != seen:
                seen, since = now, time.monotonic()

    def inside(self, namespace: str, *command: str) -> str:
        """Run a command in a namespace."""
        return run(*self.enter(namespace), *command)

    def enter(self, namespace: str) -> list[str]:
        """The words before a command that runs in a namespace (`ip netns exec` would mount another /sys)."""
        return ["nsenter", f"--net={NETNS / namespace}"]

    def traffic(self) -> Traffic:
        """What the near interface has carried."""
        (link,) = json.loads(run("ip", "-n", self.near, "-s", "-j", "link", "show", "dev", self._interface))
        rx, tx = link["stats64"]["rx"], link["stats64"]["tx"]
        return Traffic(rx["packets"], tx["packets"], rx["bytes"], tx["bytes"])

    def segment(self, *, together: bool) -> None:
        """Whether several TCP segments may travel as one packet of the kernel (GSO)."""
        most = 65535 if together else 1
        for namespace in (self.near, self.far):
            run("ip", "-n", namespace, "link", "set", "dev", self._interface, "gso_max_segs", str(most))

    def close(self) -> None:
        """Remove both; the wire goes with them."""
        for namespace in (self.near, self.far):
            if (NETNS / namespace).exists():
                run("ip", "netns", "delete", namespace)


def _sweep() -> None:
    """Remove what a killed test run left behind."""
    for path in NETNS.glob("kw*") if NETNS.exists() else ():
        digits = path.name.removeprefix("kwnear").removeprefix("kwfar")
        if digits.isdecimal() and not Path("/proc", digits).exists():
            run("ip", "netns", "delete", path.name)


class Peer(Program):
    """The services of the far side."""

    def __init__(self, wire: Wire) -> None:
        enter = wire.enter(wire.far)
        super().__init__(Path(enter[0]), *enter[1:], sys.executable, str(HERE / "peer.py"))
        self.multipath: bool = self.fact("ready")["multipath"]

    def order(self, do: str, **keys: object) -> None:
        """Have it do something."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **keys}).encode() + b"\n")
        self._process.stdin.flush()

    def told(self, fact: str, **keys: object) -> dict[str, Any]:
        """The newest such fact with these values, once it is told."""

        def found() -> list[dict[str, Any]]:
            return [one for one in self.facts(fact) if all(one[key] == value for key, value in keys.items())]

        eventually(lambda: bool(found()), f"the peer to tell {fact} {keys}")
        return found()[-1]


class Kinwatch(Spoken):
    """A kinwatch of this test alone, unpinned. Watches the program that `path` names, or runs one itself."""

    def __init__(
        self, directory: Path, path: Path, *arguments: str, command: tuple[str, ...] = (), packets: bool = False
    ) -> None:
        self._log, self._reports = directory / "events.jsonl", directory / "reports.jsonl"
        config = directory / "config.toml"
        config.write_text(
            f'[capture]\npackets = {str(packets).lower()}\n[[watch]]\nname = "{WATCH}"\nexe = "{path}"\n',
            encoding="utf-8",
        )
        words = [str(KINWATCH), "run", "--capture", "core", "--format", "json", "--interval-s", "3600"]
        words += ["--log", str(self._log), "--report-to", str(self._reports), *arguments]
        words += ["-c", str(config), *(["--", *command] if command else ["--once"])]
        self.watch = Path(command[0]).name if command else WATCH
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=directory
        )
        self._facts: list[dict[str, Any]] = []
        self._stdout = threading.Thread(target=self._read, daemon=True)
        self._stdout.start()
        self._hear()

    def _read(self) -> None:
        """What its command tells."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._facts.append(json.loads(line))

    def fact(self, name: str) -> dict[str, Any]:
        """The first fact of that name that its command told, once it has."""

        def found() -> list[dict[str, Any]]:
            return [fact for fact in list(self._facts) if fact["fact"] == name]

        eventually(lambda: bool(found()) or self._process.poll() is not None, f"fact {name!r}; told: {self._facts}")
        assert found(), f"no fact {name!r}, but {self._facts}; {self.said}"
        return found()[0]

    def go(self) -> None:
        """Let its command take the next step."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"x")
        self._process.stdin.flush()

    def release(self) -> None:
        """Let its command end."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def lines(self) -> list[Line]:
        """Every whole line so far, strictly decoded."""
        content = self._log.read_bytes() if self._log.exists() else b""
        return [lines.decode(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]

    def of(self, kind: type[Event], **keys: object) -> list[Any]:
        """The lines of a kind whose keys have these values."""
        return [
            line
            for line in self.lines()
            if isinstance(line, kind) and all(getattr(line, key) == value for key, value in keys.items())
        ]

    def wait_for(self, kind: type[Event], count: int = 1, **keys: object) -> list[Any]:
        """The lines of a kind with these values, once there are `count`."""
        eventually(
            lambda: len(self.of(kind, **keys)) >= count, f"{count} {kind.__name__} lines with {keys} in {self.lines()}"
        )
        return self.of(kind, **keys)

    def one(self, kind: type[Event], **keys: object) -> Any:  # noqa: ANN401 - a line of that kind
        """The line of a kind with these values, of which there is exactly one."""
        found = self.of(kind, **keys)
        assert len(found) == 1, f"{len(found)} {kind.__name__} lines with {keys} in {self.lines()}"
        return found[0]

    def wait_for_report(self) -> None:
        """Return when the first report is there: with an interval of an hour, that of an alarm."""
        eventually(lambda: self._reports.exists() and self._reports.read_bytes().endswith(b"\n"), "a report")

    def finish(self) -> Report:
        """End it with SIGTERM; its report about all it saw. Nothing may be lost."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self) -> Report:
        """Its last report, once it has ended by itself (as a command's last kin does)."""
        code = self._process.wait(DEADLINE_S)
        assert code == 0, f"kinwatch ended with {code}: {self.said}"
        documents = [json.loads(line) for line in self._reports.read_bytes().splitlines()]
        assert not self.of(lines.Lost), self.of(lines.Lost)
        return Report(documents, self.watch)

    def close(self) -> None:
        """End it whatever state it is in."""
        self.release()
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for thread in (self._stdout, self._stderr):
            thread.join(10)
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()


class Report:
    """The last report of a kinwatch: metrics by name, without the watch's."""

    def __init__(self, documents: list[dict[str, Any]], watch: str) -> None:
        self.documents = documents
        self._watch = watch

    def find(self, metric: str) -> Any:  # noqa: ANN401 - a number or a list
        """The value of a metric of the watch; None when the report has none."""
        blocks = self.documents[-1]["custom_metrics"]
        found = blocks.get(f"{metric}_{self._watch}")
        return None if found is None else next(iter(found[0].values()))

    def number(self, metric: str) -> int:
        """The value of a number that must be there; of a sum that this kernel cannot say, ANY, which equals all."""
        value = self.find(metric)
        if metric in {"bytes_in", "bytes_out"} and not SAYS_LENGTHS:
            assert value is None, f"{metric}: {value!r}"
            return cast("int", ANY)
        assert isinstance(value, int), f"{metric}: {value!r} in {self.documents[-1]}"
        return value

    def numbers(self, *metrics: str) -> dict[str, int]:
        """Several."""
        return {metric: self.number(metric) for metric in metrics}


class Net:
    """What a test works with."""

    def __init__(self, wire: Wire, peer: Peer, compiled: Path, directory: Path) -> None:
        self.wire, self.peer = wire, peer
        self._compiled, self._directory = compiled, directory
        self._running: list[Program | Kinwatch] = []
        self.packets = False
        """Look at each packet too. Without, tags of sockets are kept elsewhere."""

    def path(self, program: str) -> Path:
        """A copy of a program that only this test runs."""
        path = self._directory / program
        if not path.exists():
            shutil.copy(self._compiled / program, path)
        return path

    def watch(self, program: str, *arguments: str) -> Kinwatch:
        """A kinwatch, with further arguments, that watches a program by its file; it runs when this returns."""
        directory = self._directory / f"kinwatch{next(_serial)}"
        directory.mkdir()
        watcher = Kinwatch(directory, self.path(program), *arguments, packets=self.packets)
        self._running.append(watcher)
        return watcher

    def watch_command(self, *arguments: str, program: str, words: tuple[str, ...]) -> Kinwatch:
        """A kinwatch with further arguments that runs a program in the near namespace itself."""
        directory = self._directory / f"kinwatch{next(_serial)}"
        directory.mkdir()
        command = (*self.wire.enter(self.wire.near), str(self.path(program)), *words)
        watcher = Kinwatch(directory, self.path(program), *arguments, command=command, packets=self.packets)
        self._running.append(watcher)
        return watcher

    def start(self, program: str, *arguments: object, path: Path | None = None) -> Program:
        """A program in the near namespace, held by its stdin."""
        enter = self.wire.enter(self.wire.near)
        words = [*enter[1:], str(path or self.path(program)), *map(str, arguments)]
        running = Program(Path(shutil.which(enter[0]) or enter[0]), *words)
        self._running.append(running)
        return running

    def start_known(self, watcher: Kinwatch, program: str, *arguments: object) -> Program:
        """As start(), but it does nothing before the watcher has told its root line.

        The packet programs are attached when the first root comes: what passes between its exec and that is not seen.
        """
        enter = self.wire.enter(self.wire.near)
        words = [*enter[1:], "env", "GATE=1", str(self.path(program)), *map(str, arguments)]
        running = Program(Path(shutil.which(enter[0]) or enter[0]), *words)
        self._running.append(running)
        watcher.wait_for(lines.Root)
        running.go()
        return running

    def start_stranger(self, program: str, *arguments: object) -> Program:
        """The same program from another file, which nobody watches."""
        path = self._directory / f"stranger-{program}"
        if not path.exists():
            shutil.copy(self._compiled / program, path)
        return self.start(program, *arguments, path=path)

    def close(self) -> None:
        """End all that runs."""
        for running in reversed(self._running):
            running.close()


def as_told(address: str) -> str:
    """An address as lines and reports have it: IPv4 is IPv4, whatever socket it goes through."""
    return address.removeprefix("::ffff:")


def near_of(address: str) -> str:
    """The near side's address on the way to a far one."""
    return NEAR4 if "." in address else NEAR6


def until_still(look: Callable[[], object]) -> None:
    """Return when what `look` returns has stayed the same for a while: packets on their way have arrived."""
    seen, since = look(), time.monotonic()
    deadline = since + DEADLINE_S
    while time.monotonic() < since + 0.3:
        assert time.monotonic() < deadline, "it never comes to rest"
        time.sleep(0.02)
        if (now := look()) != seen:
            seen, since = now, time.monotonic()
