"""`kinwatch learn`: watches for a while, writes what it saw as expectations, and tries them on what it saw.

Owns the order of a run, and what is written where. Refuses to know what is made of
what was seen: `monitor.detect.learn` does.

A record file is the one source. The same records that a capture feeds its engine are replayed, once under expectations
that expect nothing, so that the engine tells by an alarm whatever it would judge, then under those that were learned,
until they are quiet.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import tempfile
import tomllib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from monitor import __version__, config
from monitor.capture.recordfile import RecordedWatch, RecordReader
from monitor.capture.replay import ReplayCapture
from monitor.detect import profile as profiles
from monitor.detect import written
from monitor.detect.learn import FORBIDDEN, MINUTE_S, MOST, Observed, Terms, learned, narrow, news, widened
from monitor.engine import Engine
from monitor.errors import ConfigInvalid
from monitor.expect import ImpossibleValue, edges, executables
from monitor.learning.observing import Observer
from monitor.learning.recording import NETWORK, Run, record
from monitor.sinks.stream import StreamSink
from monitor.sinks.text import say

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from monitor.config import Config
    from monitor.detect.learn import Learned, Member
    from monitor.expect import Expect
    from monitor.options import LearnOptions
    from monitor.watch import Watch

ALARMED: Final = 1
"""Exit code: nothing was seen, details are missing, or an expectation was broken."""
PASSES: Final = 8
"""Replays until what was learned is quiet. The engine names 64 culprits of a rule at once, so one is seldom too few."""

Fired = Counter[tuple[str, str]]
"""How many alarms there were, by watch and behavior."""


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """What the record tells."""

    watches: tuple[RecordedWatch, ...]
    observed: Mapping[str, Observed]
    seconds: float
    span: tuple[str, str]
    """Times of the first and the last line."""
    lost: Mapping[str, int]
    sockets: bool
    """There were lines about sockets."""


def learn(settings: Config | None, options: LearnOptions) -> int:
    """Watch, or take a record; write, or compare. `settings`: whom to watch, None with a record. Returns the exit code.

    Raises ConfigInvalid, RecordFileInvalid, CaptureUnavailable.
    """
    before = _before(options)
    for path in (options.source, options.check):
        if path is not None:
            RecordReader(path).close()  # what is no record file is said before anybody waits
    with contextlib.ExitStack() as stack:
        if options.source is not None:
            run = Run(path=options.source, capture="record")
        elif settings is not None:
            kept = options.record
            if kept is None:
                directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="kinwatch-learn-"))
                kept = Path(directory, "records")
            run = record(settings, kept, options.duration_s)
        else:
            raise ConfigInvalid("nothing to learn from; name a watch, or a record file with --from")
        return _made(run, options, before)


def observe(path: Path, lost: Mapping[str, int]) -> Findings:
    """All that a record tells, and what was lost of it: of `lost` and of the replay the worse. RecordFileInvalid."""
    nothing = msgspec.convert(dict.fromkeys(MOST, ()) | dict.fromkeys(FORBIDDEN, False), config.Expect)
    with Engine() as engine, contextlib.closing(RecordReader(path)) as reader:
        watches = reader.watches
        observer = Observer(watch.name for watch in watches)
        capture = ReplayCapture(engine, path, {watch.name: nothing for watch in watches})
        try:
            capture.start()
            while capture.poll():
                observer.take(engine.take().lines)
            for watch in watches:
                counters = engine.counters(watch.slot)
                observer.watches[watch.name].reached("child_processes", counters.peak)
            told = engine.losses()
            worst = {stage: max(count, lost.get(stage, 0)) for stage, count in told.items()}
            return Findings(
                watches=watches,
                observed=observer.watches,
                seconds=capture.seconds,
                span=observer.span,
                lost={stage: count for stage, count in worst.items() if count},
                sockets=observer.sockets,
            )
        finally:
            capture.close(keep=False)


def fired(path: Path, expects: Mapping[str, Expect], observed: Mapping[str, Observed] | None = None) -> Fired:
    """Alarms on a record under these expectations; other watches of it expect nothing. RecordFileInvalid.

    `observed`: learns what the alarms tell.
    """
    count: Fired = Counter()
    with Engine() as engine, contextlib.closing(RecordReader(path)) as reader:
        judged = {watch.name: expects.get(watch.name, config.Expect()) for watch in reader.watches}
        observer = Observer(judged, observed)
        capture = ReplayCapture(engine, path, judged)
        try:
            capture.start()
            while capture.poll():
                count += observer.alarms(engine.take().lines)
            count += observer.alarms(engine.take().lines)
        finally:
            capture.close(keep=False)
    return count


class _Before(msgspec.Struct, frozen=True):
    """A configuration that is there already."""

    path: Path
    text: str
    config: Config


def _before(options: LearnOptions) -> _Before | None:
    """What is widened or compared with. ConfigInvalid: something is in the way; said before anybody waits for it."""
    output, profile = options.output, options.profile
    for path in (output, profile, options.record):
        if path is not None and not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
            raise ConfigInvalid(f"{path}: its directory cannot be written to; name another one")
    compared = options.widen if options.widen is not None else output if output and output.exists() else None
    if options.widen is not None and output and output.exists() and not output.samefile(options.widen):
        raise ConfigInvalid(f"{output} exists; name a new file with -o, or widen that one")
    if compared is None and profile is not None and profile.exists():
        raise ConfigInvalid(f"{profile} exists; name a new file with --profile, or remove it")
    if compared is None:
        return None
    found = config.load(compared)
    return _Before(path=compared, text=compared.read_text(encoding="utf-8"), config=found)


def _made(run: Run, options: LearnOptions, before: _Before | None) -> int:
    """From the record to the files."""
    findings = observe(run.path, run.lost)
    code = 0
    if findings.lost:
        told = ", ".join(f"{count} {stage}" for stage, count in findings.lost.items())
        say(f"details were lost ({told}): what was learned is incomplete; see the README on losses, and learn again")
        code = ALARMED
    idle = [watch.name for watch in findings.watches if not findings.observed[watch.name].began]
    for name in idle:
        say(f"watch {name}: nothing was seen, the application did not run; start it, or learn for longer")
        code = ALARMED
    if len(idle) == len(findings.watches):
        return ALARMED
    terms = Terms(
        head_room=options.head_room,
        networks=options.networks,
        seconds=findings.seconds,
        unknown=_unknown(run, findings),
    )
    pages = _Pages(run, options, findings, terms, before)
    text = pages.first()
    if before is not None and options.widen is None:
        return max(code, _compared(before, pages.made, run.path))
    text, on_itself = pages.until_quiet(text)
    parsed = _parsed(text, pages.origin)
    expects = {watch.name: watch.expect for watch in parsed.watches}
    on_other = fired(options.check, expects) if options.check is not None else None
    if options.profile is not None:
        _write(options.profile, _profile(parsed, pages.made), replace=options.widen is not None)
    target = options.output or options.widen
    if target is None:
        if StreamSink.stdout().write(text.encode()):
            raise OSError("stdout is full")
    else:
        _write(target, text, replace=options.widen is not None)
    for line in _firing(pages.made, expects, on_itself, on_other):
        say(line)
    refused = [what for learnt in pages.made.values() for what in learnt.refused]
    for what in refused:
        say(f"cannot be expected, and will raise alarms: {what}")
    return ALARMED if on_itself or on_other or refused else code


def _unknown(run: Run, findings: Findings) -> frozenset[str]:
    if run.unknown is not None:
        return run.unknown
    return frozenset() if findings.sockets else NETWORK


class _Pages:
    """The configuration in the making."""

    def __init__(
        self, run: Run, options: LearnOptions, findings: Findings, terms: Terms, before: _Before | None
    ) -> None:
        self._run, self._findings, self._terms = run, findings, terms
        self._before = before
        self._widen = options.widen is not None
        self.origin = str(options.output or options.widen or "what was learned")
        self.made: dict[str, Learned] = {}

    def first(self) -> str:
        """The configuration of what is known so far."""
        old = {} if self._before is None else {watch.name: watch for watch in self._before.config.watches}
        tables = {}
        users = _users()
        for watch in self._findings.watches:
            observed = self._findings.observed[watch.name]
            if not observed.began:
                continue
            made = learned(observed, self._terms, _impossible)
            known: RecordedWatch | Watch = watch
            if self._widen and watch.name in old:
                known = old[watch.name]
                made = widened(known.expect, made)
            self.made[watch.name] = made
            tables[watch.name] = written.watch_table(
                watch.name, known.kind, known.value, known.enforce if self._widen else "off", made, users
            )
        if self._before is None or not self._widen:
            return written.configuration(self._heading(), tables.values())
        text = written.with_watches(self._before.text, list(old), tables)
        _same_but_watches(self._before, text)
        return text

    def until_quiet(self, text: str) -> tuple[str, Fired]:
        """Try it on the record and learn what it still alarms about; what is left after that is told."""
        for _ in range(PASSES):
            expects = {watch.name: watch.expect for watch in _parsed(text, self.origin).watches}
            alarms = fired(self._run.path, expects, self._findings.observed)
            again = self.first()
            if not alarms or again == text:
                return text, alarms
            text = again
        return text, fired(self._run.path, {w.name: w.expect for w in _parsed(text, self.origin).watches})

    def _heading(self) -> Iterable[str]:
        first, last = self._findings.span
        seconds = self._findings.seconds
        yield f"Learned by kinwatch {__version__} in {seconds:.0f} s (capture {self._run.capture}),"
        yield f"the first event at {first[:19]}Z, the last at {last[:19]}Z."
        yield f"Numbers have {self._terms.head_room} percent of head-room."
        if seconds < MINUTE_S:
            yield "forks_per_minute is scaled up from that time to a minute."
        if self._findings.lost:
            told = ", ".join(f"{count} {stage}" for stage, count in self._findings.lost.items())
            yield f"INCOMPLETE: details were lost ({told}). Learn again before you rely on it."
        if self._run.capture == "poll":
            yield "INCOMPLETE: the poll capture does not see what lives between two of its looks."
        if self._run.capture == "netlink":
            yield "INCOMPLETE: the netlink capture does not see every image of what lives for a moment."


def _compared(before: _Before, made: Mapping[str, Learned], path: Path) -> int:
    """Say what the file that is there would not have been quiet about. Nothing is written."""
    old = {watch.name: watch.expect for watch in before.config.watches}
    new = [
        f"watch {name}: {rule}: {what}"
        for name, found in made.items()
        if name in old
        for rule, what in news(old[name], found)
    ]
    narrowed = {
        name: config.Expect(destinations=old[name].destinations, destination_names=old[name].destination_names)
        for name in made
        if name in old and narrow(old[name])
    }
    told = {name: Observed() for name in narrowed}
    if told:
        fired(path, narrowed, told)
    new += [f"watch {name}: destinations: {what}" for name, one in told.items() for what in one.all_of("destinations")]
    new += [f"watch {name}: it is not in the file" for name in made if name not in old]
    new += [f"watch {name}: the file expects nothing of it" for name in made if old.get(name) == config.Expect()]
    for line in new:
        say(f"new: {line}")
    if new:
        say(f"{before.path} exists and was left as it is; to take this in: --widen {before.path}, or name another file")
        return ALARMED
    say(f"nothing new was seen; {before.path} was left as it is")
    return 0


def _firing(made: Mapping[str, Learned], expects: Mapping[str, Expect], here: Fired, there: Fired | None) -> list[str]:
    """How often each rule fires, a line for each."""
    lines = []
    for name in made:
        rules = [rule for rule in expects[name].__struct_fields__ if getattr(expects[name], rule) is not None]
        rules += sorted({rule for watch, rule in (*here, *(there or ())) if watch == name} - set(rules))
        for rule in rules:
            line = f"watch {name}: {rule}: {here[name, rule]} alarms on what was learned from"
            lines.append(line if there is None else f"{line}, {there[name, rule]} on what it was checked with")
    return lines


def _impossible(rule: str, member: Member) -> str:
    """Why an expectation cannot name it, as things stand on this machine."""
    form = {"executables": executables, "edges": edges}.get(rule)
    if form is None:
        return ""
    text = str(member)
    if "\N{REPLACEMENT CHARACTER}" in text:
        return "its name is not UTF-8"
    try:
        one = form((text,))
    except ImpossibleValue as wrong:
        return wrong.what
    return "" if one == (text,) else f"that path leads to {one[0]} now"


def _users() -> dict[int, str]:
    return {user.pw_uid: user.pw_name for user in pwd.getpwall()}


def _parsed(text: str, origin: str) -> Config:
    return config.parse(text, origin)


def _profile(parsed: Config, made: Mapping[str, Learned]) -> str:
    """The security profile of the watches that were learned. ConfigInvalid: the service would not take it."""
    text = written.profile((watch.name, watch.expect) for watch in parsed.watches if watch.name in made)
    profiles.load(text.encode(), "the security profile of what was learned")
    return text


def _same_but_watches(before: _Before, text: str) -> None:
    """ConfigInvalid: putting watches into the text of the file would change something else in it."""
    try:
        old, new = (
            {key: value for key, value in tomllib.loads(one).items() if key != "watch"} for one in (before.text, text)
        )
    except tomllib.TOMLDecodeError:
        old, new = {}, {"damaged": True}
    if old != new:
        raise ConfigInvalid(
            f"{before.path}: it is not written with one [[watch]] after the other, so its watches cannot be replaced "
            "in place; move them to a file of their own and widen that"
        )


def _write(path: Path, text: str, *, replace: bool) -> None:
    """All of it or nothing. An existing file is replaced, with its mode, only when told to; a link stays one."""
    real = Path(os.path.realpath(path))
    handle, made = tempfile.mkstemp(dir=real.parent, prefix=f".{real.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            if replace and real.exists():
                status = real.stat()
                os.fchmod(handle, status.st_mode & 0o7777)
                os.fchown(handle, status.st_uid, status.st_gid)
            file.write(text)
            file.flush()
            os.fsync(handle)
        if replace:
            Path(made).replace(real)
        else:
            os.link(made, real)
            Path(made).unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            Path(made).unlink()
        raise ConfigInvalid(f"{path}: {error.strerror}; it was not written") from error
    say(f"wrote {path}")
