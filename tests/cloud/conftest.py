"""What the tests of `kinwatch cloud` share: a conversation with AWS, and somebody at a terminal."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from monitor import config
from monitor.cloud import aws
from tests.cloud.conversation import Conversation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """There are no credentials, no region and no configuration on this machine."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "etc.toml")
    return monkeypatch


@pytest.fixture
def talk(nobody: pytest.MonkeyPatch) -> Iterator[Conversation]:
    """The conversation that the command has; at its end everything was said."""
    talk = Conversation()
    nobody.setattr(aws, "connect", lambda *_: talk.aws)
    yield talk
    talk.end()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Lines that somebody types."""
    typed: list[str] = []

    class Terminal:
        @staticmethod
        def isatty() -> bool:
            return True

        @staticmethod
        def readline() -> str:
            return typed.pop(0) + "\n"

    monkeypatch.setattr("sys.stdin", Terminal())
    yield typed
    assert typed == [], "nobody asked"
