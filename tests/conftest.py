"""What every test shares: how hypothesis searches, how a run is ended, and the table that one with full numbers leaves.

Owns hypothesis's profile, the meaning of SIGTERM, what a worker does first, and that page in docs/. Refuses to know
fixtures: they stand beside the tests that use them.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.apart import stand_apart

LONG = bool(os.environ.get("KINWATCH_LONG"))

settings.register_profile(
    "kinwatch",
    max_examples=1000 if LONG else 100,
    # Time is not judged: machines are busy.
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    # The same examples every time where nobody can go on searching from a failure.
    derandomize="CI" in os.environ,
    print_blob=True,
)
settings.load_profile("kinwatch")

# Whoever ends a run ends what its tests started: without this a SIGTERM leaves daemons, pins and namespaces behind.
signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """One of several that run beside each other (pytest-xdist) does not meet the others."""
    if hasattr(config, "workerinput"):
        # How execnet ends a worker whose run has ended; a shell's background job would ignore it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stand_apart()


if LONG:
    PAGE = Path(__file__).resolve().parents[1] / "docs" / "test-long.md"

    def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
        """Write the table of a run with full numbers, one row a file; a part of the suite is no page."""
        config = terminalreporter.config
        if config.args != ["tests"] or config.option.keyword:
            return
        rows: dict[str, Counter[str]] = defaultdict(Counter)
        seconds: Counter[str] = Counter()
        for outcome in ("passed", "failed", "skipped", "error", "xfailed", "xpassed"):
            for report in terminalreporter.getreports(outcome):
                if isinstance(report, pytest.TestReport):
                    file = report.location[0]
                    rows[file][outcome] += 1
                    seconds[file] += round(report.duration * 1000)
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        where = f"commit {head.stdout.strip() or 'unknown'}, {datetime.now(UTC):%Y-%m-%d}"
        lines = [
            "# The suite with full numbers",
            "",
            "`make test-long`. Times say what ran, not how fast.",
            "",
            f"Linux {platform.release()} {platform.machine()}, Python {platform.python_version()}, {where}.",
            "",
            "| file | passed | failed | skipped | seconds |",
            "|---|---:|---:|---:|---:|",
            *(
                f"| {file} | {row['passed']} | {row['failed'] + row['error']} | {row['skipped']} "
                f"| {seconds[file] / 1000:.1f} |"
                for file, row in sorted(rows.items())
            ),
            "",
        ]
        PAGE.write_text("\n".join(lines))
