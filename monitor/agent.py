"""The composition root: builds the parts, runs the main path, owns the order of shutdown.

The main path, from the kernel to the log and the report, is `_pump` and `_report`; everything else here is begin and
end. Threads where bytes flow: one blocks in the capture, one writes to the sinks. asyncio where things wait: signals,
the window, the control socket, the watchdog.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from monitor import account
from monitor.capture import device
from monitor.capture.core import CoreCapture
from monitor.capture.recordfile import recorder
from monitor.config import expectation_notes, require_watches
from monitor.control import ControlServer
from monitor.defender.link import Unreachable
from monitor.engine import records
from monitor.errors import ConfigInvalid, KinwatchError
from monitor.judging.actions import Actions
from monitor.judging.detection import Detection, Said
from monitor.judging.plan import plan
from monitor.options import kept, settled
from monitor.schema import Action
from monitor.sinks import Fanout
from monitor.sinks.stream import StreamSink
from monitor.sinks.table import log_sink
from monitor.sinks.text import say
from monitor.watch import COMMAND_PID
from monitor.window import FileStore, Store, Window

if TYPE_CHECKING:
    from monitor.capture.recordfile import RecordWriter
    from monitor.config import Config
    from monitor.judging.plan import Plan
    from monitor.launch import Parts
    from monitor.overlay import Overlay
    from monitor.publication import Publication

PUBLISHER: Final = 0
"""The reader of the publisher among KW_READERS."""
READER: Final = 1
"""The reader of `--report-to`."""
DETECT: Final = 2
"""The reader of the security profile."""
FINISH_S: Final = 5.0
"""How long the end waits for the broker. systemd's own limit for a stop is 90 s."""
TICK_S: Final = 1.0
"""From one look at the clock to the next, while an alarm stands that time alone clears."""
SPACING_S: Final = 1.0
"""Least time between two immediate reports: alarms within it go into one."""


def run(parts: Parts) -> int:
    """The daemon; with `--once` or `-- COMMAND` a run that ends by itself. Returns the exit code."""
    return Agent(parts).run()


