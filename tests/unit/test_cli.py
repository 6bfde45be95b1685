"""The command line: what is passed on, what is refused, in one line, with which exit code."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import monitor
from monitor import cli, config, verbs
from monitor.errors import AlreadyRunning, CaptureUnavailable
from monitor.options import ReportOptions, RunOptions, settled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHECKOUT = Path(cli.__file__).parents[1]
VERBS = ("run", "report", "status", "tree", "replay", "doctor", "unload", "defender", "agent", "cloud")


class Agent(types.ModuleType):
    """Stands where the agent is, remembers how it was called and answers as told."""

    def __init__(self) -> None:
        super().__init__("monitor.agent")
        self.calls: list[tuple[Any, ...]] = []
        self.answer: Callable[[], int] = lambda: 0

    def __getattr__(self, name: str) -> Callable[..., int]:
        """Any function of the agent."""
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*arguments: Any, **named: Any) -> int:  # noqa: ANN401 - as many functions as the agent has
            parts = arguments[0] if name == "run" else arguments
            self.calls.append((name, *parts, *sorted(name for name, on in named.items() if on)))
            return self.answer()

        return call


class Launch(types.ModuleType):
    """Stands where the launch is: opens nothing, hands on what it was given."""

    @staticmethod
    @contextlib.contextmanager
    def launched(*given: object, meanwhile: str) -> Iterator[tuple[object, ...]]:
        """The configuration and the options, as the parts of the run."""
        assert meanwhile == "monitor.agent"
        yield given


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Agent:
    """The double, with no configuration on the machine."""
    double = Agent()
    for name in ("agent", "doctor", "oneshot"):
        monkeypatch.setitem(sys.modules, f"monitor.{name}", double)
        monkeypatch.setattr(monitor, name, double, raising=False)
    monkeypatch.setitem(sys.modules, "monitor.launch", Launch("monitor.launch"))
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "etc.toml")
    monkeypatch.chdir(tmp_path)
    return double


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    """Exit code and the one line on stderr."""
    code = cli.main(argv)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("kinwatch: ")
    assert err.count("\n") == 1
    return code, err


def test_run_passes_on_what_the_flags_say(agent: Agent, tmp_path: Path) -> None:
    flags = "run --watch myapp --pid 1 --exe x --expect child_processes=2 --capture core --log out.jsonl --format json"
    more = "--report-to - --interval-s 5 --once --record r.rec --fresh"
    (tmp_path / "x").touch(mode=0o755)
    assert cli.main([*flags.split(), *more.split()]) == 0
    ((name, settings, options),) = agent.calls
    assert name == "run"
    assert isinstance(settings, config.Config)
    assert [(watch.kind, watch.child_limit) for watch in settings.watches] == [("process", 2), ("exe", 2), ("pid", 2)]
    assert settings.capture.kind == "core"
    assert settings.report.interval_s == 5
    assert isinstance(options, RunOptions)
    assert (options.log, options.report_to, options.format) == (str(tmp_path / "out.jsonl"), "-", "json")
    assert (options.once, options.fresh, options.record, options.config_path) == (True, True, Path("r.rec"), None)


def test_without_flags_everything_is_as_documented(agent: Agent) -> None:
    cli.main(["run", "--watch", "myapp"])
    ((_, settings, options),) = agent.calls
    assert options == RunOptions(overrides=options.overrides)
    assert settings == settled(None, options.overrides)
    assert (options.log, options.report_to, settings.capture.kind, settings.report.interval_s) == (
        "-",
        None,
        "auto",
        300,
    )


def test_a_reload_lays_the_flags_over_the_new_file(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "k.toml"
    path.write_text("[capture]\nring_bytes = 8192\n")
    cli.main(["run", "-c", str(path), "--watch", "myapp", "--interval-s", "7"])
    ((_, settings, options),) = agent.calls
    assert settings.capture.ring_bytes == 8192
    path.write_text("[capture]\nring_bytes = 16384\n")
    fresh = settled(options.config_path, options.overrides)
    assert (fresh.capture.ring_bytes, fresh.report.interval_s, fresh.watches) == (16384, 7, settings.watches)


def test_a_file_says_where_lines_and_reports_go_and_flags_say_it_louder(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "k.toml"
    path.write_text('[[watch]]\nname = "a"\nprocess = "a"\n[log]\nfile = "/l"\n[report]\nfile = "/r"\n')
    cli.main(["run", "-c", str(path)])
    cli.main(["run", "-c", str(path), "--log", "-", "--report-to", "-"])
    assert [(call[2].log, call[2].report_to) for call in agent.calls] == [("/l", "/r"), ("-", "-")]


def test_the_machine_s_configuration_is_read_when_no_watch_is_named(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "etc.toml").write_text('[[watch]]\nname = "fromfile"\nprocess = "a"\n')
    cli.main(["run"])
    cli.main(["run", "--watch", "myapp"])
    assert [call[1].watches[0].name for call in agent.calls] == ["fromfile", "myapp"]
    assert [call[2].config_path for call in agent.calls] == [tmp_path / "etc.toml", None]


def test_a_command_after_two_dashes_is_taken_as_it_is(agent: Agent) -> None:
    cli.main(["run", "--once", "--", "/bin/echo", "--watch", "--", "-c"])
    ((_, settings, options),) = agent.calls
    assert options.command == ("/bin/echo", "--watch", "--", "-c")
    assert [watch.name for watch in settings.watches] == ["echo"]


def test_report_passes_on_what_the_flags_say(agent: Agent) -> None:
    cli.main(["report", "--watch", "a", "--format", "cbor", "--names", "short", "--duration-s", "0.5"])
    ((name, settings, options),) = agent.calls
    assert name == "report"
    assert settings.watches[0].name == "a"
    assert options == ReportOptions(format="cbor", names="short", duration_s=0.5)


def test_the_other_verbs_reach_the_agent(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "etc.toml"
    cli.main(["replay", "x.rec"])
    cli.main(["doctor", "--json"])
    cli.main(["unload"])
    path.write_text("[capture]\nring_bytes = 8192\n")
    cli.main(["replay", "-c", str(path), "--format", "json", "x.rec"])
    cli.main(["doctor"])
    cli.main(["doctor", "--send-report"])
    cli.main(["doctor", "--no-connect"])
    loaded = config.load(path)
    assert agent.calls == [
        ("replay", None, Path("x.rec"), "auto"),
        ("main", None, True, "connect"),  # doctor
        ("unload",),
        ("replay", loaded, Path("x.rec"), "json"),
        ("main", loaded, False, "connect"),
        ("main", loaded, False, "connect", "send_report"),
        ("main", loaded, False),
    ]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "VERB"),
        (["watch"], "invalid choice"),
        (["run"], "nothing to watch; name an application"),
        (["run", "--watch"], "expected one argument"),
        (["run", "--wat", "a"], "unrecognized arguments"),
        (["run", "--watch", "a", "--interval-s", "0"], "expected a whole number of seconds"),
        (["run", "--watch", "a", "--interval-s", "1.5"], "expected a whole number of seconds"),
        (["run", "--watch", "a", "--interval-s", "٣"], "expected a whole number of seconds"),
        (["report", "--watch", "a", "--duration-s", "nan"], "expected a number of seconds above 0"),
        (["report", "--watch", "a", "--duration-s", "inf"], "expected a number of seconds above 0"),
        (["report", "--watch", "a", "--duration-s", "-1"], "expected a number of seconds above 0"),
        (["run", "--watch", "a", "--capture", "magic"], "invalid choice: 'magic'"),
        (["run", "--watch", "a/b"], "--watch"),
        (["run", "--watch", "a", "--watch", "a"], "two watches are called a"),
        (["run", "--watch", "a", "--expect", "children=0"], "--expect"),
        (["run", "--pid", "0"], "--pid"),
        (["run", "--pid", "x"], "--pid"),
        (["run", "--exe", "/no/such/folder/x"], "--exe"),
        (["run", "-c", "/no/such/file"], "/no/such/file"),
        (["run", "--"], "expected a command after --"),
        (["status", "--", "x"], "only 'kinwatch run' takes a command"),
        (["replay"], "FILE"),
        (["unload", "now"], "unrecognized arguments: now"),
    ],
)
def test_wrong_usage_ends_with_2_and_one_line(
    agent: Agent, capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    code, line = refused(capsys, *argv)
    assert code == 2
    assert words in line
    assert agent.calls == []


def test_a_wrong_file_names_file_and_key(agent: Agent, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "etc.toml"
    path.write_text("[capture]\nkindd = 1\n")
    code, line = refused(capsys, "run")
    assert code == 2
    assert f"{path}: capture.kindd" in line
    assert agent.calls == []


@pytest.mark.parametrize("failure", [CaptureUnavailable("no BTF;\n  use bcc"), AlreadyRunning("pid 7 holds the pins")])
def test_a_failure_with_a_name_is_one_line_and_its_code(
    agent: Agent, capsys: pytest.CaptureFixture[str], failure: Exception
) -> None:
    def answer() -> int:
        raise failure

    agent.answer = answer
    code, line = refused(capsys, "run", "--watch", "a")
    assert code == 3
    assert line == f"kinwatch: {' '.join(str(failure).split())}\n"


def test_what_the_agent_answers_is_the_exit_code(agent: Agent) -> None:
    agent.answer = lambda: 1
    assert cli.main(["report", "--watch", "a"]) == 1


def test_a_bug_shows_its_traceback_and_ends_with_70(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    def answer() -> int:
        raise ZeroDivisionError

    agent.answer = answer
    assert cli.main(["unload"]) == 70
    err = capsys.readouterr().err
    assert "ZeroDivisionError" in err
    assert "this is a bug in kinwatch" in err.splitlines()[-1]


def test_an_interrupt_is_no_bug(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    def answer() -> int:
        raise KeyboardInterrupt

    agent.answer = answer
    assert cli.main(["unload"]) == 130
    assert capsys.readouterr().err == ""


def test_no_daemon_ends_with_3_and_says_what_to_do(
    agent: Agent, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for verb in ("status", "tree"):
        code, line = refused(capsys, verb, "--socket", str(tmp_path / "none"))
        assert code == 3
        assert "kinwatch run" in line
    assert agent.calls == []


@pytest.mark.parametrize("verb", ["status", "tree"])
def test_an_answer_is_a_table_or_json(
    agent: Agent, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verb: str
) -> None:
    answer: dict[str, Any] = {"capture": "core", "watches": [], "tree": []}
    asked: list[tuple[Path, str]] = []

    def ask(path: Path, what: str) -> dict[str, Any]:
        asked.append((path, what))
        return answer

    monkeypatch.setattr("monitor.control.ask", ask)
    (tmp_path / "etc.toml").write_text('[daemon]\nsocket = "/run/other.sock"\n')
    assert cli.main([verb]) == 0
    table = capsys.readouterr().out
    assert cli.main([verb, "--json", "--socket", "/s"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out) == answer
    assert table.startswith("capture  core" if verb == "status" else "nothing that is watched is running")
    assert asked == [(Path("/run/other.sock"), verb), (Path("/s"), verb)]
    assert agent.calls == []


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_help_lists_the_exit_codes(capsys: pytest.CaptureFixture[str], verb: str | None) -> None:
    assert cli.main([verb, "--help"] if verb else ["--help"]) == 0
    out = capsys.readouterr().out
    assert verbs.EXIT_CODES.strip() in out
    if verb is None:
        assert all(f"    {name} " in out for name in VERBS)


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"kinwatch {monitor.__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom monitor import cli\ncli.main(['--help'])\n"
        "print(sorted({'traceback', 'msgspec', 'asyncio', 'psutil', 'cffi', 'cbor2', 'monitor.engine'} "
        "& set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"]])
def test_a_reader_that_went_away_is_no_failure_of_ours(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ran = kinwatch(arguments, writing)
    finally:
        os.close(writing)
    assert (ran.returncode, ran.stderr) == (141, "")


def test_a_full_disk_on_stdout_is_told_in_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        ran = kinwatch(["--version"], full.fileno())
    assert ran.returncode == 4
    assert ran.stderr == "kinwatch: stdout: No space left on device; what was asked for is not complete\n"


@pytest.mark.parametrize("arguments", [["replay", "/nowhere"], ["--nothing"], ["cloud", "check", "--watch", "a"]])
def test_a_full_disk_on_stderr_changes_no_exit_code(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "monitor", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"AWS_CONFIG_FILE": "/nowhere", "AWS_EC2_METADATA_DISABLED": "true"}
    told = subprocess.run(command, capture_output=True, check=False, cwd=CHECKOUT, env=environment)
    with Path("/dev/full").open("wb") as full:
        ran = subprocess.run(command, stderr=full, check=False, cwd=CHECKOUT, env=environment)
    assert told.stderr.startswith(b"kinwatch: ")
    assert ran.returncode == told.returncode > 1


@pytest.mark.parametrize(
    ("encoding", "written"),
    [("ascii", b"\\u251c \\xa4\n"), ("latin-1", b"\\u251c \xa4\n"), ("iso8859-15", b"\\u251c \\xa4\n")],
)
def test_what_the_locale_cannot_write_is_escaped(encoding: str, written: bytes) -> None:
    code = "from monitor.stdout import put\nput('\\u251c \\xa4\\n')"
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=CHECKOUT, env=environment)
    assert ran.stdout == written


def test_a_closed_stdout_is_no_traceback() -> None:
    command = f"exec {sys.executable} -m monitor --version >&-"
    ran = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, cwd=CHECKOUT)
    assert "Traceback" not in ran.stderr


def kinwatch(arguments: list[str], stdout: int) -> subprocess.CompletedProcess[str]:
    """Run the program with that stdout."""
    command = [sys.executable, "-m", "monitor", *arguments]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, cwd=CHECKOUT)
