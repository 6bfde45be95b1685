"""What the tests of `kinwatch cloud` share: a conversation with AWS, and somebody at a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from monitor import config
from monitor.cloud import aws
from tests.cloud.conversation import Conversation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Conversation]:
    """The conversation that the command has; at its end everything was said."""
    talk = Conversation()
    monkeypatch.setattr(aws, "connect", lambda *_: talk.aws)
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "etc.toml")
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