class Agent:
    """One run: its parts and their order."""

    def __init__(self, parts: Parts) -> None:
        self._config, self._options, self._choice = parts.config, parts.options, parts.choice
        self._plan = parts.plan or plan(self._config)
        self._engine, self._capture = parts.engine, parts.capture
        self._notifier, self._command = parts.notifier, parts.command
        self._daemon = not (self._options.once or self._options.attended) and self._command is None
        self._device = device.DeviceReader(
            cpu=self._config.report.cpu_usage, namespaces=self._config.report.namespaces, say=say
        )
        self._read_device = self._device.read
        self._stdout = StreamSink.stdout()
        self._recorder: RecordWriter | None = None
        self._pumping = threading.Lock()
        self._reloading: Config | None = None
        self._trial: Overlay | None = None
        self._refused = ""
        self._failure: BaseException | None = None
        self._publication: Publication | None = None
        self._exit_code = 0
        self._unreachable = False
        self._ticking: asyncio.TimerHandle | None = None
        self._since_ns = time.time_ns()

    def run(self) -> int:
        """Begin, wait, end. Returns the exit code; raises what ended it."""
        clean = False
        # A crash leaves the pins. A start that is refused leaves only what was there before it.
        self._worth_keeping = isinstance(self._capture, CoreCapture) and self._capture.origin != "new"
        try:
            self._open_publication()
            self._open_detection()
            self._fanout = self._open_sinks()
            self._capture.start()
            self._match_command()
            self._window = self._open_window()
            self._open_record()
            try:
                asyncio.run(self._main())
                clean = True
            finally:
                self._actions.finish(FINISH_S)  # after a failure as well: nothing that was started runs on
                self._fanout.close()
                if self._recorder is not None:
                    self._recorder.close()
        finally:
            if self._publication is not None:
                self._publication.close()
            keep = self._config.daemon.keep == "always" if clean else self._worth_keeping
            self._capture.close(keep=self._daemon and keep)
        return self._exit_code

    def _hand_over(self) -> None:
        self._config = kept(self._config)  # SIGUSR2, a restart: as SIGTERM, but the next daemon goes on
        self._stop.set()

    # -------- the main path --------

    def _pump(self) -> None:
        """What the engine made of a batch goes to the spool and the sinks; an alarm wakes the report."""
        with self._pumping:
            batch = self._engine.take()
            lines = batch.lines
            if batch.alarms or batch.clears:
                lines = self._detection.named(lines)
                self._raise(lines, batch.alarms)
            self._fanout.put(lines, batch.lines_count)
            if batch.records and self._recorder is not None:
                self._keep_records(batch.records)
        if batch.hurried:
            self._loop.call_soon_threadsafe(self._tick_soon)

    def _raise(self, lines: bytes, alarms: int) -> None:
        """Alarms and clears go to the spool; an alarm wakes the report and has its actions."""
        if self._publication is not None:
            self._publication.delivery.alarm(lines)
        if alarms:
            self._actions.alarm(lines)
            self._loop.call_soon_threadsafe(self._alarm.set)

    def _tick_soon(self) -> None:
        """Time alone clears an alarm that stands, and the engine has no clock: it is told the time in a second."""
        if self._ticking is None:
            self._ticking = self._loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._engine.ingest(records.clock_record(time_ns=boot_ns, wall_ns=time.time_ns() - boot_ns))
        self._capture.interrupt()

    def _judge(self, *, whole: bool = True) -> None:
        """The end of a window of the security profile: its verdicts go where the engine's alarms go."""
        self._tell(self._detection.judge(whole=whole))
        self._detection.settle()  # not earlier: what is not told yet is judged again by the next start

    def _report(self) -> None:
        """Snapshot, metrics, document, out; the window ends when all of it is written."""
        report = self._window.report(int(time.time()))
        if report.dropped:
            say(f"the report was too long: {report.dropped} entries left out, totals are true")
        if self._reports is None or self._reports.write(report.payload + b"\n") == 0:
            self._window.accept(report)

    def _tell(self, said: Said) -> None:
        with self._pumping:
            if said.loud:
                self._raise(said.loud, said.alarms)
            self._fanout.put(said.lines, said.lines_count)

    # -------- threads and waits --------

    def _drain(self) -> None:
        """The capture thread."""
        try:
            self._pump()  # what a takeover brought to light: the next record may be long in coming
            self._capture.commit()
            while self._capture.poll():
                self._pump()
                self._capture.commit()  # not earlier: what a kill leaves uncommitted the next start reads again
                if self._reloading is not None:
                    config, self._reloading = self._reloading, None
                    self._change_watches(config)
                if self._command is not None:
                    self._loop.call_soon_threadsafe(self._look_at_command)
        except BaseException as error:  # noqa: BLE001 - it ends the program, in the main thread
            self._failure = error
            self._loop.call_soon_threadsafe(self._stop.set)

    def _change_watches(self, config: Config) -> None:
        """A reload. A watch that the kernel refuses is said, and ends nothing."""
        refused = ""
        try:
            if isinstance(self._capture, CoreCapture):
                self._capture.enforce(config.enforcement)
            self._capture.apply(config.watches)
        except KinwatchError as error:
            refused = str(error)
            say(f"reload: {error}")
        self._pump()
        self._capture.commit()
        self._loop.call_soon_threadsafe(self._took, config, refused)

    def _took(self, config: Config, refused: str) -> None:
        """The capture has what a reload asked for; whoever waits, waits for the last one."""
        if config is self._config:
            self._refused = refused
            self._taken.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop, self._alarm, self._judging = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._taken = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop.set)
        self._loop.add_signal_handler(signal.SIGUSR2, self._hand_over)
        self._loop.add_signal_handler(signal.SIGHUP, self._reload)
        async with contextlib.AsyncExitStack() as stack:
            if self._daemon:
                answers = {"status": self._status, "tree": self._tree}
                await stack.enter_async_context(ControlServer(Path(self._config.daemon.socket), answers))
            thread = threading.Thread(target=self._drain, name="capture")
            thread.start()
            publishing = self._loop.create_task(self._publish())
            try:
                self._say_ready()
                self._worth_keeping = True
                if self._command is not None:
                    self._command.release()
                await self._until_stopped(publishing)
            finally:
                self._notifier.stopping()
                self._capture.stop()
                await asyncio.to_thread(thread.join)
                if self._failure is not None:
                    publishing.cancel()
            if self._failure is not None:
                raise self._failure
            await self._finish()
            await publishing

    async def _until_stopped(self, publishing: asyncio.Task[None]) -> None:
        work = (self._keep_windows(), self._keep_judging(), self._keep_watchdog())
        tasks = [asyncio.create_task(one) for one in work]
        stopped = asyncio.create_task(self._stop.wait())
        waiting = [*tasks, stopped, *([publishing] if self._publication is not None else [])]
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in (*tasks, stopped):
            task.cancel()
        await asyncio.gather(*tasks, stopped, return_exceptions=True)
        for task in done:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _publish(self) -> None:
        if self._publication is not None:
            await self._publication.delivery.run()

    async def _finish(self) -> None:
        """What was watched until now goes where it belongs: nothing more comes."""
        self._capture.drain()
        self._pump()
        self._capture.commit()
        if not (self._daemon and self._config.daemon.keep == "always"):  # there the window goes on
            await asyncio.to_thread(self._judge, whole=False)
        await asyncio.to_thread(self._actions.finish, FINISH_S)
        if self._reports is not None and not self._reported_once:
            self._report()
        if self._publication is not None:
            await asyncio.to_thread(self._fanout.flush, FINISH_S)
            accepted = await self._publication.delivery.finish(
                0.0 if self._unreachable else FINISH_S, report=not self._reported_once
            )
            if self._command is not None and not accepted and not self._reported_once:
                say("no report about the end left in time; the next run with this daemon.state_dir sends it")

    async def _keep_windows(self) -> None:
        """A report at the end of every window, and one as soon as an alarm is raised."""
        if self._reports is None and not self._options.once:
            await self._stop.wait()
            return
        await asyncio.to_thread(self._window.begin)
        interval_s = self._config.report.interval_s
        due = time.monotonic() + interval_s
        if self._window.began_wall_ns:
            due -= min(interval_s, max(0.0, (time.time_ns() - self._window.began_wall_ns) / 1e9))
        last = -SPACING_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - time.monotonic())):
                    await self._alarm.wait()
                    await asyncio.sleep(max(0.0, last + SPACING_S - time.monotonic()))
            self._alarm.clear()
            await asyncio.to_thread(self._report)
            last = time.monotonic()
            due = last + self._config.report.interval_s  # a reload may have changed it
            if self._options.once:
                if self._publication is not None and not await self._publication.delivery.first_report():
                    self._exit_code = Unreachable.exit_code
                self._reported_once = True
                self._stop.set()
                return

    async def _keep_judging(self) -> None:
        """Verdicts at the end of every window, while a profile has behaviors for it."""
        self._tell(self._detection.resumed(time.time()))
        self._detection.settle()
        if self._detection.active:
            self._judging.set()
        while True:
            await self._judging.wait()
            await asyncio.to_thread(self._detection.begin)
            await asyncio.sleep(self._detection.left_s(self._config.report.interval_s, time.time_ns()))
            await asyncio.to_thread(self._judge)

    async def _keep_watchdog(self) -> None:
        if self._notifier.watchdog_s is None:
            await self._stop.wait()
            return
        while True:
            self._notifier.watchdog()
            await asyncio.sleep(self._notifier.watchdog_s)

    def _look_at_command(self) -> None:
        """`-- COMMAND` ends with the last of its kin."""
        if self._command is not None:
            self._command.reap()
        watches = self._capture.snapshot(None, 0).watches
        if any(watch.root_starts for watch in watches) and not any(watch.roots or watch.alive for watch in watches):
            self._stop.set()

    def _settled(self, trial: Overlay | None) -> Plan:
        planned = plan(settled(self._options.config_path, self._options.overrides, trial))
        require_watches(planned.config)
        return planned

    async def _try(self, trial: Overlay | None) -> str:
        """Reload with what was set from afar; returns why that failed, "" when everything has it."""
        self._trial = trial
        self._taken.clear()
        if refused := self._reload():
            return refused
        await self._taken.wait()
        return self._refused

    def _reload(self) -> str:
        """SIGHUP: files are reopened, watches changed; what cannot be read changes nothing, and is returned."""
        self._notifier.reloading(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
        self._fanout.reopen()
        if self._reports is not None:
            with contextlib.suppress(OSError):
                self._reports.reopen()
        if self._options.attended:  # its flags cannot change
            self._notifier.ready()
            return ""
        refused = ""
        try:
            planned = self._settled(self._trial)
            config = planned.config
            if self._command is None:
                self._change_publication(config)
                self._change_detection(planned)
                self._config = config
                self._device.change(cpu=config.report.cpu_usage, namespaces=config.report.namespaces)
                for note in expectation_notes(config):
                    say(note)
                self._reloading = config
                self._capture.interrupt()
        except ConfigInvalid as error:
            refused = str(error)
            say(f"{refused} (nothing was changed)")
        self._notifier.ready()
        return refused

    def _change_publication(self, config: Config) -> None:
        """Intervals and names change in the running program; who publishes and where needs another start."""
        old, new = self._config.defender, config.defender
        if self._publication is not None and new is not None:
            self._publication.delivery.change(config.report.interval_s, new.min_spacing_s, config.report.names)
        same = msgspec.structs.replace(new, min_spacing_s=old.min_spacing_s) if old and new else new
        others = [(one.spool, one.provisioning, one.remote) for one in (config, self._config)]
        if same != old or others[0] != others[1]:
            say("reload: changes in [defender], [provisioning], [remote] and [spool] take effect at the next start")

    def _change_detection(self, planned: Plan) -> None:
        self._plan = planned
        self._tell(self._detection.change(planned, time.time()))
        self._detection.settle()
        self._actions.change(planned.config.detect.action, planned.config.watches)
        if self._detection.active:
            self._judging.set()
        else:
            self._judging.clear()
        for note in planned.notes():
            say(note)

    # -------- begin --------

    def _match_command(self) -> None:
        """`-- COMMAND` is a root from its exec on, where the capture can see one."""
        if self._command is None or not isinstance(self._capture, CoreCapture):
            return
        for held in self._capture.watches:
            if (held.watch.kind, held.watch.value) == ("pid", COMMAND_PID):
                self._capture.watch_pid(held.watch.name, self._command.pid)

    def _open_sinks(self) -> Fanout:
        several = len(self._config.watches) > 1
        log = log_sink(self._options.log, self._options.format, os.environ, watch_column=several, stdout=self._stdout)
        target = self._options.report_to
        self._reports: StreamSink | None = None
        if target is not None:
            self._reports = self._stdout if target == "-" else StreamSink.open(target)
        self._reported_once = False
        events = self._publication.delivery.event_sink() if self._publication is not None else None
        return Fanout(
            [log, events] if events is not None else [log], on_loss=self._lose, on_trouble=say, on_end=self._sink_ended
        )

    def _lose(self, count: int) -> None:
        """A sink was too slow: say so in the log, as soon as there is room."""
        self._note_lost("sink_full", count)
        self._pump()

    def _sink_ended(self, _: object) -> None:
        """Nobody reads the log any more: a run in a pipe ends, as any filter would."""
        if self._options.log == "-":
            self._loop.call_soon_threadsafe(self._stop.set)

    def _open_window(self) -> Window:
        store = (
            FileStore(Path(self._config.daemon.state_dir, "window.json")) if self._daemon and self._reports else None
        )
        if isinstance(self._capture, CoreCapture):
            self._since_ns -= time.clock_gettime_ns(time.CLOCK_BOOTTIME) - self._capture.since_boot_ns
        return self._window_of(READER, store)

    def _window_of(self, reader: int, store: Store | None) -> Window:
        return Window(
            self._capture, self._engine, reader, self._read_device, store=store, generation=self._generation()
        )

    def _open_detection(self) -> None:
        store = FileStore(Path(self._config.daemon.state_dir, "detect.json")) if self._daemon else None
        self._detection = Detection(
            self._plan,
            partial(self._window_of, DETECT),
            kin=self._engine.tree,
            store=store,
            anew=not isinstance(self._capture, CoreCapture) or self._capture.origin == "new",
        )
        self._actions = Actions(
            self._config.detect.action,
            self._config.watches,
            self._engine.tree,
            lambda line: self._tell(Said(lines=line, lines_count=1)),
            say,
        )

    def _generation(self) -> int:
        """Of the counters: those of core live in the kernel and may outlive us."""
        return self._capture.generation if isinstance(self._capture, CoreCapture) else time.time_ns()

    def _open_publication(self) -> None:
        if self._config.defender is None:
            return
        from monitor.publication import Audience, Publication  # noqa: PLC0415 - the AWS library costs 7 MB
        from monitor.shadow.keeper import Changes  # noqa: PLC0415 - as above

        self._publication = Publication(
            self._config,
            partial(self._window_of, PUBLISHER),
            say=say,
            on_drop=self._spool_dropped,
            audience=Audience(self._stdout.write, self._first_connection_failed, self._stop_soon)
            if self._options.attended
            else None,
            dry=self._options.dry,
            changes=Changes(self._settled, self._try) if self._daemon else None,
        )

    def _stop_soon(self) -> None:
        self._stop.set()

    def _first_connection_failed(self) -> None:
        self._exit_code = Unreachable.exit_code
        self._unreachable = True
        self._stop.set()

    def _spool_dropped(self, count: int) -> None:
        """Say so in the log; the next batch carries it, for this may be called in the middle of one."""
        self._note_lost("spool_full", count)
        self._capture.interrupt()

    def _note_lost(self, stage: str, count: int) -> None:
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._engine.ingest(records.lost_record(time_ns=boot_ns, stage=stage, count=count))

    def _open_record(self) -> None:
        if self._options.record is None:
            return
        self._recorder = recorder(self._options.record, self._capture.watches)
        self._engine.record(on=True)

    def _keep_records(self, kept: bytes) -> None:
        if self._recorder is None:
            return
        try:
            self._recorder.append(kept)
        except OSError as error:
            say(f"--record: {error.strerror}; recording has ended")
            self._recorder.close()
            self._recorder = None
            self._engine.record(on=False)

    def _say_ready(self) -> None:
        waits = self._command is None
        for line in account.ready(self._capture, self._choice, self._config, self._plan, waits=waits):
            say(line)
        self._notifier.ready(f"watching, capture {self._capture.kind}")

    # -------- answers --------

    def _status(self) -> dict[str, object]:
        snapshot = self._capture.snapshot(None, 0)
        status = account.status(self._capture, snapshot, self._choice, self._since_ns)
        if self._plan.judged:
            status["detect"] = self._detection.status(snapshot.unknown)
        if self._config.detect.action != Action():
            status["actions"] = self._actions.status()
        if self._publication is not None:
            status["publisher"] = self._publication.delivery.status()
        return status

    def _tree(self) -> dict[str, object]:
        return {"tree": [msgspec.json.decode(line) for line in self._engine.tree().splitlines()]}
